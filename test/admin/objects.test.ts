import { Code } from "@connectrpc/connect";
import { MongoNetworkError } from "mongodb";
import { describe, expect, test } from "vitest";
import { newAccessToken } from "../../src/access/access-token.ts";
import type { AdminServices } from "../../src/admin/call.ts";
import { createAdminServices } from "../../src/admin/services.ts";
import { createIdSource } from "../../src/ids.ts";
import { accessTokenCollection } from "../../src/store/access-tokens.ts";
import { type AuditDocument, auditCollection } from "../../src/store/audit.ts";
import { adminInProcess } from "../../src/transport/api/admin-in-process.ts";
import { adminClient, adminRest, insertToken } from "../support/admin.ts";
import { useService } from "../support/service.ts";

const suite = useService();

const rest = (token: string) => (method: "GET" | "POST" | "PATCH" | "DELETE", path: string, body?: unknown) =>
  adminRest(suite.service.app.adminUrl, token, method, path, body);

const operator = async () => rest((await insertToken(suite.service, "operator")).token);
const codeOf = (answer: { status: number; body: any }) => [answer.status, answer.body.error?.code];

test.each(["connect", "grpc", "grpc-web"] as const)(
  "an access token is refused over %s once it is revoked",
  async (protocol) => {
    const { id, token } = await insertToken(suite.service, "viewer");
    const client = adminClient(suite.service.app.adminUrl, token, protocol);
    const headers = Promise.withResolvers<Headers>();
    expect(await client.whoAmI({}, { onHeader: headers.resolve })).toMatchObject({ id });
    expect((await headers.promise).get("x-ratelimit-limit")).toBe("100");
    await accessTokenCollection(suite.service.app.db).updateOne({ _id: id }, { $set: { revokedAt: new Date() } });
    await expect(client.whoAmI({})).rejects.toMatchObject({
      ...{ code: Code.Unauthenticated, rawMessage: `The access token ${token.slice(0, 11)}… was revoked.` },
    });
  },
);

test("without a credential of its own the administration API answers over REST, saying which to send", async () => {
  const ask = async (token: string | undefined) => adminRest(suite.service.app.adminUrl, token, "GET", "/whoami");
  const { expired, unknown } = {
    expired: (await insertToken(suite.service, "viewer", undefined, { expiresAt: new Date(0) })).token,
    unknown: newAccessToken(),
  };
  for (const [token, status, code] of [
    [undefined, 401, "missing_authorization"],
    [unknown, 401, "invalid_key"],
    [`${unknown}0`, 401, "invalid_key"],
    [expired, 401, "key_expired"],
    [suite.tenant.key, 403, "forbidden_scope"],
  ] as const) {
    const answer = await ask(token);
    expect(codeOf(answer)).toEqual([status, code]);
    expect(answer.body.error.docsUrl).toContain(code);
    expect(answer.headers.get("www-authenticate")).toBe(status === 401 ? "Bearer" : null);
    expect(answer.headers.get("x-ratelimit-limit")).toBe(code === "key_expired" ? "100" : null);
  }
  expect(suite.service.log.join("")).not.toContain(unknown);
});

