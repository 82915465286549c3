import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { request } from "node:http";
import { createInterface } from "node:readline";
import { MongoClient } from "mongodb";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { Admin } from "../src/admin/admin.ts";
import { createIdSource } from "../src/ids.ts";
import { createTenant, type Tenant } from "./support/service.ts";
import { event } from "./support/requests.ts";

/** WORKERS=2: several processes on one port, each an instance of its own. */
const database = `workers-${process.pid}`;
let service: ChildProcess;
let url: string;
let client: MongoClient;
let tenant: Tenant;

beforeAll(async () => {
  service = spawn(process.execPath, ["src/main.ts"], {
    env: {
      ...process.env,
      ...{ WORKERS: "2", PORT: "0", HOST: "127.0.0.1", LOG_LEVEL: "warn" },
      ...{ MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database },
    },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const lines = createInterface({ input: service.stdout as NodeJS.ReadableStream });
  const listening = new Promise<string>((resolve, reject) => {
    lines.on("line", (line) => line.startsWith("Listening on ") && resolve(line.slice("Listening on ".length)));
    service.once("exit", (code) => reject(new Error(`the service ended with ${code}`)));
  });
  url = await listening;
  client = await MongoClient.connect(inject("mongodbUri"));
  tenant = await createTenant(new Admin(client.db(database), createIdSource()), { name: "W", quotaEventsPerMonth: 10 });
});
afterAll(async () => {
  service.kill("SIGKILL");
  await client.db(database).dropDatabase();
  await client.close();
});

/** A connection of its own, so that any of the processes may get it. */
function send(method: string, path: string, body?: object): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${tenant.key}`, "content-type": "application/json" };
    const sent = request(url + path, { method, headers, agent: false }, (response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => (text += String(chunk)));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, text }));
    });
    sent.once("error", reject);
    sent.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

/** The processes that the first one has started. */
const workers = () =>
  readdirSync("/proc").filter((pid) => {
    try {
      const [, parent] = /^\d+ \(.*\) \S (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, "utf8")) ?? [];
      return Number(parent) === service.pid;
    } catch {
      return false;
    }
  });

const hasProc = process.platform === "linux";

test("quota is exact over the processes, and /metrics adds them up", async () => {
  const answers = await Promise.all(
    Array.from({ length: 40 }, () => send("POST", "/api/v1/ingest/events", { events: [event()] })),
  );
  expect(answers.map(({ status }) => status).sort((a, b) => a - b)).toEqual([
    ...Array(10).fill(202),
    ...Array(30).fill(402),
  ]);
  const { text } = await send("GET", "/metrics");
  const total = [...text.matchAll(/^ingest_requests_total\{rpc="Events".*\} (\d+)$/gm)];
  expect(total.reduce((sum, [, count]) => sum + Number(count), 0)).toBe(40);
});

test.skipIf(!hasProc)("a process that is killed is replaced, and the port keeps answering", async () => {
  const before = workers();
  expect(before).toHaveLength(2);
  process.kill(Number(before[0]), "SIGKILL");
  await expect.poll(() => workers().filter((pid) => !before.includes(pid)), { timeout: 20_000 }).toHaveLength(1);
  await expect.poll(async () => (await send("GET", "/api/v1/ingest/ping")).status, { timeout: 20_000 }).toBe(200);
});

test("SIGTERM to the first process ends all of them, with exit code 0", async () => {
  const running = hasProc ? workers() : [];
  const exit = once(service, "exit");
  service.kill("SIGTERM");
  expect(await exit).toEqual([0, null]);
  for (const pid of running) expect(() => process.kill(Number(pid), 0)).toThrow();
});
