import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { request } from "node:http";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { MongoClient } from "mongodb";
import { afterAll, beforeAll, expect, inject, test, vi } from "vitest";
import { eventCollection, rowsBetween } from "../../src/store/events.ts";
import { MongoProxy } from "../fault/proxy.ts";
import { eventually, ServiceProcess } from "../support/processes.ts";
import { scrape } from "../support/prometheus.ts";
import { createTenant } from "../support/service.ts";
import { RawConnection } from "../support/socket.ts";
import { event } from "../support/requests.ts";
import { Setup } from "../support/setup.ts";

/** WORKERS=2: several processes on one port, each of them an instance. */
const database = `workers-${process.pid}`;
// Longer than the waits in each test: a start may take a minute, the logs of both processes half a minute.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });
let service: ServiceProcess;
let client: MongoClient;
let admin: Setup;

beforeAll(async () => {
  const uri = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database };
  service = await ServiceProcess.start({ WORKERS: "2", ...uri, STOP_DELAY_SECONDS: "1" });
  client = await MongoClient.connect(inject("mongodbUri"));
  admin = new Setup(client.db(database));
});
afterAll(async () => {
  service.child.kill("SIGKILL");
  await client.db(database).dropDatabase();
  await client.close();
});

interface Reply {
  readonly status: number;
  readonly text: string;
  readonly requestId: string;
  readonly replayed: boolean;
}

