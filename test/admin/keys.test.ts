import { setTimeout as delay } from "node:timers/promises";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { KeyStatus, Scope } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { adminAnswerCollection, type AdminAnswerDocument } from "../../src/store/admin-answers.ts";
import { auditCollection } from "../../src/store/audit.ts";
import { keyUseCollection } from "../../src/store/key-uses.ts";
import { keyCollection } from "../../src/store/keys.ts";
import { adminClient, adminRest, insertToken } from "../support/admin.ts";
import { eventually } from "../support/processes.ts";
import { event } from "../support/requests.ts";
import { bearer, createExpiredKey, protocols, useService } from "../support/service.ts";
import { RawConnection } from "../support/socket.ts";

const suite = useService();

type Call = (method: "GET" | "POST" | "PATCH" | "DELETE", path: string, body?: unknown) => ReturnType<typeof adminRest>;
const rest =
  (token: string): Call =>
  (method, path, body) =>
    adminRest(suite.service.app.adminUrl, token, method, path, body);

let operator: Call;
let organizationId: string;
let stranger: Call;
beforeAll(async () => {
  operator = rest((await insertToken(suite.service, "operator")).token);
  organizationId = suite.tenant.organizationId;
  const other = (await operator("POST", "/organizations", { name: "Other" })).body.id;
  stranger = rest((await insertToken(suite.service, "manager", other)).token);
});

const member = async (role: "manager" | "viewer") =>
  rest((await insertToken(suite.service, role, organizationId)).token);
const codeOf = ({ status, body }: { status: number; body: any }) => [status, body.error?.code];
const refusals = {
  invalid: [400, "invalid_body"],
  forbidden: [403, "forbidden_scope"],
  unknown: [404, "not_found"],
  precondition: [409, "failed_precondition"],
};
const keysPath = () => `/apps/${suite.tenant.appId}/keys`;
const createKey = async (body: object = {}) => (await operator("POST", keysPath(), body)).body;
const send = async (secret: string) =>
  (await protocols.REST?.(suite.url, "events", { events: [event()] }, bearer(secret)))?.error?.code;
const auditOf = async (target: string) =>
  (await auditCollection(suite.service.app.db).find({ target }).sort({ _id: 1 }).toArray()).map(
    ({ action, before = "null", after = "null" }) => [action, JSON.parse(before), JSON.parse(after)],
  );
const soon = (ms = 3_600_000) => new Date(Date.now() + ms).toISOString();

