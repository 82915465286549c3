import { describe, expect, onTestFinished, test } from "vitest";
import type { Identity } from "../../src/access/identity.ts";
import { RequestWatches } from "../../src/admin/request-watches.ts";
import { accessTokenCollection } from "../../src/store/access-tokens.ts";
import { sharedSecret } from "../../src/store/secrets.ts";
import { Tokens } from "../../src/timeline/tokens.ts";
import { resumeTokenOf } from "../../src/timeline/watch.ts";
import { requestWatches, type WatchFailed, type WatchQuery, type WatchRequests } from "../support/watch-requests.ts";
import { auditCollection } from "../../src/store/audit.ts";
import { createIdSource } from "../../src/ids.ts";
import { requestCollection, type RequestDocument } from "../../src/store/requests.ts";
import { addToMinutes, countRequest, minuteMs, noTraffic } from "../../src/store/traffic.ts";
import { usageCollection } from "../../src/store/usage.ts";
import { workerCollection } from "../../src/store/workers.ts";
import { adminClient, adminRest, insertToken } from "../support/admin.ts";
import { bearer, createTenant, insertKey, protocols, type Send, type Tenant, useService } from "../support/service.ts";

const suite = useService();

type Role = Parameters<typeof insertToken>[1];

/** Calls administration over REST with a token of the role. */
async function caller(role: Role, organizationId?: string) {
  const { token, id } = await insertToken(suite.service, role, organizationId);
  const { adminUrl } = suite.service.app;
  const call = (method: "GET" | "POST" | "PATCH", path: string, body?: unknown) =>
    adminRest(adminUrl, token, method, path, body);
  return {
    token,
    id,
    get: (path: string) => call("GET", path),
    post: (path: string, body: unknown = {}) => call("POST", path, body),
    patch: (path: string, body: unknown) => call("PATCH", path, body),
  };
}

const codeOf = (answer: { status: number; body: any }) => [answer.status, answer.body.error?.code];

/** Sends events over REST. */
const sendAs = ({ key }: Pick<Tenant, "key">, body: unknown, headers: Record<string, string> = {}) =>
  (protocols.REST as Send)(suite.url, "events", body, { ...bearer(key), ...headers });
const eventsOf = (...types: string[]) => ({
  events: types.map((eventType) => ({ eventType, category: "other", actor: { externalId: "u-1" } })),
});

describe("usage", () => {
  test("a month is summed up by day, app, type and code, and a duplicate counts as accepted, too", async () => {
    const { organizationId, appId } = suite.tenant;
    const { get, post } = await caller("operator");
    const [event] = eventsOf("ticket.opened").events;
    const once = { events: [{ ...event, eventId: "e-1" }] };
    await sendAs(suite.tenant, once);
    await sendAs(suite.tenant, once);
    const mixed = eventsOf("ticket.opened", "ticket.closed", "other.thing");
    await sendAs(suite.tenant, mixed, { "idempotency-key": "usage-1" });
    await sendAs(suite.tenant, mixed, { "idempotency-key": "usage-1" });
    const path = `/organizations/${organizationId}/usage`;
    const counts = { accepted: 4, rejected: 1, replayed: 3, duplicates: 1 };
    await expect.poll(async () => (await get(path)).body.rows, { timeout: 10_000 }).toMatchObject([counts]);
    const { body } = await get(path);
    const month = new Date().toISOString().slice(0, 7);
    expect(body).toMatchObject({ organizationId, month, quotaEventsPerMonth: 1_000_000 });
    expect(body.rows[0].day).toMatch(new RegExp(`^${month}-\\d\\d$`));
    expect((await get(`${path}?by=app`)).body.rows).toEqual([{ app: appId, ...counts }]);
    expect((await get(`${path}?by=type&month=${month}`)).body.rows).toEqual([
      { type: "", accepted: 0, rejected: 1, replayed: 1, duplicates: 0 },
      { type: "ticket.closed", accepted: 1, rejected: 0, replayed: 1, duplicates: 0 },
      { type: "ticket.opened", accepted: 3, rejected: 0, replayed: 1, duplicates: 1 },
    ]);
    expect((await get(`${path}?by=code`)).body.rows).toEqual([
      { code: "", accepted: 4, rejected: 0, replayed: 3, duplicates: 1 },
      { code: "forbidden_event_type", accepted: 0, rejected: 1, replayed: 0, duplicates: 0 },
    ]);
    expect((await get(`${path}?month=2020-01`)).body).toMatchObject({ month: "2020-01", events: 0, rows: [] });
    expect((await get(`${path}?month=2020-13`)).body.error.message).toMatch(/^month: must be a month such as 2026-04/);
    expect(codeOf(await get(`${path}?by=week`))).toEqual([400, "invalid_body"]);

    const manager = await caller("manager", organizationId);
    expect((await manager.get(path)).status).toBe(200);
    expect(codeOf(await manager.post(`${path}:recount`))).toEqual([403, "forbidden_scope"]);
    await usageCollection(suite.service.app.db).updateMany({ organizationId }, { $set: { events: 90 } });
    const body2 = { idempotencyKey: "recount-1" };
    const recounted = await post(`${path}:recount`, body2);
    expect(recounted.body).toEqual({ organizationId, month, before: 90, after: 3 });
    expect((await post(`${path}:recount`, body2)).body).toEqual(recounted.body);
    expect((await get(path)).body.events).toBe(3);
    const audit = await auditCollection(suite.service.app.db).find({ action: "RecountUsage" }).toArray();
    expect(audit).toMatchObject([{ organizationId, target: organizationId, before: expect.stringContaining("90") }]);
  });
});

