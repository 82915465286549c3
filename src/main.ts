import { constants } from "node:os";
import type { App } from "./app.ts";
import { exitCodeOf } from "./cli/exit.ts";
import { note, say } from "./cli/output.ts";
import { startInProcess } from "./cli/process.ts";
import { isWorker, runWorker, startWorkers } from "./cli/workers.ts";
import { type Config, parseConfig } from "./config.ts";
import { createClient } from "./store/database.ts";
import { type DatabaseServer, openDatabaseServer } from "./store/server.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Runs the service until SIGTERM or SIGINT, then lets requests in flight finish and closes the database; answers the
 * process's exit code. A signal while it still starts, or a second one, ends the process at once.
 * @throws ConfigError, or whatever kept it from starting.
 */
export async function serve(env: Environment): Promise<number> {
  const config = parseConfig(env);
  // Nobody reading any more what it says is no reason for a service to end.
  process.stdout.removeAllListeners("error").on("error", () => {});
  if (isWorker) return runWorker(config, env);
  let database: DatabaseServer | undefined;
  const signals = watchSignals(() => database?.abandon());
  database = await openDatabaseServer(config, env, say);
  try {
    const app = await start(config, database.uri, env);
    const stop = signals.stop();
    say(`Listening on ${app.url}`);
    if (database.embedded) await sayDemo(app.url, config, database.uri);
    say(`Stopping after ${await stop}: requests in flight have ${config.DRAIN_SECONDS} s to finish.`);
    await app.close();
    return 0;
  } finally {
    await database.close();
  }
}

/** In this process, or in several. */
const start = (config: Config, mongodbUri: string, env: Environment): Promise<Pick<App, "url" | "close">> =>
  config.WORKERS > 1 ? startWorkers(config.WORKERS, mongodbUri) : startInProcess(config, mongodbUri, env);

/** Calls to paste, with the key of the demo organisation of an embedded database. */
async function sayDemo(url: string, { DATA_DIR, MONGODB_DB, TLS_CERT }: Config, mongodbUri: string): Promise<void> {
  const { demoCalls, openDemo } = await import("./admin/demo.ts");
  const client = createClient(mongodbUri);
  try {
    const key = await openDemo(client.db(MONGODB_DB), DATA_DIR);
    if (key !== undefined) say(demoCalls(url, key, TLS_CERT));
  } finally {
    await client.close();
  }
}

/** Until `stop` is called, and after it the second time, a signal ends the process with 128 + its number. */
function watchSignals(beforeEnd: () => void): { stop(): Promise<NodeJS.Signals> } {
  let graceful: ((signal: NodeJS.Signals) => void) | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    if (graceful !== undefined) {
      graceful(signal);
      graceful = undefined;
      return;
    }
    beforeEnd();
    process.exit(128 + constants.signals[signal]);
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, onSignal);
  return { stop: () => new Promise((resolve) => (graceful = resolve)) };
}

if (import.meta.main) {
  try {
    process.exit(await serve(process.env));
  } catch (error) {
    note(error instanceof Error ? error.message : String(error));
    process.exit(exitCodeOf(error));
  }
}