describe("keys", () => {
  test("a key has the members that its creator chose, and the database has no secret", async () => {
    const body = { name: "Batch", scopes: ["ingest", "read", "read"], eventTypes: ["ticket.sold"], expiresAt: soon() };
    const refused = await operator("POST", keysPath(), body);
    expect(refused.body.error.message).toBe("scopes: must have at most 2 entries; it has 3");
    const { key, secret } = await createKey({
      ...body,
      scopes: ["ingest", "read"],
      cidrs: ["127.0.0.1", "10.0.0.0/8"],
    });
    expect(secret).toMatch(/^wp_live_[0-9a-f]{32}$/);
    expect(key).toMatchObject({
      ...{ organizationId, appId: suite.tenant.appId, hint: `${secret.slice(0, 12)}…`, test: false, status: "active" },
      ...{ name: "Batch", scopes: ["ingest", "read"], eventTypes: ["ticket.sold"], cidrs: ["127.0.0.1", "10.0.0.0/8"] },
    });
    expect(Object.keys(key)).not.toEqual(expect.arrayContaining([expect.stringMatching(/revokedAt|lastUsedAt/)]));
    // The service writes a use only of a key that it sees.
    const usedAt = new Date("2026-01-01T00:00:00.000Z");
    await keyUseCollection(suite.service.app.db).replaceOne({ _id: key.id }, { usedAt }, { upsert: true });
    const shown = (await operator("GET", `/keys/${key.id}`)).body;
    expect(shown).toEqual({ ...key, lastUsedAt: "2026-01-01T00:00:00Z" });
    const plain = (await createKey()).key;
    expect(plain).toMatchObject({ name: "", scopes: ["ingest"], eventTypes: [], cidrs: [] });
    const page = (await operator("GET", `${keysPath()}?pageSize=2`)).body;
    expect(page.keys).toEqual([plain, shown]);
    const trial = await createKey({ test: true });
    expect(trial).toMatchObject({ key: { test: true }, secret: expect.stringMatching(/^wp_test_[0-9a-f]{32}$/) });
    expect(await send(trial.secret)).toBeUndefined();
    expect(await send(secret)).toBe("forbidden_event_type");
    const all = JSON.stringify(await keyCollection(suite.service.app.db).find().toArray());
    expect(all).not.toContain(secret.slice(-8));
    expect(JSON.stringify(await auditOf(key.id))).not.toContain(secret.slice(-8));
    expect(suite.service.log.join()).not.toContain(secret.slice(-8));
    expect(await auditOf(key.id)).toMatchObject([["CreateKey", null, { id: key.id, name: "Batch" }]]);
  });

  test("a repeated CreateKey answers the secret within a minute, and then only the key", async () => {
    const body = { name: "Once", idempotencyKey: "key-1" };
    const [first, second] = await Promise.all([createKey(body), createKey(body)]);
    expect(second).toEqual(first);
    const answers = adminAnswerCollection(suite.service.app.db);
    const kept = await answers.find().toArray();
    const texts = kept.map(({ answer }) => Buffer.from(answer.buffer).toString("latin1"));
    expect(texts.join()).not.toContain(first.secret.slice(-8));
    const aMinuteAgo = { $set: { expiresAt: new Date(Date.now() - 1) } };
    expect((await answers.updateMany({ _id: /secret$/ }, aMinuteAgo)).matchedCount).toBe(1);
    expect(await createKey(body)).toEqual({ key: first.key });
    expect(await auditOf(first.key.id)).toHaveLength(1);
  });

  test("of two equal calls at once, the second one answers what the first one did", async () => {
    const { key } = await createKey({ name: "Twice" });
    const rotate = () => operator("POST", `/keys/${key.id}:rotate`, { grace: "0s", idempotencyKey: "rotate-twice" });
    const [first, second] = await Promise.all([rotate(), rotate()]);
    expect(first.body.secret).toMatch(/^wp_live_/);
    expect(second.body).toEqual(first.body);
    expect((await auditOf(key.id)).map(([action]) => action)).toEqual(["CreateKey", "RotateKey"]);
    const create = () =>
      operator("POST", `/organizations/${organizationId}/apps`, {
        ...{ slug: "twice", allow: [], idempotencyKey: "app-twice" },
      });
    const [one, other] = await Promise.all([create(), create()]);
    expect(one.body).toMatchObject({ slug: "twice" });
    expect(other.body).toEqual(one.body);
  });

  test("a token that is revoked while its caller sends the body changes nothing more", async () => {
    const { id, token } = await insertToken(suite.service, "operator");
    const body = JSON.stringify({ name: "Late" });
    const connection = await RawConnection.open(Number(new URL(suite.service.app.adminUrl).port));
    onTestFinished(() => connection.close());
    const head = [`Authorization: Bearer ${token}`, "Content-Type: application/json", `Content-Length: ${body.length}`];
    connection.send(["POST /api/v1/admin/organizations HTTP/1.1", "Host: x", ...head], body.slice(0, 5));
    await eventually(
      async () => (await keyUseCollection(suite.service.app.db).findOne({ _id: id })) !== null,
      "it began",
    );
    expect((await operator("POST", `/tokens/${id}:revoke`)).status).toBe(200);
    await delay(300);
    connection.socket.write(body.slice(5));
    const answer = await connection.answer();
    expect([answer.status, JSON.parse(answer.body).error.code]).toEqual([401, "key_revoked"]);
    const { organizations } = (await operator("GET", "/organizations")).body;
    expect(organizations.map(({ name }: { name: string }) => name)).not.toContain("Late");
  });

  test("an idempotency key repeats the first answer for 24 hours, and then counts as new", async () => {
    const beforeMs = Date.now();
    const { key } = await createKey({ name: "Daily", idempotencyKey: "key-2" });
    const answers = adminAnswerCollection(suite.service.app.db);
    const kept = (await answers.findOne({ _id: /^[^/]*$/ }, { sort: { expiresAt: -1 } })) as AdminAnswerDocument;
    const dayMs = 24 * 3_600_000;
    const keptUntilMs = kept.expiresAt.getTime();
    // The service's clock is the database's.
    expect(Math.abs(keptUntilMs - beforeMs - dayMs)).toBeLessThan(60_000);
    const other = { name: "Other", idempotencyKey: "key-2" };
    expect(await operator("POST", keysPath(), other)).toMatchObject({
      body: { error: { code: "invalid_body", message: expect.stringContaining("within the last 24 hours") } },
    });
    await answers.updateMany(
      { _id: new RegExp(`^${kept._id}`) },
      { $set: { expiresAt: new Date(keptUntilMs - dayMs) } },
    );
    const later = await createKey(other);
    expect(later).toMatchObject({ key: { name: "Other" }, secret: expect.stringMatching(/^wp_live_/) });
    expect(later.key.id).not.toBe(key.id);
  });

  test("UpdateKey changes and clears members, and acts on the next event", async () => {
    const { key, secret } = await createKey({ name: "Old", eventTypes: ["ticket.sold"], expiresAt: soon() });
    const path = `/keys/${key.id}`;
    const changed = await operator("PATCH", path, {
      ...{ eventTypes: ["ticket.*"], expiresAt: null, name: null, etag: key.etag },
    });
    expect(changed.body).toMatchObject({ name: "", eventTypes: ["ticket.*"], scopes: ["ingest"] });
    expect(changed.body).not.toHaveProperty("expiresAt");
    await expect.poll(() => send(secret)).toBeUndefined();
    const stale = await operator("PATCH", path, { name: "x", etag: key.etag });
    expect(stale.body.error).toMatchObject({ code: "conflict" });
    expect(stale.body.error.message).toContain("name, eventTypes, expiresAt");
    const same = await operator("PATCH", path, { eventTypes: ["ticket.*"] });
    expect(same.body.etag).toBe(changed.body.etag);
    expect(await auditOf(key.id)).toMatchObject([
      ["CreateKey", null, {}],
      ["UpdateKey", { name: "Old", eventTypes: ["ticket.sold"] }, { name: "", eventTypes: ["ticket.*"] }],
    ]);
    // What the app loses, the key loses, and its other members may still change.
    const app = `/apps/${suite.tenant.appId}`;
    await operator("PATCH", app, { allow: ["ticket.sold"] });
    expect((await operator("PATCH", path, { name: "New" })).body).toMatchObject({ eventTypes: ["ticket.*"] });
    await operator("PATCH", app, { allow: ["ticket.*"] });
  });

  test("a bad request says what was given and what is allowed", async () => {
    const { key } = await createKey();
    const path = `/keys/${key.id}`;
    const { appId } = suite.tenant;
    const whitelist = `must lie within the whitelist of the app '${appId}'; it is 'deploy.done'`;
    const block = "must be an IP address or a CIDR block such as 10.0.0.0/8 or 2001:db8::/32; it is ";
    const cases = [
      ["POST", keysPath(), { eventTypes: ["ticket.sold", "deploy.done"] }, `eventTypes[1]: ${whitelist}`],
      ["PATCH", path, { eventTypes: ["deploy.done"] }, `eventTypes[0]: ${whitelist}`],
      [
        "POST",
        keysPath(),
        { expiresAt: "2026-01-01T00:00:00Z" },
        /^expiresAt: must be in the future; it is 2026-01-01T/,
      ],
      ["POST", keysPath(), { name: " " }, "name: must not be blank; it is ' '"],
      ["PATCH", path, { cidrs: ["10.0.0.0/33"] }, `cidrs[0]: ${block}'10.0.0.0/33'`],
      ["PATCH", path, { cidrs: ["::ffff:10.0.0.0/104"] }, /^cidrs\[0\]: must be written as an IPv4 address/],
      ["PATCH", path, { scopes: ["write"] }, "scopes[0]: must be one of ingest, read; it is 'write'"],
      ["PATCH", path, { scopes: [] }, "scopes: must have at least 1 entry; it has 0"],
      ["PATCH", path, { updateMask: "test" }, /^updateMask: must have members to change: name, scopes, eventTypes/],
      ["PATCH", path, { updateMask: "event_types" }, /^updateMask: must be names of members as JSON writes them/],
      ["POST", `${path}:rotate`, { grace: "-1s" }, "grace: must be 0 to 365 days (0s to 31536000s); it is -1s"],
      ["POST", `${path}:rotate`, { grace: "31536001s" }, /^grace: must be 0 to 365 days/],
      ["POST", `${path}:rotate`, { grace: "1 day" }, /^grace: must be seconds followed by s, such as "86400s"/],
      ["POST", `${path}:rotate`, { grace: "1.0000000001s" }, /^grace: must be seconds/],
    ] as const;
    for (const [method, at, body, message] of cases) {
      const answer = await operator(method, at, body);
      expect(answer.body.error, JSON.stringify(body)).toMatchObject({
        code: "invalid_body",
        message: typeof message === "string" ? message : expect.stringMatching(message),
      });
    }
    expect((await operator("GET", path)).body).toEqual(key);
  });

  test("a rotation makes a key with the same restrictions, and only one of several at once wins", async () => {
    const settings = { name: "R", scopes: ["read"], eventTypes: ["ticket.sold"], cidrs: ["10.0.0.0/8"] };
    const { key, secret } = await createKey({ ...settings, expiresAt: soon(60_000) });
    const path = `/keys/${key.id}`;
    const tries = await Promise.all(
      Array.from({ length: 4 }, () => operator("POST", `${path}:rotate`, { grace: "86400s" })),
    );
    const won = tries.filter(({ status }) => status === 200).map(({ body }) => body);
    expect(won).toHaveLength(1);
    const [{ key: next, secret: fresh, replaced }] = won as [any];
    const lost = tries.filter(({ status }) => status !== 200);
    for (const one of lost) expect(codeOf(one)).toEqual(refusals.precondition);
    const message = `The key '${key.id}' was rotated already: '${next.id}' takes its place. Rotate that one.`;
    expect(new Set(lost.map(({ body }) => body.error.message))).toEqual(new Set([message]));
    expect(fresh).not.toBe(secret);
    expect(next).toMatchObject({ ...settings, status: "active" });
    expect(next).not.toHaveProperty("expiresAt");
    // The grace does not prolong it.
    expect(replaced).toMatchObject({ id: key.id, status: "rotating", replacedBy: next.id, expiresAt: key.expiresAt });
    const { keys } = (await operator("GET", keysPath())).body;
    expect(keys.slice(0, 2).map(({ id }: { id: string }) => id)).toEqual([next.id, key.id]);
    expect((await auditOf(key.id)).slice(1)).toMatchObject([
      ["RotateKey", { status: "active" }, { status: "rotating", replacedBy: next.id }],
    ]);
    // Without a grace the old one ends at once.
    const last = (await operator("POST", `/keys/${next.id}:rotate`, {})).body;
    expect(last.replaced.status).toBe("expired");
  });

  test("a revoked or expired key neither rotates nor changes, and a second revocation changes nothing", async () => {
    const { key, secret } = await createKey();
    const path = `/keys/${key.id}`;
    expect(await send(secret)).toBeUndefined();
    const first = (await operator("POST", `${path}:revoke`, { wait: true })).body;
    expect(await send(secret)).toBe("key_revoked");
    expect(first).toMatchObject({ status: "revoked", actedAfterMs: expect.any(Number) });
    // The service may note the use meanwhile.
    const { actedAfterMs, lastUsedAt, ...revoked } = first;
    expect((await operator("POST", `${path}:revoke`)).body).toMatchObject(revoked);
    expect((await auditOf(key.id)).map(([action]) => action)).toEqual(["CreateKey", "RevokeKey"]);
    for (const answer of [await operator("POST", `${path}:rotate`), await operator("PATCH", path, { name: "x" })]) {
      expect(codeOf(answer)).toEqual(refusals.precondition);
      expect(answer.body.error.message).toBe(`The key '${key.id}' was revoked. Create a new one instead.`);
    }
    const expired = await createExpiredKey(suite.service, suite.tenant.appId);
    const found = (await operator("POST", "/keys:find", { secret: expired })).body.key;
    expect(found.status).toBe("expired");
    const rotated = await operator("POST", `/keys/${found.id}:rotate`);
    expect(rotated.body.error.message).toMatch(/ expired at .*Create a new one instead\.$/);
    // It may be brought back.
    expect((await operator("PATCH", `/keys/${found.id}`, { expiresAt: soon() })).body.status).toBe("active");
  });

  test("a revocation and a rotation at once leave no key that works after the revocation", async () => {
    for (let round = 0; round < 5; round++) {
      const { key } = await createKey();
      const [rotated, revoked] = await Promise.all([
        operator("POST", `/keys/${key.id}:rotate`, { grace: "86400s" }),
        operator("POST", `/keys/${key.id}:revoke`),
      ]);
      expect(revoked.body.status).toBe("revoked");
      expect((await operator("GET", `/keys/${key.id}`)).body.status).toBe("revoked");
      const wasFirst = rotated.status === 200;
      expect(codeOf(rotated)).toEqual(wasFirst ? [200, undefined] : refusals.precondition);
      expect(revoked.body.replacedBy).toBe(wasFirst ? rotated.body.key.id : undefined);
    }
  });

  test("the deletion of an app revokes its keys", async () => {
    const app = await operator("POST", `/organizations/${organizationId}/apps`, { slug: "gone", allow: ["ticket.*"] });
    const made = await operator("POST", `/apps/${app.body.id}/keys`, {});
    const { key, secret } = made.body;
    expect(await send(secret)).toBeUndefined();
    await operator("DELETE", `/apps/${app.body.id}`);
    await expect.poll(() => send(secret)).toBe("key_revoked");
    const shown = (await operator("GET", `/keys/${key.id}`)).body;
    expect(shown).toMatchObject({ status: "revoked", revokedAt: expect.any(String) });
    expect((await operator("POST", `/keys/${key.id}:revoke`)).body.revokedAt).toBe(shown.revokedAt);
    expect(codeOf(await operator("POST", `/keys/${key.id}:rotate`))).toEqual(refusals.precondition);
    expect(codeOf(await operator("GET", `/apps/${app.body.id}/keys`))).toEqual(refusals.unknown);
    const found = (await operator("POST", "/keys:find", { secret })).body;
    expect(found).toMatchObject({ key: { status: "revoked" }, app: { slug: "gone" } });
  });

  test("FindKey tells whose key it is, revokes it if asked, and never repeats the secret", async () => {
    const { key, secret } = await createKey({ name: "Leaked" });
    const found = await operator("POST", "/keys:find", { secret });
    expect(found.body).toEqual({
      key,
      app: (await operator("GET", `/apps/${suite.tenant.appId}`)).body,
      organization: (await operator("GET", `/organizations/${organizationId}`)).body,
    });
    const unknown = await stranger("POST", "/keys:find", { secret, revoke: true });
    expect(codeOf(unknown)).toEqual(refusals.unknown);
    const none = await operator("POST", "/keys:find", {
      secret: secret.replace(/.$/, (digit: string) => (digit === "0" ? "1" : "0")),
    });
    expect(none.body.error.message).toBe(unknown.body.error.message);
    expect(codeOf(await (await member("viewer"))("POST", "/keys:find", { secret }))).toEqual(refusals.forbidden);
    const revoked = await (await member("manager"))("POST", "/keys:find", { secret, revoke: true });
    expect(revoked.body.key.status).toBe("revoked");
    await expect.poll(() => send(secret)).toBe("key_revoked");
    await operator("POST", "/keys:find", { secret, revoke: true });
    expect(await auditOf(key.id)).toMatchObject([
      ["CreateKey", null, {}],
      ["FindKey", null, null],
      ["FindKey", { status: "active" }, { status: "revoked" }],
      ["FindKey", null, null],
    ]);
    const hostile = [secret.toUpperCase(), ` ${secret}`, secret.slice(0, -1), `${secret}0`, secret.slice(8), "", 5];
    const form = "must be a key: wp_live_ or wp_test_, followed by 32 lower-case hex digits";
    for (const one of [...hostile, [secret], { secret }, undefined]) {
      const answer = await operator("POST", "/keys:find", { secret: one, idempotencyKey: "find" });
      expect(codeOf(answer)).toEqual(refusals.invalid);
      expect(JSON.stringify(answer.body).toLowerCase()).not.toContain(secret.slice(12, 30));
      if (typeof one === "string") expect(answer.body.error.message).toBe(`secret: ${form}`);
    }
    expect(codeOf(await operator("POST", `/keys:find?secret=${secret}`, {}))).toEqual(refusals.invalid);
    // Some take a secret for an id.
    for (const path of [`/keys/${secret}`, `/apps/${secret}`, `/tokens/${secret}:revoke`]) {
      const answer = await operator(path.endsWith("revoke") ? "POST" : "GET", path);
      expect(codeOf(answer)).toEqual(refusals.unknown);
      expect(JSON.stringify(answer.body)).not.toContain(secret);
    }
    const digits = secret.slice(12);
    expect(suite.service.log.join().toLowerCase()).not.toContain(digits);
    const database = suite.service.app.db;
    for (const { name } of await database
      .collections()
      .then((all) => all.map(({ collectionName }) => ({ name: collectionName })))) {
      expect(JSON.stringify(await database.collection(name).find().toArray()), name).not.toContain(digits);
    }
  });

  test("another organisation's keys do not exist, and a viewer changes nothing", async () => {
    const { key } = await createKey();
    const viewer = await member("viewer");
    const path = `/keys/${key.id}`;
    const reads = [
      ["GET", path],
      ["GET", keysPath()],
    ] as const;
    const writes = [
      ["PATCH", path, { name: "x" }],
      ["POST", `${path}:rotate`, {}],
      ["POST", `${path}:revoke`, {}],
      ["POST", keysPath(), {}],
    ] as const;
    for (const [method, at] of reads) expect((await viewer(method, at)).status).toBe(200);
    for (const [method, at, body] of writes) expect(codeOf(await viewer(method, at, body))).toEqual(refusals.forbidden);
    for (const [method, at, body] of [...reads, ...writes]) {
      expect(codeOf(await stranger(method, at, body))).toEqual(refusals.unknown);
    }
    const nobody = path.replace(/.$/, (digit) => (digit === "0" ? "1" : "0"));
    const [theirs, none] = [await stranger("GET", path), await stranger("GET", nobody)];
    expect(theirs.body.error.message).toBe(none.body.error.message.replace(nobody.slice(6), key.id));
    expect((await operator("GET", path)).body).toEqual(key);
  });
});

