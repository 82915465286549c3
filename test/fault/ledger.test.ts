import { randomBytes } from "node:crypto";
import type { Db, MongoClient } from "mongodb";
import { afterAll, beforeEach, expect, inject, test } from "vitest";
import { createIdSource, timeOfId } from "../../src/ids.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { createClient } from "../../src/store/database.ts";
import { documentsOf, type EventDocument, eventCollection, type NewRow } from "../../src/store/events.ts";
import { type Asked, Ledger } from "./ledger.ts";

/** The audit of the crash and fault runs finds the faults it is for. */
let client: MongoClient | undefined;
let db: Db;
let ledger: Ledger;
const ids = createIdSource();
const requestId = ids.next("req");
const metadata = (index: number) => ({ tag: "r1", index, actor: "a" });
const asked: Asked = {
  ...{ tag: "r1", rpc: "events", key: "k", idempotencyKey: "r1" },
  body: { events: [0, 1].map((index) => ({ eventType: "ticket.open", metadata: metadata(index) })) },
};
const answerOf = (id: string, rejected: { index: number }[] = []) => ({
  ...{ kind: "answer" as const, requestId: id, replayed: false },
  body: Buffer.from(
    JSON.stringify({ requestId: id, accepted: 2 - rejected.length, results: { accepted: [], rejected } }),
  ),
});
const [organizationId, appId, workerId] = [ids.next("org"), ids.next("app"), ids.next("wrk")];
/** The event at the index, or its row under another index or request. */
const row = (index: number, change: Partial<NewRow> = {}, ofRequest = requestId): EventDocument => {
  const event = { index, workerId, type: "ticket.open", timestamp: timeOfId(ofRequest), metadata: metadata(index) };
  const owner = { organizationId, appId, requestId: ofRequest };
  return documentsOf(owner, [{ ...event, ...change }])[0] as EventDocument;
};

beforeEach(async () => {
  client ??= createClient(inject("mongodbUri"));
  db = client.db(`ledger-${randomBytes(6).toString("hex")}`);
  ledger = new Ledger();
  ledger.ask(asked);
});
afterAll(() => client?.close());

test.each([undefined, "r1"])(
  "events that are sent again under their ids alone are found when they are doubled or change, first key %s",
  async (idempotencyKey) => {
    const named = { ...asked, isNamed: true, idempotencyKey };
    const keyless = { ...named, idempotencyKey: undefined };
    ledger.ask(named);
    // The one without a key may be answered first.
    ledger.answered(keyless, "rest", answerOf(idempotencyKey === undefined ? requestId : ids.next("req")));
    ledger.answered(named, "rest", answerOf(requestId));
    ledger.answered(keyless, "rest", answerOf(ids.next("req")));
    await eventCollection(db).insertMany([row(0, {}, ids.next("req")), row(1)]);
    expect(await ledger.audit(db)).toEqual({ rows: 2, lost: 0, doubled: 0, unasked: 0, wrongCards: 0 });
    expect(ledger.problems).toEqual([]);
    await eventCollection(db).insertOne(row(0, {}, ids.next("req")));
    expect(await ledger.audit(db)).toMatchObject({ doubled: 1 });
    ledger.problems.length = 0;
    ledger.answered(keyless, "rest", answerOf(ids.next("req"), [{ index: 1 }]));
    await eventCollection(db).deleteOne(row(1));
    await ledger.audit(db);
    expect(ledger.problems).toContain("r1: sent again, other events are accepted");
    expect(ledger.problems).toContain("r1/1: acknowledged and not stored");
  },
);

test("an exact database passes", async () => {
  ledger.answered(asked, "rest", answerOf(requestId));
  ledger.answered(asked, "rest", { ...answerOf(requestId), replayed: true });
  await eventCollection(db).insertMany([row(0), row(1)]);
  expect(await ledger.audit(db)).toEqual({ rows: 2, lost: 0, doubled: 0, unasked: 0, wrongCards: 0 });
  expect(ledger.problems).toEqual([]);
});

test("it finds a lost row, a doubled row, a row of a rejected event and a row without a request", async () => {
  ledger.answered(asked, "rest", answerOf(requestId));
  await eventCollection(db).insertMany([row(0), row(0, {}, ids.next("req")), row(7, {}, ids.next("req"))]);
  expect(await ledger.audit(db)).toMatchObject({ lost: 1, unasked: 2 });
  const whole = new Ledger();
  whole.ask({ ...asked, idempotencyKey: undefined });
  await eventCollection(db).insertOne(row(1, {}, ids.next("req")));
  expect(await whole.audit(db)).toMatchObject({ doubled: 1 });
  const partial = new Ledger();
  partial.ask(asked);
  partial.answered(asked, "rest", answerOf(requestId, [{ index: 0 }]));
  expect((await partial.audit(db)).unasked).toBeGreaterThan(0);
});

test("it finds a card that does not show the newest snapshot", async () => {
  const body = { snapshotType: "open", metadata: metadata(0) };
  const snapshot: Asked = { ...asked, rpc: "snapshots", body };
  ledger.ask(snapshot);
  ledger.answered(snapshot, "rest", { ...answerOf(requestId), body: Buffer.from(JSON.stringify({ requestId })) });
  await eventCollection(db).insertOne(row(0, { type: "open", metrics: { n: 2 } }));
  await cardCollection(db).insertOne({
    ...{ _id: `${workerId}/${appId}/open`, organizationId, appId, workerId, requestId, snapshotType: "open" },
    ...{ timestamp: new Date(5), receivedAt: new Date(5), metrics: { n: 1 }, metadata: metadata(0) },
  });
  expect(await ledger.audit(db)).toMatchObject({ wrongCards: 1 });
});

test.each([
  ["other bytes", { ...answerOf(requestId), body: Buffer.concat([answerOf(requestId).body, Buffer.from(" ")]) }],
  ["another request's id", { ...answerOf(createIdSource().next("req")), replayed: true }],
  ["another outcome", { ...answerOf(requestId, [{ index: 1 }]), replayed: true }],
  ["no mark of a replay", answerOf(requestId)],
  ["a refusal", { kind: "refusal" as const, status: "402", body: Buffer.alloc(0) }],
])("it finds a replay with %s", (_what, reply) => {
  ledger.answered(asked, "rest", answerOf(requestId));
  ledger.answered(asked, "rest", reply);
  expect(ledger.problems.length).toBeGreaterThan(0);
});
