import { describe, expect, test } from "vitest";
import { auditCollection } from "../../src/store/audit.ts";
import { usageCollection } from "../../src/store/usage.ts";
import { adminClient, adminRest, insertToken } from "../support/admin.ts";
import { bearer, protocols, type Send, type Tenant, useService } from "../support/service.ts";

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
