import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { request } from "node:http";
import { networkInterfaces } from "node:os";
import { Writable } from "node:stream";
import { inspect } from "node:util";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { startApp } from "../../src/app.ts";
import { exitCodes } from "../../src/serve/exit.ts";
import { parseConfig } from "../../src/config.ts";
import { createLogger, refusalLinesMax } from "../../src/observe/log.ts";
import { bearer, createTenant, protocols, startService, type Tenant, type TestService } from "../support/service.ts";

let service: TestService;
let tenant: Tenant;
beforeAll(async () => {
  service = await startService();
  tenant = await createTenant(service.admin);
});
afterAll(() => service.app.close());

const event = (change: object = {}) => ({
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: "crm-user-42" },
  ...change,
});

/** The line of a request. It is written after the answer has left, so it may come a moment later. */
async function lineOf(requestId: string | null): Promise<Record<string, unknown>> {
  const find = () =>
    service.log.map((line) => JSON.parse(line)).find((line) => line.msg === "request" && line.requestId === requestId);
  await expect.poll(find, { timeout: 10_000 }).toBeDefined();
  return find();
}

describe.each(Object.entries(protocols))("over %s", (name, send) => {
  test("a request is one line: who, what, how much, how long", async () => {
    const body = { events: [event(), event({ eventType: "deploy.shipped" })] };
    const headers = { ...bearer(tenant.key), "idempotency-key": `line-${name}` };
    const answer = await send(service.app.url, "events", body, headers);
    const line = await lineOf(answer.body.requestId);
    expect(line).toMatchObject({
      level: 30,
      rpc: "Events",
      organizationId: tenant.organizationId,
      appId: tenant.appId,
      keyHint: `${tenant.key.slice(0, 12)}…`,
      accepted: 1,
      rejected: 1,
    });
    expect(line.protocol).toBe(name.split(" ")[0]?.toLowerCase());
    expect(line.durationMs).toBeGreaterThan(0);
    expect(line.status).toBe(name === "REST" ? 207 : 200);
    expect(line).not.toHaveProperty("replayed");

    await send(service.app.url, "events", body, headers);
    const linesOfBoth = () =>
      service.log.map((text) => JSON.parse(text)).filter(({ requestId }) => requestId === answer.body.requestId);
    await expect.poll(() => linesOfBoth().length, { timeout: 10_000 }).toBe(2);
    expect(linesOfBoth()[1]).toMatchObject({ replayed: true });
  });

  test("a refusal's line has its code and its reason", async () => {
    // A new key, because the log leaves out repeated refusals of one key.
    const { key } = await createTenant(service.admin);
    const answer = await send(service.app.url, "events", { events: [event({ duration: -1 })] }, bearer(key));
    const line = await lineOf(answer.headers.get("x-request-id"));
    expect(line).toMatchObject({ level: 30, code: "invalid_body", reason: answer.error?.message });
    if (name !== "REST") expect(line.connectCode).toBe("InvalidArgument");
  });

  test("no line has a key, wherever a caller puts it", async () => {
    const secret = tenant.key.slice("wp_live_".length);
    const keys = [
      tenant.key,
      secret,
      tenant.key.toUpperCase(),
      `x${tenant.key}`,
      `${tenant.key}0`,
      tenant.key.slice(0, 30),
    ];
    for (const key of keys) {
      for (const authorization of [
        `Bearer ${key}`,
        `Basic ${key}`,
        key,
        `Bearer  ${key} ${key}`,
        `Bearer ${key},${key}`,
      ]) {
        await send(service.app.url, "ping", {}, { authorization, "x-api-key": key });
      }
      const bodies = [
        { eventType: key },
        { eventType: "ticket.resolved", actor: { externalId: key } },
        { actor: { workerId: key } },
        { actor: { email: `${key}@example.com`, displayName: key } },
        { metadata: { [key]: key, nested: { authorization: `Bearer ${key}` } } },
        { actor: { externalId: key.repeat(10) } },
      ];
      for (const change of bodies) {
        await send(service.app.url, "events", { events: [event(change)] }, bearer(tenant.key));
      }
      const headers = { ...bearer(tenant.key), "idempotency-key": key };
      await send(service.app.url, "events", { events: [event()] }, headers);
      await send(service.app.url, "events", { events: [event({ duration: 1 })] }, headers);
      const snapshot = { snapshotType: key, actor: { externalId: key }, metrics: { [key]: key } };
      await send(service.app.url, "snapshots", snapshot, headers);
    }
    const last = await send(service.app.url, "ping", {}, bearer(tenant.key));
    await lineOf(last.headers.get("x-request-id"));
    expectNoKey(service.log, tenant.key);
  });
});

