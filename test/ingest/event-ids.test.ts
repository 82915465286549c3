import { describe, expect, test, vi } from "vitest";
import { EventStore, findRowsOfRequest, rowsBetween } from "../../src/store/events.ts";
import { usageCollection } from "../../src/store/usage.ts";
import { event, unique } from "../support/requests.ts";
import { storedRows } from "../support/rows.ts";
import { bearer, createTenant, protocols, type Send, type Tenant, useService } from "../support/service.ts";

const suite = useService();
const ways = Object.entries(protocols) as [string, Send][];
const timestamp = "2026-04-19T12:05:00Z";
const named = (eventId: string, change: object = {}) => event({ eventId, timestamp, ...change });

const stored = ({ organizationId }: Tenant) => storedRows(suite.service.app.db, rowsBetween(organizationId));

/** Events charged and not given back. An instance returns what it has charged ahead within a second. */
async function expectCharged({ organizationId }: Tenant, events: number): Promise<void> {
  const charged = async () => (await usageCollection(suite.service.app.db).findOne({ organizationId }))?.events ?? 0;
  await expect.poll(charged, { timeout: 10_000, interval: 10 }).toBe(events);
}

describe.each(ways)("over %s", (_name, send) => {
  const post = ({ key }: Tenant, events: object[], headers: Record<string, string> = {}) =>
    send(suite.url, "events", { events }, { ...bearer(key), ...headers });

  test("an event with an id is stored and charged once, in whatever batch it comes again", async () => {
    const tenant = await createTenant(suite.service.admin);
    const answer = await post(tenant, [named("a"), event({ timestamp }), named('b "\\')]);
    const { eventType } = event();
    expect(answer.body.results.accepted).toEqual([
      { eventType, timestamp, eventId: "a" },
      { eventType, timestamp },
      { eventType, timestamp, eventId: 'b "\\' },
    ]);
    const again = await post(tenant, [named("c"), named('b "\\'), named("a", { duration: 7 })]);
    expect([0, 202]).toContain(again.status);
    expect(again.body).toMatchObject({ accepted: 3, rejected: 0 });
    expect(again.body.results.accepted).toEqual([
      { eventType, timestamp, eventId: "c" },
      { eventType, timestamp, eventId: 'b "\\', duplicate: true },
      { eventType, timestamp, eventId: "a", duplicate: true, conflict: true },
    ]);
    const rows = await stored(tenant);
    expect(rows).toHaveLength(4);
    expect(rows.every(({ durationSeconds }) => durationSeconds === undefined)).toBe(true);
    await expectCharged(tenant, 4);
  });

  test("two events of one batch with the same id are one", async () => {
    const tenant = await createTenant(suite.service.admin);
    const headers = { "idempotency-key": "one" };
    const events = [named("a"), named("a"), named("a", { category: "design" })];
    const first = await post(tenant, events, headers);
    expect(first.body.results.accepted).toMatchObject([{ eventId: "a" }, { duplicate: true }, { conflict: true }]);
    expect(first.body.results.accepted[0]).not.toHaveProperty("duplicate");
    const replay = await post(tenant, events, headers);
    expect(replay.headers.get("idempotency-replayed")).toBe("true");
    expect(replay.body).toEqual(first.body);
    expect(await stored(tenant)).toHaveLength(1);
    await expectCharged(tenant, 1);
  });

  test("an id is the app's own, and has 1 to 200 printable ASCII characters", async () => {
    const tenant = await createTenant(suite.service.admin);
    const { admin } = suite.service;
    const other = await admin.createApp(tenant.organizationId, unique("other"), "Other", ["*"]);
    const { key } = await admin.createKey(other.id);
    const id = "x".repeat(200);
    for (const one of [tenant, { ...tenant, key }]) {
      const { accepted } = (await post(one, [named(id)])).body.results;
      expect(accepted).toEqual([expect.not.objectContaining({ duplicate: true })]);
    }
    expect(await stored(tenant)).toHaveLength(2);
    for (const [wrong, problem] of [
      ["", "it has 0"],
      [`${id}x`, "it has 201"],
      ["é", "character 1 is U+00E9 ('é')"],
      ["a\n", "character 2 is U+000A"],
      [`a${"😀".repeat(200)}`, "character 2 is U+1F600 ('😀')"],
    ] as const) {
      const { error } = await post(tenant, [event(), named(wrong)]);
      expect(error?.code).toBe("invalid_body");
      expect(error?.message.replace("event_id", "eventId")).toBe(
        `events[1].eventId: must have 1 to 200 printable ASCII characters; ${problem}`,
      );
    }
  });

  test("an event without a timestamp is answered with that of the stored one", async () => {
    const tenant = await createTenant(suite.service.admin);
    const plain = event({ eventId: "a" });
    const { accepted } = (await post(tenant, [plain])).body.results;
    expect((await post(tenant, [plain])).body.results.accepted).toEqual([{ ...accepted[0], duplicate: true }]);
  });

  test("a dry run answers as sending would, and stores nothing", async () => {
    const tenant = await createTenant(suite.service.admin);
    await post(tenant, [named("a")]);
    const events = [named("a"), named("b"), named("b", { duration: 9 })];
    const tried = await post(tenant, events, { "x-dry-run": "true" });
    expect(await stored(tenant)).toHaveLength(1);
    expect((await post(tenant, events)).body.results).toEqual(tried.body.results);
    expect(await stored(tenant)).toHaveLength(2);
  });

  test("a request that fails while it looks for stored ids gives its part of the last quota back", async () => {
    const tenant = await createTenant(suite.service.admin, { quotaEventsPerMonth: 2 });
    const events = ["a", "b", "c"].map((id) => named(id));
    const headers = { "idempotency-key": "last" };
    const broken = vi.spyOn(EventStore.prototype, "findByEventId").mockRejectedValueOnce(new Error("away"));
    const failed = await post(tenant, events, headers);
    broken.mockRestore();
    expect(failed.error).toMatchObject({ code: "internal_error" });
    await expectCharged(tenant, 0);
    expect((await post(tenant, events, headers)).body).toMatchObject({ accepted: 2, rejected: 1 });
    expect(await stored(tenant)).toHaveLength(2);
  });

  test("an event that is stored costs nothing again, even when the quota is used up", async () => {
    const tenant = await createTenant(suite.service.admin, { name: "Small", quotaEventsPerMonth: 3 });
    await post(tenant, [named("a"), named("b")]);
    const full = await post(tenant, [named("c"), named("a"), named("d"), named("c"), named("d"), event()]);
    expect(full.body.results.accepted.map(({ eventId, duplicate }: any) => [eventId, duplicate])).toEqual([
      ["c", undefined],
      ["a", true],
      ["c", true],
    ]);
    expect(full.body.results.rejected.map(({ index, code }: any) => [index, code])).toEqual([
      [2, "quota_exceeded"],
      [4, "quota_exceeded"],
      [5, "quota_exceeded"],
    ]);
    expect((await post(tenant, [named("a"), named("c")])).body).toMatchObject({ accepted: 2, rejected: 0 });
    expect((await post(tenant, [named("e")])).error?.code).toBe("quota_exceeded");
    expect(await stored(tenant)).toHaveLength(3);
    await expectCharged(tenant, 3);
  });
});

