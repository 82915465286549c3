import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventCategories, metricUnits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { workerCollection } from "../../src/store/workers.ts";
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
import { storedRowsOf } from "../support/rows.ts";

/** The same request over two protocols stores the same documents and gets the same answer. */

let service: TestService;
let sides: { name: string; send: Send; tenant: Tenant }[];

beforeAll(async () => {
  service = await startService();
  // A tenant for each protocol. They differ only in their ids, so every protocol finds the same state.
  sides = await Promise.all(
    Object.entries(protocols).map(async ([name, send]) => ({ name, send, tenant: await createTenant(service.admin) })),
  );
});
afterAll(() => service.app.close());

const word = fc.string({ unit: "grapheme", minLength: 1, maxLength: 12 });
/** Ordinary names, and names with a meaning in JavaScript, BSON or MongoDB. */
const memberName = fc.oneof(
  { weight: 3, arbitrary: fc.string({ unit: "grapheme", maxLength: 8 }).filter((text) => !text.includes("\0")) },
  {
    weight: 2,
    arbitrary: fc.constantFrom(
      "__proto__",
      "constructor",
      "toString",
      "toJSON",
      "_bsontype",
      "toBSON",
      "$set",
      "$ref",
      "$id",
      "$db",
      "a.b",
      ".",
      "$",
      "",
      "_id",
      "length",
    ),
  },
);
const number = fc
  .oneof(fc.integer(), fc.double({ noNaN: true, noDefaultInfinity: true }))
  .map((value) => value + 0 || 0);
const json = fc.letrec<{ value: unknown; object: Record<string, unknown> }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 5, depthSize: "small" },
    fc.constantFrom(null, true, false, "ObjectId"),
    number,
    fc.string({ unit: "grapheme", maxLength: 20 }),
    fc.array(tie("value"), { maxLength: 4 }),
    tie("object"),
  ),
  object: fc.array(fc.tuple(memberName, tie("value")), { maxLength: 4 }).map((members) => objectOf(members)),
}));

/** Makes own members of any name. An assignment would fail for `__proto__`. */
const objectOf = (members: readonly (readonly [string, unknown])[]) => Object.fromEntries(members);

const optional = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });
const actor = fc
  .record({
    externalId: optional(word),
    email: optional(fc.constantFrom("a@x.org", "A@X.org", "b.c+d@y.example")),
    displayName: optional(word),
  })
  .map(defined);
const timestamp = optional(
  fc
    .date({ min: new Date("1960-01-01T00:00:00Z"), max: new Date(), noInvalidDate: true })
    .map((date) => date.toISOString()),
);
const event = fc
  .record({
    eventType: fc.constantFrom("ticket.resolved", "ticket.a-b_C.9", "deploy.shipped"),
    category: fc.constantFrom(...eventCategories),
    actor,
    timestamp,
    duration: optional(fc.integer({ min: 0, max: 86_400 })),
    metadata: optional(json.object),
  })
  .map(defined);
const metric = fc.oneof(
  number,
  word,
  fc.record({ value: number, unit: optional(fc.constantFrom(...metricUnits)), label: optional(word) }).map(defined),
);
const snapshot = fc
  .record({
    snapshotType: fc.constantFrom("tickets_open", "queue.depth"),
    actor,
    timestamp,
    metrics: fc
      .uniqueArray(fc.tuple(memberName, metric), { minLength: 1, maxLength: 4, selector: ([name]) => name })
      .map(objectOf),
    metadata: optional(json.object),
  })
  .map(defined);

/** As a caller writes it: an absent value has no member. */
function defined<T extends object>(value: T): T {
  return Object.fromEntries(Object.entries(value).filter(([, member]) => member !== undefined)) as T;
}

