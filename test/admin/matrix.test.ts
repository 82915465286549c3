import { randomBytes } from "node:crypto";
import { create, type DescMessage, type DescMethod, getOption } from "@bufbuild/protobuf";
import { type CallOptions, type Client, ConnectError } from "@connectrpc/connect";
import type { Collection } from "mongodb";
import { beforeAll, describe, expect, test } from "vitest";
import { hashOfKey } from "../../src/access/principal.ts";
import { handlers, streamHandlers } from "../../src/admin/handlers.ts";
import { type AdminRpc, leastRoles, reaches } from "../../src/admin/roles.ts";
import { http } from "../../src/gen/google/api/annotations_pb.js";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { Admin, Role as Roles } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { createIdSource, type IdPrefix } from "../../src/ids.ts";
import { restJson } from "../../src/message-json.ts";
import { accessTokenCollection, type Role } from "../../src/store/access-tokens.ts";
import { appCollection } from "../../src/store/apps.ts";
import { auditCollection } from "../../src/store/audit.ts";
import { keyCollection } from "../../src/store/keys.ts";
import { requestCollection } from "../../src/store/requests.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { erasureCollection } from "../../src/store/worker-jobs.ts";
import { workerCollection } from "../../src/store/workers.ts";
import { adminClient, type AdminProtocol, insertToken } from "../support/admin.ts";
import { Described } from "../support/openapi.ts";
import { createTenant, useService } from "../support/service.ts";

/** Every RPC × who calls × protocol, from tables, in one service. */

const suite = useService();
const described = new Described("admin.v1");
const ids = createIdSource();
const soon = () => new Date(Date.now() + 3_600_000);

/** Makes objects for calls. Each call has objects of its own, so that calls may run at the same time. */
class Objects {
  readonly organizationId: string;
  readonly #isStored: boolean;
  readonly #documents = new Map<Collection<any>, object[]>();

  /** @param isStored false for ids that nobody has */
  constructor(organizationId: string, isStored = true) {
    this.organizationId = organizationId;
    this.#isStored = isStored;
  }

