import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { unknownEnd } from "../../src/exchange.ts";
import { createIdSource, timeOfId } from "../../src/ids.ts";
import { DailyUsage } from "../../src/observe/daily-usage.ts";
import { eventCollection, rowsBetween } from "../../src/store/events.ts";
import { sumOfDays, usageDayCollection, usageTypesMax } from "../../src/store/usage-days.ts";
import { dayOf, monthOf } from "../../src/time.ts";
import { event, snapshot } from "../support/requests.ts";
import { bearer, createTenant, insertKey, protocols, useService } from "../support/service.ts";
import { RawConnection } from "../support/socket.ts";

const suite = useService();
const sumsOf = (by: "day" | "app" | "type", organizationId: string) =>
  sumOfDays(suite.service.app.db, organizationId, monthOf(new Date()), by);
const ids = createIdSource();

test("events count by type, app and day over every protocol: accepted, rejected by code, replayed; dry runs and test keys do not", async () => {
  const { service, url } = suite;
  const { key, appId, organizationId } = await createTenant(service.admin);
  const count = Object.keys(protocols).length;
  const before = dayOf(new Date());
  const { key: testKey } = await insertKey(service, { appId }, { test: true });
  for (const [name, send] of Object.entries(protocols)) {
    await send(url, "events", { events: [event({ eventType: "ticket.a" }), event({ actor: {} })] }, bearer(testKey));
    const events = [
      ...[event({ eventType: "ticket.a" }), event({ eventType: `invented.${name.length}` })],
      ...[event({ eventType: "ticket.a" }), event({ eventType: "ticket.b" }), event({ actor: {} })],
    ];
    const headers = { ...bearer(key), "idempotency-key": `usage-${name}` };
    await send(url, "events", { events }, headers);
    await send(url, "events", { events }, headers);
    await send(url, "events", { events }, { ...bearer(key), "x-dry-run": "true" });
    await send(url, "events", { events: [event({ duration: -1 })] }, bearer(key));
    await send(url, "events", { events: [events[1], events[1]] }, bearer(key));
    await send(url, "snapshots", snapshot({ snapshotType: "load" }), bearer(key));
    await send(
      url,
      "snapshots",
      snapshot({ snapshotType: "load", actor: { workerId: `wrk_${"0".repeat(26)}` } }),
      bearer(key),
    );
    await send(url, "ping", undefined, bearer(key));
  }
  const none = { accepted: 0, rejected: {}, replayed: 0, duplicates: 0 };
  const refused = { forbidden_event_type: 3 * count, missing_actor: count, invalid_body: count };
  const byType = [
    { ...none, type: "", rejected: refused, replayed: 2 * count },
    { ...none, type: "load", accepted: count, rejected: { worker_not_found: count } },
    { ...none, type: "ticket.a", accepted: 2 * count, replayed: 2 * count },
    { ...none, type: "ticket.b", accepted: count, replayed: count },
  ];
  await expect.poll(() => sumsOf("type", organizationId)).toEqual(byType);
  const sum = {
    ...{ accepted: 4 * count, rejected: { ...refused, worker_not_found: count } },
    ...{ replayed: 5 * count, duplicates: 0 },
  };
  expect(await sumsOf("app", organizationId)).toEqual([{ ...sum, appId }]);
  // A run may begin just before midnight.
  if (dayOf(new Date()) === before) expect(await sumsOf("day", organizationId)).toEqual([{ ...sum, day: before }]);
  expect(await sumOfDays(service.app.db, organizationId, "2020-01", "day")).toEqual([]);
});

test("events with an event id that is stored count as duplicates, of one request and of another", async () => {
  const { service, url } = suite;
  const { key, organizationId } = await createTenant(service.admin);
  const named = event({ eventId: "usage-1" });
  const [send] = Object.values(protocols) as [(typeof protocols)[string]];
  await send(url, "events", { events: [named, event(), named] }, bearer(key));
  await send(url, "events", { events: [named] }, bearer(key));
  const counts = { type: named.eventType, accepted: 2, rejected: {}, replayed: 0, duplicates: 2 };
  await expect.poll(() => sumsOf("type", organizationId)).toEqual([counts]);
});