test("no line has a key from a path, a query, a cookie, or a body that is not JSON", async () => {
  const secret = tenant.key.slice("wp_live_".length);
  const encoded = tenant.key.replaceAll("_", "%5F");
  const { url } = service.app;
  for (const path of [
    `/api/v1/ingest/ping?key=${tenant.key}&access_token=${secret}`,
    `/api/v1/ingest/ping/${tenant.key}`,
    `/api/v1/ingest/${secret}/ping`,
    `/${encoded}`,
    `/docs/errors/${tenant.key}`,
    `/ingest.v1.Ingest/Ping?encoding=json&message={}&key=${tenant.key}`,
    `/ingest.v1.Ingest/${tenant.key}`,
  ]) {
    for (const method of ["GET", "POST", "DELETE"]) {
      await fetch(url + path, { method, headers: { cookie: `key=${tenant.key}`, referer: `http://x/${tenant.key}` } });
    }
  }
  for (const body of [tenant.key, secret, `{"a":${secret}}`, `{"a":"${tenant.key}`, `{"events":"${tenant.key}"}`]) {
    for (const path of ["/api/v1/ingest/events", "/ingest.v1.Ingest/Events"]) {
      for (const type of ["application/json", `text/${tenant.key}`, "application/proto", "application/grpc"]) {
        const headers = { ...bearer(tenant.key), "content-type": type, "content-encoding": "identity" };
        await fetch(url + path, { method: "POST", headers, body });
      }
      const headers = { ...bearer(tenant.key), "content-type": "application/json", "content-encoding": tenant.key };
      await fetch(url + path, { method: "POST", headers, body });
    }
  }
  const odd = request(url, { path: `http://${tenant.key}@x/${tenant.key}`, headers: { host: tenant.key } });
  await new Promise((resolve) => odd.on("response", (answer) => resolve(answer.resume())).end());
  const last = await fetch(`${url}/api/v1/ingest/ping`, { headers: bearer(tenant.key) });
  await lineOf(last.headers.get("x-request-id"));
  expectNoKey(service.log, tenant.key);
});

/** The line of a refused call. */
async function refusedLine({ app, log }: TestService, host: string, headers: Record<string, string>) {
  const answer = await fetch(`http://${host}:${app.port}/api/v1/ingest/ping`, { headers });
  const id = answer.headers.get("x-request-id");
  const find = () => log.map((text) => JSON.parse(text)).find(({ requestId }) => requestId === id);
  await expect.poll(find, { timeout: 10_000 }).toBeDefined();
  return find();
}

test("the line of a refusal names the peer, its user agent and the hint of its key, known or not", async () => {
  const headers = {
    ...bearer(`wp_live_${"9".repeat(32)}`),
    "user-agent": "u".repeat(500),
    "x-forwarded-for": "198.51.100.1, 203.0.113.9, 10.0.0.1",
  };
  const refusedBy = async (env: Record<string, string>) => {
    const own = await startService({ env });
    onTestFinished(() => own.app.close());
    return refusedLine(own, "127.0.0.1", headers);
  };
  const line = { keyHint: "wp_live_9999…", userAgent: "u".repeat(100) };
  // Anyone can send the header, so without trusted proxies it does not count.
  expect(await refusedBy({})).toMatchObject({ ...line, peer: "127.0.0.1" });
  const trusting = { TRUSTED_PROXIES: "127.0.0.0/8, 10.0.0.1" };
  expect(await refusedBy(trusting)).toMatchObject({ ...line, peer: "203.0.113.9" });
});

test("no line in JSON holds a character that acts on a terminal", async () => {
  const headers = { ...bearer(tenant.key), "user-agent": "a\u009b31mb\u0085" };
  const answer = await fetch(`${service.app.url}/api/v1/ingest/ping`, { headers });
  expect(await lineOf(answer.headers.get("x-request-id"))).toMatchObject({ userAgent: "a\u009b31mb\u0085" });
  expect(service.log.join("").replaceAll("\n", "")).not.toMatch(/[\p{Cc}\u200E\u200F\u2028-\u202E\u2066-\u2069]/u);
});

const hasIPv6 = networkInterfaces().lo?.some(({ family }) => family === "IPv6") === true;

test.skipIf(!hasIPv6)("a service on both families knows IPv4 peers by their plain address", async () => {
  const own = await startService({ env: { HOST: "::", TRUSTED_PROXIES: "::ffff:127.0.0.0/104" } });
  onTestFinished(() => own.app.close());
  expect(own.app.url).toBe(`http://localhost:${own.app.port}`);
  const headers = { "x-forwarded-for": "::ffff:cb00:7109" };
  const peerAt = async (host: string, headers = {}) => (await refusedLine(own, host, headers)).peer;
  expect(await peerAt("127.0.0.1")).toBe("127.0.0.1");
  expect(await peerAt("127.0.0.1", headers)).toBe("203.0.113.9");
  // This proxy is not trusted.
  expect(await peerAt("[::1]", headers)).toBe("::1");
});

test("a request without a key writes a short line, whatever its size, and repeated ones are counted", async () => {
  const own = await startService();
  try {
    const contentType = "g".repeat(10_000);
    const requests = 3 * refusalLinesMax;
    for (let i = 0; i < requests; i++) {
      const headers = { "content-type": contentType, "user-agent": contentType };
      await (await fetch(`${own.app.url}/ingest.v1.Ingest/Events`, { method: "POST", headers, body: "x" })).text();
    }
    const lines = () => own.log.filter((text) => JSON.parse(text).msg === "request");
    await expect.poll(() => lines().length, { timeout: 10_000 }).toBe(refusalLinesMax);
    for (const line of lines()) expect(line.length, line.slice(0, 3000)).toBeLessThan(4_000);
  } finally {
    await own.app.close();
  }
});