test("the same events at the same moment over every protocol, with and without a key, are stored and charged once", async () => {
  const tenant = await createTenant(suite.service.admin);
  const ids = Array.from({ length: 40 }, (_, i) => `e${i}`);
  const sends = ways.flatMap(([name, send], i) =>
    [{}, { "idempotency-key": `k${i % 2}` }, {}].map(async (headers, shift) => {
      // Batches with other borders, and in another order.
      const own = [...ids.slice(10 * shift), ...ids.slice(0, 10 * shift)].slice(0, 35);
      const body = { events: (shift === 1 ? ids : own).map((id) => named(id)) };
      const answer = await send(suite.url, "events", body, { ...bearer(tenant.key), ...headers });
      expect(answer.error, name).toBeUndefined();
      return answer.body.results.accepted as { eventId: string; duplicate?: true; conflict?: true }[];
    }),
  );
  const accepted = (await Promise.all(sends)).flat();
  expect(accepted.filter(({ conflict }) => conflict)).toEqual([]);
  expect(await stored(tenant)).toHaveLength(40);
  await expectCharged(tenant, 40);
});

test("what a request of duplicates stored is found by its id, though its first event was stored before", async () => {
  const tenant = await createTenant(suite.service.admin);
  const send = protocols.REST as Send;
  const post = (...events: object[]) => send(suite.url, "events", { events }, bearer(tenant.key));
  await post(named("a"));
  const answer = await post(named("a"), named("b"), event(), named("c"));
  const rows = await findRowsOfRequest(suite.service.app.db, answer.body.requestId);
  expect(rows.map(({ id }) => id)).toEqual(
    (await stored(tenant))
      .filter(({ requestId }) => requestId === answer.body.requestId)
      .map(({ id }) => id)
      .sort(),
  );
  expect(rows).toHaveLength(3);
});
