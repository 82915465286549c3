import cluster, { type Worker as WorkerProcess } from "node:cluster";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { AggregatorRegistry, type Registry, type RegistryContentType } from "prom-client";
import type { App } from "../app.ts";
import { type Config, isAdminPublic } from "../config.ts";
import { unavailable } from "../errors.ts";
import { note } from "../terminal.ts";
import { startInProcess } from "./process.ts";
import { endSignals } from "./signals.ts";

/** The address, the same for all worker processes. */
type Addresses = Pick<App, "url" | "adminUrl">;

/** Messages between the primary process and its worker processes. */
type ToFirst = { readonly listening: Addresses } | { readonly metricsFor: number };
type ToProcess = "stop" | { readonly metrics: string | undefined; readonly of: number };

/** Milliseconds before a replacement starts. The delay grows after a failed start. */
const replaceAfterMs = 1_000;
const replaceAfterMsMax = 8_000;

/** Worker processes see an embedded database only as a MONGODB_URI, so they get its defaults explicitly. */
export const environmentOfWorkers = (config: Config, mongodbUri: string) => ({
  ...{ MONGODB_URI: mongodbUri, MONGODB_DB: config.MONGODB_DB, HOST: config.HOST, EMBEDDED: "0" },
  ADMIN_ON_PUBLIC_PORT: isAdminPublic(config) ? "1" : "0",
});

/**
 * Runs the service in several processes that share its port, and replaces one that ends. Each is an instance, so every
 * guarantee over several instances holds.
 * @param mongodbUri the database that all of them use.
 * @throws Error if one cannot start.
 */
export async function startProcesses(
  config: Config,
  mongodbUri: string,
): Promise<Pick<App, "url" | "adminUrl" | "close">> {
  const env = environmentOfWorkers(config, mongodbUri);
  const aggregate = new AggregatorRegistry();
  const children = new Set<WorkerProcess>();
  let stopping = false;

  function startOne(): WorkerProcess {
    const child = cluster.fork(env);
    children.add(child);
    child.on("message", (message: ToFirst) => {
      if ("metricsFor" in message) void answerMetrics(child, aggregate, message.metricsFor);
    });
    child.once("exit", () => children.delete(child));
    // The process has just ended; its exit event reports that.
    child.on("error", ignore);
    return child;
  }

  async function startUntilListening(): Promise<Addresses> {
    const child = startOne();
    const addresses = await listeningOf(child);
    child.once("exit", (code, signal) => {
      if (stopping) return;
      note(`A worker process ended by itself (${signal ?? `exit code ${code}`}); another one starts.`);
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
      [...children].map(async (child) => {
        if (child.isDead()) return;
        const exit = once(child, "exit");
        if (child.isConnected()) child.send("stop" satisfies ToProcess);
        await exit;
      }),
    );
  }

  try {
    const [addresses] = await Promise.all(Array.from({ length: config.WORKERS }, () => startUntilListening()));
    return { ...(addresses as Addresses), close };
  } catch (error) {
    stopping = true;
    for (const child of children) child.process.kill("SIGKILL");
    throw error;
  }
}

function listeningOf(child: WorkerProcess): Promise<Addresses> {
  return new Promise((resolve, reject) => {
    child.on("message", (message: ToFirst) => {
      if ("listening" in message) resolve(message.listening);
    });
    child.once("exit", (code, signal) =>
      reject(new Error(`a worker process ended before it listened: ${signal ?? code}`)),
    );
  });
}

async function answerMetrics(
  child: WorkerProcess,
  aggregate: AggregatorRegistry<RegistryContentType>,
  of: number,
): Promise<void> {
  let metrics: string | undefined;
  try {
    // A process may have ended since it was asked. The second time nobody asks it.
    metrics = await aggregate.clusterMetrics().catch(() => aggregate.clusterMetrics());
  } catch (error) {
    note(`Cannot read the metrics of all worker processes: ${(error as Error).message}`);
  }
  if (child.isConnected()) child.send({ metrics, of } satisfies ToProcess);
}

const ignore = () => {};

export const isWorkerProcess = cluster.isWorker;

/**
 * Serves until the primary process says stop or ends; returns the exit code. The primary process handles signals,
 * because a terminal sends them to all processes at once.
 */
export async function runWorkerProcess(
  config: Config,
  env: Readonly<Record<string, string | undefined>>,
): Promise<number> {
  for (const signal of [...endSignals, "SIGUSR1"] as const) process.on(signal, ignore);
  // The primary process has just ended.
  cluster.worker?.on("error", ignore);
  // The primary process may ask for metrics while this one starts, and waits for the answer.
  listenForMetrics([]);
  const stopped = new Promise<void>((resolve) => {
    process.on("message", (message: ToProcess) => message === "stop" && resolve());
    process.once("disconnect", resolve);
  });
  const app = await startInProcess(config, config.MONGODB_URI as string, env, { shareMetrics });
  // Otherwise Node would end this process, with its requests in flight, when the primary process ends.
  (cluster.worker as WorkerProcess).exitedAfterDisconnect = true;
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
  process.on("message", (message: ToProcess) => {
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
    // The counts of one process alone would look as if all counters had begun again.
    if (text === undefined && process.connected) throw unavailable(new Error("not every worker process answers"));
    return text ?? registry.metrics();
  };
}