  get appId() {
    const _id = ids.next("app");
    const document = { slug: _id.toLowerCase().replace("_", "-"), name: "An app", allow: ["*"] };
    return this.#add(appCollection(suite.service.app.db), _id, document);
  }
  get key() {
    const secret = `wp_live_${randomBytes(16).toString("hex")}`;
    const appId = this.appId;
    const document = { appId, hash: hashOfKey(secret), hint: "wp_live_…", expiresAt: null, revokedAt: null };
    return { id: this.#add(keyCollection(suite.service.app.db), ids.next("key"), document), secret, appId };
  }
  get workerId() {
    return this.#add(workerCollection(suite.service.app.db), ids.next("wrk"), { displayName: "Alex", links: [] });
  }
  get card() {
    const [workerId, appId, snapshotType] = [this.workerId, this.appId, "open"];
    const times = { timestamp: new Date(), receivedAt: new Date() };
    const document = { workerId, appId, snapshotType, ...times, requestId: ids.next("req"), metrics: {} };
    this.#add(cardCollection(suite.service.app.db), `${workerId}/${appId}/${snapshotType}`, document);
    return { workerId, appId, snapshotType };
  }
  get erasureId() {
    const counts = { events: 0, cards: 0, idempotency: 0, requests: 0, workers: 1 };
    const document = { by: "tester", startedAt: new Date(), finishedAt: new Date(), counts };
    return this.#add(erasureCollection(suite.service.app.db), ids.next("ers"), document);
  }
  get requestId() {
    const requestId = ids.next("req");
    const facts = { requestId, receivedAt: new Date(), rpc: "Events", protocol: "rest", status: 400, durationMs: 1 };
    const owner = { appId: ids.next("app"), keyId: ids.next("key"), keyHint: "wp_live_…" };
    const error = { code: "invalid_body", connectCode: "invalid_argument", reason: "?", accepted: 0 };
    this.#add(requestCollection(suite.service.app.db), ids.next("rec"), {
      ...{ ...facts, ...owner, ...error },
      expiresAt: soon(),
    });
    return requestId;
  }
  get tokenId() {
    const document = { name: "A token", role: "viewer", hint: "wp_adm_…", expiresAt: null, revokedAt: null };
    const hash = randomBytes(32).toString("base64url");
    return this.#add(accessTokenCollection(suite.service.app.db), ids.next("tok"), { ...document, hash });
  }

  #add(collection: Collection<any>, _id: string, fields: object): string {
    const { organizationId } = this;
    const documents = this.#documents.get(collection) ?? [];
    documents.push({ _id, organizationId, createdAt: new Date(), ...fields });
    this.#documents.set(collection, documents);
    return _id;
  }

  async store(): Promise<void> {
    if (!this.#isStored) return;
    await Promise.all([...this.#documents].map(([collection, documents]) => collection.insertMany(documents as never)));
  }
}

interface Row {
  /** A valid request about these objects. */
  readonly request: (objects: Objects) => object;
  /** The beginning of the id that the call takes; absent if it takes none of an object that somebody owns. */
  readonly of?: IdPrefix | "secret";
  /** Codes that show that the call reached its work, for calls that would take too long here. */
  readonly instead?: readonly string[];
}

const ofOrganization: Row = { of: "org", request: ({ organizationId }) => ({ organizationId }) };
const ofApp = (more = {}): Row => ({ of: "app", request: ({ appId }) => ({ appId, ...more }) });
const ofKey = (more = {}): Row => ({ of: "key", request: ({ key }) => ({ keyId: key.id, ...more }) });
const ofWorker = (more = {}): Row => ({ of: "wrk", request: ({ workerId }) => ({ workerId, ...more }) });
const ofErasure: Row = { of: "ers", request: ({ erasureId }) => ({ erasureId }) };

const rows: Readonly<Record<AdminRpc, Row>> = {
  whoAmI: { request: () => ({}) },
  createOrganization: { request: () => ({ name: "New" }) },
  listOrganizations: { request: () => ({ pageSize: 1 }) },
  getOrganization: ofOrganization,
  updateOrganization: { of: "org", request: ({ organizationId }) => ({ organizationId, name: "Test" }) },
  getUsage: ofOrganization,
  getTraffic: ofOrganization,
  // A month without rows: another one would have to be quiet for some seconds.
  recountUsage: { of: "org", request: ({ organizationId }) => ({ organizationId, month: "2020-01" }) },
  createApp: {
    of: "org",
    request: ({ organizationId }) => ({ organizationId, slug: `a-${randomBytes(8).toString("hex")}`, allow: ["*"] }),
  },
  listApps: ofOrganization,
  getApp: ofApp(),
  updateApp: ofApp({ name: "Renamed", allow: ["a.*"] }),
  deleteApp: ofApp(),
  previewAllow: ofApp({ allow: ["*"] }),
  createKey: ofApp({ name: "New" }),
  listKeys: ofApp(),
  getKey: ofKey(),
  updateKey: ofKey({ name: "Renamed" }),
  rotateKey: ofKey({ grace: { seconds: 60n } }),
  revokeKey: ofKey(),
  findKey: { of: "secret", request: ({ key }) => ({ secret: key.secret }) },
  listWorkers: ofOrganization,
  getWorker: ofWorker(),
  updateWorker: ofWorker({ displayName: "Alex Chen" }),
  dropCard: { of: "wrk", request: ({ card }) => card },
  mergeWorkers: {
    of: "wrk",
    request: ({ workerId }) => ({ workerId, intoWorkerId: workerId }),
    instead: ["invalid_body", "failed_precondition"],
  },
  eraseWorker: { ...ofWorker(), instead: ["failed_precondition"] },
  getErasure: ofErasure,
  findErasure: {
    of: "app",
    request: ({ appId }) => ({ appId, id: { case: "externalId", value: "x" } }),
    instead: ["not_found"],
  },
  allowWorkerAgain: ofErasure,
  getRequest: { of: "req", request: ({ requestId }) => ({ requestId }) },
  listRequests: ofOrganization,
  watchRequests: ofOrganization,
  createToken: { of: "org", request: ({ organizationId }) => ({ organizationId, name: "New", role: Roles.VIEWER }) },
  listTokens: { request: () => ({ pageSize: 1 }) },
  revokeToken: { of: "tok", request: ({ tokenId }) => ({ tokenId }) },
  listAuditEntries: { request: () => ({ pageSize: 1 }) },
  listInstances: { request: () => ({}) },
};

const rpcs = (Object.keys(rows) as AdminRpc[]).filter((rpc) => rpc in handlers || rpc in streamHandlers);

interface Caller {
  readonly name: string;
  readonly role?: Role;
  /** Whether it is bound to the organisation. */
  readonly isBound?: boolean;
  /** The code of every call. */
  readonly refused?: string;
  readonly credential: () => Promise<string | undefined>;
}

const tokenOf = async (...of: Parameters<typeof insertToken> extends [any, ...infer Rest] ? Rest : never) =>
  (await insertToken(suite.service, ...of)).token;
const past = new Date(0);
const own = () => suite.tenant.organizationId;

const callers: readonly Caller[] = [
  { name: "operator", role: "operator", credential: () => tokenOf("operator") },
  { name: "manager", role: "manager", isBound: true, credential: () => tokenOf("manager", own()) },
  { name: "viewer of all", role: "viewer", credential: () => tokenOf("viewer") },
  { name: "viewer of one", role: "viewer", isBound: true, credential: () => tokenOf("viewer", own()) },
  { name: "nobody", refused: "missing_authorization", credential: async () => undefined },
  {
    name: "an expired token",
    refused: "key_expired",
    credential: () => tokenOf("operator", undefined, { expiresAt: past }),
  },
  {
    name: "a revoked token",
    refused: "key_revoked",
    credential: () => tokenOf("operator", undefined, { revokedAt: past }),
  },
  { name: "an ingest key", refused: "forbidden_scope", credential: async () => suite.tenant.key },
];

type Outcome = { readonly code: string; readonly message: string };

/** An id and a secret that nobody has differ from one call to the next. */
const masked = (message: string) => message.replaceAll(/'(\w{3})_[^']*'/g, "'$1_…'");

const protocols = ["rest", "connect", "grpc", "grpc-web"] as const;
const clients = {} as Record<AdminProtocol, Client<typeof Admin>>;
beforeAll(() => {
  for (const protocol of ["connect", "grpc", "grpc-web"] as const)
    clients[protocol] = adminClient(suite.service.app.adminUrl, undefined, protocol);
});

async function callRpc(protocol: AdminProtocol, rpc: AdminRpc, request: object, token?: string): Promise<Outcome> {
  const headers: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` };
  const call = clients[protocol][rpc] as (request: object, options: CallOptions) => any;
  try {
    const abort = new AbortController();
    const answer = call(request, { headers, signal: abort.signal });
    if (Admin.method[rpc].methodKind === "server_streaming") {
      await answer[Symbol.asyncIterator]().next();
      abort.abort();
    } else await answer;
    return { code: "ok", message: "" };
  } catch (thrown) {
    const error = ConnectError.from(thrown);
    return { code: error.findDetails(ErrorInfoSchema)[0]?.reason ?? String(error), message: error.rawMessage };
  }
}

/** The REST call of a request. */
function restOf(rpc: AdminRpc, request: object) {
  const method = Admin.method[rpc] as DescMethod;
  const { pattern, body } = getOption(method, http);
  const isSet = (value: unknown) => value !== "" && !(Array.isArray(value) && value.length === 0);
  const input = method.input as DescMessage;
  const json = Object.fromEntries(
    Object.entries(restJson(input, create(input, request as never))).filter(([, value]) => isSet(value)),
  );
  const template = String(pattern.value).replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  const path = template.replaceAll(/\{(\w+)\}/g, (_, name: string) => {
    const id = json[name] as string;
    delete json[name];
    return encodeURIComponent(id);
  });
  const verb = pattern.case as string;
  const query = body === "*" ? "" : `?${new URLSearchParams(json as Record<string, string>)}`;
  return { verb, template, path: `${path}${query}`, body: body === "*" ? JSON.stringify(json) : undefined };
}

async function callRest(rpc: AdminRpc, request: object, token?: string): Promise<Outcome> {
  const { verb, template, path, body } = restOf(rpc, request);
  const abort = new AbortController();
  const response = await fetch(`${suite.service.app.adminUrl}${path}`, {
    method: verb.toUpperCase(),
    signal: abort.signal,
    headers: {
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : { "content-type": "application/json" }),
    },
    ...(body === undefined ? {} : { body }),
  });
  if (response.ok && Admin.method[rpc].methodKind === "server_streaming") {
    await response.body?.getReader().read();
    abort.abort();
    return { code: "ok", message: "" };
  }
  const answer: any = await response.json();
  described.expectAnswer(template, verb, response.status, response.headers, answer);
  return answer.error ?? { code: "ok", message: "" };
}

const callOver = (protocol: (typeof protocols)[number], rpc: AdminRpc, request: object, token?: string) =>
  protocol === "rest" ? callRest(rpc, request, token) : callRpc(protocol, rpc, request, token);

/** Runs the work of each item, some at a time. */
async function each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const left = items.values();
  await Promise.all(
    Array.from({ length: 16 }, async () => {
      for (const item of left) await work(item);
    }),
  );
}

test("every RPC has a role and a row here", () => {
  const all = Object.keys(Admin.method).sort();
  expect(Object.keys(rows).sort()).toEqual(all);
  expect(Object.keys(leastRoles).sort()).toEqual(all);
});

// Its calls are quick, but a busy machine is not.
describe("who may call what", { timeout: 120_000 }, () => {
  test("a role, or a missing one, decides alike over every protocol", async () => {
    const objects = new Objects(own());
    const cells = [];
    for (const caller of callers)
      for (const protocol of protocols) {
        const token = await caller.credential();
        for (const rpc of rpcs) cells.push({ caller, protocol, rpc, token, request: rows[rpc].request(objects) });
      }
    await objects.store();
    const wrong: string[] = [];
    await each(cells, async ({ caller: { name, role, refused }, protocol, rpc, token, request }) => {
      const isAllowed = role !== undefined && reaches(role, leastRoles[rpc]);
      const wanted = refused ?? (isAllowed ? "ok" : "forbidden_scope");
      const { code, message } = await callOver(protocol, rpc, request, token);
      if (code === wanted || (wanted === "ok" && rows[rpc].instead?.includes(code))) return;
      wrong.push(`${rpc} by ${name} over ${protocol}: ${code} instead of ${wanted}: ${message}`);
    });
    expect(wrong).toEqual([]);
    // Only a change leaves an entry, and nobody else may make one.
    const audit = auditCollection(suite.service.app.db);
    expect(await audit.countDocuments({ "actor.role": { $in: ["operator", "manager"] } })).toBeGreaterThan(50);
    expect(await audit.countDocuments({ "actor.role": "viewer" })).toBe(0);
  });

  test("another organisation's object answers, word for word, as one that nobody has", async () => {
    const other = (await createTenant(suite.service.admin, { name: "Other" })).organizationId;
    const [theirs, nobodys] = [new Objects(other), new Objects(ids.next("org"), false)];
    const cells = [];
    for (const caller of callers.filter(({ isBound }) => isBound))
      for (const protocol of protocols) {
        const token = await caller.credential();
        for (const rpc of rpcs.filter((rpc) => rows[rpc].of !== undefined)) {
          const [of, unknown] = [theirs, nobodys].map((objects) => rows[rpc].request(objects));
          cells.push({ caller, protocol, rpc, token, of, unknown });
        }
      }
    await theirs.store();
    const wrong: string[] = [];
    await each(cells, async ({ caller: { name, role }, protocol, rpc, token, of, unknown }) => {
      const [answer, wanted] = [
        await callOver(protocol, rpc, of as object, token),
        await callOver(protocol, rpc, unknown as object, token),
      ];
      // A check before the look-up tells nothing about the object either.
      const isBarred = !reaches(role as Role, leastRoles[rpc]) && wanted.code === "forbidden_scope";
      const isGood = wanted.code === "not_found" || isBarred;
      if (isGood && answer.code === wanted.code && masked(answer.message) === masked(wanted.message)) return;
      wrong.push(`${rpc} by ${name} over ${protocol}: ${answer.message} (${answer.code}), ${wanted.message}`);
    });
    expect(wrong).toEqual([]);
  });
});

/** Sends bytes over REST, as no client of ours would. */
async function raw(
  method: string,
  path: string,
  { token, body, headers = {} }: { token: string; body?: string; headers?: Record<string, string> },
) {
  const response = await fetch(`${suite.service.app.adminUrl}${path}`, {
    method,
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json", ...headers },
    ...(body === undefined ? {} : { body }),
  });
  const text = await response.text();
  const json = text === "" ? {} : JSON.parse(text);
  return { status: response.status, headers: response.headers, code: json.error?.code, message: json.error?.message };
}

describe("bad input", () => {
  const api = "/api/v1/admin";
  const pathTo = (template: string) =>
    template
      .replace("{org}", `/organizations/${own()}`)
      .replace("{app}", `/apps/${suite.tenant.appId}`)
      .replace("{key}", `/keys/${suite.tenant.keyId}`)
      .replace("{long}", "x".repeat(10_000));
  const deep = `{"name": "x", "more": ${"[".repeat(100_000)}${"]".repeat(100_000)}}`;
  const large = JSON.stringify({ name: "x", more: "y".repeat(1_048_576) });

  test.each<[string, string, string, string | RegExp]>([
    // Query parameters.
    ["GET", "{org}/apps?filter=x", "", "filter: is not a parameter of this call; allowed: pageSize, pageToken"],
    ["GET", "{org}/apps?page_size=5", "", /^page_size: is not a parameter/],
    ["GET", "{org}/apps?organizationId=x", "", /^organizationId: is not a parameter/],
    ["GET", "{org}?__proto__=1&constructor=2", "", /^__proto__: is not a parameter of this call; constructor: is/],
    ["GET", "{org}/apps?pageSize=1&pageSize=2", "", "pageSize: is given twice"],
    ["GET", "{org}/apps?pageSize=0", "", "pageSize: must be at least 1; it is 0"],
    ["GET", "{org}/apps?pageSize=501", "", "pageSize: must be at most 500; it is 501"],
    ["GET", "{org}/apps?pageSize=9999999999", "", /^pageSize: must be a whole number of .*; it is '9999999999'$/],
    ["GET", "{org}/apps?pageSize=", "", /^pageSize: must be a whole number of .*; it is ''$/],
    ["GET", "{org}/apps?pageToken=%FF%00", "", /^pageToken: must be an unchanged nextPageToken/],
    ["GET", "{org}/usage?by=week", "", "by: must be one of day, app, type, code; it is 'week'"],
    ["GET", "{org}/usage?by=USAGE_GROUP_DAY", "", /^by: must be one of day, app/],
    ["GET", "{org}/usage?month=2026-13", "", /^month: must be a month such as/],
    ["GET", "/audit?from=yesterday", "", /^from: must be an ISO 8601 time .*; it is 'yesterday'$/],
    ["POST", "{key}:revoke?wait=true", "{}", "wait: is not a parameter of this call"],
    ["DELETE", "{app}", '{"etag": "x", "note": 1}', "etag: must be a query parameter of this call"],
    // Masks.
    ["PATCH", "{app}", "{}", /^updateMask: names nothing to change; allowed: name, allow$/],
    ["PATCH", "{app}", '{"updateMask": ""}', /^updateMask: names nothing to change/],
    [
      "PATCH",
      "{app}",
      '{"updateMask": "slug"}',
      /^updateMask: must have members to change: name, allow; one is 'slug'$/,
    ],
    ["PATCH", "{key}", '{"updateMask": "keyId"}', /^updateMask: must have members to change: .*; one is 'keyId'$/],
    ["PATCH", "{app}", '{"updateMask": "display_name"}', /^updateMask: must be names of members/],
    ["PATCH", "{app}", '{"updateMask": ["name"]}', /^updateMask: must be names of members/],
    ["PATCH", "{app}", '{"name": "a", "etag": "stale"}', /^etag: must be an etag of the app/],
    ["PATCH", "{app}", '{"name": null}', /^name: must be a string/],
    // Members.
    [
      "POST",
      "{org}/apps",
      '{"slug": "a", "allow": ["*"], "organizationId": "org_x"}',
      /^organizationId: must be as in the path/,
    ],
    ["POST", "{org}/apps", '{"slug": "a", "organization_id": "org_x"}', /^organizationId: must be as in the path/],
    [
      "POST",
      "{org}/apps",
      '{"slug": "a", "allow": [null, 5]}',
      /^allow\[0\]: must be a string; it is null; allow\[1\]: must be a string; it is 5$/,
    ],
    ["POST", "{org}/apps", '{"slug": "a", "allow": "*"}', "allow: must be an array; it is '*'"],
    [
      "POST",
      "{app}/keys",
      '{"expiresAt": "2030-02-30T00:00:00Z", "expires_at": null}',
      /^expiresAt: is the same member as expires_at/,
    ],
    [
      "POST",
      "{app}/keys",
      '{"expiresAt": "2030-02-30T00:00:00Z"}',
      /^expiresAt: must be .*; it is '2030-02-30T00:00:00Z'$/,
    ],
    [
      "POST",
      "{app}/keys",
      '{"expiresAt": "2020-01-01T00:00:00Z"}',
      /^expiresAt: must be .*future|^expiresAt: must be later/,
    ],
    ["POST", "{app}/keys", '{"scopes": ["INGEST"]}', "scopes[0]: must be one of ingest, read; it is 'INGEST'"],
    ["POST", "{app}/keys", '{"test": "yes"}', "test: must be true or false; it is 'yes'"],
    ["POST", "{app}/keys", '{"name": "\\ud800"}', /^name: must be well-formed Unicode/],
    ["POST", "{app}/keys", '{"idempotencyKey": "a\\u0000b"}', /^idempotencyKey: must have 1 to 200 printable ASCII/],
    ["POST", "{key}:rotate", '{"grace": "1d"}', /^grace: must be seconds followed by s, such as "86400s"; it is '1d'$/],
    ["POST", "{key}:rotate", '{"grace": 86400}', /^grace: must be seconds followed by s/],
    ["POST", "{key}:rotate", '{"grace": "-1s"}', /^grace: must be/],
    ["POST", "{key}:rotate", '{"grace": "99999999999s"}', /^grace: must be/],
    [
      "POST",
      "/tokens",
      '{"name": "x", "role": "root"}',
      "role: must be one of operator, manager, viewer; it is 'root'",
    ],
    ["POST", "/tokens", '{"name": "x"}', /^role: must be one of operator, manager, viewer; it is missing$/],
    ["POST", "/keys:find", `{"secret": "wp_live_${"0".repeat(31)}"}`, /^secret: must be a key/],
    // Bodies.
    ["POST", "/organizations", "{", /^body: is not valid JSON/],
    ["POST", "/organizations", "[]", "body: must be an object; it is an array"],
    ["POST", "/organizations", "null", "body: must be an object; it is null"],
    ["POST", "/organizations", '{"__proto__": {"name": "x"}, "constructor": 1}', /^name: must/],
  ])("%s %s with %s", async (method, path, body, message) => {
    const target = `${api}${pathTo(path)}`;
    const answer = await raw(method, target, { token: await tokenOf("operator"), ...(body === "" ? {} : { body }) });
    expect([answer.status, answer.code], answer.message).toEqual([400, "invalid_body"]);
    if (typeof message === "string") expect(answer.message).toBe(message);
    else expect(answer.message).toMatch(message);
  });

  test("bodies have bounds, and what lies deep in an unknown member does not matter", async () => {
    const token = await tokenOf("operator");
    const post = (body: string, headers = {}) => raw("POST", `${api}/organizations`, { token, body, headers });
    expect(await post(large)).toMatchObject({ status: 413, code: "batch_too_large" });
    expect((await post(deep)).status).toBe(200);
    expect(await post("name=x", { "content-type": "application/x-www-form-urlencoded" })).toMatchObject({
      code: "invalid_body",
      message: "Content-Type: must be application/json; it is 'application/x-www-form-urlencoded'",
    });
    expect(await post(large, { "content-type": "text/plain" })).toMatchObject({
      message: "Content-Type: must be application/json; it is 'text/plain'",
    });
    // An action may have nothing to say, whatever its type is.
    const objects = new Objects(own());
    const { id } = objects.key;
    await objects.store();
    expect((await raw("POST", `${api}/keys/${id}:revoke`, { token })).status).toBe(200);
  });

  test.each([
    ["GET", "/apps/%00", 404],
    ["GET", "/apps/a%2Fb", 404],
    ["GET", "/apps/%E2%9C%93", 404],
    ["GET", "/apps/%FF", 404],
    ["GET", "/apps/%", 404],
    ["GET", "/apps/__proto__", 404],
    ["GET", "/apps/{long}", 404],
    ["GET", "/apps/", 404],
    ["GET", "/organizations//apps", 404],
    ["GET", "/apps/a:b", 404],
    ["POST", "/keys/key_x:burn", 404],
    ["POST", "/keys/:rotate", 404],
    ["PUT", "/apps/app_x", 405, "GET, PATCH, DELETE"],
    ["POST", "/whoami", 405, "GET"],
    ["GET", "/keys:find", 405, "POST"],
    ["GET", "/keys/key_x:rotate", 405, "POST"],
    ["GET", "/whoami/", 200],
    ["HEAD", "/whoami", 200],
    ["GET", "/%77hoami", 200],
  ])("%s %s answers %i", async (method, path, status, allow?: string) => {
    const token = await tokenOf("operator");
    const answer = await raw(method, `${api}${pathTo(path)}`, { token });
    expect([answer.status, answer.headers.get("allow")]).toEqual([status, allow ?? null]);
    if (status !== 200) expect(answer.code).toBe(status === 404 ? "not_found" : "method_not_allowed");
    expect(answer.message?.length ?? 0).toBeLessThan(200);
  });

  test("over RPC, issues have the schema's names, and values that JSON could not write are refused", async () => {
    const token = await tokenOf("operator");
    const { organizationId, appId, keyId } = suite.tenant;
    const far = { seconds: 2n ** 62n, nanos: -5 };
    const cases: [AdminRpc, object, RegExp][] = [
      ["listApps", { organizationId, pageSize: 501 }, /^page_size: must be at most 500/],
      ["updateApp", { appId, updateMask: { paths: ["slug"] } }, /^update_mask: must have members to change: .*'slug'/],
      ["updateApp", { appId, updateMask: { paths: ["createdAt"] } }, /^update_mask: .*'createdAt'/],
      ["updateKey", { keyId, updateMask: { paths: ["expires_on"] } }, /^update_mask: .*event_types.*'expires_on'/],
      ["updateKey", { keyId, expiresAt: far }, /^expires_at: must/],
      ["createKey", { appId, expiresAt: far }, /^expires_at: must/],
      ["createKey", { appId, scopes: [7] }, /^scopes\[0\]: must be one of SCOPE_INGEST, SCOPE_READ/],
      ["createKey", { appId, eventTypes: ["deploy.x"] }, /^event_types\[0\]: must lie within the whitelist/],
      ["rotateKey", { keyId, grace: far }, /^grace: must/],
      ["createToken", { name: "x", role: 9 }, /^role: must be one of ROLE_OPERATOR, ROLE_MANAGER, ROLE_VIEWER/],
      ["createToken", { name: "x", role: 2 }, /^organization_id: must be given/],
      ["getUsage", { organizationId, by: 9 }, /^by: must be one of USAGE_GROUP_DAY/],
      ["listAuditEntries", { from: far }, /^from: must/],
      ["createOrganization", { name: "x", quotaEventsPerMonth: Number.NaN }, /^quota_events_per_month: must/],
      ["createOrganization", { name: "x", retentionDays: -1 }, /^retention_days: must be at least 0/],
    ];
    for (const [rpc, request, message] of cases) {
      const answer = await callRpc("grpc", rpc, request, token);
      expect([answer.code, answer.message], rpc).toEqual(["invalid_body", expect.stringMatching(message)]);
    }
  });

  test.each([
    ["connect", "connect-timeout-ms", "0"],
    ["grpc", "grpc-timeout", "0m"],
    ["grpc-web", "grpc-timeout", "0m"],
  ] as const)("a deadline ends a call over %s", async (protocol, name, value) => {
    const headers = { authorization: `Bearer ${await tokenOf("operator")}`, [name]: value };
    await expect(clients[protocol].listOrganizations({}, { headers })).rejects.toMatchObject({ code: 4 });
  });
});