describe("access tokens", () => {
  test("each role makes, lists and revokes what it may", async () => {
    const manager = await member("manager");
    const viewer = await member("viewer");
    const other = (await stranger("GET", "/whoami")).body.organizationId;
    const make = (call: Call, body: object) => call("POST", "/tokens", { name: "T", ...body });
    const cases = [
      [operator, { role: "operator" }, undefined],
      [operator, { role: "viewer" }, undefined],
      [operator, { role: "viewer", organizationId }, organizationId],
      [operator, { role: "manager", organizationId: other }, other],
      [manager, { role: "manager" }, organizationId],
      [manager, { role: "viewer", organizationId }, organizationId],
    ] as const;
    for (const [call, body, bound] of cases) {
      const { status, body: made } = await make(call, { ...body, expiresAt: soon() });
      expect(status, JSON.stringify(body)).toBe(200);
      expect(made.secret).toMatch(/^wp_adm_[0-9a-f]{40}$/);
      expect(made.token).toMatchObject({ name: "T", role: body.role, hint: `${made.secret.slice(0, 11)}…` });
      expect(made.token.organizationId).toBe(bound);
      const self = rest(made.secret);
      expect((await self("GET", "/whoami")).body).toMatchObject({ id: made.token.id, role: body.role });
      // A token may revoke itself, whatever its role is.
      expect((await self("POST", `/tokens/${made.token.id}:revoke`)).body.revokedAt).toEqual(expect.any(String));
      expect(codeOf(await self("GET", "/whoami"))).toEqual([401, "key_revoked"]);
      await call("POST", `/tokens/${made.token.id}:revoke`);
      const audit = await auditOf(made.token.id);
      expect(audit.map(([action]) => action)).toEqual(["CreateToken", "RevokeToken"]);
      expect(JSON.stringify(audit)).not.toContain(made.secret.slice(-8));
    }
    const theirs = (await make(operator, { role: "viewer", organizationId: other })).body.token.id;
    const global = (await make(operator, { role: "viewer" })).body.token.id;
    const ofOthers = (await make(operator, { role: "viewer", organizationId })).body.token.id;
    const refused = [
      [await make(operator, { role: "operator", organizationId }), refusals.invalid, /^organizationId: must be absent/],
      [await make(operator, { role: "manager" }), refusals.invalid, /^organizationId: must be given/],
      [await make(operator, {}), refusals.invalid, "role: must be one of operator, manager, viewer; it is missing"],
      [
        await make(operator, { role: "viewer", expiresAt: "2026-01-01T00:00:00Z" }),
        refusals.invalid,
        /must be in the future/,
      ],
      [await make(operator, { role: "viewer", name: "" }), refusals.invalid, /^name: must not be empty/],
      [await make(operator, { role: "viewer", organizationId: "org_x" }), refusals.unknown, /'org_x'/],
      [await make(manager, { role: "operator" }), refusals.forbidden, /needs the role 'operator'/],
      [await make(manager, { role: "viewer", organizationId: other }), refusals.unknown, /organisation/],
      [await make(viewer, { role: "viewer" }), refusals.forbidden, /needs the role 'manager'/],
      [await manager("POST", `/tokens/${theirs}:revoke`), refusals.unknown, /access token/],
      [await manager("POST", `/tokens/${global}:revoke`), refusals.unknown, /access token/],
      [await viewer("GET", "/tokens"), refusals.forbidden, /needs the role 'manager'/],
      [await viewer("POST", `/tokens/${ofOthers}:revoke`), refusals.forbidden, /needs the role 'manager'/],
      [await manager("GET", `/tokens?organizationId=${other}`), refusals.unknown, /organisation/],
      [await operator("GET", "/tokens?role=root"), refusals.invalid, /^role: must be one of operator, manager, viewer/],
    ] as const;
    for (const [answer, code, message] of refused) {
      expect(codeOf(answer), String(message)).toEqual(code);
      expect(answer.body.error.message).toEqual(typeof message === "string" ? message : expect.stringMatching(message));
    }
    const listed = async (call: Call, query = "") => (await call("GET", `/tokens${query}`)).body.tokens;
    const own = await listed(manager);
    expect(own.every((one: any) => one.organizationId === organizationId)).toBe(true);
    expect(await listed(operator, `?organizationId=${organizationId}`)).toEqual(own);
    expect((await listed(operator)).map(({ id }: { id: string }) => id)).toEqual(
      expect.arrayContaining([theirs, global]),
    );
    const viewers = await listed(operator, "?role=viewer&pageSize=2");
    expect(viewers.map(({ id }: { id: string }) => id)).toEqual([ofOthers, global]);
  });

  test("one valid operator token always stays, also of several that revoke each other at once", async () => {
    const all = (await operator("GET", "/tokens?role=operator")).body.tokens.filter(
      (one: any) => !("revokedAt" in one),
    );
    const me = (await operator("GET", "/whoami")).body.id;
    for (const { id } of all) if (id !== me) expect((await operator("POST", `/tokens/${id}:revoke`)).status).toBe(200);
    const past = { expiresAt: new Date(Date.now() - 60_000) };
    const expired = await insertToken(suite.service, "operator", undefined, past);
    const last = await operator("POST", `/tokens/${me}:revoke`);
    expect(codeOf(last)).toEqual(refusals.precondition);
    expect(last.body.error.message).toBe(
      `The access token '${me}' is the last valid one of an operator. Create another one first.`,
    );
    expect((await operator("POST", `/tokens/${expired.id}:revoke`)).status).toBe(200);
    for (let round = 0; round < 5; round++) {
      const pair = await Promise.all([0, 1, 2].map(() => insertToken(suite.service, "operator")));
      const tokens = [...pair, { id: me, token: undefined }];
      const answers = await Promise.all(tokens.map(({ id }) => operator("POST", `/tokens/${id}:revoke`)));
      expect(answers.filter(({ status }) => status === 200)).toHaveLength(3);
      const kept = tokens[answers.findIndex(({ status }) => status !== 200)];
      expect(codeOf(answers.find(({ status }) => status !== 200) as never)).toEqual(refusals.precondition);
      if (kept?.token === undefined) continue;
      operator = rest(kept.token);
      break;
    }
  });
});

