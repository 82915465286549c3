import { setTimeout as delay } from "node:timers/promises";
import { BSON } from "mongodb";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { limits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { claimCollection, claimId, ClaimStore, claims } from "../../src/store/idempotency.ts";
import { eventCollection } from "../../src/store/events.ts";
import { GroupCommit } from "../../src/store/group-commit.ts";
import { event, expectError, snapshot, unique } from "../support/requests.ts";
import { bearer, createTenant, protocols, type Send, startService, useService } from "../support/service.ts";
import { storedRowsOf } from "../support/rows.ts";

/** Milliseconds added to the service's clock. */
let aheadMs = 0;
const suite = useService({ now: () => Date.now() + aheadMs });

const rest = protocols.REST as Send;
const windowMs = limits.idempotencyWindowSeconds * 1000;
const stored = (type: string) => eventCollection(suite.service.app.db).countDocuments({ type });

describe.each(Object.entries(protocols))("over %s", (_name, send: Send) => {
  const events = (body: unknown, headers: Record<string, string>, key = suite.tenant.key) =>
    send(suite.url, "events", body, { ...bearer(key), ...headers });

  test("a replayed snapshot gets the first answer and is stored once, even after a newer one", async () => {
    const snapshotType = unique("cards");
    const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
    const first = await send(suite.url, "snapshots", snapshot({ snapshotType }), headers);
    await send(suite.url, "snapshots", snapshot({ snapshotType, metrics: { open: 8 } }), bearer(suite.tenant.key));
    const again = await send(suite.url, "snapshots", snapshot({ snapshotType }), headers);
    expect(again.body).toEqual(first.body);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect(again.headers.get("x-request-id")).toBe(first.body.requestId);
    expect(await stored(snapshotType)).toBe(2);
    expect((await cardCollection(suite.service.app.db).findOne({ snapshotType }))?.metrics).toEqual({ open: 8 });
  });

  test("the scope is the API key: with another key, the same Idempotency-Key names another request", async () => {
    const { key } = await suite.service.admin.createKey(suite.tenant.appId);
    const headers = { "idempotency-key": unique("key") };
    const eventType = unique("ticket.scope");
    const one = await events({ events: [event({ eventType })] }, headers);
    const two = await events({ events: [event({ eventType, duration: 5 })] }, headers, key);
    expect(two.error).toBeUndefined();
    expect(two.body.requestId).not.toBe(one.body.requestId);
    expect(two.headers.get("idempotency-replayed")).toBeNull();
    expect(await stored(eventType)).toBe(2);
  });

  test("a replay works for 10 minutes from the first answer; then the key is free, swept or not", async () => {
    const headers = { "idempotency-key": unique("key") };
    const eventType = unique("ticket.window");
    const body = { events: [event({ eventType })] };
    const first = await events(body, headers);
    try {
      aheadMs = windowMs - 15_000;
      expect((await events(body, headers)).body).toEqual(first.body);
      aheadMs = windowMs + 5_000;
      const other = await events({ events: [event({ eventType, duration: 9 })] }, headers);
      expect(other.error).toBeUndefined();
      expect(other.headers.get("idempotency-replayed")).toBeNull();
      expect(other.body.requestId).not.toBe(first.body.requestId);
      expect(await stored(eventType)).toBe(2);
    } finally {
      aheadMs = 0;
    }
  });

  test("an event without a timestamp keeps the first time of receipt on a replay", async () => {
    const headers = { "idempotency-key": unique("key") };
    const body = { events: [event({ eventType: unique("ticket.time") })] };
    const first = await events(body, headers);
    try {
      aheadMs = 60_000;
      expect((await events(body, headers)).body).toEqual(first.body);
    } finally {
      aheadMs = 0;
    }
  });

  test("an answer with only rejected events of several codes is replayed; a refused request is not", async () => {
    const headers = { "idempotency-key": unique("key") };
    const mixed = { events: [event({ eventType: "deploy.a" }), event({ actor: {} })] };
    const first = await events(mixed, headers);
    expect(first.body).toMatchObject({ accepted: 0, rejected: 2 });
    const again = await events(mixed, headers);
    expect(again.body).toEqual(first.body);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    const refused = { "idempotency-key": unique("key") };
    expectError(suite.url, await events({ events: [event({ duration: -1 })] }, refused), "invalid_body");
    expect((await events({ events: [event({ duration: 1 })] }, refused)).error).toBeUndefined();
  });

  test("Idempotency-Key may have spaces and signs; an empty one is invalid_body", async () => {
    expect((await events({ events: [event()] }, { "idempotency-key": `~ !"{}${unique("k")}` })).error).toBeUndefined();
    expectError(suite.url, await events({ events: [event()] }, { "idempotency-key": "" }), "invalid_body");
  });
});

test("exactly one of many concurrent requests takes over an expired record", async () => {
  const idempotencyKey = unique("key");
  const headers = { ...bearer(suite.tenant.key), "idempotency-key": idempotencyKey };
  const eventType = unique("ticket.takeover");
  const put = (duration: number) => rest(suite.url, "events", { events: [event({ eventType, duration })] }, headers);
  await put(1);
  const _id = claimId(suite.tenant.keyId, idempotencyKey);
  await claimCollection(suite.service.app.db).updateOne({ _id }, { $set: { expiresAt: new Date(Date.now() - 1000) } });
  const answers = await Promise.all(Array.from({ length: 20 }, () => put(2)));
  expect(new Set(answers.map(({ body }) => body.requestId)).size).toBe(1);
  expect(await stored(eventType)).toBe(2);
});

test("a kept answer is small for every request, and replays the same bytes after a change of the plan", async () => {
  const { admin, app } = suite.service;
  const { organizationId, keyId, key } = await createTenant(admin, { name: "Small", quotaEventsPerMonth: 500 });
  const put = async (idempotencyKey: string, events: object[]) => {
    const headers = { ...bearer(key), "content-type": "application/json", "idempotency-key": idempotencyKey };
    const body = JSON.stringify({ events });
    return (await fetch(`${suite.url}/api/v1/ingest/events`, { method: "POST", headers, body })).text();
  };
  const bytesOf = async (idempotencyKey: string) =>
    BSON.calculateObjectSize((await claimCollection(app.db).findOne({ _id: claimId(keyId, idempotencyKey) })) ?? {});
  const times = (count: number, make: (n: number) => object) => Array.from({ length: count }, (_, n) => event(make(n)));
  // Of the greatest length.
  const eventType = `deploy.${"x".repeat(57)}`;
  const refused = [
    ...times(248, () => ({ eventType })),
    ...times(248, (n) => ({ actor: { workerId: `${n}${"x".repeat(190)}` } })),
    ...times(4, () => ({ actor: {} })),
  ];
  const batches = {
    refused,
    accepted: times(500, (n) => ({ actor: { externalId: `${unique("small")}-${n}` } })),
    // The quota is now used up.
    exhausted: [...times(1, () => ({ actor: {} })), ...times(499, () => ({}))],
  };
  const first: Record<string, string> = {};
  for (const [name, events] of Object.entries(batches)) first[name] = await put(name, events);
  expect(JSON.parse(first.refused as string)).toMatchObject({ accepted: 0, rejected: 500 });
  expect(JSON.parse(first.accepted as string)).toMatchObject({ accepted: 500 });
  expect(first.exhausted).toContain("monthly quota of 500 events");
  expect(await bytesOf("refused")).toBeLessThan(1_024);
  expect(await bytesOf("exhausted")).toBeLessThan(1_024);
  expect(await bytesOf("accepted")).toBeLessThan(16_384 + 1_024);
  await admin.updateOrganization(organizationId, { quotaEventsPerMonth: 1_000 });
  await expect.poll(() => put(unique("more"), [event()])).toContain('"accepted":1,');
  for (const [name, events] of Object.entries(batches)) expect(await put(name, events)).toBe(first[name]);
});

test("a claim of the previous version is replayed", async () => {
  const { db } = suite.service.app;
  const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
  const body = { events: [event(), event({ eventType: "deploy.a" })] };
  const first = await rest(suite.url, "events", body, headers);
  const _id = claimId(suite.tenant.keyId, headers["idempotency-key"]);
  const [row] = await storedRowsOf(db, first.body.requestId);
  const outcome = { accepted: [[0, row?.workerId]], rejected: first.body.results.rejected };
  await claimCollection(db).updateOne({ _id }, { $set: { outcome } });
  expect((await rest(suite.url, "events", body, headers)).body).toEqual(first.body);
});

test("a TTL index removes records at their own expiry", async () => {
  const indexes = await suite.service.app.db.collection(claims.name).indexes();
  expect(indexes).toContainEqual(expect.objectContaining({ key: { expiresAt: 1 }, expireAfterSeconds: 0 }));
  const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
  await rest(suite.url, "events", { events: [event()] }, headers);
  const record = await claimCollection(suite.service.app.db).findOne({
    _id: claimId(suite.tenant.keyId, headers["idempotency-key"]),
  });
  expect(Math.abs((record?.expiresAt.getTime() ?? 0) - Date.now() - windowMs)).toBeLessThan(30_000);
});

test("a retry completes a request that died after its claim, under the first ids", async () => {
  const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
  const eventType = unique("ticket.finish");
  const body = { events: [event({ eventType }), event({ eventType, duration: 3 })] };
  const first = await rest(suite.url, "events", body, headers);
  const before = await eventCollection(suite.service.app.db).find({ type: eventType }).sort({ _id: 1 }).toArray();
  // As if the process had died between the two writes, or during the second.
  await eventCollection(suite.service.app.db).deleteOne({ _id: before[1]?._id as Buffer });
  expect((await rest(suite.url, "events", body, headers)).body).toEqual(first.body);
  expect(await eventCollection(suite.service.app.db).find({ type: eventType }).sort({ _id: 1 }).toArray()).toEqual(
    before,
  );
});

test("simultaneous duplicates over different protocols store one set of events and get one answer", async () => {
  const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
  const eventType = unique("ticket.protocols");
  const body = { events: [event({ eventType, metadata: { a: [1.5, null, { b: "é" }] } })] };
  const answers = await Promise.all(Object.values(protocols).map((send) => send(suite.url, "events", body, headers)));
  for (const answer of answers) expect(answer.body).toEqual(answers[0]?.body);
  expect(await stored(eventType)).toBe(1);
});

test("simultaneous duplicates on two instances store one set of events and get one answer", async () => {
  const other = await startService({ database: suite.service.app.db.databaseName });
  try {
    const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
    const eventType = unique("ticket.instances");
    const urls = Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? suite.url : other.app.url));
    const answers = await Promise.all(
      urls.map((one) => rest(one, "events", { events: [event({ eventType })] }, headers)),
    );
    for (const answer of answers) expect(answer.body).toEqual(answers[0]?.body);
    expect(await stored(eventType)).toBe(1);
  } finally {
    await other.app.close();
  }
});

