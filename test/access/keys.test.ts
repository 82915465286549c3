import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { settleOnInstances } from "../../src/store/instances.ts";
import { KeyUses, keyUseCollection } from "../../src/store/key-uses.ts";
import { type KeyDocument, keyCollection } from "../../src/store/keys.ts";
import { adminRest, insertToken } from "../support/admin.ts";
import { startLoad } from "../support/load.ts";
import { eventually, runIngest } from "../support/processes.ts";
import { scrape, sumOf } from "../support/prometheus.ts";
import { event, expectError } from "../support/requests.ts";
import {
  bearer,
  createTenant,
  insertKey,
  protocols,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";

const database = `test-${randomBytes(6).toString("hex")}`;
let services: TestService[];
let tenant: Tenant;

beforeAll(async () => {
  const env = { TRUSTED_PROXIES: "127.0.0.1" };
  services = await Promise.all([
    startService({ database }),
    startService({ database, env }),
    startService({ database }),
  ]);
  tenant = await createTenant((services[0] as TestService).admin);
});
afterAll(() => Promise.all(services.map(({ app }) => app.close())));

const admin = () => (services[0] as TestService).admin;
const db = () => (services[0] as TestService).app.db;
/** Each instance's error code for the key; undefined if it accepts the key. */
const codes = (key: string) =>
  Promise.all(
    services.map(async ({ app }) => (await protocols.REST?.(app.url, "ping", undefined, bearer(key)))?.error?.code),
  );

/** The same for an access token. */
const adminCodes = (token: string) =>
  Promise.all(
    services.map(async ({ app }) => (await adminRest(app.adminUrl, token, "GET", "/whoami")).body.error?.code),
  );
const onAll = <T>(code: T): T[] => services.map(() => code);

async function json(...args: string[]): Promise<any> {
  const env = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database };
  const { code, stdout, stderr } = await runIngest([...args, "--json"], env);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return JSON.parse(stdout);
}

