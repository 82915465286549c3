import { Code } from "@connectrpc/connect";
import type { Db, IndexDescription } from "mongodb";
import { describe, expect, inject, onTestFinished, test } from "vitest";
import { invalidBody } from "../../src/ingest/validate.ts";
import { unknownEnd } from "../../src/exchange.ts";
import { createIdSource } from "../../src/ids.ts";
import { Traffic } from "../../src/observe/traffic.ts";
import { createClient } from "../../src/store/database.ts";
import {
  addCounts,
  minuteMs,
  noTraffic,
  percentileOf,
  readMinutes,
  requestsOf,
  traffic,
  trafficCollection,
} from "../../src/store/traffic.ts";
import { event, snapshot } from "../support/requests.ts";
import { bearer, createTenant, insertKey, protocols, startService } from "../support/service.ts";

const ids = createIdSource();
const receivedAt = new Date("2026-04-19T12:05:00Z");
const minute = receivedAt.getTime() / minuteMs;

function databaseOf(name: string): Db {
  const client = createClient(inject("mongodbUri"));
  onTestFinished(() => client.close());
  return client.db(name);
}

test("a stopping service writes what it counted over every protocol: calls of live keys, and refused ones apart", async () => {
  const database = `traffic-${Date.now()}`;
  const service = await startService({ database });
  const [own, other] = [await createTenant(service.admin), await createTenant(service.admin)];
  const { key: testKey } = await insertKey(service, own, { test: true });
  const { key: readKey } = await insertKey(service, own, { scopes: ["read"] });
  const { url, adminUrl } = service.app;
  for (const send of Object.values(protocols)) {
    await send(url, "ping", undefined, bearer(own.key));
    await send(url, "events", { events: [event(), event({ actor: {} })] }, bearer(own.key));
    await send(url, "events", { events: [event({ duration: -1 })] }, bearer(own.key));
    await send(url, "snapshots", snapshot(), { ...bearer(own.key), "x-dry-run": "true" });
    await send(url, "events", { events: [event()] }, bearer(readKey));
    await send(url, "ping", undefined, bearer(testKey));
    await send(url, "ping", undefined, bearer(other.key));
    await send(url, "ping", undefined, bearer(`wp_live_${"0".repeat(32)}`));
  }
  await fetch(`${url}/api/v1/timeline/events`, { headers: bearer(readKey) });
  await fetch(`${adminUrl}/api/v1/admin/whoami`, { headers: bearer(own.key) });
  await service.app.close();
  const db = databaseOf(database);
  const sumOf = async (organizationId: string) => {
    const sum = noTraffic();
    for (const one of await readMinutes(db, organizationId, 0)) addCounts(sum, one);
    return [requestsOf(sum), sum.refused];
  };
  const count = Object.keys(protocols).length;
  expect(await sumOf(own.organizationId)).toEqual([5 * count + 1, 2 * count]);
  expect(await sumOf(other.organizationId)).toEqual([count, 0]);
  const indexes = await db.collection("traffic").indexes();
  expect(indexes).toContainEqual(expect.objectContaining({ key: { minute: 1 }, expireAfterSeconds: 7_200 }));
});

describe("the counts", () => {
  const start = { rpc: "Events", receivedAt };
  const endOf = (organizationId: string, durationMs: number) => {
    const caller = { organizationId, appId: "app_1", keyId: "key_1", keyHint: "wp_live_1…" };
    return { ...unknownEnd(ids.next("req")), caller, durationMs, status: 200 };
  };
  const unexpected = (error: unknown) => expect(error).toBeUndefined();

  test("of two instances give percentiles within 5 %, from below the scale to beyond a minute", async () => {
    const db = databaseOf("traffic-merged");
    // Two upserts at once make two documents where no index is unique.
    await trafficCollection(db).createIndexes(
      traffic.indexes.map(({ key, options }) => ({ ...options, key }) as IndexDescription),
    );
    const organizationId = ids.next("org");
    const instances = [new Traffic(db, unexpected), new Traffic(db, unexpected)] as const;
    // From 0.11 ms to 54 s; each instance has only one half.
    const latencies = Array.from({ length: 2_000 }, (_, i) => 0.11 * 2 ** (i * 0.00945));
    latencies.forEach((ms, i) => instances[i < 1_000 ? 0 : 1].ended({ ...start }, endOf(organizationId, ms)));
    await Promise.all(instances.map((one) => one.stop()));
    const found = await readMinutes(db, organizationId, minute);
    expect(found.map((one) => [one.minute, requestsOf(one)])).toEqual([[minute, 2_000]]);
    const [merged = noTraffic()] = found;
    for (const share of [0.001, 0.01, 0.5, 0.9, 0.99, 1]) {
      const exact = latencies[Math.ceil(share * latencies.length) - 1] as number;
      expect(Math.abs((percentileOf(merged, share) as number) / exact - 1)).toBeLessThan(0.05);
    }
    expect(percentileOf(noTraffic(), 0.5)).toBeUndefined();
  });

  test("belong to the minute of the answer, and errors and aborts are told apart", async () => {
    const db = databaseOf("traffic-minutes");
    const organizationId = ids.next("org");
    const counts = new Traffic(db, unexpected);
    const end = endOf(organizationId, 1);
    counts.ended(start, { ...end, durationMs: 59_999 });
    counts.ended(start, { ...end, durationMs: 60_000 });
    counts.ended(start, { ...end, fault: invalidBody([{ path: "", message: "" }]) });
    counts.ended(start, { ...end, code: Code.Unimplemented });
    counts.ended(start, { ...end, status: 0 });
    counts.ended({ ...start, rpc: "WatchEvents" }, end);
    counts.ended({ ...start, rpc: "" }, end);
    // Times outside the scale.
    counts.ended(start, { ...end, durationMs: 0 });
    counts.ended(start, { ...end, durationMs: 1e7 });
    await counts.stop();
    const found = await readMinutes(db, organizationId, 0);
    expect(found.map((one) => [one.minute - minute, requestsOf(one), one.refused])).toEqual([
      [0, 4, 2],
      [1, 1, 0],
      [166, 1, 0],
    ]);
    expect(await readMinutes(db, organizationId, minute + 1)).toHaveLength(2);
  });

  test("of more organisations than fit in memory are left out until the next write", async () => {
    const db = databaseOf("traffic-cap");
    const counts = new Traffic(db, unexpected, 2);
    const [first, second, late] = [ids.next("org"), ids.next("org"), ids.next("org")];
    for (const id of [first, second, late, first]) counts.ended(start, endOf(id, 1));
    await counts.stop();
    counts.ended(start, endOf(late, 1));
    await counts.stop();
    const requests = async (id: string) => (await readMinutes(db, id, 0)).map(requestsOf);
    expect([await requests(first), await requests(second), await requests(late)]).toEqual([[2], [1], [1]]);
  });
});