describe("organisations and apps", () => {
  test("an operator makes an organisation and an app, changes them and deletes the app", async () => {
    const call = await operator();
    const made = await call("POST", "/organizations", { name: "Acme", quotaEventsPerMonth: 1000 });
    expect(made.status).toBe(200);
    expect(made.body).toMatchObject({ name: "Acme", api: true, quotaEventsPerMonth: 1000, keyRequestsPerSecond: 60 });
    expect(made.body).not.toHaveProperty("retentionDays");
    expect(made.headers.get("x-request-id")).toMatch(/^req_/);
    const { id, etag } = made.body;
    const path = `/organizations/${id}`;
    const changed = await call("PATCH", path, { name: "Acme 2", retentionDays: 30, etag });
    expect(changed.body).toMatchObject({ id, name: "Acme 2", retentionDays: 30, quotaEventsPerMonth: 1000 });
    const stale = await call("PATCH", path, { name: "Acme 3", etag });
    expect(codeOf(stale)).toEqual([409, "conflict"]);
    expect(stale.body.error.message).toBe(
      `The organisation '${id}' has changed since you read it: name, retentionDays.`,
    );
    const cleared = await call("PATCH", path, { retentionDays: null });
    expect(cleared.body).not.toHaveProperty("retentionDays");
    expect((await call("GET", path)).body).toEqual(cleared.body);

    const app = await call("POST", `${path}/apps`, { slug: "crm", allow: ["ticket.*", "ticket.*"] });
    expect(app.body).toMatchObject({ organizationId: id, slug: "crm", name: "crm", allow: ["ticket.*"] });
    const taken = await call("POST", `${path}/apps`, { slug: "crm", name: "Other", allow: [] });
    expect(codeOf(taken)).toEqual([409, "already_exists"]);
    expect(taken.body.error.message).toContain(app.body.id);
    const appPath = `/apps/${app.body.id}`;
    expect((await call("PATCH", appPath, { allow: [] })).body.allow).toEqual([]);
    expect((await call("GET", `${path}/apps`)).body).toMatchObject({ apps: [{ id: app.body.id }], nextPageToken: "" });
    expect((await call("DELETE", appPath)).body).toEqual({});
    const unknown = (await call("GET", appPath)).body.error.message;
    expect(unknown).toBe(`There is no app with the id '${app.body.id}'.`);
    expect(codeOf(await call("DELETE", appPath))).toEqual([404, "not_found"]);
    expect((await call("POST", `${path}/apps`, { slug: "crm", allow: [] })).status).toBe(200);

    const audit = await auditCollection(suite.service.app.db).find({ organizationId: id }).sort({ _id: 1 }).toArray();
    expect(audit.map(({ action, before, after }) => [action, before, after && JSON.parse(after)])).toMatchObject([
      ["CreateOrganization", undefined, { name: "Acme" }],
      ["UpdateOrganization", '{"name":"Acme"}', { name: "Acme 2", retentionDays: 30 }],
      ["UpdateOrganization", '{"retentionDays":30}', {}],
      ["CreateApp", undefined, { slug: "crm" }],
      ["UpdateApp", '{"allow":["ticket.*"]}', { allow: [] }],
      ["DeleteApp", expect.stringContaining("crm"), undefined],
      ["CreateApp", undefined, { slug: "crm" }],
    ]);
  });

  test("what a credential does not see is not_found, and what its role may not do is forbidden_scope", async () => {
    const { organizationId, appId } = suite.tenant;
    const call = await operator();
    const other = (await call("POST", "/organizations", { name: "Other" })).body.id;
    const viewer = rest((await insertToken(suite.service, "viewer", other)).token);
    const manager = rest((await insertToken(suite.service, "manager", other)).token);
    for (const one of [viewer, manager]) {
      expect(codeOf(await one("GET", `/apps/${appId}`))).toEqual([404, "not_found"]);
      expect(codeOf(await one("DELETE", `/apps/${appId}`))).toEqual([404, "not_found"]);
      expect(codeOf(await one("PATCH", `/organizations/${organizationId}`, { name: "x" }))).toEqual([404, "not_found"]);
      expect((await one("GET", "/organizations")).body.organizations).toHaveLength(1);
    }
    expect(codeOf(await viewer("PATCH", `/organizations/${other}`, { name: "x" }))).toEqual([403, "forbidden_scope"]);
    expect((await manager("PATCH", `/organizations/${other}`, { name: "x" })).status).toBe(200);
    expect(codeOf(await manager("PATCH", `/organizations/${other}`, { api: false }))).toEqual([403, "forbidden_scope"]);
    expect(codeOf(await manager("POST", "/organizations", { name: "x" }))).toEqual([403, "forbidden_scope"]);
  });

  test("a repeated idempotency key answers the first result, and once only it makes something", async () => {
    const call = await operator();
    const body = { name: "Once", idempotencyKey: "make-1" };
    const answers = await Promise.all([call("POST", "/organizations", body), call("POST", "/organizations", body)]);
    const again = await call("POST", "/organizations", body);
    expect(new Set([...answers, again].map((answer) => answer.body.id)).size).toBe(1);
    expect(again.body).toEqual(answers[0]?.body);
    expect(again.headers.get("x-request-id")).not.toBe(answers[0]?.headers.get("x-request-id"));
    expect(codeOf(await call("POST", "/organizations", { ...body, name: "Twice" }))).toEqual([400, "invalid_body"]);
    const other = await operator();
    expect((await other("POST", "/organizations", body)).body.id).not.toBe(again.body.id);
  });

  test("a change that takes too long for its caller is reported like any other", async () => {
    const { db } = suite.service.app;
    const reported: AuditDocument[] = [];
    const created = await createAdminServices(db, {
      ...{ ids: createIdSource(), now: Date.now, jobs: { begun() {} }, auditDays: 0 },
      onAudit: (entry) => reported.push(entry),
    });
    const late: AdminServices["turns"] = {
      submit({ run }) {
        void run();
        return Promise.reject(new MongoNetworkError("no answer"));
      },
    };
    const caller = { kind: "cli", id: "late", name: "late", role: "operator", organizationId: undefined } as const;
    const admin = adminInProcess({ ...created, turns: late }, { ...caller, expiresAtMs: Number.POSITIVE_INFINITY });
    await expect(admin.createOrganization({ name: "Late" })).rejects.toThrow("temporarily unavailable");
    await expect.poll(() => reported.map(({ action }) => action), { timeout: 10_000 }).toEqual(["CreateOrganization"]);
    expect(await auditCollection(db).findOne({ "actor.id": "late" })).toMatchObject({ _id: reported[0]?._id });
  });

  test("a bad request says what was given and what is allowed", async () => {
    const call = await operator();
    const refused = async (method: "GET" | "POST" | "PATCH", path: string, body?: unknown) => {
      const answer = await call(method, path, body);
      expect(codeOf(answer)).toEqual([400, "invalid_body"]);
      return answer.body.error.message;
    };
    const { organizationId, appId } = suite.tenant;
    const path = `/organizations/${organizationId}`;
    expect(await refused("POST", "/organizations", { name: " ", quotaEventsPerMonth: 1.5 })).toBe(
      "name: must not be blank; it is ' '; quotaEventsPerMonth: must be a whole number; it is 1.5",
    );
    expect(await refused("PATCH", path, {})).toMatch(/^updateMask: names nothing to change; allowed: name, api/);
    expect(await refused("PATCH", path, { updateMask: "name,slug" })).toMatch(/updateMask: .*one is 'slug'/);
    expect(await refused("PATCH", path, { name: null })).toBe("name: must be a string; it is missing");
    expect(await refused("GET", "/organizations?pageSize=501")).toBe("pageSize: must be at most 500; it is 501");
    expect(await refused("GET", "/organizations?pageToken=x")).toMatch(/^pageToken: must be an unchanged/);
    expect(await refused("GET", "/organizations?filter=x")).toBe(
      "filter: is not a parameter of this call; allowed: pageSize, pageToken",
    );
    expect(await refused("POST", `${path}/apps?x=1`, { slug: "A", allow: ["a b"] })).toBe(
      "x: is not a parameter of this call",
    );
    expect(await refused("POST", `${path}/apps`, { slug: "A", allow: ["a b"] })).toMatch(
      /slug: must have.*allow\[0\]: must be an event type/,
    );
    expect(await refused("PATCH", `/apps/${appId}`, { etag: "?", name: "x" })).toMatch(
      /^etag: must be an etag of the app/,
    );
  });

  test("lists have pages, newest first", async () => {
    const call = await operator();
    const first = await call("GET", "/organizations?pageSize=1");
    const second = await call("GET", `/organizations?pageSize=1&pageToken=${first.body.nextPageToken}`);
    expect(first.body.organizations[0].id > second.body.organizations[0].id).toBe(true);
  });
});

describe("the protocols", () => {
  test.each(["connect", "grpc-web", "grpc"] as const)("%s speaks to the same handlers", async (protocol) => {
    const { token, id } = await insertToken(suite.service, "operator");
    const client = adminClient(suite.service.app.adminUrl, token, protocol);
    expect(await client.whoAmI({})).toMatchObject({ id, role: 1, kind: 1 });
    const { organizationId } = suite.tenant;
    await expect(client.getApp({ appId: "app_x" })).rejects.toMatchObject({ code: 5 });
    const changed = await client.updateOrganization({ organizationId, updateMask: { paths: ["retention_days"] } });
    expect(changed.retentionDays).toBeUndefined();
    await expect(client.updateOrganization({ organizationId, etag: "A".repeat(24), name: "x" })).rejects.toMatchObject({
      code: 10,
    });
    await expect(
      client.updateOrganization({ organizationId, updateMask: { paths: [] }, name: "x" }),
    ).rejects.toMatchObject({ code: 3 });
  });
});
