import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { connect as connectHttp2 } from "node:http2";
import { type AddressInfo, connect, createServer } from "node:net";
import { Code, type ConnectError, createClient as createRpcClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { MongoClient } from "mongodb";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../src/gen/health/v1/health_pb.js";
import { insertToken } from "../support/admin.ts";
import { startLoad } from "../support/load.ts";
import { eventually, ServiceProcess } from "../support/processes.ts";
import { event } from "../support/requests.ts";
import { bearer, createTenant, type Tenant } from "../support/service.ts";
import { Setup } from "../support/setup.ts";

/** The real process, stopped by real signals. */
const database = `test-${randomBytes(6).toString("hex")}`;
const client = new MongoClient(inject("mongodbUri"));
const db = client.db(database);
const started: ServiceProcess[] = [];
let tenant: Tenant;
let operator: string;

beforeAll(async () => {
  tenant = await createTenant(new Setup(db));
  operator = (await insertToken({ app: { db } }, "operator")).token;
});
afterAll(async () => {
  for (const { child } of started) child.kill("SIGKILL");
  await client.close();
});

async function start(env: Record<string, string>): Promise<ServiceProcess> {
  const uri = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database, LOG_LEVEL: "error" };
  const service = await ServiceProcess.start({ ...uri, ...env });
  started.push(service);
  return service;
}

/** A POST whose body comes in two parts, the second when `finish` is called. */
function beginRequest(url: string, credential: string, message: object) {
  const body = JSON.stringify(message);
  const request = httpRequest(url, {
    method: "POST",
    headers: { ...bearer(credential), "content-type": "application/json", "content-length": body.length },
  });
  const status = new Promise<number | string>((resolve) => {
    request.on("response", (response) => resolve(response.resume().statusCode ?? 0));
    request.on("error", (error) => resolve(error.message));
  });
  request.write(body.slice(0, 10));
  return { status, finish: () => void request.end(body.slice(10)) };
}

type Receiver = "events" | "administration";
const baseOf = ({ url, adminUrl }: ServiceProcess, to: Receiver) => (to === "events" ? url : adminUrl);

/** Begins a POST of one event, or of a new organisation, and waits until the service has its beginning. */
async function requestInFlight(service: ServiceProcess, to: Receiver = "events") {
  const base = baseOf(service, to);
  const begun =
    to === "events"
      ? beginRequest(`${base}/api/v1/ingest/events`, tenant.key, { events: [event()] })
      : beginRequest(`${base}/api/v1/admin/organizations`, operator, { name: "Late" });
  // Until later requests on other connections are answered.
  for (let i = 0; i < 3; i++) await fetch(`${base}/healthz`);
  return begun;
}

const isRefused = (url: string) =>
  new Promise<boolean>((resolve) => {
    const socket = connect(Number(new URL(url).port), "127.0.0.1");
    socket.once("connect", () => resolve(false)).once("error", () => resolve(true));
    socket.once("connect", () => socket.destroy());
  });

describe("a service that is stopped while it waits for its database", { timeout: 240_000 }, () => {
  test.each(["1", "2"])("with WORKERS=%s ends every process with the signal's exit code", async (workers) => {
    const asked = Promise.withResolvers<void>();
    // Accepts connections and never answers.
    const silent = createServer((socket) => {
      socket.on("error", () => {});
      asked.resolve();
    });
    await once(silent.listen(0, "127.0.0.1"), "listening");
    const { port } = silent.address() as AddressInfo;
    const uri = `mongodb://127.0.0.1:${port}/?replicaSet=x`;
    const service = new ServiceProcess({ WORKERS: workers, MONGODB_URI: uri, MONGODB_DB: database });
    started.push(service);
    await asked.promise;
    expect(await service.end("SIGTERM")).toEqual({ code: 143, signal: null });
    // Its output ends when the last process that shares it ends.
    expect(service.lines.join("\n")).not.toContain("Listening on");
    silent.close();
  });
});

