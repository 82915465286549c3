import { randomBytes } from "node:crypto";
import { Collection, type Db, type MongoClient, MongoNetworkError } from "mongodb";
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { createIdSource, timeOfId, ulidOf } from "../../src/ids.ts";
import { doOnce, type Work } from "../../src/ingest/idempotency.ts";
import { limits } from "../../src/limits.ts";
import { cardCollection, type CardDocument, CardStore } from "../../src/store/snapshots.ts";
import { claimCollection, type ClaimDocument, claimId, ClaimStore } from "../../src/store/idempotency.ts";
import { collections } from "../../src/store/collections.ts";
import { createClient } from "../../src/store/database.ts";
import { migrate } from "../../src/store/migrations.ts";
import { eventCollection, EventStore, type NewRow, rowOf, type RowOwner, rowsBetween } from "../../src/store/events.ts";
import { removeRowsOfWorker } from "../../src/store/row-removal.ts";
import { GroupCommit, isNotBegun } from "../../src/store/group-commit.ts";
import { countRows, recount } from "../../src/store/recount.ts";
import { usageDayCollection, usageTypesMax } from "../../src/store/usage-days.ts";
import { UsageKeeper } from "../../src/store/usage-keeper.ts";
import { monthOfRequest, type QuotaRequest, usageCollection, UsageStore } from "../../src/store/usage.ts";
import { monthOf } from "../../src/time.ts";
import { type ActorIds, workerCollection, WorkerStore } from "../../src/store/workers.ts";
import { sumOf } from "../support/rows.ts";
import { ShardWatch } from "../support/sharding.ts";

const watch = new ShardWatch();
let clients: MongoClient[];
/** For what a test looks at. */
let db: Db;
/** For what the service does. */
let watchedDb: Db;

beforeAll(async () => {
  clients = [false, true].map((monitorCommands) => createClient(inject("mongodbUri"), { monitorCommands }));
  const name = `exact-${randomBytes(6).toString("hex")}`;
  [db, watchedDb] = clients.map((client) => client.db(name)) as [Db, Db];
  watchedDb.client.on("commandStarted", watch.hear);
  await migrate(watchedDb, collections);
});
afterAll(async () => {
  await db.dropDatabase();
  for (const client of clients) await client.close();
  watch.check();
});

const ids = createIdSource();
const newId = () => ids.next("wrk");
const workerId = newId();
const app = { id: ids.next("app"), slug: "crm" };
let counter = 0;
const unique = (name: string) => `${name}-${++counter}`;

function rowsOf(count: number, change: Partial<NewRow> = {}): NewRow[] {
  const event = { workerId, type: "ticket.resolved", category: "other", timestamp: new Date() };
  return Array.from({ length: count }, (_, index) => ({ ...event, ...change, index }));
}

const ownerOf = (organizationId: string, requestId = ids.next("req")) => ({ organizationId, appId: app.id, requestId });

describe("group commits", () => {
  test("concurrent rows are stored even if they are too large for one command", async () => {
    const store = new EventStore(watchedDb);
    const organizationId = ids.next("org");
    // 16 KB of JSON that need 80 KB stored. Ten such requests exceed the 16 MB of a command and the driver's buffer.
    const metadata = { a: Array.from({ length: 8000 }, () => 1) };
    const requests = Array.from({ length: 10 }, () => rowsOf(60, { metadata }));
    await Promise.all(requests.map((rows) => store.insert(ownerOf(organizationId), rows)));
    expect(await eventCollection(db).countDocuments(rowsBetween(organizationId))).toBe(600);
  }, 120_000);

  test("an existing row counts as stored, and the result says whether any was new", async () => {
    const store = new EventStore(watchedDb);
    const [owner, rows] = [ownerOf(ids.next("org")), rowsOf(3)];
    const insert = async (some: readonly NewRow[]) => (await store.insert(owner, some)).isNew;
    expect(await insert(rows.slice(1, 2))).toBe(true);
    expect(await store.has(owner, rows)).toBe(false);
    expect(await Promise.all([insert(rows), insert(rows.slice(1, 2))])).toEqual([true, false]);
    expect(await insert(rows)).toBe(false);
    expect(await store.has(owner, rows)).toBe(true);
  });

  test("rows whose first answer was lost count as new", async () => {
    const store = new EventStore(watchedDb);
    const [owner, rows] = [ownerOf(ids.next("org")), rowsOf(2)];
    const { command } = watchedDb;
    const lost = vi.spyOn(watchedDb, "command").mockImplementationOnce(async (...args) => {
      await command.apply(watchedDb, args);
      throw new MongoNetworkError("the answer was lost");
    });
    onTestFinished(() => lost.mockRestore());
    expect((await store.insert(owner, rows)).isNew).toBe(true);
    expect(lost).toHaveBeenCalledTimes(2);
    expect((await store.insert(owner, rows)).isNew).toBe(false);
  });

  test("an item that a full queue refuses, or that its caller abandons, was never begun; a failed one was", async () => {
    const done: number[] = [];
    let release = () => {};
    const held = new Promise<void>((resolve) => (release = resolve));
    const group = new GroupCommit<number, void>({
      name: "numbers",
      concurrencyMax: 1,
      batchWeightMax: 10,
      queueWeightMax: 4,
      async run(items) {
        await held;
        done.push(...items);
        if (items.includes(1)) throw new Error("disk");
        return items.map(() => ({ value: undefined }));
      },
    });
    const submit = (item: number, wanted?: () => boolean) =>
      group.submit(item, 1, wanted).catch((error: unknown) => error);
    const failed = submit(1);
    await new Promise((resolve) => setImmediate(resolve));
    const unwanted = submit(2, () => false);
    const stored = submit(3);
    expect(isNotBegun(await submit(4))).toBe(true);
    release();
    expect(isNotBegun(await failed)).toBe(false);
    expect(isNotBegun(await unwanted)).toBe(true);
    expect(await stored).toBeUndefined();
    expect(done).toEqual([1, 3]);
  });
});

