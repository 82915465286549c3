import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { ServerReflection } from "../../src/gen/grpc/reflection/v1/reflection_pb.js";
import {
  bearer,
  createTenant,
  insertKey,
  protocols,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";
import { trustMs } from "../../src/store/changes.ts";
import { type Samples, scrape, sumOf } from "../support/prometheus.ts";

let service: TestService;
let tenant: Tenant;
let url: string;
beforeAll(async () => {
  service = await startService();
  url = service.app.url;
  tenant = await createTenant(service.admin);
});
afterAll(() => service.app.close());

const event = (change: object = {}) => ({
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: "crm-user-42" },
  ...change,
});

/** The growth between two scrapes. A request counts when its answer has left, so the second scrape may have to wait. */
async function growth(work: () => Promise<unknown>) {
  const before = await scrape(service.app.adminUrl);
  await work();
  return async (name: string, labels: Record<string, string>, expected: number) => {
    const grown = async () => sumOf(await scrape(service.app.adminUrl), name, labels) - sumOf(before, name, labels);
    await expect.poll(grown, { timeout: 10_000, message: `${name} ${JSON.stringify(labels)}` }).toBe(expected);
  };
}

describe.each(Object.entries(protocols))("over %s", (name, send) => {
  const protocol = (name.split(" ")[0] as string).toLowerCase();

  test("finished requests count by RPC, protocol and code, with their durations", async () => {
    const grew = await growth(async () => {
      await send(url, "ping", {}, bearer(tenant.key));
      await send(url, "ping", {}, {});
      await send(url, "events", { events: [event({ duration: -1 })] }, bearer(tenant.key));
    });
    await grew("ingest_requests_total", { rpc: "Ping", protocol, code: "ok" }, 1);
    await grew("ingest_requests_total", { rpc: "Ping", protocol, code: "missing_authorization" }, 1);
    await grew("ingest_requests_total", { rpc: "Events", protocol, code: "invalid_body" }, 1);
    await grew("ingest_request_duration_seconds_count", { rpc: "Ping", protocol }, 2);
    await grew("ingest_events_accepted_total", {}, 0);
  });

  test("events count once, accepted or rejected by code; a replay counts as a replay, and a test key not at all", async () => {
    const events = [event(), event({ eventType: "deploy.shipped" }), event({ actor: {} }), event()];
    const headers = { ...bearer(tenant.key), "idempotency-key": `metrics-${name}` };
    const { key: testKey } = await insertKey(service, tenant, { test: true });
    const grew = await growth(async () => {
      await send(url, "events", { events }, headers);
      await send(url, "events", { events }, headers);
      await send(url, "events", { events: [event()] }, headers);
      await send(url, "events", { events }, { ...headers, ...bearer(testKey) });
      await send(url, "events", { events: [event({ eventType: "deploy.shipped" })] }, bearer(tenant.key));
      await send(
        url,
        "snapshots",
        { snapshotType: "tickets_open", actor: { externalId: "crm-user-42" }, metrics: { open: 1 } },
        bearer(tenant.key),
      );
    });
    await grew("ingest_events_accepted_total", { rpc: "Events" }, 2);
    await grew("ingest_events_accepted_total", { rpc: "Snapshots" }, 1);
    await grew("ingest_events_rejected_total", { code: "forbidden_event_type" }, 2);
    await grew("ingest_events_rejected_total", { code: "missing_actor" }, 1);
    await grew("ingest_batch_events_sum", {}, 5);
    await grew("ingest_batch_events_count", {}, 2);
    await grew("ingest_idempotency_total", { outcome: "taken" }, 1);
    await grew("ingest_idempotency_total", { outcome: "replayed" }, 1);
    await grew("ingest_idempotency_total", { outcome: "conflict" }, 1);
  });
});

const { REST: send } = protocols as { REST: (typeof protocols)[string] };

test("refusals by the rate limit name the empty bucket, and those by the quota count events", async () => {
  const slowKey = await createTenant(service.admin, { name: "Slow key", keyRequestsPerSecond: 1 });
  const slowOrganization = await createTenant(service.admin, { name: "Slow", organizationRequestsPerSecond: 1 });
  const poor = await createTenant(service.admin, { name: "Poor", quotaEventsPerMonth: 1 });
  const grew = await growth(async () => {
    // At once, because a second later the bucket would have room for another request.
    for (const { key } of [slowKey, slowOrganization]) {
      await Promise.all([send(url, "ping", {}, bearer(key)), send(url, "ping", {}, bearer(key))]);
    }
    await send(url, "events", { events: [event(), event(), event()] }, bearer(poor.key));
  });
  await grew("ingest_rate_limited_total", { bucket: "key" }, 1);
  await grew("ingest_rate_limited_total", { bucket: "organization" }, 1);
  await grew("ingest_events_rejected_total", { code: "quota_exceeded" }, 2);
});