test.each(["connect", "grpc-web", "grpc"] as const)("%s has the same keys and tokens", async (protocol) => {
  const { token } = await insertToken(suite.service, "operator");
  const client = adminClient(suite.service.app.adminUrl, token, protocol);
  const { appId } = suite.tenant;
  const expiresAt = timestampFromMs(Date.now() + 3_600_000);
  const { key, secret = "" } = await client.createKey({ appId, scopes: [Scope.READ], expiresAt, test: true });
  expect(secret).toMatch(/^wp_test_/);
  expect(key).toMatchObject({ scopes: [Scope.READ], test: true, status: KeyStatus.ACTIVE });
  const keyId = key?.id ?? "";
  const cleared = await client.updateKey({ keyId, updateMask: { paths: ["expires_at", "name"] } });
  expect(cleared.expiresAt).toBeUndefined();
  for (const scopes of [[0], [7]] as Scope[][]) {
    await expect(client.updateKey({ keyId, scopes })).rejects.toMatchObject({ code: 3 });
  }
  await expect(client.createKey({ appId, expiresAt: { seconds: 10n ** 15n } })).rejects.toMatchObject({ code: 3 });
  await expect(client.rotateKey({ keyId, grace: { seconds: -1n } })).rejects.toMatchObject({ code: 3 });
  const rotated = await client.rotateKey({ keyId, grace: durationFromMs(60_000), wait: true });
  expect(rotated).toMatchObject({ key: { test: true }, replaced: { status: KeyStatus.ROTATING } });
  expect(rotated.secret).toMatch(/^wp_test_/);
  expect(rotated.actedAfterMs).toBeTypeOf("number");
  expect(await client.findKey({ secret, revoke: true })).toMatchObject({
    key: { id: keyId, status: KeyStatus.REVOKED },
  });
  await expect(client.rotateKey({ keyId })).rejects.toMatchObject({ code: 9 });
  expect((await client.listKeys({ appId, pageSize: 1 })).keys).toMatchObject([{ id: rotated.key?.id }]);
  await expect(client.createToken({ name: "x" })).rejects.toMatchObject({ code: 3 });
  const made = await client.createToken({ name: "x", role: 3 });
  expect(await client.revokeToken({ tokenId: made.token?.id ?? "" })).toMatchObject({ id: made.token?.id, role: 3 });
});
