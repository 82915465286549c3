import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { hashOfKey } from "../../src/access/principal.ts";
import { testOrganizationOf } from "../../src/ids.ts";
import { limits } from "../../src/limits.ts";
import { eventCollection, rowsBetween } from "../../src/store/events.ts";
import { keyCollection } from "../../src/store/keys.ts";
import { usageCollection } from "../../src/store/usage.ts";
import { workerCollection } from "../../src/store/workers.ts";
import { organizationCollection } from "../../src/store/organizations.ts";
import { event, expectError, snapshot, unique } from "../support/requests.ts";
import { bearer, createTenant, insertKey, protocols, type Send, startService, useService } from "../support/service.ts";
import { RawConnection } from "../support/socket.ts";

const suite = useService();
const { REST: rest } = protocols as { REST: Send };

describe.each(Object.entries(protocols))("over %s", (_name, send: Send) => {
  const events = (body: unknown, key = suite.tenant.key) => send(suite.url, "events", body, bearer(key));
  const workerOf = async (actor: object, key = suite.tenant.key) => {
    const { body, error } = await send(suite.url, "snapshots", snapshot({ actor }), bearer(key));
    expect(error).toBeUndefined();
    return body.worker as { id: string; displayName: string };
  };

  test("the whitelist matches a type exactly, or by the prefix before a trailing *", async () => {
    const app = await suite.service.admin.createApp(suite.tenant.organizationId, unique("types"), "Types", [
      "deploy.done",
      "ci.*",
    ]);
    const { key } = await suite.service.admin.createKey(app.id);
    for (const eventType of ["deploy.done", "ci.a", "ci.a.b"]) {
      expect((await events({ events: [event({ eventType })] }, key)).error, eventType).toBeUndefined();
    }
    for (const eventType of ["deploy.done2", "deploy", "cis", "Deploy.done", "ticket.resolved"]) {
      expectError(suite.url, await events({ events: [event({ eventType })] }, key), "forbidden_event_type");
    }
  });

  test("a key's own event types narrow the whitelist, and what the app loses the key loses", async () => {
    const allow = ["deploy.done", "ci.*"];
    const app = await suite.service.admin.createApp(suite.tenant.organizationId, unique("narrow"), "Narrow", allow);
    const owner = { ...suite.tenant, appId: app.id };
    const eventTypes = ["ci.build.*", "deploy.done", "ticket.*"];
    const { key } = await insertKey(suite.service, owner, { eventTypes });
    const batch = {
      events: ["ci.build.x", "ci.test", "deploy.done", "ticket.sold"].map((eventType) => event({ eventType })),
    };
    const keyed = { ...bearer(key), "idempotency-key": "narrow" };
    const answer = await send(suite.url, "events", batch, keyed);
    expect(answer.body.results.rejected).toEqual([
      {
        index: 1,
        code: "forbidden_event_type",
        message: "eventType 'ci.test' is whitelisted, but is not among the event types of this API key.",
      },
      { index: 3, code: "forbidden_event_type", message: "eventType 'ticket.sold' is not whitelisted." },
    ]);
    expectError(suite.url, await events({ events: [event({ eventType: "ci.test" })] }, key), "forbidden_event_type");
    await suite.service.admin.denyTypes(app.id, ["deploy.done"]);
    const codeOf = async () => (await events({ events: [event({ eventType: "deploy.done" })] }, key)).error?.code;
    await expect.poll(codeOf, { timeout: 5_000 }).toBe("forbidden_event_type");
    // Not even a change of the lists changes the answer to a retry.
    expect((await send(suite.url, "events", batch, keyed)).body).toEqual(answer.body);
    // A snapshot's type needs neither list.
    expect(
      (await send(suite.url, "snapshots", snapshot({ snapshotType: "not.listed" }), bearer(key))).error,
    ).toBeUndefined();
  });

  // The poll is short: without news, Ingest looks a key up again after four seconds. Each try has its own key.
  test("a changed whitelist and a changed plan act within a second", { retry: 2 }, async () => {
    const own = await createTenant(suite.service.admin);
    const codeOf = async () => (await events({ events: [event({ eventType: "ci.done" })] }, own.key)).error?.code;
    const soon = { timeout: 1000, interval: 20 };
    expect(await codeOf()).toBe("forbidden_event_type");
    await suite.service.admin.allowTypes(own.appId, ["ci.*"]);
    await expect.poll(codeOf, soon).toBeUndefined();
    await suite.service.admin.denyTypes(own.appId, ["ci.*"]);
    await expect.poll(codeOf, soon).toBe("forbidden_event_type");
    await suite.service.admin.updateOrganization(own.organizationId, { api: false });
    await expect.poll(codeOf, soon).toBe("plan_disabled");
  });

  test("a snapshot needs no whitelist, costs one event of the quota, and is refused past the quota", async () => {
    const own = await createTenant(suite.service.admin, { name: "Two", quotaEventsPerMonth: 2 });
    const put = () => send(suite.url, "snapshots", snapshot({ snapshotType: "not.listed" }), bearer(own.key));
    expect((await put()).error).toBeUndefined();
    expect((await events({ events: [event()] }, own.key)).error).toBeUndefined();
    expectError(suite.url, await put(), "quota_exceeded");
    expect((await usageCollection(suite.service.app.db).findOne({ organizationId: own.organizationId }))?.events).toBe(
      2,
    );
    expect(await eventCollection(suite.service.app.db).countDocuments(rowsBetween(own.organizationId))).toBe(2);
  });

  test("an externalId names one worker of an app, an email one worker of an organisation", async () => {
    const name = unique("same");
    const app = await suite.service.admin.createApp(suite.tenant.organizationId, unique("other"), "Other", [
      "ticket.*",
    ]);
    const { key } = await suite.service.admin.createKey(app.id);
    const stranger = await createTenant(suite.service.admin);
    const [mine, elsewhere] = [await workerOf({ externalId: name }), await workerOf({ externalId: name }, key)];
    expect(elsewhere.id).not.toBe(mine.id);
    const email = `${name}@x.org`;
    const [here, there] = [await workerOf({ email }), await workerOf({ email }, key)];
    expect(there.id).toBe(here.id);
    expect((await workerOf({ email }, stranger.key)).id).not.toBe(here.id);
  });

  test("another organisation's workerId is worker_not_found, with any other ids", async () => {
    const stranger = await createTenant(suite.service.admin);
    const { id: workerId } = await workerOf({ externalId: unique("theirs") }, stranger.key);
    const actor = { workerId, externalId: "crm-user-42", email: "known@x.org" };
    expectError(suite.url, await events({ events: [event({ actor })] }), "worker_not_found");
  });

  test("workerId decides before externalId, and externalId before email", async () => {
    const [a, b] = [unique("first"), unique("second")];
    const [one, two] = [await workerOf({ externalId: a }), await workerOf({ email: `${b}@x.org` })];
    expect((await workerOf({ workerId: one.id, externalId: b, email: `${b}@x.org` })).id).toBe(one.id);
    expect((await workerOf({ externalId: a, email: `${b}@x.org` })).id).toBe(one.id);
    expect((await workerOf({ externalId: unique("new"), email: `${b}@x.org` })).id).toBe(two.id);
  });

  test("without a displayName the email's local part or the externalId is shown; the first name sent stays", async () => {
    const name = unique("name");
    expect((await workerOf({ email: `${name}@x.org` })).displayName).toBe(name);
    expect((await workerOf({ email: `${name}@x.org`, displayName: "Given" })).displayName).toBe("Given");
    expect((await workerOf({ email: `${name}@x.org`, displayName: "Later" })).displayName).toBe("Given");
    expect((await workerOf({ externalId: unique("ext") })).displayName).toMatch(/^ext-/);
  });

  test("a test key writes apart from live data, and costs no quota", async () => {
    const { db } = suite.service.app;
    const own = await createTenant(suite.service.admin, { name: "Two", quotaEventsPerMonth: 2 });
    const { key } = await insertKey(suite.service, own, { test: true });
    expect(key).toMatch(/^wp_test_/);
    const actor = { externalId: "al", email: "al@x.org" };
    const batch = { events: [event({ actor, eventId: "one" }), event({ actor })] };
    const keyed = (one: string) => ({ ...bearer(one), "idempotency-key": "same" });
    const answers = [];
    // Whichever comes first, the other one's request, event id and worker are new.
    for (const one of [own.key, key]) answers.push(await send(suite.url, "events", batch, keyed(one)));
    for (const { body, headers } of answers) {
      expect(body).toMatchObject({ accepted: 2, rejected: 0 });
      expect(body.results.accepted[0]).not.toHaveProperty("duplicate");
      expect(headers.get("idempotency-replayed")).toBeNull();
    }
    const bo = { externalId: "bo" };
    const test = await workerOf({ ...bo, displayName: "Bo" }, key);
    expectError(
      suite.url,
      await send(suite.url, "snapshots", snapshot({ actor: bo }), bearer(own.key)),
      "quota_exceeded",
    );
    await suite.service.admin.updateOrganization(own.organizationId, { quotaEventsPerMonth: 9 });
    const put = () => send(suite.url, "snapshots", snapshot({ actor: bo }), bearer(own.key));
    await expect.poll(async () => (await put()).error, { timeout: 5_000 }).toBeUndefined();
    const live = await workerOf(bo, own.key);
    expect(live.displayName).toBe("bo");
    expect(await workerOf(actor, key)).not.toEqual(await workerOf(actor, own.key));
    for (const [one, { id: workerId }] of [
      [own.key, test],
      [key, live],
    ] as const) {
      expectError(suite.url, await events({ events: [event({ actor: { workerId } })] }, one), "worker_not_found");
    }
    const owners = [own.organizationId, testOrganizationOf(own.organizationId)];
    const rowsOf = (id: string) => eventCollection(db).countDocuments({ ...rowsBetween(id), type: "ticket.resolved" });
    expect(await Promise.all(owners.map(rowsOf))).toEqual([2, 2]);
    // The snapshots of the poll and the two after it.
    const used = await usageCollection(db)
      .find({ organizationId: { $in: owners } })
      .toArray();
    const liveRows = await eventCollection(db).countDocuments(rowsBetween(own.organizationId));
    expect(used.map(({ organizationId, events }) => ({ organizationId, events }))).toEqual([
      { organizationId: own.organizationId, events: liveRows },
    ]);
    const ping = await send(suite.url, "ping", undefined, bearer(key));
    expect(ping.body.organizationId).toBe(own.organizationId);
    const dry = await send(suite.url, "events", batch, { ...bearer(key), "x-dry-run": "true" });
    expect(dry.body.results.accepted[0]).toMatchObject({ duplicate: true });
    expectError(suite.url, await send(suite.url, "ping", {}, bearer(key.replace("_test_", "_live_"))), "invalid_key");
    expectError(suite.url, await send(suite.url, "ping", {}, bearer(key.replace("_test_", "_prod_"))), "invalid_key");
  });

  test("new ids have the documented form", async () => {
    const { id } = await workerOf({ externalId: unique("form") });
    const { body, headers } = await events({ events: [event()] });
    const ulid = "[0-7][0-9A-HJKMNP-TV-Z]{25}";
    expect(id).toMatch(new RegExp(`^wrk_${ulid}$`));
    expect(headers.get("x-request-id")).toMatch(new RegExp(`^req_${ulid}$`));
    expect(body.requestId).toBe(headers.get("x-request-id"));
    expect([suite.tenant.organizationId, suite.tenant.appId, suite.tenant.keyId]).toEqual([
      expect.stringMatching(new RegExp(`^org_${ulid}$`)),
      expect.stringMatching(new RegExp(`^app_${ulid}$`)),
      expect.stringMatching(new RegExp(`^key_${ulid}$`)),
    ]);
  });
});

