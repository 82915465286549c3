import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { trustMs } from "../../src/store/changes.ts";
import { UsageKeeper } from "../../src/store/usage-keeper.ts";
import { usageCollection, UsageStore } from "../../src/store/usage.ts";
import { insertToken } from "../support/admin.ts";
import { event, unique } from "../support/requests.ts";
import {
  bearer,
  createTenant,
  protocols,
  type Send,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";
import { watchers } from "../support/timeline.ts";
import { requestWatches, resumed, type WatchRequests } from "../support/watch-requests.ts";
import { failover } from "./failover.ts";
import { ReplicaSet } from "./replica-set.ts";

// On a slow machine a set that has lost a member needs time.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });
const patience = { timeout: 60_000, interval: 50 };

let set: ReplicaSet;
let service: TestService;
beforeAll(async () => {
  set = await ReplicaSet.start({ electionTimeoutMs: 1_000, isBreakable: true });
  service = await startService({ mongodbUri: set.uri });
});
afterAll(async () => {
  await service?.app.close();
  await set?.stop();
});

const send = ({ key }: Tenant, change: object = {}) =>
  (protocols.REST as Send)(service.app.url, "events", { events: [event(change)] }, bearer(key));
const ping = ({ key }: Tenant) => (protocols.REST as Send)(service.app.url, "ping", {}, bearer(key));
const codeOf = async (tenant: Tenant) => (await send(tenant)).error?.code;

/** Collects the types of a stream's events. */
function collect(stream: AsyncIterable<unknown>): string[] {
  const seen: string[] = [];
  void (async () => {
    for await (const message of stream) seen.push(JSON.stringify(message));
  })().catch((error: unknown) => seen.push(String(error)));
  return seen;
}

test("a cut-off member hides nothing: revocations act, and streams get their rows", async () => {
  const old = await set.primary();
  const tenants: Tenant[] = [];
  for (let i = 0; i < 4; i++) tenants.push(await createTenant(service.admin));
  const [revoked, unplanned, denied, good] = tenants as [Tenant, Tenant, Tenant, Tenant];
  for (const one of tenants) await expect.poll(() => codeOf(one), patience).toBeUndefined();
  const { key } = await service.admin.createKey(good.appId, undefined, "read");
  const stop = new AbortController();
  onTestFinished(() => stop.abort());
  const watched = collect(watchers["REST lines"]!(service.app.url, {}, bearer(key), stop.signal));
  const { token } = await insertToken(service, "operator");
  const tail = resumed(requestWatches["REST lines"] as WatchRequests);
  const tailed = collect(tail(service.app.adminUrl, token, { organizationId: "-" }, stop.signal));
  const before = unique("ticket.before");
  for (const seen of [watched, tailed]) {
    const has = async () => (await send(good, { eventType: before }), seen.join().includes(before));
    await expect.poll(has, patience).toBe(true);
  }

  // The streams stay on the old primary, which then receives no more changes.
  await set.stepDown(old);
  await set.primary();
  const failPoint = (mode: string) => set.command(old, { configureFailPoint: "stopReplProducer", mode });
  await failPoint("alwaysOn");
  try {
    await service.admin.revokeKey(revoked.keyId);
    await service.admin.updateOrganization(unplanned.organizationId, { api: false });
    await service.admin.denyTypes(denied.appId, ["ticket.*"]);
    const after = unique("ticket.after");
    await expect.poll(async () => (await send(good, { eventType: after })).error, patience).toBeUndefined();
    // The trust in cached keys limits it; the rest is this machine's time.
    expect(trustMs).toBeLessThan(5_000);
    await Promise.all([
      expect.poll(() => codeOf(revoked), patience).toBe("key_revoked"),
      expect.poll(() => codeOf(unplanned), patience).toBe("plan_disabled"),
      expect.poll(() => codeOf(denied), patience).toBe("forbidden_event_type"),
      expect.poll(() => watched.join(), patience).toContain(after),
      expect.poll(() => tailed.join(), patience).toContain(after),
    ]);
  } finally {
    await failPoint("off");
    await set.whole();
  }
});

test("the first charge of a month is counted again if an election undoes it", async () => {
  const { db } = service.app;
  const usageOf = (tenant: Tenant) => usageCollection(db).findOne({ organizationId: tenant.organizationId });
  const undone = async (): Promise<Tenant | undefined> => {
    const tenant = await createTenant(service.admin);
    await expect.poll(async () => (await ping(tenant)).error, patience).toBeUndefined();
    const old = await set.primary();
    set.cutOff(old);
    // The old primary stores the charge at once, but the row waits for a majority.
    const sending = codeOf(tenant);
    await set.primary();
    await set.end(old, "SIGKILL");
    set.heal();
    const code = await sending;
    const charged = (await usageOf(tenant))?.events ?? 0;
    await set.restart(old);
    await set.whole();
    // On a slow machine the request may be late, or fail.
    return code === undefined && charged === 0 ? tenant : undefined;
  };
  let tenant: Tenant | undefined;
  while (tenant === undefined) tenant = await undone();
  // The instance knows the month even though its document is gone.
  await expect.poll(() => usageOf(tenant), patience).toMatchObject({ events: 0, doubt: { charged: 0 } });
  const usage = new UsageStore(db);
  const onError = (error: unknown) => expect(error).toBeUndefined();
  await new UsageKeeper(db, { usage, now: Date.now, countAfterMs: 0, onError }).look();
  expect(await usageOf(tenant)).toMatchObject({ events: 1 });
});

test("primaries are cut off, killed and stepped down under load, and every acknowledged event is stored exactly once", async () => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  console.log(`seed ${seed}`);
  const result = await failover({
    ...{ set, seed, instances: 2, clients: 2, calmMs: 0, probeMs: 200, rollingRestarts: 0, report: () => {} },
    faults: ["is cut off, and killed", "steps down"],
  });
  expect(result.problems).toEqual([]);
  expect(result).toMatchObject({ lost: 0, doubled: 0, unasked: 0, wrongCards: 0 });
  expect(result.rows).toBeGreaterThanOrEqual(result.acknowledgedEvents);
  expect(result.acknowledgedEvents).toBeGreaterThan(0);
  // Otherwise no write was ever rolled back, and the run proves nothing.
  expect(result.rollbacks).toBeGreaterThan(0);
});
