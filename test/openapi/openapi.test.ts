import { readFileSync } from "node:fs";
import { getOption } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { parse } from "yaml";
import { newAccessToken } from "../../src/access/access-token.ts";
import { type AdminErrorCode, type ErrorCode, errorTable, unavailable } from "../../src/errors.ts";
import { http } from "../../src/gen/google/api/annotations_pb.js";
import { Admin } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { Ingest } from "../../src/gen/ingest/v1/ingest_pb.js";
import { Timeline } from "../../src/gen/ingest/v1/timeline_pb.js";
import { limits } from "../../src/limits.ts";
import { adminDocument } from "../../src/openapi/admin.ts";
import { jsonOf, openapiDocument, yamlOf } from "../../src/openapi/document.ts";
import { Described } from "../support/openapi.ts";
import { event, snapshot } from "../support/requests.ts";
import { bearer, createExpiredKey, createTenant, startService, type Tenant, type TestService } from "../support/service.ts";
import { RawConnection } from "../support/socket.ts";

const described = new Described("v1");
const ofAdmin = new Described("admin.v1");
const documents = [
  { is: described, made: openapiDocument(), services: [Ingest, Timeline] },
  { is: ofAdmin, made: await adminDocument(), services: [Admin] },
] as const;

let service: TestService;
let tenant: Tenant;
beforeAll(async () => {
  service = await startService();
  tenant = await createTenant(service.admin);
});
afterAll(() => service.app.close());

const ingest = "/api/v1/ingest";

interface Request {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: unknown;
}