describe("a service that is stopped", { timeout: 240_000 }, () => {
  test("answers every request under load, reports on every protocol that it is not ready, and ends with 0", async () => {
    const service = await start({ STOP_DELAY_SECONDS: "6" });
    const watched: Status[] = [];
    const health = createRpcClient(Health, createGrpcTransport({ baseUrl: service.url }));
    const watching = (async () => {
      for await (const { status } of health.watch({})) watched.push(status);
    })().catch((error: ConnectError) => error.code);
    const session = connectHttp2(service.url);
    const goaway = new Promise<number>((resolve) => session.once("goaway", resolve));
    await eventually(() => watched.length === 1, "the health service answers");
    const before = await db.collection("timeline").countDocuments();
    const load = startLoad(service.url, tenant.key, 16);
    await eventually(() => load.report.acknowledged.length > 200, "the load is under way");
    service.child.kill("SIGTERM");
    await service.said(/^Stopping after SIGTERM/);
    const answered = load.report.acknowledged.length;
    expect((await fetch(`${service.url}/readyz`)).status).toBe(503);
    expect((await fetch(`${service.url}/healthz`)).status).toBe(200);
    const ping = await fetch(`${service.url}/api/v1/ingest/ping`, { headers: bearer(tenant.key) });
    expect([ping.status, ping.headers.get("connection")]).toEqual([200, "close"]);
    await eventually(() => load.report.acknowledged.length > answered + 20, "it still answers");
    await load.stop();
    expect(await goaway).toBe(0);
    expect(await watching).toBe(Code.Unavailable);
    expect(watched).toEqual([Status.SERVING, Status.NOT_SERVING]);
    expect(await service.ended()).toEqual({ code: 0, signal: null });
    expect(load.report.failures).toEqual([]);
    const stored = (await db.collection("timeline").countDocuments()) - before;
    expect(stored).toBe(load.report.acknowledged.length);
    expect(await isRefused(service.url)).toBe(true);
  });

  test.each([
    ["SIGINT", "events", 202],
    // Nobody could ask for its answer again.
    ["SIGTERM", "administration", 200],
  ] as const)(
    "by %s finishes a request of %s whose body is still arriving, and accepts no new connection",
    async (signal, to, status) => {
      const service = await start({ DRAIN_SECONDS: "60" });
      const request = await requestInFlight(service, to);
      service.child.kill(signal);
      await service.said(RegExp(`^Stopping after ${signal}`));
      await eventually(() => isRefused(baseOf(service, to)), "new connections are refused");
      request.finish();
      expect(await request.status).toBe(status);
      expect(await service.ended()).toEqual({ code: 0, signal: null });
    },
  );

  test("by SIGHUP cuts a request that does not finish within DRAIN_SECONDS", async () => {
    const service = await start({ DRAIN_SECONDS: "0.5" });
    const request = await requestInFlight(service);
    expect(await service.end("SIGHUP")).toEqual({ code: 0, signal: null });
    expect(service.lines.join("\n")).toContain("Stopping after SIGHUP");
    expect(await request.status).toEqual(expect.stringMatching(/hang up|ECONNRESET/));
  });

  test("stops normally even if its output is closed, and opens no inspector at SIGUSR1", async () => {
    const service = await start({});
    service.child.kill("SIGUSR1");
    for (let i = 0; i < 5; i++) expect((await fetch(`${service.url}/healthz`)).status).toBe(200);
    service.child.stdout?.destroy();
    expect(await service.end("SIGTERM")).toEqual({ code: 0, signal: null });
    // On standard error.
    expect(service.lines.join("\n")).not.toContain("Debugger");
  });

  test.each(["1", "2"])("with WORKERS=%s ends at once at the second signal", async (workers) => {
    const service = await start({ DRAIN_SECONDS: "600", WORKERS: workers });
    await requestInFlight(service);
    service.child.kill("SIGTERM");
    await service.said(/^Stopping after SIGTERM/);
    // Until its output is closed, which all its processes share.
    expect(await service.end("SIGINT")).toEqual({ code: 130, signal: null });
  });
});
