import fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { RateLimiter } from "../../src/access/rate-limit.ts";
import { debtSecondsMax, rateBucketCollection, type Spending, spend } from "../../src/store/rate-buckets.ts";
import { bearer, createTenant, protocols, type Send, startService, type TestService } from "../support/service.ts";

const key = (limit: number) => ({ id: "key_1", limit });
const organization = { id: "org_1", limit: 1_000_000 };

/** The shared buckets, as the database would keep them, on a clock that the test moves. */
function sharedBuckets() {
  const buckets = new Map<string, { tokens: number; atMs: number }>();
  return async (spendings: readonly Spending[]) => {
    const levels = new Map<string, number>();
    for (const { id, limit, tokens } of spendings) {
      const known = buckets.get(id) ?? { tokens: limit, atMs: Date.now() };
      const refilled = Math.min(limit, known.tokens + ((Date.now() - known.atMs) / 1000) * limit);
      const level = Math.max(-debtSecondsMax * limit, refilled - tokens);
      buckets.set(id, { tokens: level, atMs: Date.now() });
      levels.set(id, level);
    }
    return levels;
  };
}

describe("on a simulated clock", () => {
  afterEach(() => vi.useRealTimers());

  test("any number of instances under any load admit a key at its rate, within 10 %", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 6 }),
        fc.integer({ min: 5, max: 200 }),
        // How many requests each instance gets in every 10 ms: many, few or none, changing over time.
        fc.array(fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 6, maxLength: 6 }), {
          minLength: 1,
          maxLength: 5,
        }),
        async (instances, limit, phases) => {
          vi.useFakeTimers();
          const share = sharedBuckets();
          const limiters = Array.from(
            { length: instances },
            () => new RateLimiter({ now: Date.now, share, onError: () => {} }),
          );
          const seconds = 30;
          let [asked, allowed] = [0, 0];
          for (let ms = 0; ms < seconds * 1000; ms += 10) {
            const phase = phases[Math.floor(ms / 3000) % phases.length] as number[];
            limiters.forEach((limiter, i) => {
              for (let n = phase[i] as number; n > 0; n--) {
                asked++;
                if (limiter.take(key(limit), organization).allowed) allowed++;
              }
            });
            await vi.advanceTimersByTimeAsync(10);
          }
          // A burst of one second is allowed on top of the rate.
          expect(allowed).toBeLessThanOrEqual(1.1 * limit * seconds + limit);
          const steady = phases.every(
            (phase) => phase.slice(0, instances).reduce((sum, n) => sum + n, 0) * 100 > 2 * limit,
          );
          if (steady) expect(allowed).toBeGreaterThanOrEqual(Math.min(asked, 0.9 * limit * seconds));
        },
      ),
      { numRuns: 10 },
    );
  });

  test("tokens spent during a report are reported soon after it, without waiting for another request", async () => {
    vi.useFakeTimers();
    const shared = sharedBuckets();
    const reported: number[] = [];
    const share = async (spendings: readonly Spending[]) => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      reported.push(spendings.find(({ id }) => id === "key_1")?.tokens ?? 0);
      return shared(spendings);
    };
    const limiter = new RateLimiter({ now: Date.now, share, onError: () => expect.unreachable() });
    const take = (count: number) =>
      Array.from({ length: count }, () => limiter.take(key(60), organization)).filter(({ allowed }) => allowed).length;
    expect(take(1)).toBe(1);
    await vi.advanceTimersByTimeAsync(120);
    expect(take(59)).toBe(59);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(reported).toEqual([1, 59]);
    expect(take(1)).toBe(1);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(take(60)).toBe(60);
  });

  test("each instance limits a key by its rate while the shared buckets are unreachable", async () => {
    vi.useFakeTimers();
    const errors: unknown[] = [];
    const share = () => Promise.reject(new Error("away"));
    const limiter = new RateLimiter({ now: Date.now, share, onError: (error) => errors.push(error) });
    let allowed = 0;
    for (let ms = 0; ms < 10_000; ms += 10) {
      for (let n = 0; n < 5; n++) if (limiter.take(key(20), organization).allowed) allowed++;
      await vi.advanceTimersByTimeAsync(10);
    }
    expect(allowed).toBeGreaterThanOrEqual(20 * 10);
    expect(allowed).toBeLessThanOrEqual(20 * 11);
    expect(errors.length).toBeGreaterThan(0);
  });
});

describe("two instances on one database", () => {
  let instances: TestService[];
  beforeAll(async () => {
    const first = await startService();
    instances = [first, await startService({ database: first.app.db.databaseName })];
  });
  afterAll(() => Promise.all(instances.map(({ app }) => app.close())));

  test("together admit a key at its rate, within 10 % of a single bucket", async () => {
    const limit = 50;
    const [one, two] = instances as [TestService, TestService];
    const tenant = await createTenant(one.admin, { name: "Rate", keyRequestsPerSecond: limit });
    const ideal = { tokens: limit, atMs: performance.now() };
    let [allowed, due, refused, isOver] = [0, 0, 0, false];
    /**
     * The single bucket takes each request when its answer arrives. So on a slow machine, too, it sees the same
     * requests at the same times as the instances.
     */
    const takeIdeally = () => {
      const nowMs = performance.now();
      ideal.tokens = Math.min(limit, ideal.tokens + ((nowMs - ideal.atMs) / 1000) * limit);
      ideal.atMs = nowMs;
      if (ideal.tokens < 1) return;
      ideal.tokens--;
      due++;
    };
    const hammer = async (url: string) => {
      while (!isOver) {
        const { status } = await (protocols.REST as Send)(url, "ping", {}, bearer(tenant.key));
        takeIdeally();
        if (status === 200) allowed++;
        else {
          expect(status).toBe(429);
          refused++;
        }
      }
    };
    const hammers = Promise.all([one, two, one, two].map(({ app }) => hammer(app.url)));
    try {
      // The instances pay back their bursts within a second; a busy machine may take longer.
      await expect.poll(() => due, { timeout: 60_000, interval: 100 }).toBeGreaterThan(7 * limit);
      const ratio = () => allowed / due;
      await expect
        .poll(ratio, { timeout: 30_000, interval: 100 })
        .toSatisfy((value: number) => value >= 0.9 && value <= 1.1);
      expect(refused).toBeGreaterThan(0);
    } finally {
      isOver = true;
      await hammers;
    }
  }, 120_000);

  test("the first reports of a bucket from several instances at once all count", async () => {
    const { db } = (instances[0] as TestService).app;
    for (let round = 0; round < 10; round++) {
      const id = `key_round_${round}`;
      const startedMs = performance.now();
      await Promise.all(Array.from({ length: 8 }, () => spend(db, [{ id, limit: 1, tokens: 1 }])));
      const flowedIn = (performance.now() - startedMs) / 1000;
      // A bucket of 1 from which 8 were taken owes 7, less the refill since. Clocks tick in milliseconds.
      expect((await rateBucketCollection(db).findOne({ _id: id }))?.tokens).toBeLessThan(-7 + flowedIn + 0.1);
    }
  });
});