test("a request that the quota refuses does not wait for a claim if no duplicate has taken quota", async () => {
  const tenant = await createTenant(suite.service.admin, { name: "Small", quotaEventsPerMonth: 1 });
  const put = () => {
    const headers = { ...bearer(tenant.key), "idempotency-key": unique("key") };
    return rest(suite.url, "events", { events: [event()] }, headers);
  };
  expect((await put()).error).toBeUndefined();
  const find = vi.spyOn(ClaimStore.prototype, "find");
  onTestFinished(() => find.mockRestore());
  expect((await put()).error?.code).toBe("quota_exceeded");
  // Once before it takes quota, and once after.
  expect(find).toHaveBeenCalledTimes(2);
});

test("a retry waits for no claim of a try that was undone, though that had taken the last of the quota", async () => {
  const tenant = await createTenant(suite.service.admin, { name: "Small", quotaEventsPerMonth: 1 });
  const headers = { ...bearer(tenant.key), "idempotency-key": unique("key") };
  const put = () => rest(suite.url, "events", { events: [event(), event()] }, headers);
  const commits = new GroupCommit<number, never>({
    ...{ name: "commits", concurrencyMax: 1, batchWeightMax: 1, queueWeightMax: 1 },
    run: async () => [],
  });
  // The write of the claim never begins.
  const take = vi.spyOn(ClaimStore.prototype, "take").mockImplementationOnce(() => commits.submit(1, 1, () => false));
  onTestFinished(() => take.mockRestore());
  expect((await put()).error?.code).toBe("internal_error");
  const find = vi.spyOn(ClaimStore.prototype, "find");
  onTestFinished(() => find.mockRestore());
  expect((await put()).body).toMatchObject({ accepted: 1, rejected: 1 });
  expect(find).toHaveBeenCalledTimes(2);
});

