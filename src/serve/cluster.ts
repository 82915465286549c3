import cluster, { type Worker } from "node:cluster";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { AggregatorRegistry, type Registry, type RegistryContentType } from "prom-client";
import type { App } from "../app.ts";
import type { Config } from "../config.ts";
import { note } from "../terminal.ts";
import { startInProcess } from "./process.ts";
import { endSignals } from "./signals.ts";

/** The address, the same for all workers. */
type Addresses = Pick<App, "url" | "adminUrl">;

/** Messages between the primary process and its workers. */
type ToFirst = { readonly listening: Addresses } | { readonly metricsFor: number };
type ToWorker = "stop" | { readonly metrics: string | undefined; readonly of: number };

/** Milliseconds before a replacement starts. The delay grows after a failed start. */
const replaceAfterMs = 1_000;
const replaceAfterMsMax = 8_000;

/**
 * Runs the service in several processes that share its port, and replaces one that ends. Each is an instance, so every
 * guarantee over several instances holds.
 * @param mongodbUri the database that all of them use.
 * @throws Error if one cannot start.
 */
export async function startWorkers(
  config: Config,
  mongodbUri: string,
): Promise<Pick<App, "url" | "adminUrl" | "close">> {
  // Workers see an embedded database as a plain MONGODB_URI, so they get its defaults explicitly.
  const env = { MONGODB_URI: mongodbUri, MONGODB_DB: config.MONGODB_DB, HOST: config.HOST, EMBEDDED: "0" };
  const aggregate = new AggregatorRegistry();
  const workers = new Set<Worker>();
  let stopping = false;

  function startOne(): Worker {
    const worker = cluster.fork(env);
    workers.add(worker);
    worker.on("message", (message: ToFirst) => {
      if ("metricsFor" in message) void answerMetrics(worker, aggregate, message.metricsFor);
    });
    worker.once("exit", () => workers.delete(worker));
    // The worker has just ended; its exit event reports that.
    worker.on("error", ignore);
    return worker;
  }

  async function startUntilListening(): Promise<Addresses> {
    const worker = startOne();
    const addresses = await listeningOf(worker);
    worker.once("exit", (code, signal) => {
      if (stopping) return;
      note(`A worker ended by itself (${signal ?? `exit code ${code}`}); another one starts.`);
      void replace();
    });
    return addresses;
  }

  /** Starts a replacement, and retries while it cannot start, for example without a database. */
  async function replace(): Promise<void> {
    for (let afterMs = replaceAfterMs; ; afterMs = Math.min(2 * afterMs, replaceAfterMsMax)) {
      await delay(afterMs);
      if (stopping) return;
      try {
        await startUntilListening();
        return;
      } catch (error) {
        note((error as Error).message);
      }
    }
  }

  async function close(): Promise<void> {
    stopping = true;
    await Promise.all(
      [...workers].map(async (worker) => {
        if (worker.isDead()) return;
        const exit = once(worker, "exit");
        if (worker.isConnected()) worker.send("stop" satisfies ToWorker);
        await exit;
      }),
    );
  }

  try {
    const [addresses] = await Promise.all(Array.from({ length: config.WORKERS }, () => startUntilListening()));
    return { ...(addresses as Addresses), close };
  } catch (error) {
    stopping = true;
    for (const worker of workers) worker.process.kill("SIGKILL");
    throw error;
  }
}

function listeningOf(worker: Worker): Promise<Addresses> {
  return new Promise((resolve, reject) => {
    worker.on("message", (message: ToFirst) => {
      if ("listening" in message) resolve(message.listening);
    });
    worker.once("exit", (code, signal) => reject(new Error(`a worker ended before it listened: ${signal ?? code}`)));
  });
}

async function answerMetrics(
  worker: Worker,
  aggregate: AggregatorRegistry<RegistryContentType>,
  of: number,
): Promise<void> {
  let metrics: string | undefined;
  try {
    metrics = await aggregate.clusterMetrics();
  } catch (error) {
    note(`The metrics of all workers could not be had: ${(error as Error).message}`);
  }
  if (worker.isConnected()) worker.send({ metrics, of } satisfies ToWorker);
}

const ignore = () => {};

export const isWorker = cluster.isWorker;

/**
 * Serves until the primary process says stop or ends; returns the exit code. The primary process handles signals,
 * because a terminal sends them to all processes at once.
 */
export async function runWorker(config: Config, env: Readonly<Record<string, string | undefined>>): Promise<number> {
  for (const signal of [...endSignals, "SIGUSR1"] as const) process.on(signal, ignore);
  // The primary process has just ended.
  cluster.worker?.on("error", ignore);
  // The primary process may ask for metrics while this one starts, and waits for the answer.
  listenForMetrics([]);
  const stopped = new Promise<void>((resolve) => {
    process.on("message", (message: ToWorker) => message === "stop" && resolve());
    process.once("disconnect", resolve);
  });
  const app = await startInProcess(config, config.MONGODB_URI as string, env, { shareMetrics });
  // Otherwise Node would end this worker, with its requests in flight, when the primary process ends.
  (cluster.worker as Worker).exitedAfterDisconnect = true;
  tell({ listening: { url: app.url, adminUrl: app.adminUrl } });
  await stopped;
  await app.close();
  return 0;
}

function tell(message: ToFirst): void {
  if (process.connected) process.send?.(message);
}

/** Answers the primary process with the metrics of these registries. */
function listenForMetrics(registries: Registry[]): void {
  AggregatorRegistry.setRegistries(registries);
  void new AggregatorRegistry();
}

/** Adds the metrics of the primary process; returns a function that reads those of all processes. */
function shareMetrics(registry: Registry): () => Promise<string> {
  listenForMetrics([registry]);
  const waiting = new Map<number, (text: string | undefined) => void>();
  let last = 0;
  process.on("message", (message: ToWorker) => {
    if (typeof message !== "object" || !("of" in message)) return;
    waiting.get(message.of)?.(message.metrics);
    waiting.delete(message.of);
  });
  process.once("disconnect", () => waiting.forEach((answer) => answer(undefined)));
  return async () => {
    if (!process.connected) return registry.metrics();
    const metricsFor = ++last;
    const text = await new Promise<string | undefined>((resolve) => {
      waiting.set(metricsFor, resolve);
      tell({ metricsFor });
    });
    return text ?? registry.metrics();
  };
}