describe("keys", { timeout: 120_000 }, () => {
  test("a revocation over the API holds on every instance at once, even for a key in use and under load", async () => {
    const loads = services.map(({ app }) => startLoad(app.url, tenant.key, 2));
    const { token } = await insertToken(services[0] as TestService, "operator");
    const post = async (round: number, path: string, body?: object) => {
      const { adminUrl } = (services[round % services.length] as TestService).app;
      const answer = await adminRest(adminUrl, token, "POST", path, body);
      expect(answer.body).not.toHaveProperty("error");
      return answer.body;
    };
    for (let round = 0; round < 6; round++) {
      const { key, secret } = await post(round, `/apps/${tenant.appId}/keys`, {});
      expect(await codes(secret)).toEqual(onAll(undefined));
      const { actedAfterMs } = await post(round + 1, `/keys/${key.id}:revoke`, { wait: true });
      expect(actedAfterMs).toBeTypeOf("number");
      expect(await codes(secret)).toEqual(onAll("key_revoked"));

      const other = await post(round, "/tokens", { name: "Other", role: "viewer" });
      expect(await adminCodes(other.secret)).toEqual(onAll(undefined));
      await post(round + 1, `/tokens/${other.token.id}:revoke`);
      expect(await adminCodes(other.secret)).toEqual(onAll("key_revoked"));
    }
    await Promise.all(loads.map((load) => load.stop()));
    for (const { report } of loads) {
      expect(report.failures).toEqual([]);
      expect(report.acknowledged).not.toEqual([]);
    }
  });

  test("a change of a key, app or organisation takes effect, and leaves other keys in memory", async () => {
    const other = await createTenant(admin(), { name: "Other" });
    const { organizationId, appId, keyId, key } = await createTenant(admin(), { name: "Changed" });
    const missed = async () => {
      const samples = await Promise.all(services.map(({ app }) => scrape(app.adminUrl)));
      const labels = { cache: "principals", result: "miss" };
      return samples.map((one) => sumOf(one, "ingest_cache_lookups_total", labels));
    };
    await admin().settle();
    expect([await codes(other.key), await codes(key)].flat()).toEqual([...onAll(undefined), ...onAll(undefined)]);
    const before = await missed();
    const changes = [
      [() => admin().updateOrganization(organizationId, { api: false }), "plan_disabled"],
      [() => admin().updateOrganization(organizationId, { api: true }), undefined],
      [() => admin().allowTypes(appId, ["deploy.x"]), undefined],
      [() => admin().revokeKey(keyId), "key_revoked"],
    ] as const;
    for (const [change, code] of changes) {
      await change();
      await admin().settle();
      expect(await codes(key)).toEqual(onAll(code));
      expect(await codes(other.key)).toEqual(onAll(undefined));
    }
    expect(await missed()).toEqual(before.map((count) => count + changes.length));
  });

  test.each(Object.entries(protocols))(
    "over %s a CIDR list admits by the address that the service or its trusted proxy saw",
    async (_name, send) => {
      const [direct, proxied] = services.map(({ app }) => app.url) as [string, string, string];
      const refused = (address: string) => expect.stringContaining(`must not be used from ${address}: `);
      // The first instance trusts no proxy, so the header must not help there.
      const cases = [
        [direct, ["10.0.0.0/8"], "10.1.1.1", refused("127.0.0.1")],
        [direct, ["127.0.0.0/8"], "10.1.1.1", undefined],
        [proxied, ["10.0.0.0/8", "2001:db8::/32"], "10.1.1.1", undefined],
        [proxied, ["10.0.0.0/8"], "::ffff:10.1.1.1", undefined],
        [proxied, ["10.0.0.0/8", "2001:db8::/32"], "2001:db8::7", undefined],
        [proxied, ["10.0.0.0/8"], "11.1.1.1", refused("11.1.1.1")],
        // The caller invented the first address, and the proxy saw the second.
        [proxied, ["10.0.0.0/8"], "10.1.1.1, 11.1.1.1", refused("11.1.1.1")],
        [proxied, [], "11.1.1.1", undefined],
      ] as const;
      for (const [url, cidrs, forwarded, message] of cases) {
        const { key } = await insertKey(services[0] as TestService, tenant, { cidrs: [...cidrs] });
        const answer = await send(
          url,
          "events",
          { events: [event()] },
          { ...bearer(key), "x-forwarded-for": forwarded },
        );
        expect(answer.error?.message, `${cidrs} from ${forwarded}`).toEqual(message);
        if (message !== undefined) expectError(url, answer, "forbidden_scope");
      }
    },
  );

  test("a changed CIDR list and changed event types hold on every instance, and a rotation keeps them", async () => {
    const owner = services[0] as TestService;
    const { id, key } = await insertKey(owner, tenant, { name: "Batch", cidrs: ["127.0.0.1"] });
    expect(await codes(key)).toEqual(onAll(undefined));
    const change = async ($set: Partial<KeyDocument>) => {
      await keyCollection(db()).updateOne({ _id: id }, { $set });
      await admin().settle();
    };
    await change({ cidrs: ["10.0.0.0/8"], scopes: ["ingest", "read"] });
    expect(await codes(key)).toEqual(onAll("forbidden_scope"));
    const next = await admin().rotateKey(id, 60_000);
    expect(await codes(next.key)).toEqual(onAll("forbidden_scope"));
    await change({ cidrs: [], eventTypes: ["ticket.sold"] });
    for (const { app } of services) {
      const answer = await protocols.REST?.(app.url, "events", { events: [event()] }, bearer(key));
      expect(answer?.error?.code).toBe("forbidden_event_type");
    }
    // What is wrong with the key itself comes first.
    await change({ cidrs: ["10.0.0.0/8"], revokedAt: new Date() });
    expect(await codes(key)).toEqual(onAll("key_revoked"));
    const { rows } = await admin().listKeys(tenant.appId);
    expect(rows.find((one) => one.id === next.id)).toMatchObject({ name: "Batch", scopes: ["ingest", "read"] });
  });

  test("settle names an instance that does not confirm, and does not wait for one that is gone", async () => {
    const instances = db().collection<{ _id: string; name: string; seenAt: Date; revision: number }>("instances");
    expect(
      await eventually(async () => (await instances.countDocuments()) === services.length, "all instances are there"),
    ).toBe(true);
    await instances.insertOne({ _id: "gone", name: "gone", revision: 0, seenAt: new Date(Date.now() - 60_000) });
    expect(await settleOnInstances(db(), 30)).toEqual([]);
    await instances.insertOne({ _id: "deaf", name: "deaf", revision: 0, seenAt: new Date(Date.now() + 60_000) });
    expect(await settleOnInstances(db(), 3)).toEqual(["deaf"]);
    await instances.deleteMany({ _id: { $in: ["gone", "deaf"] } });
  });

  test("rotation creates a key of the same app and scope, and expires the old one after the grace", async () => {
    const old = await admin().createKey(tenant.appId, undefined, "read");
    const next = await json("key", "rotate", old.id, "--grace", "24h", "--wait");
    expect(next).toMatchObject({ appId: tenant.appId, scope: "read", expiresAt: null, replaces: { id: old.id } });
    const graceMs = Date.parse(next.replaces.expiresAt) - Date.now();
    expect(graceMs).toBeGreaterThan(23 * 3_600_000);
    expect(graceMs).toBeLessThanOrEqual(24 * 3_600_000);
    const last = await json("key", "rotate", next.id, "--grace", "0s", "--wait");
    expect(await codes(next.key)).toEqual(onAll("key_expired"));
    expect(await codes(last.key)).not.toContain("key_expired");
    await expect(admin().rotateKey(next.id, 0)).rejects.toThrow(`'${last.id}' takes its place`);
    await json("key", "revoke", last.id, "--wait");
    expect(await codes(last.key)).toEqual(onAll("key_revoked"));
    await expect(admin().rotateKey(last.id, 0)).rejects.toThrow("was revoked");
  });

  test("two rotations at once create one successor, and the losing command names it", async () => {
    const { id: appId } = await admin().createApp(tenant.organizationId, "twice", "Twice", ["ticket.*"]);
    const old = await admin().createKey(appId);
    const tries = await Promise.allSettled([admin().rotateKey(old.id, 60_000), admin().rotateKey(old.id, 60_000)]);
    const made = tries.flatMap((one) => (one.status === "fulfilled" ? [one.value.id] : []));
    const refused = tries.flatMap((one) => (one.status === "rejected" ? [(one.reason as Error).message] : []));
    expect(refused).toEqual([expect.stringContaining(`'${made[0]}' takes its place`)]);
    const { rows: keys } = await admin().listKeys(appId);
    expect(keys.map(({ id, status, replacedBy }) => ({ id, status, replacedBy }))).toEqual([
      { id: old.id, status: "rotating", replacedBy: made[0] },
      { id: made[0], status: "active", replacedBy: null },
    ]);
  });

  test("the grace does not prolong a key that expires earlier", async () => {
    const soon = new Date(Date.now() + 60_000);
    const { id } = await admin().createKey(tenant.appId, soon);
    expect((await admin().rotateKey(id, 3_600_000)).replaces.expiresAt).toEqual(soon);
  });

  test("the list shows the time of each key's last use", async () => {
    const { id, key } = await admin().createKey(tenant.appId);
    const lastUse = async () =>
      (await json("key", "list", "--app", tenant.appId)).find((one: { id: string }) => one.id === id).lastUsedAt;
    expect(await lastUse()).toBeNull();
    const before = Date.now();
    await codes(key);
    const used = Date.parse(await eventually(lastUse, "the use is noted"));
    expect(used).toBeGreaterThanOrEqual(before);
    expect(used).toBeLessThanOrEqual(Date.now());
  });

  test("instances write a use at most once a minute", async () => {
    let nowMs = 1_000_000_000_000;
    const errors: unknown[] = [];
    const instances = [0, 1].map(
      () =>
        new KeyUses(
          db(),
          () => nowMs,
          (error) => errors.push(error),
        ),
    );
    const use = async (afterMs: number) => {
      nowMs += afterMs;
      for (const instance of instances) {
        instance.used("key_a");
        await instance.stop();
      }
      return (await keyUseCollection(db()).findOne({ _id: "key_a" }))?.usedAt.getTime();
    };
    const first = await use(0);
    expect(first).toBe(nowMs);
    expect(await use(59_000)).toBe(first);
    expect(await use(1_000)).toBe(nowMs);
    expect(errors).toEqual([]);
  });
});