test("events whose caller did not wait count once, however often it tries again", async () => {
  const { service, url } = suite;
  const { key, organizationId } = await createTenant(service.admin);
  const body = JSON.stringify({ events: [event()] });
  const keys = Array.from({ length: 60 }, (_, i) => `unwaiting-${i}`);
  await Promise.all(
    keys.map(async (idempotencyKey, i) => {
      const connection = await RawConnection.open(service.app.port);
      const head = ["POST /api/v1/ingest/events HTTP/1.1", "Host: x", "Content-Type: application/json"];
      const own = [`Authorization: Bearer ${key}`, `Idempotency-Key: ${idempotencyKey}`];
      connection.send([...head, ...own, `Content-Length: ${body.length}`], body);
      await delay(i % 12);
      connection.socket.destroy();
    }),
  );
  const [send] = Object.values(protocols) as [(typeof protocols)[string]];
  for (const idempotencyKey of keys) {
    const headers = { ...bearer(key), "idempotency-key": idempotencyKey };
    expect((await send(url, "events", { events: [event()] }, headers)).status).toBe(202);
  }
  const accepted = async () => (await sumsOf("type", organizationId)).map((one) => one.accepted);
  await expect.poll(accepted, { timeout: 10_000 }).toEqual([keys.length]);
  expect(await eventCollection(service.app.db).countDocuments(rowsBetween(organizationId))).toBe(keys.length);
});

describe("the counts", () => {
  const start = { rpc: "Events" };
  const endOf = (organizationId: string, types: readonly string[]) => {
    const caller = { organizationId, appId: "app_1", keyId: "key_1", keyHint: "wp_live_1…" };
    return { ...unknownEnd(ids.next("req")), caller, types, accepted: types.length, isStored: true };
  };

  test("of two requests with one Idempotency-Key add up, whichever of them stored the events", async () => {
    const { db } = suite.service.app;
    const organizationId = ids.next("org");
    const usage = new DailyUsage(db, (error) => expect(error).toBeUndefined());
    const rejections = [{ index: 1, code: "quota_exceeded", message: "" }] as const;
    const end = { ...endOf(organizationId, ["ticket.a", "ticket.b"]), accepted: 1, rejections };
    usage.ended(start, { ...end, claim: "replayed", isStored: true });
    usage.ended(start, { ...end, claim: "taken", isStored: false });
    await usage.stop();
    const found = await usageDayCollection(db).find({ organizationId }).sort({ type: 1 }).toArray();
    expect(found).toMatchObject([{ accepted: 1 }, { rejected: { quota_exceeded: 1 }, replayed: 1 }]);
    expect(found[0]).not.toHaveProperty("replayed");
    expect(found[1]).not.toHaveProperty("accepted");
  });

  test("of more than 200 types of an app on a day share one, also after what was gathered is written", async () => {
    const { db } = suite.service.app;
    const organizationId = ids.next("org");
    const usage = new DailyUsage(db, (error) => expect(error).toBeUndefined());
    const typesOf = (from: number) => Array.from({ length: usageTypesMax }, (_, i) => `ticket.${from + i}`);
    for (const from of [0, 100, 200, 100_000]) {
      usage.ended(start, endOf(organizationId, typesOf(from)));
      await usage.stop();
    }
    const found = await usageDayCollection(db).find({ organizationId }).toArray();
    expect(found).toHaveLength(usageTypesMax + 1);
    expect(found.reduce((sum, { accepted = 0 }) => sum + accepted, 0)).toBe(4 * usageTypesMax);
    expect(found.find(({ type }) => type === "")).toMatchObject({ accepted: 500 });
  });

  test("of several instances are added up", async () => {
    const { db } = suite.service.app;
    const organizationId = ids.next("org");
    const instances = Array.from({ length: 4 }, () => new DailyUsage(db, (error) => expect(error).toBeUndefined()));
    const types = Array.from({ length: 50 }, (_, i) => `ticket.${i}`);
    const end = endOf(organizationId, types);
    for (const usage of instances) usage.ended(start, end);
    await Promise.all(instances.map((usage) => usage.stop()));
    const found = await usageDayCollection(db).find({ organizationId }).toArray();
    expect(found.map(({ accepted }) => accepted)).toEqual(types.map(() => instances.length));
    expect(found[0]?.day).toBe(dayOf(timeOfId(end.requestId)));
  });
});