test("the database stores only the SHA-256 and a hint of a key", async () => {
  const stored = await keyCollection(suite.service.app.db).findOne({ _id: suite.tenant.keyId });
  expect(stored?.hash).toBe(hashOfKey(suite.tenant.key));
  expect(stored?.hint).toBe(`${suite.tenant.key.slice(0, 12)}…`);
  for (const { name } of await suite.service.app.db.listCollections().toArray()) {
    const text = JSON.stringify(await suite.service.app.db.collection(name).find().toArray());
    expect(text, name).not.toContain(suite.tenant.key.slice("wp_live_".length));
  }
});

test("a new organisation has the documented rates: 60 requests/s for a key, 600 for the organisation", async () => {
  const { id } = await suite.service.admin.createOrganization({ name: "Default" });
  const app = await suite.service.admin.createApp(id, "a", "A", ["*"]);
  const { key } = await suite.service.admin.createKey(app.id);
  const answer = await fetch(`${suite.url}/api/v1/ingest/ping`, { headers: bearer(key) });
  expect(answer.headers.get("x-ratelimit-limit")).toBe("60");
  expect(answer.headers.get("x-ratelimit-remaining")).toBe("59");
  const organization = await organizationCollection(suite.service.app.db).findOne({ _id: id });
  expect(organization).toMatchObject({ keyRequestsPerSecond: 60, organizationRequestsPerSecond: 600 });
  expect([limits.keyRequestsPerSecond, limits.organizationRequestsPerSecond]).toEqual([60, 600]);
});

