import cluster, { type Worker as WorkerProcess } from "node:cluster";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import type { Registry } from "prom-client";
import type { App } from "../app.ts";
import { type Config, ConfigError, isAdminPublic } from "../config.ts";
import { unavailable } from "../errors.ts";
import { note } from "../terminal.ts";
import { exitCodes } from "./exit.ts";
import { startInProcess } from "./process.ts";
import { type Metrics, SharedMetrics } from "./shared-metrics.ts";
import { endSignals } from "./signals.ts";

/** The address, the same for all worker processes. */
type Addresses = Pick<App, "url" | "adminUrl">;

/** Messages between the primary process and its worker processes. */
type ToFirst = { readonly listening: Addresses } | { readonly pageFor: number } | { readonly metrics: Metrics };
type ToProcess = "stop" | "say metrics" | { readonly page: string | undefined; readonly of: number };

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
 * @param ending aborted when this process ends at once, and they with it.
 * @throws ConfigError if one cannot start because of the configuration, or another Error.
 */
export async function startProcesses(
  config: Config,
  mongodbUri: string,
  ending: AbortSignal,
): Promise<Pick<App, "url" | "adminUrl" | "close">> {
  const env = environmentOfWorkers(config, mongodbUri);
  const metrics = new SharedMetrics();
  const children = new Set<WorkerProcess>();
  /** Those that can say their metrics. */
  const serving = new Set<WorkerProcess>();
  let stopping = false;
  const killAll = () => {
    stopping = true;
    for (const child of children) child.process.kill("SIGKILL");
  };
  ending.addEventListener("abort", killAll);

  function startOne(): WorkerProcess {
    const child = cluster.fork(env);
    children.add(child);
    child.on("message", (message: ToFirst) => {
      // A message may come after the exit.
      if ("metrics" in message && serving.has(child)) metrics.heard(child, message.metrics);
      if ("pageFor" in message) void answerPage(child, message.pageFor);
    });
    child.once("exit", () => {
      children.delete(child);
      serving.delete(child);
      metrics.left(child);
    });
    // The process has just ended; its exit event reports that.
    child.on("error", ignore);
    return child;
  }

  async function startUntilListening(): Promise<Addresses> {
    const child = startOne();
    const addresses = await listeningOf(child);
    serving.add(child);
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

  async function answerPage(child: WorkerProcess, of: number): Promise<void> {
    const page = await metrics
      .page(serving, (one) => send(one, "say metrics"))
      .catch((error: Error) => {
        note(`Cannot read the metrics of all worker processes: ${error.message}`);
        return undefined;
      });
    send(child, { page, of });
  }

  async function close(): Promise<void> {
    stopping = true;
    await Promise.all(
      [...children].map(async (child) => {
        if (child.isDead()) return;
        const exit = once(child, "exit");
        send(child, "stop");
        await exit;
      }),
    );
  }

  try {
    const [addresses] = await Promise.all(Array.from({ length: config.WORKERS }, () => startUntilListening()));
    return { ...(addresses as Addresses), close };
  } catch (error) {
    killAll();
    throw error;
  }
}

function listeningOf(child: WorkerProcess): Promise<Addresses> {
  return new Promise((resolve, reject) => {
    child.on("message", (message: ToFirst) => {
      if ("listening" in message) resolve(message.listening);
    });
    child.once("exit", (code, signal) => {
      const isMistake = code === exitCodes.usage.code;
      reject(
        isMistake
          ? new ConfigError("A worker process cannot start, for the reason above.")
          : new Error(`A worker process ended before it listened: ${signal ?? `exit code ${code}`}.`),
      );
    });
  });
}

/** A process that has just ended hears nothing. Its exit event reports that. */
function send(child: WorkerProcess, message: ToProcess): void {
  if (child.isConnected()) child.send(message);
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

/** Says the metrics of this process to the primary one; returns a function that reads the page of all of them. */
function shareMetrics(registry: Registry): () => Promise<string> {
  const waiting = new Map<number, (page: string | undefined) => void>();
  let last = 0;
  process.on("message", (message: ToProcess) => {
    if (message === "say metrics") registry.getMetricsAsJSON().then((metrics) => tell({ metrics }), ignore);
    if (typeof message !== "object") return;
    waiting.get(message.of)?.(message.page);
    waiting.delete(message.of);
  });
  process.once("disconnect", () => waiting.forEach((answer) => answer(undefined)));
  return async () => {
    if (!process.connected) return registry.metrics();
    const pageFor = ++last;
    const page = await new Promise<string | undefined>((resolve) => {
      waiting.set(pageFor, resolve);
      tell({ pageFor });
    });
    // The counts of one process alone would look as if all counters had begun again.
    if (page === undefined && process.connected) throw unavailable(new Error("not every worker process answers"));
    return page ?? registry.metrics();
  };
}