test("a terminal gets one line for each request, and no line can control the terminal", async () => {
  const lines: string[] = [];
  const destination = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(chunk.toString());
      done();
    },
  });
  const logger = createLogger({ level: "info", pretty: true, destination });
  const facts = {
    method: "GET",
    path: "/a\u001b]0;x\u0007\n\u009b\u202eb",
    protocol: "rest",
    status: 202,
    durationMs: 12.3,
  };
  logger.info({ ...facts, accepted: 2, replayed: true, requestId: "req_1" }, "request");
  logger.warn({ err: new Error("the database is away") }, "background work failed");
  await expect.poll(() => lines.length).toBe(2);
  // oxlint-disable-next-line no-control-regex
  const plain = lines.map((line) => line.replace(/\u001b\[\d+m/g, ""));
  expect(plain[0]).toMatch(
    /^\[\d\d:\d\d:\d\d\] INFO: GET \/a\\u001b\]0;x\\u0007\\u000a\\u009b\\u202eb 202 accepted=2 replayed 12ms req_1\n$/,
  );
  expect(plain[1]).toMatch(/WARN: background work failed: the database is away\n$/);
});

test("successful pages are logged at debug, so that health checks do not fill the log", async () => {
  const { headers } = await fetch(`${service.app.url}/healthz`);
  expect((await lineOf(headers.get("x-request-id"))).level).toBe(20);
});

test("a logged driver error has no password of a connection string", () => {
  const lines: string[] = [];
  const logger = createLogger({ level: "trace", destination: { write: (line: string) => void lines.push(line) } });
  const uri = "mongodb://app:p4ss%2Fword@db.example:27017,db2.example/?tls=true";
  const cause = Object.assign(new Error(`cannot connect to ${uri}`), { uri, options: { nested: [uri] } });
  logger.error({ err: new Error(`failed: ${uri}`, { cause }), uri }, `no ${uri}`);
  logger.error(cause);
  logger.error({ uri: "mongodb+srv://app:un@esc/aped:p4ss@db.example/" }, "x");
  expect(lines.join("")).not.toMatch(/p4ss|un@esc/);
  expect(lines[0]).toContain("mongodb://…@db.example:27017,db2.example/?tls=true");
});

test.each([
  "mongodb://app:p4ss@127.0.0.1:notaport/",
  "mongodb://app:p4ss@127.0.0.1:1/?bogus=1",
  "mongodb://app:p4ss@@127.0.0.1:1/",
  "mongodb://app:p4ss/@127.0.0.1:1/",
  "http://app:p4ss@127.0.0.1:1/",
  "mongodb://app:p4ss@127.0.0.1:1/",
])("the report of an unusable database at %s has no password", async (mongodbUri) => {
  const start = async () => {
    const config = parseConfig({ MONGODB_URI: mongodbUri, PORT: "0" });
    return startApp({ config, mongodbUri, logger: createLogger({ level: "silent" }) });
  };
  const error = await start().catch((e) => e);
  expect(error).toBeInstanceOf(Error);
  expect(inspect(error, { depth: 10 })).not.toContain("p4ss");
});

test("a service that cannot start says why, without a password", async () => {
  const env = { PATH: process.env.PATH, MONGODB_URI: "mongodb://app:p4ss@127.0.0.1:notaport/", PORT: "0" };
  const { code, output } = await run({ ...env, LOG_LEVEL: "trace" });
  expect(code).toBe(exitCodes.failed.code);
  expect(output).toContain("notaport");
  expect(output).not.toContain("p4ss");
});

test("problems of the configuration are reported by name, not by value", () => {
  const env = { MONGODB_URI: "", PUBLIC_URL: "ftp://app:p4ss@x", HOST: "", LOG_LEVEL: "loud-p4ss", PORT: "p4ss" };
  expect(() => parseConfig(env)).toThrow(/LOG_LEVEL/);
  expect(() => parseConfig(env)).not.toThrow(/p4ss/);
});

function run(env: Record<string, string | undefined>): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, ["src/main.ts"], { env, timeout: 20_000 }, (_error, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, output: stdout + stderr }),
    );
  });
}

/** No line has more of the key than its hint. Nine more characters in a row would be no coincidence. */
function expectNoKey(log: readonly string[], key: string): void {
  const text = log.join("").toLowerCase();
  const rest = key.slice("wp_live_".length + 4);
  for (let i = 0; i + 9 <= rest.length; i++) {
    const part = rest.slice(i, i + 9);
    const at = text.indexOf(part);
    expect(at < 0 ? "" : text.slice(Math.max(0, at - 200), at + 100), `part ${part} of the key`).toBe("");
  }
}

test("the search for keys finds a logged one", () => {
  const key = `wp_live_${randomBytes(16).toString("hex")}`;
  expect(() => expectNoKey([JSON.stringify({ path: `/x/${key}` })], key)).toThrow("of the key");
});