/** Uses a new connection, so that any of the processes may get it. */
function send(
  key: string,
  method: string,
  path: string,
  body?: object,
  more: Record<string, string> = {},
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${key}`, "content-type": "application/json", ...more };
    const sent = request(service.url + path, { method, headers, agent: false }, (response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => (text += String(chunk)));
      const status = response.statusCode ?? 0;
      const requestId = String(response.headers["x-request-id"]);
      const replayed = response.headers["idempotency-replayed"] === "true";
      response.on("end", () => resolve({ status, text, requestId, replayed }));
    });
    sent.once("error", reject);
    sent.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

/** The processes that logged such a request. */
function answerers(matches: (line: Record<string, unknown>) => boolean): Set<number> {
  const lines = service.lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
  return new Set(lines.filter((line) => line.msg === "request" && matches(line)).map(({ pid }) => pid));
}

/** The processes that the primary one has started. */
const workers = (of = service) =>
  readdirSync("/proc").filter((pid) => {
    try {
      const [, parent] = /^\d+ \(.*\) \S (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, "utf8")) ?? [];
      return Number(parent) === of.child.pid;
    } catch {
      return false;
    }
  });

const hasProc = process.platform === "linux";

test("quota is exact over the processes, and /metrics adds them up", async () => {
  const { key, organizationId } = await createTenant(admin, { name: "Quota", quotaEventsPerMonth: 100 });
  const body = { events: Array.from({ length: 7 }, () => event()) };
  const replies = await Promise.all(Array.from({ length: 40 }, () => send(key, "POST", "/api/v1/ingest/events", body)));
  const accepted = replies.filter(({ status }) => status < 300).map(({ text }) => JSON.parse(text).accepted as number);
  expect(accepted.reduce((sum, count) => sum + count, 0)).toBe(100);
  expect(replies.filter(({ status }) => status >= 300 && status !== 402)).toEqual([]);
  expect(await eventCollection(client.db(database)).countDocuments(rowsBetween(organizationId))).toBe(100);
  await eventually(() => answerers((line) => line.organizationId === organizationId).size === 2, "both took part");
  const text = await (await fetch(`${service.adminUrl}/metrics`)).text();
  const total = [...text.matchAll(/^ingest_requests_total\{rpc="Events".*\} (\d+)$/gm)];
  expect(total.reduce((sum, [, count]) => sum + Number(count), 0)).toBe(40);
});

test("a replay from another process repeats the first answer byte for byte", async () => {
  const { key, organizationId } = await createTenant(admin, { name: "Replay" });
  const body = { events: [event(), event({ eventType: "deploy.x" }), event({ timestamp: "2026-04-19T12:05:00Z" })] };
  const headers = { "idempotency-key": "one" };
  const post = () => send(key, "POST", "/api/v1/ingest/events", body, headers);
  // Send the first ones at once, so that the processes race for the claim.
  const replies = await Promise.all(Array.from({ length: 6 }, post));
  const requestId = (replies[0] as Reply).requestId;
  const replayers = () => answerers((line) => line.requestId === requestId && line.replayed === true);
  await eventually(async () => {
    replies.push(await post());
    return replayers().size === 2;
  }, "both processes replay");
  expect(replies.filter(({ replayed }) => !replayed)).toHaveLength(1);
  expect(new Set(replies.map(({ status, text, requestId }) => `${status} ${requestId} ${text}`)).size).toBe(1);
  expect(replies[0]).toMatchObject({ status: 207 });
  expect(await eventCollection(client.db(database)).countDocuments(rowsBetween(organizationId))).toBe(2);
  const other = await Promise.all(
    Array.from({ length: 4 }, () => send(key, "POST", "/api/v1/ingest/events", { events: [event()] }, headers)),
  );
  expect(other.map(({ status }) => status)).toEqual([400, 400, 400, 400]);
});

// With a retry: while the database stalls, a key does get its rate on each process.
test("a key has its rate over all processes, not on each", { retry: 1 }, async () => {
  const limit = 20;
  const { key, organizationId } = await createTenant(admin, { name: "Rate", keyRequestsPerSecond: limit });
  const startedMs = performance.now();
  const elapsedSeconds = () => (performance.now() - startedMs) / 1000;
  const counts = new Map<number, number>();
  let sent = 0;
  const hammer = async () => {
    while (elapsedSeconds() < 3.5) {
      const { status } = await send(key, "GET", "/api/v1/ingest/ping");
      counts.set(status, (counts.get(status) ?? 0) + 1);
      // More would only take the machine's time.
      if (++sent > 10 * limit * elapsedSeconds()) await delay(20);
    }
  };
  await Promise.all(Array.from({ length: 4 }, hammer));
  // The rate and the burst, plus half for requests between the processes of a busy machine.
  expect(counts.get(200)).toBeLessThanOrEqual(1.5 * (limit * elapsedSeconds() + limit));
  expect(new Set(counts.keys())).toEqual(new Set([200, 429]));
  const passed = () => answerers((line) => line.organizationId === organizationId && line.status === 200);
  await eventually(() => passed().size === 2, "both let it through");
});

test.skipIf(!hasProc)("the first process outlives a message to a process that has just gone", async () => {
  const port = Number(new URL(service.adminUrl).port);
  // Uses connections that both processes already have, because the stopped primary process accepts no new ones.
  const connections = new Map<number, RawConnection>();
  await eventually(async () => {
    const connection = await RawConnection.open(port);
    connection.send(["GET /nothing HTTP/1.1", "Host: x"]);
    const requestId = (await connection.answer()).headers.get("x-request-id");
    const [pid] = await eventually(() => {
      const found = answerers((line) => line.requestId === requestId);
      return found.size === 1 && found;
    }, "the answer is logged");
    if (connections.has(pid as number)) {
      connection.close();
      // The log leaves out refusals after the first 20 in 10 s.
      await delay(600);
    } else connections.set(pid as number, connection);
    return connections.size === 2;
  }, "both processes serve");
  const before = await scrape(service.adminUrl);
  const [[killed], [survivorPid, survivor]] = [...connections] as [[number, RawConnection], [number, RawConnection]];
  service.child.kill("SIGSTOP");
  process.kill(killed, "SIGKILL");
  survivor.send(["GET /metrics HTTP/1.1", "Host: x"]);
  await delay(200);
  // It then reads the survivor's request, and asks both for metrics before it learns that one is gone.
  service.child.kill("SIGCONT");
  expect((await survivor.answer()).status).toBe(200);
  for (const connection of connections.values()) connection.close();
  const { key } = await createTenant(admin);
  const isReplaced = async () => {
    const { status } = await send(key, "GET", "/api/v1/ingest/ping");
    return status === 200 && answerers(({ pid }) => pid !== killed && pid !== survivorPid).size === 1;
  };
  await eventually(isReplaced, "its replacement serves", 60);
  // A count that falls would look like a restart of all processes.
  const after = await scrape(service.adminUrl);
  const counts = [...before].filter(([series]) => /^ingest_\w+_(total|count|bucket)\b/.test(series));
  expect(counts.length).toBeGreaterThan(20);
  expect(counts.filter(([series, count]) => (after.get(series) ?? 0) < count)).toEqual([]);
});

// These tests wait for an absent database at the same time.
test
  .skipIf(!hasProc)
  .concurrent(
    "processes ignore SIGUSR1, are replaced after a database outage, and end at SIGTERM with code 0",
    async ({ expect, onTestFinished }) => {
      const { hostname: host, port } = new URL(inject("mongodbUri"));
      const proxy = await MongoProxy.start({ host, port: Number(port) });
      const env = { WORKERS: "2", MONGODB_URI: proxy.uri, MONGODB_DB: `${database}-away` };
      const apart = await ServiceProcess.start(env);
      onTestFinished(async () => {
        await apart.end("SIGKILL");
        proxy.close();
        await client.db(env.MONGODB_DB).dropDatabase();
      });
      const [first] = workers(apart);
      for (const pid of [apart.child.pid, ...workers(apart)]) process.kill(Number(pid), "SIGUSR1");
      for (let i = 0; i < 5; i++) expect((await fetch(`${apart.url}/healthz`)).status).toBe(200);
      proxy.goDown();
      process.kill(Number(first), "SIGKILL");
      await apart.said(/The database cannot be reached/);
      // A worker that keeps restarting does not delay requests for metrics.
      await expect.poll(() => workers(apart).length, { timeout: 20_000, interval: 20 }).toBe(1);
      await expect.poll(() => workers(apart).length, { timeout: 20_000, interval: 20 }).toBe(2);
      expect(await (await fetch(`${apart.adminUrl}/metrics`)).text()).toContain("ingest_");
      expect(apart.lines.join("\n")).not.toContain("could not be had");
      proxy.comeBack();
      await expect.poll(async () => (await fetch(`${apart.url}/readyz`)).status, { timeout: 20_000 }).toBe(200);
      await expect.poll(() => workers(apart).length, { timeout: 20_000 }).toBe(2);
      const running = workers(apart);
      expect(await apart.end("SIGTERM")).toEqual({ code: 0, signal: null });
      for (const pid of running) expect(() => process.kill(Number(pid), 0)).toThrow();
      expect(apart.lines.join("\n")).not.toContain("Debugger");
    },
  );

test.concurrent(
  "`ingest serve` ends with code 3 if no process can start, and with 2 if the configuration is why",
  async ({ expect, onTestFinished }) => {
    const taken = createServer().listen(0, "127.0.0.1");
    await once(taken, "listening");
    onTestFinished(() => void taken.close());
    const path = join(import.meta.dirname, "../../src/cli.ts");
    const exitOf = (variables: Record<string, string>) => {
      const env = { ...process.env, WORKERS: "2", PORT: "0", ...variables };
      const child = spawn(process.execPath, [path, "serve"], { env, stdio: "ignore" });
      onTestFinished(() => void child.kill("SIGKILL"));
      return once(child, "exit");
    };
    const uri = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: `${database}-none` };
    const { port } = taken.address() as AddressInfo;
    expect(
      await Promise.all([
        exitOf({ MONGODB_URI: "mongodb://127.0.0.1:9/" }),
        exitOf({ ...uri, ADMIN_PORT: String(port), ADMIN_HOST: "127.0.0.1" }),
      ]),
    ).toEqual([
      [3, null],
      [2, null],
    ]);
    await client.db(uri.MONGODB_DB).dropDatabase();
  },
);

test.skipIf(!hasProc)("processes finish what is in flight when the first one is killed", async () => {
  const left = workers();
  const { key } = await createTenant(admin);
  const connection = await RawConnection.open(Number(new URL(service.url).port));
  const body = JSON.stringify({ events: [event()] });
  const lines = [`Authorization: Bearer ${key}`, "Content-Type: application/json", `Content-Length: ${body.length}`];
  connection.send(["POST /api/v1/ingest/events HTTP/1.1", "Host: x", ...lines], body.slice(0, 10));
  await delay(200);
  const operator = await RawConnection.open(Number(new URL(service.adminUrl).port));
  operator.send(["GET /healthz HTTP/1.1", "Host: x"]);
  expect((await operator.answer()).status).toBe(200);
  // Stop the workers: a busy worker reports the connections that it got to the primary process only after that is gone.
  for (const pid of left) process.kill(Number(pid), "SIGSTOP");
  const late = await Promise.all([0, 1, 2, 3].map(() => RawConnection.open(Number(new URL(service.url).port))));
  await delay(100);
  service.child.kill("SIGKILL");
  await once(service.child, "exit");
  for (const pid of left) process.kill(Number(pid), "SIGCONT");
  await delay(200);
  connection.socket.write(body.slice(10));
  expect((await connection.answer()).status).toBe(202);
  // While the processes still serve.
  operator.send(["GET /metrics HTTP/1.1", "Host: x"]);
  expect((await operator.answer()).status).toBe(200);
  for (const one of [connection, operator, ...late]) one.close();
  const isRunning = (pid: string) => existsSync(`/proc/${pid}`);
  await expect.poll(() => left.filter(isRunning), { timeout: 20_000 }).toEqual([]);
});