test("a worker found by email gains the externalId once, however many requests come at once", async () => {
  const name = unique("gains");
  const put = (actor: object) =>
    (protocols.REST as Send)(suite.url, "snapshots", snapshot({ actor }), bearer(suite.tenant.key)).then(
      ({ body }) => body.worker.id,
    );
  const id = await put({ email: `${name}@x.org` });
  const ids = await Promise.all(
    Array.from({ length: 20 }, () => put({ externalId: name, email: `${name.toUpperCase()}@X.ORG` })),
  );
  expect(new Set(ids)).toEqual(new Set([id]));
  expect((await workerCollection(suite.service.app.db).findOne({ _id: id }))?.links).toHaveLength(1);
});

test("the quota counts by the calendar month of receipt, in UTC", async () => {
  let time = Date.parse("2026-11-30T23:59:58Z");
  const clocked = await startService({ now: () => time });
  try {
    const own = await createTenant(clocked.admin, { name: "Month", quotaEventsPerMonth: 1 });
    // With a timestamp of the other month, because only the receipt counts.
    const put = (timestamp: string) =>
      (protocols.REST as Send)(clocked.app.url, "events", { events: [event({ timestamp })] }, bearer(own.key));
    expect((await put("2026-12-01T12:00:00Z")).status).toBe(202);
    expect((await put("2026-12-01T12:00:00Z")).error?.code).toBe("quota_exceeded");
    time = Date.parse("2026-12-01T00:00:00Z");
    expect((await put("2026-11-15T00:00:00Z")).status).toBe(202);
    expect((await put("2026-11-15T00:00:00Z")).error?.code).toBe("quota_exceeded");
    const months = await clocked.admin.usageOf(own.organizationId);
    expect(months.map(({ month, events }) => [month, events])).toEqual([
      ["2026-12", 1],
      ["2026-11", 1],
    ]);
  } finally {
    await clocked.app.close();
  }
});