describe("traffic", () => {
  test("the last hour is summed up by minute and as a whole, of this organisation alone, and empty minutes show", async () => {
    const { db } = suite.service.app;
    const [{ organizationId }, other] = [await createTenant(suite.service.admin), suite.tenant.organizationId];
    const minute = Math.floor(Date.now() / minuteMs);
    const counts = (ago: number, latenciesMs: readonly number[], refused = 0) => {
      const one = { organizationId, minute: minute - ago, ...noTraffic(), refused };
      for (const ms of latenciesMs) countRequest(one, ms);
      return one;
    };
    await addToMinutes(db, [counts(10, [2, 2, 2]), counts(5, [8], 1), { ...counts(10, [900]), organizationId: other }]);
    // Another instance, and minutes outside the hour. One may begin meanwhile.
    await addToMinutes(db, [counts(10, [2, 500]), counts(62, [1]), counts(-2, [1])]);
    const viewer = await caller("viewer", organizationId);
    const { body } = await viewer.get(`/organizations/${organizationId}/traffic`);
    // Within 5 %.
    const near = (ms: number) => expect.closeTo(ms, -Math.log10(ms / 10));
    expect(body).toMatchObject({ organizationId, requests: 6, refused: 1, p50Ms: near(2), p99Ms: near(500) });
    expect(body.requestsPerSecond).toBeGreaterThanOrEqual(6 / 3_600);
    expect(body.requestsPerSecond).toBeLessThanOrEqual(6 / 3_540);
    expect(body.minutes).toHaveLength(60);
    const at = (ago: number) => new Date((minute - ago) * minuteMs).toISOString().replace(".000Z", "Z");
    expect(body.minutes.filter((one: { requests: number }) => one.requests > 0)).toEqual([
      { start: at(10), requests: 5, refused: 0, p50Ms: near(2), p99Ms: near(500) },
      { start: at(5), requests: 1, refused: 1, p50Ms: near(8), p99Ms: near(8) },
    ]);
    expect(body.minutes.find((one: { start: string }) => one.start === at(7))).toEqual({
      ...{ start: at(7), requests: 0, refused: 0 },
    });
    expect(codeOf(await viewer.get(`/organizations/${other}/traffic`))).toEqual([404, "not_found"]);
  });
});

