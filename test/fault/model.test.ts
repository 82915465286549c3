import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventIds, timeOfId } from "../../src/ids.ts";
import { limits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { rowsBetween } from "../../src/store/events.ts";
import { usageCollection } from "../../src/store/usage.ts";
import {
  type Answer,
  bearer,
  createTenant,
  protocols,
  type Send,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";
import { report, runLine, table } from "./report.ts";
import { storedRows } from "../support/rows.ts";

/**
 * Compares idempotency, quota and snapshots with a model in memory: any sequence of requests, alone or concurrent, over
 * two instances and two protocols. `npm run test:model` is the long run; SEED and RUNS set its seed and length. On a
 * failure fast-check prints the seed and the shortest failing sequence.
 */
const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
const numRuns = Number(process.env.RUNS ?? 15);

/** The clock of both instances: years ahead, so that the server's sweep leaves the records alone. */
const startMs = Date.UTC(2040, 4, 10);
let aheadMs = 0;
const now = () => Math.floor(startMs + performance.now() + aheadMs);

let instances: readonly [TestService, TestService];
const counts = { duplicates: 0, runs: 0, commands: 0, requests: 0, replays: 0, conflicts: 0, accepted: 0, refused: 0 };

beforeAll(async () => {
  const first = await startService({ now });
  instances = [first, await startService({ now, database: first.app.db.databaseName })];
});
afterAll(() => Promise.all(instances.map(({ app }) => app.close())));

/** So long that the test's own time does not matter: 3, 6 and 9 minutes are within the window, 12 are not. */
const stepMs = 3 * 60_000;
const windowMs = limits.idempotencyWindowSeconds * 1000;

/** A duplicate waits for the claim of a request that took the last of the quota, but not as long as this. */
const slowMs = 9_500;

interface Request {
  readonly instance: 0 | 1;
  readonly way: "REST" | "gRPC";
  readonly key: string | undefined;
  readonly body: EventsBody | SnapshotBody;
}
interface EventsBody {
  readonly events: readonly {
    readonly eventType: string;
    readonly category: string;
    readonly actor: { readonly externalId?: string };
    readonly eventId?: string;
  }[];
}
interface SnapshotBody {
  readonly snapshotType: string;
  readonly actor: object;
  readonly timestamp?: string;
  readonly metrics: object;
}

interface Card {
  readonly timestampMs: number;
  readonly requestId: string;
}

interface Claim {
  readonly body: string;
  readonly answer: string;
  readonly untilMs: number;
  /** Duration of the first answer. */
  readonly tookMs: number;
}

interface Model {
  readonly tenant: Tenant;
  readonly quota: number;
  used: number;
  /** The answer for a key, and until when it holds. */
  readonly claims: Map<string, Claim>;
  readonly rows: Set<string>;
  /** The content stored under each event id. */
  readonly names: Map<string, string>;
  readonly cards: Map<string, Card>;
}

const db = () => instances[0].app.db;
const isEvents = (body: Request["body"]): body is EventsBody => "events" in body;
const isForbidden = (eventType: string) => !eventType.startsWith("ticket.");

type Timed = Answer & { readonly tookMs: number };

async function call({ tenant }: Model, { instance, way, key, body }: Request): Promise<Timed> {
  counts.requests++;
  const sentMs = performance.now();
  const headers = { ...bearer(tenant.key), ...(key === undefined ? {} : { "idempotency-key": key }) };
  const { url } = instances[instance].app;
  const answer = await (protocols[way] as Send)(url, isEvents(body) ? "events" : "snapshots", body, headers);
  return { ...answer, tookMs: performance.now() - sentMs };
}

const claimOf = (model: Model, key: string | undefined) => {
  const claim = key === undefined ? undefined : model.claims.get(key);
  return claim !== undefined && claim.untilMs > now() ? claim : undefined;
};

/** The model's answer to a request without a claim, if no other request is running. */
function expected(
  { quota, used, names }: Model,
  body: Request["body"],
): { accepted: number[]; error: string | undefined } {
  const left = Math.max(0, quota - used);
  if (!isEvents(body))
    return left > 0 ? { accepted: [0], error: undefined } : { accepted: [], error: "quota_exceeded" };
  const allowed = body.events.flatMap(({ eventType }, index) => (isForbidden(eventType) ? [] : [index]));
  const known = new Set(names.keys());
  let fresh = 0;
  const accepted = allowed.filter((index) => {
    const { eventId } = body.events[index] as EventsBody["events"][number];
    if (eventId !== undefined && known.has(eventId)) return true;
    if (fresh === left) return false;
    fresh++;
    if (eventId !== undefined) known.add(eventId);
    return true;
  });
  if (accepted.length > 0) return { accepted, error: undefined };
  if (allowed.length === 0) return { accepted, error: "forbidden_event_type" };
  return { accepted, error: allowed.length === body.events.length ? "quota_exceeded" : undefined };
}

const acceptedOf = (body: Request["body"], answer: Answer): number[] => {
  if (!isEvents(body)) return [0];
  const rejected = new Set(answer.body.results.rejected.map(({ index }: { index: number }) => index));
  return body.events.flatMap((_, index) => (rejected.has(index) ? [] : [index]));
};

/** Adds a first answer to the model. */
async function record(model: Model, { key, body }: Request, answer: Timed): Promise<void> {
  const { requestId } = answer.body as { requestId: string };
  const accepted = acceptedOf(body, answer).filter((_index, i) => !answer.body.results?.accepted[i].duplicate);
  model.used += accepted.length;
  counts.accepted += accepted.length;
  for (const index of accepted) {
    model.rows.add(eventIds(requestId)(index));
    const event = isEvents(body) ? body.events[index] : undefined;
    if (event?.eventId === undefined) continue;
    expect(model.names.has(event.eventId)).toBe(false);
    model.names.set(event.eventId, contentOf(event));
  }
  if (key !== undefined) {
    const untilMs = now() + windowMs;
    const { tookMs } = answer;
    model.claims.set(key, { body: JSON.stringify(body), answer: JSON.stringify(answer.body), untilMs, tookMs });
  }
  if (!isEvents(body)) {
    const id = `${answer.body.worker.id}/${model.tenant.appId}/${body.snapshotType}`;
    const timestampMs = body.timestamp === undefined ? timeOfId(requestId).getTime() : Date.parse(body.timestamp);
    const known = model.cards.get(id);
    // On equal timestamps the later arrival wins.
    if (known === undefined || timestampMs > known.timestampMs) model.cards.set(id, { timestampMs, requestId });
    else if (timestampMs === known.timestampMs && requestId > known.requestId) {
      model.cards.set(id, { timestampMs, requestId });
    }
  }
}

/** Two of the three actors are one worker. */
const contentOf = ({ eventType, actor }: EventsBody["events"][number]) => `${eventType} ${actor.externalId === "a"}`;

/** Every event with a known id is a duplicate, and a conflict if its content is another one. */
function expectDuplicates({ names }: Model, { body }: Request, answer: Answer): void {
  if (!isEvents(body)) return;
  acceptedOf(body, answer).forEach((index, i) => {
    const event = body.events[index] as EventsBody["events"][number];
    const { eventId, duplicate = false, conflict = false } = answer.body.results.accepted[i];
    expect(eventId).toBe(event.eventId);
    if (duplicate) counts.duplicates++;
    else expect(conflict).toBe(false);
    if (eventId === undefined) expect(duplicate).toBe(false);
    else expect(conflict).toBe(names.get(eventId) !== contentOf(event));
  });
}

function expectReplay(claim: Claim, { body }: Request, answer: Answer): void {
  if (claim.body === JSON.stringify(body)) {
    counts.replays++;
    expect(answer.error).toBeUndefined();
    expect(JSON.stringify(answer.body)).toBe(claim.answer);
    expect(answer.headers.get("idempotency-replayed")).toBe("true");
  } else {
    counts.conflicts++;
    expect(answer.error?.code).toBe("invalid_body");
    expect(answer.error?.message).toContain("Idempotency-Key");
  }
}

/** Checks that the database matches the model, to the id. */
async function expectSame(model: Model): Promise<void> {
  const { organizationId } = model.tenant;
  const rows = await storedRows(db(), rowsBetween(organizationId));
  expect(rows.map(({ id }) => id).sort()).toEqual([...model.rows].sort());
  const cards = await cardCollection(db()).find({ organizationId }).toArray();
  expect(new Map(cards.map(({ _id, requestId }) => [_id, requestId]))).toEqual(
    new Map([...model.cards].map(([id, { requestId }]) => [id, requestId])),
  );
  // With reservations, the use is charged some milliseconds later.
  const used = async () => (await usageCollection(db()).findOne({ organizationId }))?.events ?? 0;
  await expect.poll(used, { timeout: 10_000, interval: 10 }).toBe(model.used);
}

/** The model is the state and the database the system; commands reach the system through the instances. */
type Command = fc.AsyncCommand<Model, object>;

class One implements Command {
  readonly request: Request;
  constructor(request: Request) {
    this.request = request;
  }
  check = () => true;
  toString = () => `One(${JSON.stringify(this.request)})`;
  async run(model: Model): Promise<void> {
    counts.commands++;
    const claim = claimOf(model, this.request.key);
    const wanted = expected(model, this.request.body);
    const answer = await call(model, this.request);
    if (claim !== undefined) expectReplay(claim, this.request, answer);
    else {
      expect(answer.error?.code).toBe(wanted.error);
      expect(answer.headers.get("idempotency-replayed")).toBeNull();
      if (answer.error === undefined) {
        expect(acceptedOf(this.request.body, answer)).toEqual(wanted.accepted);
        await record(model, this.request, answer);
        expectDuplicates(model, this.request, answer);
      } else counts.refused++;
    }
    await expectSame(model);
  }
}

/** Several requests at once. Their order is open; their joint result is not. */
class AtOnce implements Command {
  readonly requests: readonly Request[];
  constructor(requests: readonly Request[]) {
    this.requests = requests;
  }
  check = () => true;
  toString = () => `AtOnce(${JSON.stringify(this.requests)})`;
  async run(model: Model): Promise<void> {
    counts.commands++;
    const before = new Map(this.requests.map((request) => [request, claimOf(model, request.key)]));
    const left = Math.max(0, model.quota - model.used);
    const answers = await Promise.all(this.requests.map((request) => call(model, request)));
    const firsts = new Map<string, { request: Request; answer: Timed }>();
    this.requests.forEach((request, i) => {
      const answer = answers[i] as Timed;
      const claim = before.get(request);
      if (claim !== undefined) return expectReplay(claim, request, answer);
      if (answer.error !== undefined || answer.headers.get("idempotency-replayed") !== null) return;
      expect(firsts.has(answer.body.requestId)).toBe(false);
      firsts.set(answer.body.requestId, { request, answer });
    });
    for (const { request, answer } of firsts.values()) await record(model, request, answer);
    for (const { request, answer } of firsts.values()) expectDuplicates(model, request, answer);
    for (const [i, request] of this.requests.entries()) {
      await this.#expectFollows(model, request, answers[i] as Answer, before);
    }
    const accepted = model.used - (model.quota - left);
    expect(accepted).toBeLessThanOrEqual(Math.max(0, left));
    await expectSame(model);
  }

  /** Every answer that is not a first one is a replay, a conflict, or a refusal that the request deserves. */
  async #expectFollows(
    model: Model,
    request: Request,
    answer: Answer,
    before: ReadonlyMap<Request, unknown>,
  ): Promise<void> {
    if (before.get(request) !== undefined) return;
    const claim = claimOf(model, request.key);
    const isReplay = answer.headers.get("idempotency-replayed") !== null;
    if (isReplay || answer.error?.code === "invalid_body") {
      expect(claim).toBeDefined();
      expectReplay(claim as Claim, request, answer);
    } else if (
      claim?.body === JSON.stringify(request.body) &&
      claim.tookMs >= slowMs &&
      answer.error?.code === "quota_exceeded"
    ) {
      // It was refused before the other's claim was there. Sent again, it is a replay.
      expectReplay(claim, request, await call(model, request));
    } else if (answer.error !== undefined) {
      counts.refused++;
      // A duplicate of an accepted request is never refused.
      expect(claim?.body).not.toBe(JSON.stringify(request.body));
      expect(["quota_exceeded", "forbidden_event_type"]).toContain(answer.error.code);
      if (answer.error.code === "quota_exceeded") {
        const wanted = this.requests.reduce((sum, { body }) => sum + (isEvents(body) ? body.events.length : 1), 0);
        expect(model.quota).toBeLessThan(model.used + wanted);
      }
    }
  }
}

class Wait implements Command {
  readonly steps: number;
  constructor(steps: number) {
    this.steps = steps;
  }
  check = () => true;
  toString = () => `Wait(${this.steps * 3} min)`;
  async run({ tenant }: Model): Promise<void> {
    counts.commands++;
    const ms = this.steps * stepMs;
    aheadMs += ms;
    // The server's clock cannot move, so make its notes older: no duplicate then waits for another.
    const takers = {
      $map: { input: "$takers", in: { $mergeObjects: ["$$this", { at: { $subtract: ["$$this.at", ms] } }] } },
    };
    const { organizationId } = tenant;
    await usageCollection(db()).updateMany({ organizationId, takers: { $exists: true } }, [{ $set: { takers } }]);
  }
}

const actor = fc.constantFrom({ externalId: "a" }, { externalId: "b", email: "B@x.org" }, { email: "b@X.org" });
const event = fc.record(
  {
    eventType: fc.constantFrom("ticket.a", "ticket.b", "deploy.forbidden"),
    category: fc.constant("project_management"),
    actor,
    eventId: fc.constantFrom("e1", "e2", "e3"),
  },
  { requiredKeys: ["eventType", "category", "actor"] },
);
const body = fc.oneof(
  fc.record({ events: fc.array(event, { minLength: 1, maxLength: 4 }) }),
  fc.record(
    {
      snapshotType: fc.constantFrom("open", "closed"),
      actor,
      timestamp: fc.constantFrom("2026-04-19T12:00:00Z", "2026-04-19T12:00:01Z"),
      metrics: fc.record({ n: fc.integer({ min: 0, max: 2 }) }),
    },
    { requiredKeys: ["snapshotType", "actor", "metrics"] },
  ),
);
const request: fc.Arbitrary<Request> = fc.record({
  instance: fc.constantFrom(0 as const, 1 as const),
  way: fc.constantFrom("REST" as const, "gRPC" as const),
  key: fc.option(fc.constantFrom("k1", "k2", "k3"), { nil: undefined, freq: 4 }),
  body,
});
/** The same request several times, or different ones. */
const atOnce = fc.oneof(
  fc.array(request, { minLength: 2, maxLength: 5 }),
  fc
    .tuple(
      request,
      fc.array(
        fc.record({
          instance: fc.constantFrom(0 as const, 1 as const),
          way: fc.constantFrom("REST" as const, "gRPC" as const),
        }),
        { minLength: 2, maxLength: 4 },
      ),
    )
    .map(([one, places]) => places.map((place) => ({ ...one, ...place }))),
);
const commands = fc.commands(
  [
    request.map((one) => new One(one)),
    atOnce.map((several) => new AtOnce(several)),
    fc.integer({ min: 1, max: 4 }).map((steps) => new Wait(steps)),
  ],
  { maxCommands: 20, size: "max" },
);

test("any sequence of requests, alone or at once, on two instances leaves what the model says", async () => {
  console.log(`seed ${seed}, ${numRuns} runs`);
  const startedMs = performance.now();
  // With little quota every event is charged separately; with much, instances charge some ahead.
  const quotas = fc.constantFrom(3, 8, 20, 10_000_000);
  await fc.assert(
    fc.asyncProperty(quotas, commands, async (quota, sequence) => {
      counts.runs++;
      const tenant = await createTenant(instances[0].admin, { name: "Model", quotaEventsPerMonth: quota });
      const model: Model = {
        tenant,
        quota,
        used: 0,
        claims: new Map(),
        rows: new Set(),
        names: new Map(),
        cards: new Map(),
      };
      await fc.asyncModelRun(() => ({ model, real: {} }), sequence);
    }),
    { seed, numRuns },
  );
  const seconds = Math.round((performance.now() - startedMs) / 1000);
  console.log(`${counts.requests} requests in ${counts.runs} runs, ${seconds} s`);
  if (process.env.RUNS === undefined) return;
  const rows: [string, number][] = [
    ["Runs, a new organisation each", counts.runs],
    ["Commands", counts.commands],
    ["Requests, over REST and gRPC, to two instances", counts.requests],
    ["Events and snapshots accepted", counts.accepted],
    ["Events stored before under their event ids", counts.duplicates],
    ["Replays", counts.replays],
    ["Conflicts of an Idempotency-Key", counts.conflicts],
    ["Requests refused", counts.refused],
    ["**Differences from the model**", 0],
  ];
  report("model", `${runLine()}; seed ${seed}, ${seconds} s\n\n${table(["What", "Count"], rows)}`);
}, 600_000);
