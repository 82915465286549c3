import cluster, { type Worker } from "node:cluster";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { AggregatorRegistry, type Registry, type RegistryContentType } from "prom-client";
import type { App } from "../app.ts";
import type { Config } from "../config.ts";
import { note } from "../terminal.ts";
import { startInProcess } from "./process.ts";
import { endSignals } from "./signals.ts";

/** Where it listens: the same for all workers. */
type Addresses = Pick<App, "url" | "adminUrl">;

/** What the first process and its workers tell each other. */
type ToFirst = { readonly listening: Addresses } | { readonly metricsFor: number };
type ToWorker = "stop" | { readonly metrics: string | undefined; readonly of: number };

/** A worker that ends by itself is replaced after this, in milliseconds; one that cannot start is tried again ever later. */
const replaceAfterMs = 1_000;
const replaceAfterMsMax = 8_000;

/**
 * Runs the service in several processes that share its port. Each is an instance of its own to the others and to the
 * database, so everything that holds over several instances holds over them. One that ends by itself is replaced.
 * @param mongodbUri the database that all of them use.
 * @throws Error when one cannot start.
 */
export async function startWorkers(
  config: Config,
  mongodbUri: string,
): Promise<Pick<App, "url" | "adminUrl" | "close">> {
  // To the workers an embedded database is one like any other, so its defaults are given to them.
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
    // A message to one that has just gone: its exit says all that there is to say.
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

  /** Starts another one, again and again where it cannot start, as while the database is away. */
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

/** Whether this process is one of several that serve. */
export const isWorker = cluster.isWorker;

/**
 * Serves until the first process says stop, or is gone; answers the exit code. Signals are the first process's business: a
 * terminal sends them to all of its processes at once.
 */
export async function runWorker(config: Config, env: Readonly<Record<string, string | undefined>>): Promise<number> {
  for (const signal of [...endSignals, "SIGUSR1"] as const) process.on(signal, ignore);
  // A message to a first process that has just gone.
  cluster.worker?.on("error", ignore);
  // The first process asks for metrics while this one still starts, and would wait for the answer.
  listenForMetrics([]);
  const stopped = new Promise<void>((resolve) => {
    process.on("message", (message: ToWorker) => message === "stop" && resolve());
    process.once("disconnect", resolve);
  });
  const app = await startInProcess(config, config.MONGODB_URI as string, env, { shareMetrics });
  // From now on it is not to be ended by Node when the first process is gone, with all that is in flight.
  (cluster.worker as Worker).exitedAfterDisconnect = true;
  tell({ listening: { url: app.url, adminUrl: app.adminUrl } });
  await stopped;
  await app.close();
  return 0;
}

function tell(message: ToFirst): void {
  if (process.connected) process.send?.(message);
}

/** Answers the first process's question for metrics with those of these registries. */
function listenForMetrics(registries: Registry[]): void {
  AggregatorRegistry.setRegistries(registries);
  void new AggregatorRegistry();
}

/** Lets the first process read this one's metrics; answers how to read those of all. */
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