describe("the audit", () => {
  test("an operator lists all changes, a manager those of its organisation, a viewer none", async () => {
    const operator = await caller("operator");
    const { id } = (await operator.post("/organizations", { name: "Audited" })).body;
    const other = (await operator.post("/organizations", { name: "Other" })).body.id;
    const manager = await caller("manager", id);
    const changed = await manager.patch(`/organizations/${id}`, { name: "Audited 2" });
    const { entries, nextPageToken } = (await manager.get("/audit")).body;
    expect(nextPageToken).toBe("");
    expect(entries).toMatchObject([
      {
        action: "UpdateOrganization",
        organizationId: id,
        target: id,
        actor: { kind: "token", id: manager.id, name: "a manager", role: "manager" },
        peer: expect.stringMatching(/127\.0\.0\.1$/),
        requestId: changed.headers.get("x-request-id"),
        before: { name: "Audited" },
        after: { name: "Audited 2" },
      },
      { action: "CreateOrganization", actor: { role: "operator" }, after: { name: "Audited" } },
    ]);
    expect(entries[1]).not.toHaveProperty("before");
    const at = (entry: { at: string }) => encodeURIComponent(entry.at);
    const listed = async (query: string) =>
      (await operator.get(`/audit?${query}`)).body.entries.map((entry: any) => entry.id);
    expect(await listed(`organizationId=${id}&actor=${manager.id}`)).toEqual([entries[0].id]);
    expect(await listed(`organizationId=${id}&from=${at(entries[0])}`)).toEqual([entries[0].id]);
    expect(await listed(`organizationId=${id}&to=${at(entries[0])}`)).toEqual([entries[1].id]);
    expect(await listed(`actor=${operator.id}`)).toHaveLength(2);
    const empty = await operator.get(`/audit?from=${at(entries[0])}&to=${at(entries[1])}`);
    expect(empty.body.error.message).toBe("to: must be later than from");
    const first = await operator.get(`/audit?organizationId=${id}&pageSize=1`);
    expect(await listed(`organizationId=${id}&pageSize=1&pageToken=${first.body.nextPageToken}`)).toEqual([
      entries[1].id,
    ]);
    // A secret place of one list leads nowhere in another.
    const foreign = await operator.get(`/audit?organizationId=${other}&pageToken=${first.body.nextPageToken}`);
    expect(codeOf(foreign)).toEqual([400, "invalid_body"]);
    expect(codeOf(await manager.get(`/audit?organizationId=${other}`))).toEqual([404, "not_found"]);
    for (const organizationId of [undefined, id]) {
      expect(codeOf(await (await caller("viewer", organizationId)).get("/audit"))).toEqual([403, "forbidden_scope"]);
    }
    // The server removes expired entries a minute late at worst.
    await auditCollection(suite.service.app.db).updateMany(
      { organizationId: id },
      { $set: { expiresAt: new Date(0) } },
    );
    expect(await listed(`organizationId=${id}`)).toEqual([]);
  });

  test("each change is a line of the log", async () => {
    const { get, post } = await caller("operator");
    const { id } = (await post("/organizations", { name: "Logged" })).body;
    const { entries } = (await get(`/audit?organizationId=${id}`)).body;
    const lines = suite.service.log.map((line) => JSON.parse(line)).filter(({ audit }) => audit?.target === id);
    expect(lines).toMatchObject([{ msg: "administration", audit: entries[0] }]);
    expect(entries[0].after).toMatchObject({ name: "Logged" });
  });
});

test("the running instances are listed", async () => {
  const { token } = await caller("viewer", suite.tenant.organizationId);
  const { instances } = await adminClient(suite.service.app.adminUrl, token, "grpc").listInstances({});
  expect(instances).toMatchObject([{ running: true, name: expect.stringContaining(`process ${process.pid}`) }]);
});