function send({ method = "GET", path, headers = {}, body }: Request): Promise<Response> {
  return fetch(`${service.app.url}${path}`, {
    method,
    headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
}

const post = (call: "events" | "snapshots", body: unknown, headers: Record<string, string> = bearer(tenant.key)) =>
  send({ method: "POST", path: `${ingest}/${call}`, headers, body });

/** Checks that the document describes the answer's status, headers and body. Returns the body. */
async function expectDescribed(response: Response): Promise<any> {
  const path = new URL(response.url).pathname;
  // Each path has one method.
  const [method] = Object.keys(described.document.paths[path]) as [string];
  const body = await response.json();
  described.expectAnswer(path, method, response.status, response.headers, body);
  return body;
}

describe.each(documents)("openapi/$is.name.yaml", ({ is, made, services }) => {
  const { name, document } = is;

  test("matches the schemas and tables (`npm run generate`)", () => {
    expect(is.yaml).toBe(yamlOf(made));
    expect(readFileSync(new URL(`../../openapi/${name}.json`, import.meta.url), "utf8")).toBe(jsonOf(made));
  });

  test("means the same in YAML 1.1, YAML 1.2 and JSON", () => {
    const json = JSON.parse(jsonOf(made));
    expect(parse(is.yaml, { version: "1.2" })).toEqual(json);
    expect(parse(is.yaml, { version: "1.1" })).toEqual(json);
  });

  test("is served as YAML and as JSON without a key", async () => {
    const origin = name === "v1" ? service.app.url : service.app.adminUrl;
    const [yaml, json] = await Promise.all(["yaml", "json"].map((type) => fetch(`${origin}/openapi/${name}.${type}`)));
    expect(yaml?.headers.get("content-type")).toBe("application/yaml; charset=utf-8");
    expect(json?.headers.get("content-type")).toBe("application/json; charset=utf-8");
    const served: any = await json?.json();
    expect(served).toEqual(parse((await yaml?.text()) as string));
    expect(served.servers).toEqual([{ url: origin }]);
  });

  test("has a unique name for every object and every enum", () => {
    const inline: string[] = [];
    const enums: string[] = [];
    const visit = (node: any, at: string[]): void => {
      if (typeof node !== "object" || node === null) return;
      const isComponent = at.length === 3 && at[1] === "schemas";
      if (node.type === "object" && node.properties !== undefined && !isComponent) inline.push(at.join("/"));
      if (Array.isArray(node.enum)) {
        if (!isComponent && !at.includes("parameters")) inline.push(at.join("/"));
        enums.push(JSON.stringify(node.enum));
      }
      for (const [name, child] of Object.entries(node)) visit(child, [...at, name]);
    };
    visit(document, []);
    expect(inline).toEqual([]);
    expect(enums.length).toBeGreaterThan(5);
    expect(new Set(enums).size).toBe(enums.length);
  });

  test("has exactly the REST calls that the protos declare", () => {
    const declared = services.flatMap((service) =>
      service.methods.map((method) => {
        const { case: verb, value } = getOption(method, http).pattern;
        const inCamelCase = String(value).replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
        return `${verb} ${inCamelCase}`;
      }),
    );
    expect(is.operations.map(({ verb, path }) => `${verb} ${path}`).sort()).toEqual(declared.sort());
  });

  test("has examples that fit its schemas", () => {
    const checked: string[] = [];
    const visit = (node: any, at: string[]): void => {
      if (typeof node !== "object" || node === null) return;
      if (node.schema !== undefined) {
        const values = Object.values<any>(node.examples ?? {}).map((example) => is.resolved<any>(example).value);
        for (const value of node.example === undefined ? values : [...values, node.example]) {
          is.expectValid(value, ...at, "schema");
          checked.push(at.join(" "));
        }
      }
      for (const [name, child] of Object.entries(node)) if (name !== "schema") visit(child, [...at, name]);
    };
    visit(document, []);
    expect(checked.length).toBeGreaterThan(30);
  });

  test("has an example of every body with a required member", () => {
    const lacking = is.operations.filter(
      ({ operation: { requestBody } }) =>
        requestBody?.required && requestBody.content["application/json"].example === undefined,
    );
    expect(lacking.map(({ operation }) => operation.operationId)).toEqual([]);
  });
});

describe("openapi/v1.yaml", () => {
  test("has the names on which callers and their generated types rely", () => {
    const { document } = described;
    const operations = described.operations.map(({ operation }) => operation.operationId);
    expect(operations).toEqual(expect.arrayContaining(["ping", "ingestEvents", "ingestSnapshot"]));
    const schemas = ["EventCategory", "Actor", "IngestEvent", "IngestEventBatch", "IngestBatchResponse"];
    schemas.push("IngestSnapshot", "SnapshotResponse", "PingResponse", "Error");
    expect(Object.keys(document.components.schemas)).toEqual(expect.arrayContaining(schemas));
    expect(Object.keys(document.components.parameters)).toContain("IdempotencyKey");
    expect(Object.keys(document.components.securitySchemes)).toEqual(["bearerAuth"]);
  });

  test("describes every successful answer: full, partial, replayed, dry run", async () => {
    const ping = await send({ path: `${ingest}/ping`, headers: bearer(tenant.key) });
    expect(ping.status).toBe(200);
    await expectDescribed(ping);
    const once = { ...bearer(tenant.key), "idempotency-key": "described" };
    for (const replayed of [null, "true"]) {
      const answer = await post("events", { events: [event()] }, once);
      expect([answer.status, answer.headers.get("idempotency-replayed")]).toEqual([202, replayed]);
      await expectDescribed(answer);
    }
    const partly = await post("events", {
      events: [event(), event({ eventType: "deploy.shipped" }), event({ actor: {} })],
    });
    expect(partly.status).toBe(207);
    await expectDescribed(partly);
    const dry = await post("snapshots", snapshot(), { ...bearer(tenant.key), "x-dry-run": "true" });
    expect([dry.status, dry.headers.get("x-dry-run")]).toEqual([202, "true"]);
    await expectDescribed(dry);
    await expectDescribed(await post("snapshots", snapshot()));
    const reader = await service.admin.createKey(tenant.appId, undefined, "read");
    for (const list of ["events", "snapshots"]) {
      const answer = await send({ path: `/api/v1/timeline/${list}`, headers: bearer(reader.key) });
      expect(answer.status).toBe(200);
      await expectDescribed(answer);
    }
  });
});

test("the OpenAPI document describes the refusals of callers that are not known", async () => {
  const [path, headers] = [`${ingest}/events`, { "content-type": "application/json" }];
  const stranger = await send({ method: "POST", path, headers: { ...headers, ...bearer(newAccessToken()) }, body: {} });
  expect(stranger.status).toBe(403);
  await expectDescribed(stranger);
  const raw = async (...lines: string[]) => {
    const connection = await RawConnection.open(service.app.port);
    onTestFinished(() => connection.close());
    connection.send([`GET ${ingest}/ping HTTP/1.1`, "Host: x", ...lines]);
    const answer = await connection.answer();
    expect([answer.status, answer.body]).toEqual([400, expect.stringContaining("was sent twice")]);
    const answered = new Headers([...answer.headers]);
    described.expectAnswer(`${ingest}/ping`, "get", answer.status, answered, JSON.parse(answer.body));
  };
  await raw(`Authorization: Bearer ${tenant.key}`, `Authorization: Bearer ${newAccessToken()}`);
  await raw(`Authorization: Bearer ${tenant.key}`, "X-Dry-Run: true", "X-Dry-Run: false");
});

/** Makes a request that gets the code, like the code's example. */
const refusals: Record<Exclude<ErrorCode, "internal_error" | AdminErrorCode>, () => Promise<Response>> = {
  missing_authorization: () => send({ path: `${ingest}/ping` }),
  invalid_key: () => send({ path: `${ingest}/ping`, headers: bearer(`wp_live_${"0".repeat(32)}`) }),
  key_revoked: async () => {
    const { id, key } = await service.admin.createKey(tenant.appId);
    await service.admin.revokeKey(id);
    return send({ path: `${ingest}/ping`, headers: bearer(key) });
  },
  key_expired: async () => {
    const key = await createExpiredKey(service, tenant.appId);
    return send({ path: `${ingest}/ping`, headers: bearer(key) });
  },
  plan_disabled: async () => {
    const { key } = await createTenant(service.admin, { name: "No API", api: false });
    return send({ path: `${ingest}/ping`, headers: bearer(key) });
  },
  quota_exceeded: async () => {
    const { key } = await createTenant(service.admin, { name: "Small", quotaEventsPerMonth: 1000 });
    const full = { events: Array.from({ length: limits.eventsMax }, () => event()) };
    expect(
      [await post("events", full, bearer(key)), await post("events", full, bearer(key))].map((a) => a.status),
    ).toEqual([202, 202]);
    return post("events", { events: [event()] }, bearer(key));
  },
  rate_limited: async () => {
    const { key } = await createTenant(service.admin, {
      name: "Busy",
      keyRequestsPerSecond: limits.keyRequestsPerSecond,
    });
    for (;;) {
      const burst = Array.from({ length: 100 }, () => send({ path: `${ingest}/ping`, headers: bearer(key) }));
      const refused = (await Promise.all(burst)).find(({ status }) => status === 429);
      if (refused !== undefined) return refused;
    }
  },
  forbidden_event_type: () => post("events", { events: [event({ eventType: "deploy.shipped" })] }),
  invalid_body: () => post("events", { events: [event(), event(), event(), event({ duration: 86_401 })] }),
  batch_too_large: () => post("events", { events: Array.from({ length: limits.eventsMax + 1 }, () => event()) }),
  missing_actor: () => post("snapshots", snapshot({ actor: {} })),
  worker_not_found: () => post("snapshots", snapshot({ actor: { workerId: "wrk_01HP3K5V4J3M9NVT8XZKQ9YQ2E" } })),
  forbidden_scope: () => send({ path: "/api/v1/timeline/events", headers: bearer(tenant.key) }),
  not_found: () => send({ path: `${ingest}/pong` }),
  method_not_allowed: () => send({ method: "POST", path: `${ingest}/ping` }),
};

const masked = (message: string) =>
  message.replace(/wp_live_[0-9a-f]{4}…/, "wp_live_…").replace(/20\d\d-\d\d-\d\dT[\d:.]+Z/, "<time>");

describe("the example of an error matches the service's answer, as described", () => {
  test.each(Object.entries(refusals))("%s", async (name, refuse) => {
    const code = name as ErrorCode;
    const response = await refuse();
    const outside = code === "not_found" || code === "method_not_allowed";
    const body: any = outside ? await response.json() : await expectDescribed(response);
    expect(response.status).toBe(errorTable[code].http);
    expect(body.error.code).toBe(code);
    expect(masked(body.error.message)).toBe(masked(errorTable[code].example));
    described.expectValid(body, "components", "schemas", "Error");
  });

  test("internal_error", () => {
    expect(unavailable(new Error("secret")).message).toBe(errorTable.internal_error.example);
  });
});