test("a hanging batch lets the next one begin after a second, until four hang, and all of them succeed", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => void vi.useRealTimers());
  const answers: (() => void)[] = [];
  const group = new GroupCommit<number, number>({
    ...{ name: "hanging", concurrencyMax: 2, batchWeightMax: 1, queueWeightMax: 100 },
    run: (items) => new Promise((resolve) => answers.push(() => resolve(items.map((value) => ({ value }))))),
  });
  const outcomes = Array.from({ length: 10 }, (_, i) => group.submit(i));
  const begun = async () => {
    await new Promise((resolve) => setImmediate(resolve));
    return answers.length;
  };
  expect(await begun()).toBe(2);
  const counts = [];
  for (let second = 1; second <= 4; second++) {
    await vi.advanceTimersByTimeAsync(1_000);
    counts.push(await begun());
  }
  expect(counts).toEqual([4, 6, 6, 6]);
  // The database answers again. Late batches leave room for at most two others.
  answers[0]?.();
  expect(await begun()).toBe(6);
  answers[5]?.();
  expect(await begun()).toBe(7);
  for (let i = 1; i < 10; i++) {
    answers[i]?.();
    await begun();
  }
  expect(await Promise.all(outcomes)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

describe("cards", () => {
  const card = (_id: string, ms: number, requestId: string): CardDocument => ({
    ...{ _id, organizationId: "org_1", workerId: "wrk_1", appId: app.id, snapshotType: "open" },
    ...{ timestamp: new Date(ms), receivedAt: new Date(), requestId, metrics: { requestId } },
  });

  test("the newest wins in any order of arrival, even if first ones meet on two instances", async () => {
    const stores = [new CardStore(watchedDb), new CardStore(watchedDb)] as const;
    for (let round = 0; round < 20; round++) {
      const _id = unique("card");
      const requests = Array.from({ length: 8 }, () => ids.next("req"));
      const newest = requests.at(-1) as string;
      // The newest by time, then two more with the same time: the greater id wins.
      const cards = requests.map((requestId, i) => card(_id, Math.min(i, 6), requestId));
      const shuffled = cards.map((_, i) => cards[(i * 3 + round) % cards.length] as CardDocument);
      await Promise.all(shuffled.map((one, i) => (stores[i % 2] as CardStore).put(one)));
      await (stores[0] as CardStore).put(cards[0] as CardDocument);
      expect((await cardCollection(db).findOne({ _id }))?.requestId).toBe(newest);
    }
  });
});

describe("claims", () => {
  const organizationId = "org_claims";
  const claim = (_id: string, expiresAt: Date, change: Partial<ClaimDocument> = {}): ClaimDocument => ({
    ...{ _id, organizationId, fingerprint: "f", requestId: ids.next("req"), receivedAt: new Date(), outcome: {} },
    ...{ expiresAt, ...change },
  });
  const later = () => new Date(Date.now() + 600_000);
  const ofVersion2 = ({ organizationId: _, ...rest }: ClaimDocument) => rest as ClaimDocument;

  test("exactly one of many concurrent takers on two instances gets its claim, new or in place of an expired one", async () => {
    const stores = [new ClaimStore(watchedDb, Date.now), new ClaimStore(watchedDb, Date.now)] as const;
    for (const expired of [false, true]) {
      const _id = unique("claim");
      if (expired) await claimCollection(db).insertOne(claim(_id, new Date(Date.now() - 1)));
      const own = Array.from({ length: 16 }, () => claim(_id, later()));
      const held = await Promise.all(own.map((one, i) => (stores[i % 2] as ClaimStore).take(one, 1)));
      expect(new Set(held.map(({ requestId }) => requestId)).size).toBe(1);
      expect(held.filter(({ requestId }, i) => requestId === own[i]?.requestId)).toHaveLength(1);
      expect((await claimCollection(db).findOne({ _id }))?.requestId).toBe(held[0]?.requestId);
    }
  });

  test("a claim of schema version 2, which has no organisation, counts, is extended and replaced", async () => {
    // Unwatched: a cluster has no such claim, because it is sharded after the update.
    const store = new ClaimStore(db, Date.now);
    const expired = claim(unique("claim"), new Date(Date.now() - 1));
    await claimCollection(db).insertOne(ofVersion2(expired));
    const next = claim(expired._id, later());
    expect(await store.take(next, 1)).toEqual(next);
    const held = ofVersion2(claim(unique("claim"), later()));
    await claimCollection(db).insertOne(held);
    expect(await store.find(organizationId, held._id)).toEqual(held);
    expect(await store.take(claim(held._id, later()), 1)).toEqual(held);
    expect(await store.extend(held, new Date(held.expiresAt.getTime() + 1))).toBe(true);
  });

  test("one organisation's claims and reads of claims do not wait for another's", async () => {
    const store = new ClaimStore(watchedDb, Date.now);
    const greedy = { organizationId: "org_greedy" };
    let done = 0;
    const doneBefore = async (many: readonly Promise<unknown>[], one: () => Promise<unknown>) => {
      done = 0;
      for (const each of many) void each.then(() => done++);
      await one();
      const before = done;
      await Promise.all(many);
      return before / many.length;
    };
    const taken = Array.from({ length: 40 }, () => store.take(claim(unique("claim"), later(), greedy), 500));
    expect(await doneBefore(taken, () => store.take(claim(unique("claim"), later()), 1))).toBeLessThan(0.5);
    const read = Array.from({ length: 8_000 }, () => store.find(greedy.organizationId, unique("claim")));
    expect(await doneBefore(read, () => store.find(organizationId, unique("claim")))).toBeLessThan(0.5);
  });

  test("only the same request can extend a claim, and it never becomes shorter", async () => {
    const store = new ClaimStore(watchedDb, Date.now);
    const mine = claim(unique("claim"), later());
    await store.take(mine, 1);
    await store.extend(mine, new Date(mine.expiresAt.getTime() + 5_000));
    await store.extend(mine, new Date(mine.expiresAt.getTime() - 5_000));
    await store.extend({ ...mine, requestId: "req_other" }, new Date(mine.expiresAt.getTime() + 9_000));
    const found = await store.find(organizationId, mine._id);
    expect(found?.expiresAt.getTime()).toBe(mine.expiresAt.getTime() + 5_000);
  });
});

describe("the window of an Idempotency-Key", () => {
  const windowMs = limits.idempotencyWindowSeconds * 1000;
  let nowMs = Date.now();
  const store = () => new ClaimStore(watchedDb, () => nowMs);

  /** Of each request that has ended: whether it stored the events. */
  const isStoredBy: (boolean | undefined)[] = [];

  /** Makes a request whose write takes `takesMs`; returns whether it was a replay. */
  async function once(
    key: string,
    takesMs: number,
    isNew: boolean,
    meanwhile = async (): Promise<unknown> => undefined,
  ): Promise<boolean> {
    const start = { requestId: ids.next("req"), receivedAt: new Date(nowMs) };
    const services = {
      claims: store(),
      now: () => nowMs,
      stage: (_: unknown, __: string, work: () => unknown) => work(),
    };
    const call = {
      principal: { organizationId: "org_window", caller: { keyId: "key_window" } },
      start,
      wanted: () => true,
    };
    const work: Work<object> = {
      isAtHand: () => false,
      decide: async () => ({}),
      keep: (outcome) => outcome,
      recall: (kept) => kept as object,
      sizeOf: () => 1,
      isShort: () => false,
      isTakenBefore: async () => false,
      undo: async () => {},
      doubt: () => {},
      async store() {
        nowMs += takesMs;
        await meanwhile();
        return isNew;
      },
      isStored: async () => !isNew,
    };
    const { facts } = await doOnce(services as never, call as never, { key, fingerprint: "f" }, work);
    isStoredBy.push(facts.isStored);
    return facts.claim === "replayed";
  }
  const expiresMs = async (key: string) =>
    (await claimCollection(db).findOne({ _id: claimId("key_window", key) }))?.expiresAt.getTime() ?? 0;

  test("lets a replay store the events first, and says which of the two did", async () => {
    const key = unique("window");
    isStoredBy.length = 0;
    expect(await once(key, 0, false, () => once(key, 0, true))).toBe(false);
    expect(isStoredBy).toEqual([true, false]);
  });

  test("begins with the first answer, however long that took", async () => {
    for (const takesMs of [0, 1_000, 30_000]) {
      const key = unique("window");
      expect(await once(key, takesMs, true)).toBe(false);
      const answeredMs = nowMs;
      expect(await expiresMs(key)).toBeGreaterThanOrEqual(answeredMs + windowMs);
      expect(await expiresMs(key)).toBeLessThanOrEqual(answeredMs + windowMs + 2_000);
    }
  });

  test("begins with the retry's answer if the first request died before it stored anything; a replay does not move it", async () => {
    const key = unique("window");
    await once(key, 0, true);
    nowMs += windowMs / 2;
    const before = await expiresMs(key);
    expect(await once(key, 0, false)).toBe(true);
    expect(await expiresMs(key)).toBe(before);
    expect(await once(key, 0, true)).toBe(true);
    expect(await expiresMs(key)).toBeGreaterThanOrEqual(nowMs + windowMs);
  });

  test("does not begin for a request short of quota that cannot look for another's claim, which gives back its quota", async () => {
    const claims = store();
    const find = vi.spyOn(claims, "find").mockResolvedValueOnce(undefined).mockRejectedValueOnce(new Error("away"));
    const undo = vi.fn(async () => {});
    const work = {
      isAtHand: () => false,
      decide: async () => ({}),
      isShort: () => true,
      isTakenBefore: async () => true,
      undo,
    };
    const services = { claims, now: () => nowMs, stage: (_: unknown, __: string, done: () => unknown) => done() };
    const start = { requestId: ids.next("req"), receivedAt: new Date(nowMs) };
    const call = {
      principal: { organizationId: "org_window", caller: { keyId: "key_window" } },
      start,
      wanted: () => true,
    };
    const key = unique("window");
    const done = doOnce(services as never, call as never, { key, fingerprint: "f" }, work as never);
    await expect(done).rejects.toThrow("away");
    expect(find).toHaveBeenCalledTimes(2);
    expect(undo).toHaveBeenCalledTimes(1);
    expect(await expiresMs(key)).toBe(0);
  });

  test("does not end while a late retry still stores", async () => {
    const key = unique("window");
    const died = once(key, 0, true, () => Promise.reject(new Error("dies before it has stored anything")));
    await expect(died).rejects.toThrow();
    nowMs += windowMs;
    let isReplay = false;
    // A request that decides anew during this write stores the events again, under other ids.
    expect(await once(key, 10_000, true, async () => (isReplay = await once(key, 0, true)))).toBe(true);
    expect(isReplay).toBe(true);
  });

  test("is over for a request that was paused past it if a retry has come: it stores nothing", async () => {
    for (const retries of [false, true]) {
      const key = unique("window");
      const sleeper = store();
      const take = sleeper.take.bind(sleeper);
      const asleep = vi.spyOn(ClaimStore.prototype, "take").mockImplementationOnce(async (...claim) => {
        const held = await take(...claim);
        nowMs += windowMs + 10_000;
        if (retries) expect(await once(key, 0, true)).toBe(false);
        return held;
      });
      const outcome = once(key, 0, true);
      if (retries) await expect(outcome).rejects.toMatchObject({ code: "internal_error", unavailable: true });
      else expect(await outcome).toBe(false);
      asleep.mockRestore();
    }
  });
});

describe("workers", () => {
  const actor = (names: Partial<ActorIds>, organizationId = "org_workers"): ActorIds => ({
    organizationId,
    app,
    ...names,
  });
  const storeOf = (of: Db) => new WorkerStore(of, Buffer.alloc(32), () => performance.now());
  const provision = (store: WorkerStore, one: ActorIds) => store.provision(one, newId, new Date());

  test("one external id sent with two new emails at once names one worker", async () => {
    for (let round = 0; round < 10; round++) {
      const externalId = unique("x");
      const actors = ["a", "b"].map((name) => actor({ externalId, email: `${name}${externalId}@x.org` }));
      const stores = [storeOf(watchedDb), storeOf(watchedDb)] as const;
      const made = await Promise.all(
        [...actors, ...actors].map((one, i) => provision(stores[i % 2] as WorkerStore, one)),
      );
      expect(new Set(made.map(({ _id }) => _id)).size).toBe(1);
      expect(await workerCollection(db).countDocuments({ "links.externalId": externalId })).toBe(1);
    }
  });

  test("if two known workers would gain an external id at once, one of them gets it, for both requests", async () => {
    for (let round = 0; round < 10; round++) {
      const externalId = unique("x");
      const emails = ["a", "b"].map((name) => `${name}${externalId}@x.org`);
      const stores = [storeOf(watchedDb), storeOf(watchedDb)] as const;
      await Promise.all(emails.map((email, i) => provision(stores[i] as WorkerStore, actor({ email }))));
      const found = await Promise.all(
        emails.map((email, i) => provision(stores[i] as WorkerStore, actor({ email, externalId }))),
      );
      expect(found[0]?._id).toBe(found[1]?._id);
      expect(await workerCollection(db).countDocuments({ "links.externalId": externalId })).toBe(1);
      expect(await workerCollection(db).countDocuments({ email: { $in: emails } })).toBe(2);
    }
  });

  test("another worker's external id decides before the email, and changes neither worker", async () => {
    const store = storeOf(watchedDb);
    const [externalId, email] = [unique("x"), `${unique("m")}@x.org`];
    const byExternalId = await provision(store, actor({ externalId }));
    const byEmail = await provision(store, actor({ email }));
    expect((await provision(store, actor({ externalId, email })))._id).toBe(byExternalId._id);
    const stored = await workerCollection(db)
      .find({ _id: { $in: [byExternalId._id, byEmail._id] } })
      .sort({ _id: 1 })
      .toArray();
    expect(stored.map(({ email, links }) => [email, links.length])).toEqual([
      [undefined, 1],
      [email, 0],
    ]);
  });

  test("the first display name stays, even if another caller sends a new one", async () => {
    const externalId = unique("x");
    const stores = [storeOf(watchedDb), storeOf(watchedDb)] as const;
    await provision(stores[0], actor({ externalId }));
    await provision(stores[1], actor({ externalId }));
    expect((await provision(stores[0], actor({ externalId, displayName: "Alex" }))).displayName).toBe("Alex");
    // The second store does not know it yet.
    expect((await provision(stores[1], actor({ externalId, displayName: "Bo" }))).displayName).toBe("Alex");
    stores[0].forgetAll();
    expect((await provision(stores[0], actor({ externalId, displayName: "Cy" }))).displayName).toBe("Alex");
  });

  test("a worker that was forgotten is read again, by every name", async () => {
    const store = storeOf(watchedDb);
    const names = { externalId: unique("x"), email: `${unique("m")}@x.org` };
    const { _id } = await provision(store, actor(names));
    expect(store.cached(actor({ email: names.email }))?._id).toBe(_id);
    await workerCollection(db).updateOne({ _id }, { $set: { displayName: "Elsewhere" } });
    store.forget(actor(names).organizationId);
    for (const one of [
      actor({ email: names.email }),
      actor({ externalId: names.externalId }),
      actor({ workerId: _id }),
    ]) {
      expect(store.cached(one)).toBeUndefined();
    }
    expect(await store.find(actor({ email: names.email }))).toMatchObject({ displayName: "Elsewhere" });
    expect(store.cached(actor({ externalId: names.externalId }))?.displayName).toBe("Elsewhere");
  });
});

describe("quota", () => {
  const month = "2026-05";
  const usageOf = async (organizationId: string) =>
    (await usageCollection(db).findOne({ _id: `${organizationId}/${month}` }))?.events;

  test("the first takers of a month on several instances get exactly the quota, with batches and single events mixed", async () => {
    for (let round = 0; round < 10; round++) {
      const organizationId = ids.next("org");
      const stores = Array.from({ length: 4 }, () => new UsageStore(watchedDb));
      const wanted = Array.from({ length: 40 }, (_, i) => 1 + (i % 5));
      const granted = await Promise.all(
        wanted.map(async (events, i) =>
          (stores[i % 4] as UsageStore).take({ organizationId, month, events, quotaEvents: 50 }),
        ),
      );
      expect(granted.reduce((sum, n) => sum + n, 0)).toBe(50);
      expect(granted.every((n, i) => n <= (wanted[i] as number))).toBe(true);
      expect(await usageOf(organizationId)).toBe(50);
    }
  });

  test("a lowered quota takes nothing back and admits nothing, even beside requests with the old quota", async () => {
    const organizationId = ids.next("org");
    const store = new UsageStore(watchedDb);
    const take = (events: number, quotaEvents: number) => store.take({ organizationId, month, events, quotaEvents });
    expect(await take(8, 10)).toBe(8);
    expect(await Promise.all([take(1, 5), take(1, 10), take(9, 10)])).toEqual([0, 1, 1]);
    expect(await take(1, 5)).toBe(0);
    expect(await usageOf(organizationId)).toBe(10);
  });

  /** Makes the organisation busy on the instance, which then charges ahead. */
  async function reserve(store: UsageStore, request: QuotaRequest): Promise<number> {
    let taken = 0;
    await expect
      .poll(async () => {
        taken += await store.take(request);
        return store.isReserved(request);
      })
      .toBe(true);
    return taken;
  }

  test("near the end of a quota, a duplicate finds who took the last of it, and no Idempotency-Key stays", async () => {
    const store = new UsageStore(watchedDb);
    const owner = { organizationId: ids.next("org"), month };
    const claimant = (requestId: string) => ({ claim: claimId("key_1", "sync-ada@example.com"), requestId });
    const request = { ...owner, events: 1, quotaEvents: 2, claimant: claimant("req_1") };
    expect(await store.take(request)).toBe(1);
    expect(await store.isTakenBefore(owner, claimant("req_1"))).toBe(false);
    expect(await store.isTakenBefore(owner, claimant("req_2"))).toBe(true);
    const stored = await usageCollection(db).findOne({ organizationId: owner.organizationId });
    expect(stored?.takers).toHaveLength(1);
    expect(JSON.stringify(stored)).not.toContain("ada@example.com");
    await store.stop();
  });

  test("a request returns what it took of a reservation if it cannot ask for the rest", async () => {
    const request = { organizationId: ids.next("org"), month, events: 100, quotaEvents: 1_000_000 };
    const store = new UsageStore(watchedDb);
    const taken = await reserve(store, request);
    const broken = vi.spyOn(Collection.prototype, "updateOne").mockRejectedValueOnce(new Error("away"));
    await expect(async () => store.take({ ...request, events: 5_000 })).rejects.toThrow("away");
    broken.mockRestore();
    await store.stop();
    expect(await usageOf(request.organizationId)).toBe(taken);
    expect([...store.doubtful]).toEqual([`${request.organizationId}/${month}`]);
  });

  test("returned quota is free again, and the count never becomes negative", async () => {
    const organizationId = ids.next("org");
    const store = new UsageStore(watchedDb);
    await store.take({ organizationId, month, events: 3, quotaEvents: 3 });
    await store.giveBack({ organizationId, month }, 2);
    expect(await store.take({ organizationId, month, events: 5, quotaEvents: 3 })).toBe(2);
    await store.giveBack({ organizationId, month }, 99);
    expect(await usageOf(organizationId)).toBe(0);
    await store.giveBack({ organizationId: ids.next("org"), month }, 1);
  });

  test("a recount sets the usage to the month's rows by their ids, even if the clock steps at the month's end", async () => {
    const organizationId = ids.next("org");
    let nowMs = Date.UTC(2026, 4, 31, 23, 59, 59, 999);
    const clock = createIdSource(() => nowMs);
    const requests = [clock.next("req"), clock.next("req")];
    nowMs += 1;
    requests.push(clock.next("req"));
    // The clock steps back. The id stays in the new month, and so must the count.
    nowMs -= 10;
    requests.push(clock.next("req"));
    expect(requests.map(monthOfRequest)).toEqual(["2026-05", "2026-05", "2026-06", "2026-06"]);
    expect(timeOfId(requests[0] as string).getTime()).toBe(Date.UTC(2026, 4, 31, 23, 59, 59, 999));
    const store = new EventStore(watchedDb);
    for (const requestId of requests) await store.insert(ownerOf(organizationId, requestId), rowsOf(3));
    const options = { quietMs: 20, patienceMs: 5_000 };
    expect(await recount(watchedDb, organizationId, "2026-05", options)).toEqual({ before: 0, after: 6, corrected: 1 });
    // In slices, with rows of one timestamp on both sides of their edges.
    const timestamp = new Date(0);
    const more = [clock.next("req"), clock.next("req")].map((requestId) => ownerOf(organizationId, requestId));
    const [earlier, later] = [
      rowsOf(3, { timestamp }),
      rowsOf(4).map((row, i) => (i < 2 ? { ...row, timestamp } : row)),
    ];
    await store.insert(more[0] as RowOwner, earlier);
    await store.insert(more[1] as RowOwner, later);
    for (const sliceRows of [1, 2, 4, 100]) {
      const moment = new Date(nowMs + 1_000);
      const owner = { organizationId, month: "2026-06" };
      expect(await countRows(watchedDb, owner, { moment, sliceRows })).toEqual({ all: 13, before: 13 });
      expect(await countRows(watchedDb, owner, { sliceRows })).toEqual({ all: 13, before: 0 });
    }
    for (const row of await eventCollection(db).find(rowsBetween(organizationId)).toArray()) {
      if (more.some(({ requestId }) => requestId === rowOf(row).requestId)) await eventCollection(db).deleteOne(row);
    }
    await usageCollection(db).insertOne({
      _id: `${organizationId}/2026-06`,
      organizationId,
      month: "2026-06",
      events: 90,
    });
    expect(await recount(watchedDb, organizationId, "2026-06", options)).toEqual({
      before: 90,
      after: 6,
      corrected: 1,
    });
    expect(await recount(watchedDb, organizationId, "2026-06", options)).toEqual({ before: 6, after: 6, corrected: 0 });
    expect(await recount(watchedDb, organizationId, "2026-07", options)).toEqual({ before: 0, after: 0, corrected: 0 });
  });

  describe("of a day", () => {
    const options = { quietMs: 20, patienceMs: 5_000 };
    const requestAt = (day: string) => createIdSource(() => Date.parse(`${day}T12:00:00Z`)).next("req");
    const store = (organizationId: string, day: string, types: readonly string[]) => {
      const rows = rowsOf(types.length).map((row, i) => ({ ...row, type: types[i] as string }));
      return new EventStore(watchedDb).insert(ownerOf(organizationId, requestAt(day)), rows);
    };
    const countsOf = async (organizationId: string) => {
      const found = await usageDayCollection(db).find({ organizationId }).sort({ day: 1, type: 1 }).toArray();
      return found.map(({ day, type, accepted, rejected }) => [day, type, accepted, ...(rejected ? [rejected] : [])]);
    };

    test("a recount corrects every type's count, and keeps it once rows of the day were removed", async () => {
      const organizationId = ids.next("org");
      const count = (day: string, type: string, accepted: number) => ({
        ...{ organizationId, day, appId: app.id, type, accepted },
      });
      await store(organizationId, "2026-05-01", ["a", "b", "a", "b", "a"]);
      await store(organizationId, "2026-05-31", ["a", "a", "a", "a"]);
      await usageDayCollection(db).insertMany([
        { ...count("2026-05-01", "a", 99), rejected: { quota_exceeded: 7 } },
        count("2026-05-01", "nothing of it", 5),
        count("2026-05-31", "a", 4),
      ]);
      expect(await recount(watchedDb, organizationId, month, options)).toEqual({ before: 0, after: 9, corrected: 3 });
      const counts = [
        ["2026-05-01", "a", 3, { quota_exceeded: 7 }],
        ["2026-05-01", "b", 2],
        ["2026-05-01", "nothing of it", 0],
        ["2026-05-31", "a", 4],
      ];
      expect(await countsOf(organizationId)).toEqual(counts);

      const rows = await eventCollection(db).find(rowsBetween(organizationId)).toArray();
      const stays = rows.find((row) => rowOf(row).receivedAt < new Date("2026-05-02"));
      // Of another worker: the rest of a day proves nothing.
      await eventCollection(db).updateOne({ _id: stays?._id as Buffer }, { $set: { worker: ulidOf(newId()) } });
      expect(await sumOf(removeRowsOfWorker(watchedDb, organizationId, workerId, { now: new Date() }))).toBe(8);
      expect(await recount(watchedDb, organizationId, month, options)).toEqual({ before: 9, after: 9, corrected: 0 });
      expect(await countsOf(organizationId)).toEqual(counts);
      const moment = new Date("2026-05-20");
      expect(await countRows(watchedDb, { organizationId, month }, { moment })).toEqual({ all: 9, before: 9 });

      // A process that was killed has not counted these. A day has at least as many accepted events as rows.
      await store(organizationId, "2026-05-31", Array<string>(6).fill("a"));
      expect(await countRows(watchedDb, { organizationId, month }, { moment })).toEqual({ all: 11, before: 5 });
      expect(await recount(watchedDb, organizationId, month, options)).toEqual({ before: 9, after: 11, corrected: 0 });
      expect(await countsOf(organizationId)).toEqual(counts);
    });

    test("a count gives no number if a day's first row is removed meanwhile", async () => {
      const organizationId = ids.next("org");
      await store(organizationId, "2026-05-04", ["a", "a", "a"]);
      const owner = { organizationId, month };
      let isFirst = true;
      const rest = async () => {
        if (isFirst) await sumOf(removeRowsOfWorker(watchedDb, organizationId, workerId, { now: new Date() }));
        isFirst = false;
      };
      expect(await countRows(watchedDb, owner, { sliceRows: 1, rest })).toBeUndefined();
      expect(await countRows(watchedDb, owner)).toEqual({ all: 0, before: 0 });
    });

    test("a recount keeps the counts of an app's most frequent types, and adds up the others", async () => {
      const organizationId = ids.next("org");
      const rare = Array.from({ length: usageTypesMax + 9 }, (_, i) => `rare.${i}`);
      await store(organizationId, "2026-05-03", [...rare, "zeal", "zeal"]);
      expect(await recount(watchedDb, organizationId, month, options)).toMatchObject({ after: usageTypesMax + 11 });
      const counts = await countsOf(organizationId);
      expect(counts).toHaveLength(usageTypesMax + 1);
      expect(counts[0]).toEqual(["2026-05-03", "", 10]);
      expect(counts.at(-1)).toEqual(["2026-05-03", "zeal", 2]);
      expect(await recount(watchedDb, organizationId, month, options)).toMatchObject({ corrected: 0 });
    });
  });

  test("instances that reserve quota together accept exactly the quota, and return the rest", async () => {
    const stores = Array.from({ length: 4 }, () => new UsageStore(watchedDb));
    const request = { organizationId: ids.next("org"), month, events: 500, quotaEvents: 130_000 };
    let accepted = 0;
    let reserved = 0;
    const wave = async () => {
      const granted = await Promise.all(
        Array.from({ length: 25 }, async (_, i) => (await stores[i % 4]?.take(request)) ?? 0),
      );
      accepted += granted.reduce((sum, n) => sum + n, 0);
      const charged = (await usageOf(request.organizationId)) ?? 0;
      expect(accepted).toBeLessThanOrEqual(charged);
      expect(charged).toBeLessThanOrEqual(request.quotaEvents);
      reserved = Math.max(reserved, charged - accepted);
    };
    // Waves of concurrent requests make, use up and return reservations.
    for (let i = 0; i < 8; i++) await wave();
    expect(reserved).toBeGreaterThan(0);
    await expect.poll(() => usageOf(request.organizationId)).toBe(accepted);
    for (let i = 0; i < 4; i++) await wave();
    expect(accepted).toBe(request.quotaEvents);
    await Promise.all(stores.map((store) => store.stop()));
    expect(await usageOf(request.organizationId)).toBe(request.quotaEvents);
  });

  describe("a count after a doubt", () => {
    const onError = (error: unknown) => expect(error).toBeUndefined();
    const keeperOf = (usage: UsageStore) =>
      new UsageKeeper(watchedDb, { usage, now: Date.now, countAfterMs: 0, onError });
    const thisMonth = () => monthOf(new Date());
    const store = (organizationId: string, count: number) =>
      new EventStore(watchedDb).insert(ownerOf(organizationId), rowsOf(count));

    test("frees what a killed instance had charged ahead, and keeps the charge for its stored rows", async () => {
      const request = { organizationId: ids.next("org"), month: thisMonth(), events: 1, quotaEvents: 1_000_000 };
      const killed = new UsageStore(watchedDb);
      // A killed instance returns nothing, but this one would do so in a moment.
      vi.useFakeTimers({ toFake: ["setInterval"] });
      let taken = 0;
      try {
        taken = await reserve(killed, request);
      } finally {
        vi.useRealTimers();
      }
      await store(request.organizationId, taken);
      const _id = `${request.organizationId}/${request.month}`;
      const charged = async () => (await usageCollection(db).findOne({ _id }))?.events;
      expect(await charged()).toBeGreaterThan(taken);
      const instances = db.collection<{ _id: string; seenAt: Date }>("instances");
      await instances.insertOne({ _id: request.organizationId, seenAt: new Date(Date.now() - 60_000) });
      await keeperOf(killed).look();
      expect(await charged()).toBe(taken);
      expect(await usageCollection(db).findOne({ _id })).not.toHaveProperty("doubt");
      expect(await instances.countDocuments({ _id: request.organizationId })).toBe(0);
    });

    test("repeats charges that a rollback undid, even the first of a month", async () => {
      const [organizationId, month] = [ids.next("org"), thisMonth()];
      const usage = new UsageStore(watchedDb);
      await usage.take({ organizationId, month, events: 7, quotaEvents: 10 });
      await store(organizationId, 7);
      await usageCollection(db).deleteOne({ organizationId });
      usage.doubt({ organizationId, month });
      await keeperOf(usage).look();
      expect(await usageCollection(db).findOne({ organizationId })).toMatchObject({ month, events: 7 });
    });

    test("follows a second doubt that comes while the first is being marked", async () => {
      const owner = { organizationId: ids.next("org"), month: thisMonth() };
      const usage = new UsageStore(watchedDb);
      usage.doubt(owner);
      watchedDb.client.once("commandStarted", () => usage.doubt(owner));
      const keeper = new UsageKeeper(watchedDb, { usage, now: Date.now, onError });
      await keeper.look();
      expect([...usage.doubtful]).toEqual([`${owner.organizationId}/${owner.month}`]);
      await keeper.look();
      expect(await usageCollection(db).findOne(owner)).toMatchObject({ events: 0, doubt: { again: true } });
    });

    test("frees lost charges that rows received in the seconds after would hide", async () => {
      const request = { organizationId: ids.next("org"), month: thisMonth(), events: 10, quotaEvents: 1_000 };
      const usage = new UsageStore(watchedDb);
      const _id = `${request.organizationId}/${request.month}`;
      const next = async () => {
        await usage.take(request);
        await store(request.organizationId, 10);
      };
      const later = new UsageKeeper(watchedDb, { usage, now: Date.now, onError });
      await usage.take(request);
      usage.doubt(request);
      await later.look();
      await next();
      await keeperOf(usage).look();
      expect(await usageCollection(db).findOne({ _id })).toMatchObject({ events: 10, returned: 10 });

      // Without a pause for minutes, it frees only what is certain, and waits on.
      await usage.take(request);
      usage.doubt(request);
      await later.look();
      await usageCollection(db).updateOne({ _id }, { $set: { "doubt.since": new Date(Date.now() - 10 * 60_000) } });
      await next();
      await keeperOf(usage).look();
      expect(await usageCollection(db).findOne({ _id })).toMatchObject({ events: 30, doubt: { counted: true } });
      await next();
      await keeperOf(usage).look();
      const usageNow = await usageCollection(db).findOne({ _id });
      expect(usageNow).toMatchObject({ events: 30, returned: 20 });
      expect(usageNow).not.toHaveProperty("doubt");
    });

    test("takes nothing from running requests, whatever they give back", async () => {
      const request = { organizationId: ids.next("org"), month: thisMonth(), events: 10, quotaEvents: 1_000 };
      const usage = new UsageStore(watchedDb);
      await usage.take(request);
      await usage.take(request);
      await store(request.organizationId, 10);
      const _id = `${request.organizationId}/${request.month}`;
      // In doubt, but not yet for long enough.
      usage.doubt(request);
      const options = { usage, now: Date.now, onError };
      await new UsageKeeper(watchedDb, options).look();
      expect(await usageCollection(db).findOne({ _id })).toMatchObject({ events: 20, doubt: { charged: 20 } });
      await usage.take(request);
      await usage.take(request);
      await usage.giveBack(request, 10);
      // As if the doubt had found a pause before these.
      await usageCollection(db).updateOne({ _id }, { $set: { "doubt.paused": true } });
      // A second doubt before the count of the first.
      usage.doubt(request);
      await new UsageKeeper(watchedDb, options).look();
      await store(request.organizationId, 10);
      const keeper = keeperOf(usage);
      await keeper.look();
      // 20 are stored and 30 charged. A request that was charged after the doubt may still store 10.
      expect(await usageCollection(db).findOne({ _id })).toMatchObject({ events: 30, doubt: { charged: 40 } });
      await keeper.look();
      expect(await usageCollection(db).findOne({ _id })).toMatchObject({ events: 20 });
      expect(await usageCollection(db).findOne({ _id })).not.toHaveProperty("doubt");
    });
  });

  test("a recount changes nothing while requests are running", async () => {
    const organizationId = ids.next("org");
    const store = new UsageStore(watchedDb);
    let stopped = false;
    const busy = (async () => {
      while (!stopped) await store.take({ organizationId, month, events: 1, quotaEvents: 1_000_000 });
    })();
    await expect.poll(() => usageOf(organizationId)).toBeGreaterThan(0);
    const answer = await recount(watchedDb, organizationId, month, { quietMs: 200, patienceMs: 500 });
    stopped = true;
    await busy;
    expect(answer).toBeUndefined();
  });
});