test("a rejected snapshot counts like a rejected event, and each code is there before its first rejection", async () => {
  const fresh = await startService();
  onTestFinished(() => fresh.app.close());
  const rejected = async () =>
    [...(await scrape(fresh.app.adminUrl))].filter(([series]) => series.startsWith("ingest_events_rejected_total"));
  expect((await rejected()).map(([, count]) => count)).toEqual([0, 0, 0, 0]);
  const { key } = await createTenant(fresh.admin, { name: "Poor", quotaEventsPerMonth: 0 });
  const snapshot = { snapshotType: "tickets_open", actor: { externalId: "crm-user-42" }, metrics: { open: 1 } };
  expect((await send(fresh.app.url, "snapshots", snapshot, bearer(key))).status).toBe(402);
  const quotaExceeded = ['ingest_events_rejected_total{code="quota_exceeded"}', 1];
  await expect.poll(rejected, { timeout: 10_000 }).toContainEqual(quotaExceeded);
});

test("an accepted duplicate counts as accepted; a reflection stream has no duration", async () => {
  const grew = await growth(async () => {
    const body = { events: [event({ eventId: "metrics-1" })] };
    for (let i = 0; i < 2; i++) await send(url, "events", body, bearer(tenant.key));
    const reflecting = createClient(ServerReflection, createGrpcTransport({ baseUrl: url }));
    const ask = async function* () {
      yield { messageRequest: { case: "listServices", value: "" } } as const;
    };
    for await (const answer of reflecting.serverReflectionInfo(ask())) {
      expect(answer.messageResponse.case).toBe("listServicesResponse");
    }
  });
  await grew("ingest_events_accepted_total", { rpc: "Events" }, 2);
  await grew("ingest_requests_total", { rpc: "ServerReflectionInfo", code: "ok" }, 1);
  await grew("ingest_request_duration_seconds_count", { rpc: "ServerReflectionInfo" }, 0);
});

test("the age of the news stays low while the database answers", async () => {
  const age = async () => sumOf(await scrape(service.app.adminUrl), "ingest_news_age_seconds");
  await expect.poll(age, { timeout: 30_000 }).toBeLessThan(trustMs / 1000);
});

test("keys and workers from memory count as cache hits; group commits and connections are measured", async () => {
  const { key } = await service.admin.createKey(tenant.appId);
  const misses = { cache: "principals", result: "miss" };
  const before = await scrape(service.app.adminUrl);
  const body = { events: [event({ actor: { externalId: "seldom-seen" } })] };
  for (let i = 0; i < 3; i++) await send(url, "events", body, bearer(key));
  const after = await scrape(service.app.adminUrl);
  const grown = (name: string, labels: Record<string, string>) =>
    sumOf(after, name, labels) - sumOf(before, name, labels);
  expect(grown("ingest_cache_lookups_total", misses)).toBeGreaterThanOrEqual(1);
  expect(grown("ingest_cache_lookups_total", { cache: "principals", result: "hit" })).toBeGreaterThanOrEqual(1);
  expect(grown("ingest_cache_lookups_total", { cache: "workers", result: "hit" })).toBeGreaterThanOrEqual(2);
  expect(grown("ingest_cache_lookups_total", { cache: "workers", result: "miss" })).toBeGreaterThanOrEqual(1);
  expect(grown("ingest_group_commit_items_sum", { queue: "events" })).toBe(3);
  expect(grown("ingest_group_commit_duration_seconds_sum", { queue: "events" })).toBeGreaterThan(0);
  expect(after.get('ingest_group_commit_queue{queue="events"}')).toBe(0);
  expect(after.get('ingest_group_commit_queue_max{queue="events"}')).toBeGreaterThan(1000);
  expect(sumOf(after, "ingest_mongodb_pool_connections")).toBeGreaterThan(0);
  expect(sumOf(after, "ingest_mongodb_pool_in_use")).toBeLessThan(32);
  expect(after.has("nodejs_eventloop_lag_p99_seconds")).toBe(true);
});

test("no request of a caller makes a new time series", async () => {
  const seriesOf = (samples: Samples) => [...samples.keys()].filter((series) => series.startsWith("ingest_")).sort();
  const odd = async (mark: string) => {
    for (const path of [`/${mark}`, `/docs/errors/${mark}`, `/ingest.v1.Ingest/${mark}`, `/api/v1/ingest/${mark}`]) {
      await fetch(url + path, { method: "GET" });
      await fetch(url + path, { method: "POST", headers: { "content-type": `application/grpc+${mark}` }, body: mark });
    }
    await fetch(`${url}/ingest.v1.Ingest/Ping`, { method: "POST", headers: { "content-type": `application/${mark}` } });
    await send(url, "events", { events: [event({ eventType: mark })] }, bearer(tenant.key));
    const { key } = await createTenant(service.admin, { name: mark });
    await send(url, "ping", {}, bearer(key));
    await send(url, "ping", {}, bearer(mark));
  };
  await odd("first");
  const before = seriesOf(await scrape(service.app.adminUrl));
  await odd("second");
  expect(seriesOf(await scrape(service.app.adminUrl))).toEqual(before);
  expect(before.join("\n")).not.toMatch(/(org|app|key|req)_[0-9A-Z]{26}|wp_live/);
});

test("with METRICS_TOKEN, only its bearer can read the metrics", async () => {
  const guarded = await startService({ env: { METRICS_TOKEN: "s3cret" } });
  try {
    const status = async (headers: Record<string, string>) =>
      (await fetch(`${guarded.app.adminUrl}/metrics`, { headers })).status;
    expect(await status({})).toBe(401);
    expect(await status(bearer("wrong"))).toBe(401);
    expect(await status(bearer("s3cret"))).toBe(200);
  } finally {
    await guarded.app.close();
  }
});
