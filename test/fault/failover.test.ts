import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { trustMs } from "../../src/store/changes.ts";
import { event } from "../support/requests.ts";
import {
  bearer,
  createTenant,
  protocols,
  type Send,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";
import { ReplicaSet } from "./replica-set.ts";

// A set that has lost a member needs its time on a slow machine.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });
const patience = { timeout: 60_000, interval: 50 };

let set: ReplicaSet;
let service: TestService;
beforeAll(async () => {
  set = await ReplicaSet.start({ electionTimeoutMs: 1_000 });
  service = await startService({ mongodbUri: set.uri });
});
afterAll(async () => {
  await service?.app.close();
  await set?.stop();
});

const codeOf = async ({ key }: Tenant) =>
  (await (protocols.REST as Send)(service.app.url, "events", { events: [event()] }, bearer(key))).error?.code;

/** Tenants whose keys are in the service's memory. */
async function knownTenants(count: number): Promise<Tenant[]> {
  const tenants: Tenant[] = [];
  for (let i = 0; i < count; i++) tenants.push(await createTenant(service.admin));
  for (const one of tenants) await expect.poll(() => codeOf(one), patience).toBeUndefined();
  return tenants;
}

/** Revokes, takes the plan, denies, and waits until the service acts on all of it. */
async function expectChangesToAct([revoked, unplanned, denied]: readonly Tenant[]): Promise<void> {
  await service.admin.revokeKey(revoked!.keyId);
  await service.admin.updateOrganization(unplanned!.organizationId, { api: false });
  await service.admin.denyTypes(denied!.appId, ["ticket.*"]);
  // What bounds it is the trust in what is remembered; the rest is this machine's time.
  expect(trustMs).toBeLessThan(5_000);
  await Promise.all([
    expect.poll(() => codeOf(revoked!), patience).toBe("key_revoked"),
    expect.poll(() => codeOf(unplanned!), patience).toBe("plan_disabled"),
    expect.poll(() => codeOf(denied!), patience).toBe("forbidden_event_type"),
  ]);
}

test("changes act although the member that has the change stream no longer follows the set, and nothing else tells", async () => {
  const old = await set.primary();
  const tenants = await knownTenants(3);
  await set.stepDown(old);
  await set.primary();
  const failPoint = (mode: string) => set.command(old, { configureFailPoint: "stopReplProducer", mode });
  await failPoint("alwaysOn");
  try {
    await expectChangesToAct(tenants);
  } finally {
    await failPoint("off");
    await set.whole();
  }
});
