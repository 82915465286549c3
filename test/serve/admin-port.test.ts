import { randomBytes } from "node:crypto";
import { createServer, type AddressInfo } from "node:net";
import { once } from "node:events";
import { describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { atMostOnceIn } from "../../src/observe/metrics-page.ts";
import { instances } from "../../src/store/instances.ts";
import { keys } from "../../src/store/keys.ts";
import { bearer, startService } from "../support/service.ts";
import { useService } from "../support/service.ts";

const suite = useService();
const statusOf = async (url: string, init?: RequestInit) => (await fetch(url, init)).status;

test("only the operators' port has the metrics", async () => {
  expect(await statusOf(`${suite.url}/metrics`)).toBe(404);
  const page = await fetch(`${suite.service.app.adminUrl}/metrics`);
  expect(page.status).toBe(200);
  expect(await page.text()).toContain("ingest_requests_in_flight");
});

test("both ports report health, and the operators' port takes no events", async () => {
  const { url, adminUrl } = suite.service.app;
  expect(adminUrl).not.toBe(url);
  for (const base of [url, adminUrl]) {
    expect(await statusOf(`${base}/healthz`)).toBe(200);
    expect(await statusOf(`${base}/readyz`)).toBe(200);
  }
  for (const path of ["/api/v1/ingest/ping", "/ingest.v1.Ingest/Ping", "/api/v1/timeline/events"]) {
    expect(await statusOf(adminUrl + path, { headers: bearer(suite.tenant.key) })).toBe(404);
  }
});

test("the public port serves administration only on a loopback address or if asked", async () => {
  const paths = ["/api/v1/admin/whoami", "/console/", "/openapi/admin.v1.yaml"];
  const statuses = (base: string) => Promise.all(paths.map((path) => statusOf(base + path)));
  const open = await startService({ env: { HOST: "0.0.0.0" } });
  onTestFinished(() => open.app.close());
  expect(await statuses(open.app.url)).toEqual([404, 404, 404]);
  expect(await statuses(open.app.adminUrl)).toEqual([401, 200, 200]);
  const asked = await startService({ env: { HOST: "0.0.0.0", ADMIN_ON_PUBLIC_PORT: "1" } });
  onTestFinished(() => asked.app.close());
  expect(await statuses(asked.app.url)).toEqual([401, 200, 200]);
  expect(await statuses(suite.url)).toEqual([401, 200, 200]);
});

describe("the operators' port", () => {
  const occupy = async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    onTestFinished(() => void other.close());
    return String((other.address() as AddressInfo).port);
  };

  test("keeps the service from starting if ADMIN_PORT is taken, says what to do, and leaves no traces", async () => {
    const ADMIN_PORT = await occupy();
    const database = `test-${randomBytes(6).toString("hex")}`;
    const mongodbUri = new URL(inject("mongodbUri"));
    mongodbUri.searchParams.set("appName", database);
    await expect(startService({ database, mongodbUri: mongodbUri.href, env: { ADMIN_PORT } })).rejects.toThrow(
      `Port ${ADMIN_PORT} is in use: stop the program that has it, or set ADMIN_PORT to another one.`,
    );
    const { client } = suite.service.app.db;
    const connections = () =>
      client
        .db("admin")
        .aggregate([
          { $currentOp: { allUsers: true, idleConnections: true } },
          { $match: { "clientMetadata.application.name": database } },
        ])
        .toArray();
    await vi.waitFor(async () => expect(await connections()).toEqual([]), { timeout: 20_000 });
    // The instance had announced itself to the others, and has removed that again.
    const db = client.db(database);
    expect(await db.collection(instances.name).countDocuments()).toBe(0);
    expect(await db.collection(keys.name).indexes()).not.toEqual([]);
  });

  test("names its own variables if the service cannot listen there", async () => {
    await expect(startService({ env: { ADMIN_HOST: "192.0.2.1" } })).rejects.toThrow(
      "ADMIN_HOST is '192.0.2.1', which is no address of this machine: set it to one, or to 0.0.0.0 for all.",
    );
  });

  test("listens on ADMIN_HOST", async () => {
    const service = await startService({ env: { ADMIN_HOST: "127.0.0.2" } });
    onTestFinished(() => service.app.close());
    const { port } = new URL(service.app.adminUrl);
    expect(await statusOf(`http://127.0.0.2:${port}/healthz`)).toBe(200);
    await expect(fetch(`http://127.0.0.1:${port}/healthz`)).rejects.toThrow();
  });

  test("closes if the service cannot have its public port", async () => {
    const [PORT, ADMIN_PORT] = [await occupy(), String(20_000 + (process.pid % 10_000))];
    await expect(startService({ env: { PORT, ADMIN_PORT } })).rejects.toThrow();
    await expect(fetch(`http://127.0.0.1:${ADMIN_PORT}/healthz`)).rejects.toThrow();
  });
});

test("the page of metrics is made at most once in its interval, and after the request for it", async () => {
  const madeAtMs: number[] = [];
  const page = atMostOnceIn(100, async () => madeAtMs.push(performance.now()));
  const ask = async () => {
    const askedAtMs = performance.now();
    const made = await page();
    expect(madeAtMs[made - 1]).toBeGreaterThanOrEqual(askedAtMs);
  };
  for (let i = 0; i < 3; i++) await Promise.all(Array.from({ length: 20 }, ask));
  expect(madeAtMs).toHaveLength(3);
  for (const [i, ms] of madeAtMs.slice(1).entries()) expect(ms - (madeAtMs[i] as number)).toBeGreaterThan(95);
});

test("after a failure, the next request makes the page", async () => {
  let count = 0;
  const page = atMostOnceIn(1, async () => {
    if (++count === 1) throw new Error("not now");
    return count;
  });
  await expect(page()).rejects.toThrow("not now");
  expect(await page()).toBe(2);
});