test.each([
  ["some of its events, on two instances", 5, [event(), event(), event()], 2],
  [
    "all events that could be accepted, on two instances",
    3,
    [event(), event(), event(), event({ eventType: "deploy.x" })],
    2,
  ],
  ["some of its events, on one instance", 5, [event(), event(), event()], 1],
])(
  "at the quota's end, a duplicate gets the events that the other has taken: %s",
  async (_what, quotaEventsPerMonth, requested, instances) => {
    const other = await startService({ database: suite.service.app.db.databaseName });
    const { take } = ClaimStore.prototype;
    // Slow enough for the other request to ask for quota, find too little left, and wait.
    const slow = vi.spyOn(ClaimStore.prototype, "take").mockImplementationOnce(async function (
      this: ClaimStore,
      ...claim
    ) {
      await delay(700);
      return take.apply(this, claim);
    });
    try {
      const tenant = await createTenant(suite.service.admin, { name: "Small", quotaEventsPerMonth });
      const headers = { ...bearer(tenant.key), "idempotency-key": unique("key") };
      const answers = await Promise.all(
        [suite.url, instances === 2 ? other.app.url : suite.url].map((url) =>
          rest(url, "events", { events: requested }, headers),
        ),
      );
      expect(answers[0]?.body).toMatchObject({ accepted: 3, rejected: requested.length - 3 });
      expect(answers[1]?.body).toEqual(answers[0]?.body);
      const months = await suite.service.admin.usageOf(tenant.organizationId);
      expect(months).toMatchObject([{ events: 3 }]);
    } finally {
      slow.mockRestore();
      await other.app.close();
    }
  },
);
