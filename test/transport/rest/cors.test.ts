import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseConfig } from "../../../src/config.ts";
import { insertToken } from "../../support/admin.ts";
import { bearer, createTenant, startService, type Tenant, type TestService } from "../../support/service.ts";

const origin = "https://app.example.org";
const paths = {
  REST: { path: "/api/v1/ingest/events", contentType: "application/json" },
  Connect: { path: "/ingest.v1.Ingest/Events", contentType: "application/json" },
  "gRPC-Web": { path: "/ingest.v1.Ingest/Events", contentType: "application/grpc-web+proto" },
} as const;

const listOf = (response: Response, name: string): string[] =>
  (response.headers.get(name) ?? "").split(",").map((one) => one.trim().toLowerCase());

function preflight(url: string, from: string): Promise<Response> {
  const headers = {
    origin: from,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,idempotency-key",
  };
  return fetch(url, { method: "OPTIONS", headers });
}

let service: TestService;
let tenant: Tenant;
beforeAll(async () => {
  service = await startService({ env: { CORS_ORIGINS: `https://other.example.org, ${origin}` } });
  tenant = await createTenant(service.admin);
});
afterAll(() => service.app.close());

describe.each(Object.entries(paths))("a page that calls over %s", (_protocol, { path, contentType }) => {
  test("gets an answer to its preflight without a key, valid for hours", async () => {
    const response = await preflight(service.app.url + path, origin);
    expect(response.status).toBe(204);
    expect(response.headers.get("access-control-allow-origin")).toBe(origin);
    expect(listOf(response, "access-control-allow-methods")).toEqual(expect.arrayContaining(["get", "post"]));
    expect(listOf(response, "access-control-allow-headers")).toEqual(
      expect.arrayContaining([
        "authorization",
        "content-type",
        "idempotency-key",
        "x-dry-run",
        "connect-protocol-version",
        "connect-timeout-ms",
        "grpc-timeout",
        "x-grpc-web",
        "traceparent",
        "tracestate",
        "baggage",
        "last-event-id",
      ]),
    );
    expect(Number(response.headers.get("access-control-max-age"))).toBeGreaterThanOrEqual(3600);
    expect(listOf(response, "vary")).toContain("origin");
    expect(response.headers.get("x-request-id")).toMatch(/^req_/);
  });

  test.each([
    ["refused", {}],
    ["served", bearer("KEY")],
  ])("can read every header of its answer when it is %s", async (_what, headers: Record<string, string>) => {
    if (headers.authorization !== undefined) headers = bearer(tenant.key);
    const body = "{}";
    const all = { ...headers, origin, "content-type": contentType };
    const response = await fetch(service.app.url + path, { method: "POST", headers: all, body });
    expect(response.headers.get("access-control-allow-origin")).toBe(origin);
    expect(response.headers.get("access-control-allow-credentials")).toBeNull();
    const exposed = listOf(response, "access-control-expose-headers");
    expect(exposed).toEqual(
      expect.arrayContaining([
        "x-request-id",
        "x-api-version",
        "x-ratelimit-remaining",
        "ratelimit",
        "retry-after",
        "idempotency-replayed",
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
      ]),
    );
  });

  test("is refused by its browser if its origin is not on the list", async () => {
    for (const response of [
      await preflight(service.app.url + path, "https://evil.example.org"),
      await fetch(service.app.url + path, {
        method: "POST",
        headers: { ...bearer(tenant.key), origin: "https://evil.example.org", "content-type": contentType },
        body: "{}",
      }),
    ]) {
      expect(response.headers.get("access-control-allow-origin")).toBeNull();
      expect(response.headers.get("access-control-allow-headers")).toBeNull();
      expect(listOf(response, "vary")).toContain("origin");
    }
  });
});

test("a page may also administer, and never reads the metrics", async () => {
  const { adminUrl } = service.app;
  const { token } = await insertToken(service, "operator");
  for (const base of [adminUrl, service.app.url]) {
    const target = `${base}/api/v1/admin/organizations/${tenant.organizationId}`;
    const allowed = await preflight(target, origin);
    expect(listOf(allowed, "access-control-allow-methods")).toEqual(
      expect.arrayContaining(["get", "post", "patch", "delete"]),
    );
    const changed = await fetch(target, {
      method: "PATCH",
      headers: { ...bearer(token), origin, "content-type": "application/json" },
      body: JSON.stringify({ name: "Renamed" }),
    });
    expect([changed.status, changed.headers.get("access-control-allow-origin")]).toEqual([200, origin]);
    expect(changed.headers.get("ratelimit-policy")).toBe('"token";q=100;w=1');
    expect(listOf(changed, "access-control-expose-headers")).toContain("x-ratelimit-remaining");
  }
  const metrics = await fetch(`${adminUrl}/metrics`, { headers: { origin } });
  expect([metrics.status, metrics.headers.get("access-control-allow-origin")]).toEqual([200, null]);
});

test("without a list no origin is allowed, and OPTIONS is a wrong method", async () => {
  const closed = await startService();
  try {
    for (const { path } of Object.values(paths)) {
      const response = await preflight(closed.app.url + path, origin);
      expect([response.status, response.headers.get("allow")]).toEqual([405, "POST"]);
      expect([...response.headers.keys()].filter((name) => name.startsWith("access-control-"))).toEqual([]);
    }
  } finally {
    await closed.app.close();
  }
});

test("an asterisk allows every origin", async () => {
  const open = await startService({ env: { CORS_ORIGINS: "*" } });
  try {
    const response = await preflight(open.app.url + paths.REST.path, origin);
    expect([response.status, response.headers.get("access-control-allow-origin")]).toEqual([204, "*"]);
  } finally {
    await open.app.close();
  }
});

test.each([
  ["app.example.org", "http:// or https://"],
  ["https://app.example.org/path", "https://app.example.org"],
  ["https://app.example.org/", "https://app.example.org"],
  ["https://App.Example.org", "https://app.example.org"],
  ["https://app.example.org:443", "https://app.example.org"],
  ["https://bücher.example", "https://xn--bcher-kva.example"],
  ["https://me:secret@app.example.org", "https://app.example.org"],
  ["https://*.example.org", "http:// or https://"],
  ["https://a,,https://b", "origin 2"],
  ["null", "http:// or https://"],
])("%s is not an origin that a browser sends, and the error names the right one", (value, remedy) => {
  const start = () => parseConfig({ CORS_ORIGINS: value });
  expect(start).toThrow("CORS_ORIGINS: no browser sends its origin ");
  expect(start).toThrow(remedy);
  expect(start).not.toThrow("secret");
});

test.each(["*", "https://app.example.org", "http://localhost:3000 , https://[::1]:8443", "http://127.0.0.1"])(
  "%s is a valid list of origins",
  (value) => {
    expect(parseConfig({ CORS_ORIGINS: value }).CORS_ORIGINS).toEqual(value.split(",").map((one) => one.trim()));
  },
);
