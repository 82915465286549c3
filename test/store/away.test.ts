import { afterAll, beforeAll, expect, inject, test, vi } from "vitest";
import { Code } from "@connectrpc/connect";
import { RetryInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { trustMs } from "../../src/store/changes.ts";
import { databaseTimeouts } from "../../src/store/database.ts";
import { eventCollection } from "../../src/store/events.ts";
import { TestMongod } from "../fault/mongod.ts";
import { MongoProxy } from "../fault/proxy.ts";
import { event, unique } from "../support/requests.ts";
import {
  type Answer,
  bearer,
  createTenant,
  protocols,
  type Send,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";

/** Longest wait of a request for a database that is away, in milliseconds. The service gives up well before. */
const boundMs = 20_000;
// On a slow machine, each wait of a test may take that long.
vi.setConfig({ testTimeout: 240_000 });
let mongod: TestMongod;
let service: TestService;
let tenant: Tenant;
beforeAll(async () => {
  mongod = await TestMongod.start();
  service = await startService({ mongodbUri: mongod.uri });
  tenant = await createTenant(service.admin);
});
afterAll(async () => {
  await service.app.close();
  await mongod.stop();
});

const events = (way: string, body: unknown, headers: Record<string, string> = {}) =>
  (protocols[way] as Send)(service.app.url, "events", body, { ...bearer(tenant.key), ...headers });

function expectUnavailable(answer: Answer): void {
  expect(answer.error?.code).toBe("internal_error");
  expect(Number(answer.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
  if (answer.status !== 0) {
    expect(answer.status).toBe(500);
    return;
  }
  expect(answer.error?.connect).toBe(Code.Unavailable);
  const [retry] = answer.error?.details?.findDetails(RetryInfoSchema) ?? [];
  expect(Number(retry?.retryDelay?.seconds)).toBeGreaterThanOrEqual(1);
}

test.concurrent(
  "with the database down, every protocol answers unavailable in bounded time, nothing is half done, and all recover",
  async ({ expect }) => {
    const type = unique("ticket.away");
    const body = { events: [event({ eventType: type }), event({ eventType: type, duration: 1 })] };
    expect((await events("REST", body)).error).toBeUndefined();
    await mongod.kill();
    const startedMs = performance.now();
    const names = Object.keys(protocols);
    const keyOf = (name: string) => ({ "idempotency-key": `away ${name}` });
    const answers = await Promise.all([
      ...names.map((name) => events(name, body, keyOf(name))),
      ...names.map((name) => events(name, body)),
    ]);
    expect(performance.now() - startedMs).toBeLessThan(boundMs);
    for (const answer of answers) expectUnavailable(answer);
    // Without a database that could revoke them, keys do not work for ever.
    const ping = () => (protocols.REST as Send)(service.app.url, "ping", {}, bearer(tenant.key));
    await expect.poll(async () => (await ping()).status, { timeout: trustMs + boundMs, interval: 100 }).toBe(500);
    await mongod.restart();
    await expect.poll(async () => (await ping()).status, { timeout: boundMs, interval: 50 }).toBe(200);
    for (const name of names) {
      await expect
        .poll(async () => (await events(name, body, keyOf(name))).error, { timeout: boundMs, interval: 50 })
        .toBeUndefined();
    }
    // The first batch, and the one of each key, stored once; nothing from the requests without a key.
    expect(await eventCollection(service.app.db).countDocuments({ type })).toBe(2 + 2 * names.length);
  },
);

test.concurrent(
  "without news of changes, a revoked key, a changed plan and a changed whitelist act within 5 seconds",
  async ({ expect }) => {
    // Not this file's mongod, which the other test kills.
    const { hostname: host, port } = new URL(inject("mongodbUri"));
    const proxy = await MongoProxy.start({ host, port: Number(port) });
    const other = await startService({ mongodbUri: proxy.uri });
    const { admin } = other;
    const [revoked, unplanned, denied] = [
      await createTenant(admin),
      await createTenant(admin),
      await createTenant(admin),
    ] as const;
    const codeOf = async (one: Tenant) =>
      (await (protocols.REST as Send)(other.app.url, "events", { events: [event()] }, bearer(one.key))).error?.code;
    for (const one of [revoked, unplanned, denied]) expect(await codeOf(one)).toBeUndefined();
    proxy.blockNews();
    await expect.poll(() => proxy.blocked, { timeout: boundMs, interval: 20 }).toBeGreaterThan(0);
    for (const one of [revoked, unplanned, denied]) expect(await codeOf(one)).toBeUndefined();
    await admin.revokeKey(revoked.keyId);
    await admin.updateOrganization(unplanned.organizationId, { api: false });
    await admin.denyTypes(denied.appId, ["ticket.*"]);
    // The trust in a key limits it; the rest is this machine's time for a request.
    expect(trustMs).toBeLessThan(5_000);
    const within = { timeout: trustMs + boundMs, interval: 50 };
    await Promise.all([
      expect.poll(() => codeOf(revoked), within).toBe("key_revoked"),
      expect.poll(() => codeOf(unplanned), within).toBe("plan_disabled"),
      expect.poll(() => codeOf(denied), within).toBe("forbidden_event_type"),
    ]);
    await other.app.close();
    proxy.close();
  },
);

test("with the database hung, every protocol answers unavailable before a connection times out, nothing is half done, and all recover", async () => {
  const names = Object.keys(protocols);
  const type = unique("ticket.hung");
  const bodyOf = (name: string) => {
    const one = event({ eventType: `${type}.${name.replaceAll(" ", "-")}` });
    return { events: [one, { ...one, duration: 1 }] };
  };
  const keyOf = (name: string) => ({ "idempotency-key": `hung ${name}` });
  await expect
    .poll(async () => (await events("REST", bodyOf("first"))).error, { timeout: boundMs, interval: 50 })
    .toBeUndefined();
  const { serverSelectionMs, socketMs, operationMs } = databaseTimeouts;
  const tookMs: number[] = [];
  mongod.freeze();
  try {
    const startedMs = performance.now();
    const [ready, ...answers] = await Promise.all([
      fetch(`${service.app.url}/readyz`, { signal: AbortSignal.timeout(socketMs) }),
      ...[
        ...names.map((name) => events(name, bodyOf(name), keyOf(name))),
        ...names.map((name) => events(name, bodyOf(`${name} plain`))),
      ].map((answering) => answering.finally(() => tookMs.push(performance.now() - startedMs))),
    ]);
    // The driver may never settle a few, which then wait longest. The rest is this machine's time.
    expect(tookMs[tookMs.length >> 1]).toBeLessThan(socketMs + serverSelectionMs);
    expect(tookMs.at(-1)).toBeLessThan(operationMs + 5_000);
    expect(ready.status).toBe(503);
    for (const answer of answers) expectUnavailable(answer);
  } finally {
    mongod.thaw();
  }
  for (const name of names) {
    await expect
      .poll(async () => (await events(name, bodyOf(name), keyOf(name))).error, { timeout: boundMs, interval: 50 })
      .toBeUndefined();
  }
  const stored = (name: string) =>
    eventCollection(service.app.db).countDocuments({ type: bodyOf(name).events[0]!.eventType as string });
  expect(await Promise.all(names.map(stored))).toEqual(names.map(() => 2));
  // The database now runs what it got while it hung, completely or not at all. Without a key, either is possible.
  for (const name of names) expect([0, 2]).toContain(await stored(`${name} plain`));
});