describe("requests", () => {
  const pathOf = (id: string) => `/requests/${id}`;

  test("a request is shown as soon as it is recorded, and only within the caller's organisation", async () => {
    const { organizationId, appId, keyId, key } = suite.tenant;
    const stranger = await createTenant(suite.service.admin);
    const { get } = await caller("operator");
    const manager = await caller("manager", organizationId);
    const other = await caller("manager", stranger.organizationId);
    const once = { "idempotency-key": "shown-1" };
    // An accepted request has no record.
    const accepted = (await sendAs(suite.tenant, eventsOf("ticket.opened"))).body.requestId;
    const { body } = await sendAs(suite.tenant, eventsOf("ticket.opened", "other.thing"), once);
    // At once: the record is not written yet.
    const [own, foreign, foreignToo, ...rest] = await Promise.all([
      manager.get(pathOf(body.requestId)),
      other.get(pathOf(body.requestId)),
      other.get(pathOf(accepted)),
      manager.get(pathOf(accepted)),
      get(pathOf(accepted)),
    ]);
    for (const one of rest) expect(one.body).toMatchObject({ outcome: "accepted", rpc: "Events", accepted: 1 });
    for (const one of [foreign, foreignToo]) expect(codeOf(one)).toEqual([404, "not_found"]);
    expect(own.body).toMatchObject({
      ...{ requestId: body.requestId, outcome: "partly_accepted", rpc: "Events", protocol: "rest", status: 207 },
      ...{ organizationId, appId, keyId, keyHint: `${key.slice(0, 12)}…`, accepted: 1, rejected: 1, duplicates: 0 },
      ...{ idempotencyKey: "taken", dryRun: false, test: false, replays: [], moreReplays: false },
      rejections: [{ index: 1, code: "forbidden_event_type", message: "eventType 'other.thing' is not whitelisted." }],
      eventIds: [expect.stringMatching(/^evt_/)],
    });
    expect(own.body).not.toHaveProperty("code");
    expect(foreign.body.error.message).toBe(`There is no request with the id '${body.requestId}'.`);
    expect((await manager.get("/requests/app_x")).body.error.message).toMatch(/Such an id begins with req_/);

    await sendAs(suite.tenant, eventsOf("ticket.opened", "other.thing"), once);
    await expect
      .poll(async () => (await get(pathOf(body.requestId))).body.replays)
      .toMatchObject([{ protocol: "rest", status: 207 }]);
  });

  test("a list has the filters of the contract, and pages that examine a bounded number of records", async () => {
    const tenant = await createTenant(suite.service.admin);
    const { organizationId, appId } = tenant;
    const { get } = await caller("manager", organizationId);
    const path = `/organizations/${organizationId}/requests`;
    const idsOf = async (query = "") => (await get(`${path}?${query}`)).body.requests.map((one: any) => one.requestId);
    const idOf = async (body: unknown) => (await sendAs(tenant, body)).headers.get("x-request-id") as string;
    const partly = await idOf(eventsOf("ticket.opened", "other.thing"));
    const refused = await idOf(eventsOf("other.thing"));
    const invalid = await idOf({ events: [{ eventType: "ticket.opened", actor: { externalId: "" } }] });
    await expect.poll(() => idsOf()).toHaveLength(3);
    const all = await idsOf();
    expect(new Set(all)).toEqual(new Set([partly, refused, invalid]));
    expect(await idsOf("outcome=partly_accepted")).toEqual([partly]);
    expect(await idsOf("outcome=refused&code=invalid_body")).toEqual([invalid]);
    expect(await idsOf("code=forbidden_event_type")).toHaveLength(2);
    expect(await idsOf("outcome=accepted")).toEqual([]);
    expect(await idsOf(`appId=${appId}`)).toEqual(all);
    const [newest] = (await get(path)).body.requests;
    const at = encodeURIComponent(newest.receivedAt);
    expect(await idsOf(`startTime=${at}`)).toContain(newest.requestId);
    expect(await idsOf(`endTime=${at}`)).not.toContain(newest.requestId);
    expect(codeOf(await get(`${path}?startTime=${at}&endTime=${at}`))).toEqual([400, "invalid_body"]);
    expect(await idsOf("endTime=9999-12-31T23:59:59.999Z")).toEqual(all);
    expect(codeOf(await get(`${path}?appId=${suite.tenant.appId}`))).toEqual([404, "not_found"]);
    expect((await get(`${path}?code=nonsense`)).body.error.message).toMatch(/^code: must be one of missing_auth/);

    // The filter finds the oldest of more records than one page examines.
    const collection = requestCollection(suite.service.app.db);
    const [record] = await collection.find({ requestId: refused }).toArray();
    const clock = createIdSource();
    const many = Array.from({ length: 2_500 }, () => ({ ...record, _id: clock.next("rec") })) as RequestDocument[];
    await collection.insertMany(many);
    const first = (await get(`${path}?code=invalid_body`)).body;
    expect([first.requests, first.nextPageToken]).toEqual([[], expect.stringMatching(/./)]);
    const second = (await get(`${path}?code=invalid_body&pageToken=${first.nextPageToken}`)).body;
    expect(second).toMatchObject({ requests: [{ requestId: invalid }], nextPageToken: "" });
  });

  test("a viewer sees no text that a message quotes of the caller", async () => {
    const { organizationId } = suite.tenant;
    const manager = await caller("manager", organizationId);
    const viewer = await caller("viewer", organizationId);
    const [event] = eventsOf("ticket.opened").events;
    const deep = JSON.parse(`${'{"a":'.repeat(50)}1${"}".repeat(50)}`) as object;
    for (const [changed, secret, shown] of [
      [{ actor: { externalId: `u-${"x".repeat(300)}` } }, "u-xxx", "events[0].actor.externalId: must have at most 200"],
      [{ actor: { externalId: 4711 } }, "4711", "events[0].actor.externalId: must be a string…"],
      [{ metadata: { Jane: deep } }, "Jane", "events[0].…"],
      [{ actor: { workerId: "jane-of-hr" } }, "jane-of-hr", "workerId…"],
      [{ eventType: "other.thing" }, "other.thing", "eventType 'other.thing' is not whitelisted."],
    ] as const) {
      const answer = await sendAs(suite.tenant, { events: [{ ...event, ...changed }] });
      const id = answer.headers.get("x-request-id") as string;
      expect((await manager.get(pathOf(id))).body.reason, shown).toContain(secret);
      const { reason, rejections } = (await viewer.get(pathOf(id))).body;
      expect(reason).toContain(shown);
      if ("eventType" in changed) continue;
      expect(JSON.stringify([reason, rejections])).not.toContain(secret);
    }
  });

  test("a preview of a whitelist counts every refused event, and each type by its name up to a bound", async () => {
    const tenant = await createTenant(suite.service.admin);
    const manager = await caller("manager", tenant.organizationId);
    const path = `/apps/${tenant.appId}`;
    const types = (count: number, of: string) => Array.from({ length: count }, () => of);
    await sendAs(tenant, eventsOf("ticket.opened", ...types(30, "deploy.shipped"), ...types(5, "build.failed")));
    // As a whole, as a dry run, with a test key, and twice with one Idempotency-Key.
    const test = await insertKey(suite.service, tenant, { test: true });
    const ofTest = await sendAs(test, eventsOf("ticket.opened", "deploy.shipped"));
    await sendAs(tenant, eventsOf("deploy.shipped"));
    await sendAs(tenant, eventsOf("deploy.shipped"), { "x-dry-run": "true" });
    const once = { "idempotency-key": "preview-1" };
    const invented = Array.from({ length: 40 }, (_, i) => `invented.${String(i)}`);
    for (let i = 0; i < 2; i++) await sendAs(tenant, eventsOf("ticket.opened", ...invented), once);
    const preview = async (...allow: string[]) => (await manager.post(`${path}:previewAllow`, { allow })).body;
    await expect.poll(() => preview("deploy.*")).toMatchObject({ accepted: 31, refused: 45 });
    const { byType } = await preview("deploy.*", "ticket.*");
    expect(byType.slice(0, 3)).toEqual([
      { type: "deploy.shipped", accepted: 31, refused: 0 },
      { type: "", accepted: 0, refused: 20 },
      { type: "build.failed", accepted: 0, refused: 5 },
    ]);
    expect(await preview("*")).toMatchObject({ accepted: 56, refused: 20 });
    const shown = (await manager.get(pathOf(ofTest.body.requestId))).body;
    expect(shown).toMatchObject({ test: true, organizationId: tenant.organizationId, eventIds: [expect.any(String)] });
    expect((await manager.post(`${path}:previewAllow`, { allow: ["a b"] })).status).toBe(400);
    const viewer = await caller("viewer", tenant.organizationId);
    expect(codeOf(await viewer.post(`${path}:previewAllow`, { allow: [] }))).toEqual([403, "forbidden_scope"]);
  });
});