/** Replaces values that the service generates by their meaning. */
function comparable(text: string, answer: Answer, tenant: Tenant, receivedAt: Date | undefined): string {
  let result = text
    .replaceAll(tenant.organizationId, "(organisation)")
    .replaceAll(tenant.appId, "(app)")
    .replace(/(evt|req)_[0-9A-Z]{26}/g, "($1)");
  const workers = [...new Set(result.match(/wrk_[0-9A-Z]{26}/g) ?? [])];
  workers.forEach((id, i) => (result = result.replaceAll(id, `(worker ${i})`)));
  if (receivedAt !== undefined) {
    const now = receivedAt.toISOString();
    result = result.replaceAll(now, "(now)").replaceAll(now.replace(".000Z", "Z"), "(now)");
  }
  return result.replaceAll(answer.headers.get("x-request-id") ?? "", "(req)");
}

async function outcome(rpc: "events" | "snapshots", body: object, { send, tenant }: (typeof sides)[number]) {
  const answer = await send(service.app.url, rpc, body, bearer(tenant.key));
  const { db } = service.app;
  const mine = { organizationId: tenant.organizationId };
  const events = await storedRowsOf(db, answer.headers.get("x-request-id") as string);
  const cards = await cardCollection(db).find(mine).sort({ _id: 1 }).project({ receivedAt: 0 }).toArray();
  const workers = await workerCollection(db).find(mine).sort({ _id: 1 }).project({ createdAt: 0 }).toArray();
  const status = answer.error === undefined ? "ok" : answer.error.code;
  const said = answer.error === undefined ? answer.body : answer.error.message;
  const text = JSON.stringify({ status, said, events, workers: workers.length, cards: cards.length }, undefined, 1);
  return comparable(text, answer, tenant, events[0]?.receivedAt);
}

test.each([
  ["events", fc.array(event, { minLength: 1, maxLength: 5 }).map((events) => ({ events }))],
  ["snapshots", snapshot],
] as const)(
  "any valid %s request stores the same documents and gets the same answer over every protocol",
  async (rpc, bodies) => {
    await fc.assert(
      fc.asyncProperty(bodies as fc.Arbitrary<object>, async (body) => {
        const [first, ...others] = await Promise.all(sides.map((side) => outcome(rpc, body, side)));
        others.forEach((other, i) => expect(other, sides[i + 1]?.name).toBe(first));
      }),
      { numRuns: Number(process.env.PROPERTY_RUNS ?? 50) },
    );
  },
  120_000,
);

test("if a batch gives one worker two names, the first one stays", async () => {
  const rest = sides[0] as (typeof sides)[number];
  const send = (...actors: object[]) => {
    const events = actors.map((actor) => ({ eventType: "ticket.read", category: "other", actor }));
    return rest.send(service.app.url, "events", { events }, bearer(rest.tenant.key));
  };
  for (let i = 0; i < 20; i++) {
    const email = `twice-named-${i}@x.org`;
    await send({ email });
    const known = await workerCollection(service.app.db).findOne({ email });
    const other = i % 2 === 0 ? { email } : { workerId: known?._id };
    const answer = await send({ email, displayName: "First" }, { ...other, displayName: "Second" });
    expect(answer.error).toBeUndefined();
    const worker = await workerCollection(service.app.db).findOne({ email });
    expect(worker?.displayName).toBe("First");
  }
});

test("metadata reads back unchanged, whatever its members are called", async () => {
  const rest = sides[0] as (typeof sides)[number];
  await fc.assert(
    fc.asyncProperty(json.object, async (metadata) => {
      const body = { events: [{ eventType: "ticket.read", category: "other", actor: { externalId: "r" }, metadata }] };
      const answer = await rest.send(service.app.url, "events", body, bearer(rest.tenant.key));
      expect(answer.error).toBeUndefined();
      const { requestId } = answer.body;
      const [stored] = await storedRowsOf(service.app.db, requestId);
      expect(JSON.stringify(stored?.metadata)).toBe(JSON.stringify(metadata));
    }),
    { numRuns: Number(process.env.PROPERTY_RUNS ?? 50) },
  );
}, 60_000);
