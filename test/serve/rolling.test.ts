import { randomBytes } from "node:crypto";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { MongoClient } from "mongodb";
import { afterAll, expect, inject, test } from "vitest";
import { startLoad } from "../support/load.ts";
import { eventually, ServiceProcess } from "../support/processes.ts";
import { createTenant } from "../support/service.ts";
import { Setup } from "../support/setup.ts";

/**
 * A plain TCP balancer. It sends each connection to the next instance that was ready at its last check, or to any if
 * none was. If an instance refuses, it tries another.
 */
class Balancer {
  readonly #ready = new Map<string, boolean>();
  readonly #sockets = new Set<Socket>();
  readonly #server: Server = createServer({ allowHalfOpen: true }, (socket) => this.#forward(socket));
  readonly #asking = setInterval(() => void this.#ask(), 50);
  #next = 0;

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  add(url: string): void {
    this.#ready.set(url, false);
  }

  remove(url: string): void {
    this.#ready.delete(url);
  }

  isReady(url: string): boolean {
    return this.#ready.get(url) === true;
  }

  close(): void {
    clearInterval(this.#asking);
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }

  async #ask(): Promise<void> {
    for (const url of this.#ready.keys()) {
      const answer = await fetch(`${url}/readyz`, { headers: { connection: "close" } }).catch(() => undefined);
      if (this.#ready.has(url)) this.#ready.set(url, answer?.status === 200);
    }
  }

  #forward(from: Socket, refusals = 0): void {
    const all = [...this.#ready.keys()];
    const ready = all.filter((url) => this.isReady(url));
    // Both use one mongod. While it stalls, neither is ready, but both answer.
    const urls = ready.length > 0 ? ready : all;
    const url = urls[this.#next++ % Math.max(1, urls.length)];
    if (url === undefined || refusals > 5) return void from.destroy();
    const to = connect({ port: Number(new URL(url).port), host: "127.0.0.1", allowHalfOpen: true });
    to.once("error", () => (to.pending || to.bytesRead === 0 ? this.#forward(from, refusals + 1) : from.destroy()));
    to.once("connect", () => {
      to.removeAllListeners("error");
      for (const [here, there] of [
        [from, to],
        [to, from],
      ] as const) {
        this.#sockets.add(here);
        here.pipe(there);
        here.once("error", () => there.destroy()).once("close", () => this.#sockets.delete(here));
      }
    });
  }
}

const database = `test-${randomBytes(6).toString("hex")}`;
const client = new MongoClient(inject("mongodbUri"));
const started: ServiceProcess[] = [];
const balancer = new Balancer();

afterAll(async () => {
  balancer.close();
  for (const { child } of started) child.kill("SIGKILL");
  await client.close();
});

async function start(): Promise<ServiceProcess> {
  const env = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database, LOG_LEVEL: "error" };
  const service = await ServiceProcess.start({ ...env, STOP_DELAY_SECONDS: "3" });
  started.push(service);
  balancer.add(service.url);
  await eventually(() => balancer.isReady(service.url), "the balancer finds the new instance ready");
  return service;
}

test(
  "a rolling restart of two instances behind a TCP balancer, under load, loses no request",
  { timeout: 120_000 },
  async () => {
    const db = client.db(database);
    const { key } = await createTenant(new Setup(db));
    const url = await balancer.listen();
    const instances = await Promise.all([start(), start()]);
    const load = startLoad(url, key);
    const progress = async () => {
      const answered = load.report.acknowledged.length;
      await eventually(() => load.report.acknowledged.length > answered + 50, "requests are answered");
    };
    await progress();
    for (const instance of instances) {
      expect(await instance.end("SIGTERM")).toEqual({ code: 0, signal: null });
      balancer.remove(instance.url);
      await progress();
      // The last one's successor would be stopped at once.
      if (instance === instances[0]) await start();
      await progress();
    }
    await load.stop();
    expect(load.report.failures).toEqual([]);
    const stored = await db.collection("timeline").countDocuments();
    expect(stored).toBe(load.report.acknowledged.length);
  },
);