describe("the stream of requests", () => {
  /** Opens a stream; the end of the test closes it. Its first message has come. */
  async function open(watch: WatchRequests, token: string, query: WatchQuery) {
    const abort = new AbortController();
    const messages = watch(suite.service.app.adminUrl, token, query, abort.signal);
    const close = () => abort.abort();
    onTestFinished(close);
    const first = await messages.next();
    let { resumeToken } = first.value;
    /** The next arrivals, at least so many. */
    const take = async (count: number) => {
      const arrivals: any[] = [];
      while (arrivals.length < count) {
        const { value } = await messages.next();
        expect(value.arrivals.length).toBeLessThanOrEqual(32);
        arrivals.push(...value.arrivals);
        ({ resumeToken } = value);
      }
      return arrivals;
    };
    return { first: first.value, take, close, messages, resumeToken: () => resumeToken as string };
  }
  const lines = requestWatches["REST lines"] as WatchRequests;
  const failureOf = async (token: string, query: WatchQuery) => {
    const opening = open(lines, token, query);
    return opening.then(
      () => "none",
      (error: WatchFailed) => error.code,
    );
  };
  const [event] = eventsOf("ticket.opened").events;
  const withMetadata = { ...event, metadata: { note: "x" }, duration: 5 };

  test.each(Object.keys(requestWatches))("over %s: rows, rejections and refusals come in order, once", async (name) => {
    const watch = requestWatches[name] as WatchRequests;
    const tenant = await createTenant(suite.service.admin);
    const { organizationId, appId, key } = tenant;
    const { token } = await caller("operator");
    const stream = await open(watch, token, { organizationId, appId });
    expect(stream.first).toEqual({ arrivals: [], resumeToken: expect.stringMatching(/./) });
    // What other organisations and test keys send does not come.
    const testKey = await insertKey(suite.service, tenant, { test: true });
    for (const other of [testKey, suite.tenant]) await sendAs(other, eventsOf("ticket.opened", "other.thing"));
    const mixed = await sendAs(tenant, { events: [withMetadata, ...eventsOf("other.thing").events] });
    await stream.take(2).then((arrivals) =>
      expect(arrivals).toEqual([
        {
          ...{ requestId: mixed.body.requestId, receivedAt: expect.any(String), organizationId, appId },
          row: {
            ...{ id: expect.stringMatching(/^evt_/), kind: "event", type: "ticket.opened", category: "other" },
            ...{ workerId: expect.stringMatching(/^wrk_/), timestamp: expect.any(String), duration: 5 },
            metadata: { note: "x" },
          },
        },
        {
          ...{ requestId: mixed.body.requestId, receivedAt: expect.any(String), organizationId, appId },
          rejected: {
            ...{ rpc: "Events", protocol: "rest", keyHint: `${key.slice(0, 12)}…`, index: 1 },
            ...{ code: "forbidden_event_type", message: "eventType 'other.thing' is not whitelisted.", more: 0 },
          },
        },
      ]),
    );
    stream.close();
    // Nothing is missed while no stream is open.
    const types = Array.from({ length: 40 }, () => "ticket.opened");
    await sendAs(tenant, eventsOf(...types));
    await sendAs(tenant, eventsOf("other.thing"));
    const next = await open(watch, token, { organizationId, resumeToken: stream.resumeToken() });
    const rest = [...next.first.arrivals, ...(await next.take(41 - next.first.arrivals.length))];
    expect(rest.map((one) => one.row?.type ?? one.refused?.code)).toEqual([...types, "forbidden_event_type"]);
    next.close();
  });

  test("a stream that resumes has no row of a worker who was erased since", async () => {
    const tenant = await createTenant(suite.service.admin);
    const { organizationId } = tenant;
    const { token } = await caller("operator");
    const stream = await open(lines, token, { organizationId });
    stream.close();
    await sendAs(tenant, eventsOf("ticket.gone"));
    const worker = await workerCollection(suite.service.app.db).findOne({ organizationId });
    await suite.service.changes.erase(worker?._id as string, { by: "operator" });
    await sendAs(tenant, { events: [{ ...event, actor: { externalId: "stays" } }] });
    const next = await open(lines, token, { organizationId, resumeToken: stream.resumeToken() });
    const came = [...next.first.arrivals, ...(await next.take(1 - next.first.arrivals.length))];
    expect(came.map((one) => one.row?.type)).toEqual(["ticket.opened"]);
    next.close();
  });

  test("a credential sees its organisation, a viewer no metadata, and tokens continue only what they are of", async () => {
    const tenant = await createTenant(suite.service.admin);
    const { organizationId } = tenant;
    const viewer = await caller("viewer", organizationId);
    const all = { organizationId: "-" };
    const stream = await open(lines, viewer.token, all);
    const rejected = await open(lines, viewer.token, { organizationId, rejectedOnly: true });
    await sendAs(suite.tenant, { events: [withMetadata] });
    await sendAs(tenant, { events: [withMetadata] });
    await sendAs(tenant, { events: [{ ...event, actor: { workerId: "jane-of-hr" } }] });
    const [row, refused] = await stream.take(2);
    expect(row).toMatchObject({ organizationId, row: { type: "ticket.opened" } });
    expect(row.row).not.toHaveProperty("metadata");
    expect(refused.refused).toMatchObject({ code: "worker_not_found", reason: "workerId…" });
    expect(await rejected.take(1)).toEqual([refused]);

    const resumeToken = stream.resumeToken();
    const operator = await caller("operator");
    expect(await failureOf(operator.token, { organizationId, resumeToken })).toBe("none");
    expect(await failureOf(operator.token, { ...all, resumeToken })).toBe("invalid_body");
    expect(await failureOf(viewer.token, { ...all, resumeToken: `${resumeToken}x` })).toBe("invalid_body");
    const tokens = new Tokens(await sharedSecret(suite.service.app.db, "admin-pages"));
    const [data, t] = tokens.open(["WatchRequests", organizationId], resumeToken) as [string, number];
    const hex = (seconds: number) => seconds.toString(16).toUpperCase();
    const forgotten = resumeTokenOf(tokens, ["WatchRequests", "-"], { data: data.replace(hex(t), hex(t - 1)) });
    expect(await failureOf(operator.token, { ...all, resumeToken: forgotten })).toBe("invalid_body");
    expect(await failureOf(viewer.token, { organizationId: suite.tenant.organizationId })).toBe("not_found");
    expect(await failureOf(operator.token, { organizationId, appId: suite.tenant.appId })).toBe("not_found");
  });

  test("a credential has a bound of streams, and its revocation ends them", async () => {
    const { token, id } = await caller("viewer");
    const query = { organizationId: suite.tenant.organizationId };
    const streams = [];
    for (let i = 0; i < RequestWatches.perCallerMax; i++) streams.push(await open(lines, token, query));
    expect(await failureOf(token, query)).toBe("rate_limited");
    streams.pop()?.close();
    await expect.poll(() => failureOf(token, query)).toBe("none");
    await accessTokenCollection(suite.service.app.db).updateOne({ _id: id }, { $set: { revokedAt: new Date() } });
    for (const { take } of streams) await expect(take(1)).rejects.toMatchObject({ code: "key_revoked" });
  });

  test("an instance has a bound of streams, and ends them when it stops", () => {
    const watches = new RequestWatches();
    const identityOf = (id: string) => ({ kind: "token", id }) as Identity;
    const places = Array.from({ length: RequestWatches.max }, (_, i) => watches.enter(identityOf(`tok_${String(i)}`)));
    expect(() => watches.enter(identityOf("tok_x"))).toThrow(/temporarily unavailable/);
    places[0]?.();
    watches.enter(identityOf("tok_x"));
    watches.stop();
    expect(() => watches.check()).toThrow(/temporarily unavailable/);
  });
});
