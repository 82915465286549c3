import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { settleOnInstances } from "../../src/store/instances.ts";
import { KeyUses, keyUseCollection } from "../../src/store/key-uses.ts";
import { adminRest, insertToken } from "../support/admin.ts";
import { startLoad } from "../support/load.ts";
import { eventually } from "../support/processes.ts";
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
let operator: string;

beforeAll(async () => {
  const env = { TRUSTED_PROXIES: "127.0.0.1" };
  services = await Promise.all([
    startService({ database }),
    startService({ database, env }),
    startService({ database }),
  ]);
  tenant = await createTenant((services[0] as TestService).admin);
  operator = (await insertToken(services[0] as TestService, "operator")).token;
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

/** Calls administration on an instance; the first one unless told otherwise. */
async function call(method: "GET" | "POST" | "PATCH", path: string, body?: object, instance = 0): Promise<any> {
  const answer = await adminRest((services[instance] as TestService).app.adminUrl, operator, method, path, body);
  expect(answer.body).not.toHaveProperty("error");
  return answer.body;
}

describe("keys", { timeout: 120_000 }, () => {
  test("a revocation over the API holds on every instance at once, even for a key in use and under load", async () => {
    const loads = services.map(({ app }) => startLoad(app.url, tenant.key, 2));
    const post = (round: number, path: string, body?: object) => call("POST", path, body, round % services.length);
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
    const { key, secret } = await call("POST", `/apps/${tenant.appId}/keys`, { name: "Batch", cidrs: ["127.0.0.1"] });
    expect(await codes(secret)).toEqual(onAll(undefined));
    const change = async (members: object) => {
      await call("PATCH", `/keys/${key.id}`, members);
      await admin().settle();
    };
    await change({ cidrs: ["10.0.0.0/8"], scopes: ["ingest", "read"] });
    expect(await codes(secret)).toEqual(onAll("forbidden_scope"));
    const next = await call("POST", `/keys/${key.id}:rotate`, { grace: "60s" });
    expect(await codes(next.secret)).toEqual(onAll("forbidden_scope"));
    await change({ cidrs: [], eventTypes: ["ticket.sold"] });
    for (const { app } of services) {
      const answer = await protocols.REST?.(app.url, "events", { events: [event()] }, bearer(secret));
      expect(answer?.error?.code).toBe("forbidden_event_type");
    }
    // What is wrong with the key itself comes first.
    await change({ cidrs: ["10.0.0.0/8"] });
    await call("POST", `/keys/${key.id}:revoke`, { wait: true });
    expect(await codes(secret)).toEqual(onAll("key_revoked"));
    // Without a grace.
    await call("POST", `/keys/${next.key.id}:rotate`, { wait: true });
    expect(await codes(next.secret)).toEqual(onAll("key_expired"));
  });

  test("changes at the same moment on every instance all succeed, and every instance obeys them", async () => {
    const made = await Promise.all(
      Array.from({ length: 90 }, (_, i) => call("POST", `/apps/${tenant.appId}/keys`, {}, i % services.length)),
    );
    const { key, secret } = made.at(-1);
    expect(await codes(secret)).toEqual(onAll(undefined));
    await Promise.all(
      made.map((one, i) =>
        call("POST", `/keys/${one.key.id}:revoke`, { wait: one.key.id === key.id }, i % services.length),
      ),
    );
    expect(await codes(secret)).toEqual(onAll("key_revoked"));
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

  test("a key has the time of its last use", async () => {
    const { key, secret } = await call("POST", `/apps/${tenant.appId}/keys`, {});
    expect(key).not.toHaveProperty("lastUsedAt");
    const before = Date.now();
    await codes(secret);
    const lastUse = async () => (await call("GET", `/keys/${key.id}`)).lastUsedAt;
    const used = Date.parse(await eventually(lastUse, "the use is noted"));
    expect(used).toBeGreaterThanOrEqual(before - 1_000);
    expect(used).toBeLessThanOrEqual(Date.now() + 1_000);
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