test.each(["/api/v1/ingest/events", "/ingest.v1.Ingest/Events"])(
  "a key that is revoked while its caller sends the body stores nothing: %s",
  async (path) => {
    const tenant = await createTenant(suite.service.admin);
    const category = path.startsWith("/api") ? "project_management" : "EVENT_CATEGORY_PROJECT_MANAGEMENT";
    const body = JSON.stringify({ events: [{ eventType: "ticket.a", category, actor: { externalId: "late" } }] });
    const connection = await RawConnection.open(suite.service.app.port);
    onTestFinished(() => connection.close());
    const head = [`Authorization: Bearer ${tenant.key}`, "Content-Type: application/json"];
    connection.send([`POST ${path} HTTP/1.1`, "Host: x", ...head, `Content-Length: ${body.length}`], body.slice(0, 9));
    // Until later requests on other connections are answered, so that this one has been admitted.
    for (let i = 0; i < 3; i++) expect((await rest(suite.url, "ping", {}, bearer(tenant.key))).error).toBeUndefined();
    await suite.service.admin.revokeKey(tenant.keyId);
    const refusal = async () => (await rest(suite.url, "ping", {}, bearer(tenant.key))).error?.code;
    await expect.poll(refusal, { timeout: 10_000 }).toBe("key_revoked");
    await delay(300);
    connection.socket.write(body.slice(9));
    const answer = await connection.answer();
    expect([answer.status, answer.body]).toEqual([401, expect.stringContaining("was revoked")]);
    const rows = eventCollection(suite.service.app.db).countDocuments(rowsBetween(tenant.organizationId));
    expect(await rows).toBe(0);
  },
);
