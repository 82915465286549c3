import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { getOption } from "@bufbuild/protobuf";
import { Ajv2020 } from "ajv/dist/2020.js";
import formats from "ajv-formats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { type AdminErrorCode, type ErrorCode, errorTable, unavailable } from "../../src/errors.ts";
import { http } from "../../src/gen/google/api/annotations_pb.js";
import { Ingest } from "../../src/gen/ingest/v1/ingest_pb.js";
import { Timeline } from "../../src/gen/ingest/v1/timeline_pb.js";
import { answerHeaderNames } from "../../src/headers.ts";
import { limits } from "../../src/limits.ts";
import { openapiJson, openapiYaml } from "../../src/openapi/document.ts";
import { event, snapshot } from "../support/requests.ts";
import { bearer, createExpiredKey, createTenant, startService, type Tenant, type TestService } from "../support/service.ts";

const root = resolve(import.meta.dirname, "../..");
const committed = readFileSync(join(root, "openapi/v1.yaml"), "utf8");
const document = parse(committed);

const ajv = new Ajv2020({ strict: false, allErrors: true });
formats.default(ajv);
ajv.addSchema(document, "v1");

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

const pointer = (...parts: string[]) => parts.map((part) => part.replaceAll("~", "~0").replaceAll("/", "~1")).join("/");
const resolved = <T>(value: T & { $ref?: string }): T =>
  value.$ref === undefined
    ? value
    : value.$ref
        .slice("#/".length)
        .split("/")
        .reduce((at, part) => at[part], document);

/** Checks that the document describes the answer's status, headers and body. Returns the body. */
async function expectDescribed(response: Response): Promise<any> {
  const path = new URL(response.url).pathname;
  // Each path has one method.
  const [method] = Object.keys(document.paths[path]) as [string];
  const described = document.paths[path][method].responses[response.status];
  expect(described, `${method} ${path} answers ${response.status}`).toBeDefined();

  const headers: Record<string, any> = Object.fromEntries(
    Object.entries<any>(described.headers).map(([name, header]) => [name.toLowerCase(), resolved(header)]),
  );
  for (const name of answerHeaderNames) {
    const value = response.headers.get(name);
    if (value === null) expect(headers[name]?.required, `${response.status} lacks ${name}`).not.toBe(true);
    else {
      expect(headers[name], `${response.status} has ${name}`).toBeDefined();
      const { schema } = headers[name];
      expect(ajv.validate(schema, schema.type === "integer" ? Number(value) : value), `${name}: ${value}`).toBe(true);
    }
  }

  const body = await response.json();
  const at = pointer(
    "paths",
    path,
    method,
    "responses",
    String(response.status),
    "content",
    "application/json",
    "schema",
  );
  ajv.validate({ $ref: `v1#/${at}` }, body);
  expect(ajv.errors, JSON.stringify(body)).toBeNull();
  return body;
}

describe("openapi/v1.yaml", () => {
  test("matches the schemas and tables (`npm run generate`)", () => {
    expect(committed).toBe(openapiYaml());
    expect(readFileSync(join(root, "openapi/v1.json"), "utf8")).toBe(openapiJson());
  });

  test("means the same in YAML 1.1, YAML 1.2 and JSON", () => {
    const json = JSON.parse(openapiJson());
    expect(parse(committed, { version: "1.2" })).toEqual(json);
    expect(parse(committed, { version: "1.1" })).toEqual(json);
  });

  test("is served as YAML and as JSON without a key", async () => {
    const yaml = await send({ path: "/openapi/v1.yaml" });
    const json = await send({ path: "/openapi/v1.json" });
    expect(yaml.headers.get("content-type")).toBe("application/yaml; charset=utf-8");
    expect(json.headers.get("content-type")).toBe("application/json; charset=utf-8");
    expect(await json.json()).toEqual(parse(await yaml.text()));
  });

  test("has the names on which callers and their generated types rely", () => {
    const operations = Object.values<any>(document.paths).flatMap((item) =>
      Object.values<any>(item).map(({ operationId }) => operationId),
    );
    expect(operations).toEqual(expect.arrayContaining(["ping", "ingestEvents", "ingestSnapshot"]));
    const schemas = ["EventCategory", "Actor", "IngestEvent", "IngestEventBatch", "IngestBatchResponse"];
    schemas.push("IngestSnapshot", "SnapshotResponse", "PingResponse", "Error");
    expect(Object.keys(document.components.schemas)).toEqual(expect.arrayContaining(schemas));
    expect(Object.keys(document.components.parameters)).toContain("IdempotencyKey");
    expect(Object.keys(document.components.securitySchemes)).toEqual(["bearerAuth"]);
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
    const declared = [Ingest, Timeline].flatMap((service) =>
      service.methods.map((method) => {
        const { case: verb, value } = getOption(method, http).pattern;
        return `${verb} ${String(value)}`;
      }),
    );
    const described = Object.entries<object>(document.paths).flatMap(([path, item]) =>
      Object.keys(item).map((verb) => `${verb} ${path}`),
    );
    expect(described.sort()).toEqual(declared.sort());
  });

  test("has examples that fit its schemas", () => {
    const checked: string[] = [];
    const visit = (node: any, at: string[]): void => {
      if (typeof node !== "object" || node === null) return;
      if (node.schema !== undefined) {
        const values = Object.values<any>(node.examples ?? {}).map((example) => resolved(example).value);
        for (const value of node.example === undefined ? values : [...values, node.example]) {
          ajv.validate({ $ref: `v1#/${pointer(...at, "schema")}` }, value);
          expect(ajv.errors, `${at.join(" ")}: ${JSON.stringify(value)}`).toBeNull();
          checked.push(at.join(" "));
        }
      }
      for (const [name, child] of Object.entries(node)) if (name !== "schema") visit(child, [...at, name]);
    };
    visit(document, []);
    expect(checked.length).toBeGreaterThan(30);
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
    ajv.validate({ $ref: "v1#/components/schemas/Error" }, body);
    expect(ajv.errors).toBeNull();
  });

  test("internal_error", () => {
    expect(unavailable(new Error("secret")).message).toBe(errorTable.internal_error.example);
  });
});
