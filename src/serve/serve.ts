import type { App } from "../app.ts";
import { exitCodeOf } from "./exit.ts";
import { note, say } from "../terminal.ts";
import { startInProcess } from "./process.ts";
import { watchSignals } from "./signals.ts";
import { isWorker, runWorker, startWorkers } from "./cluster.ts";
import { type Config, parseConfig } from "../config.ts";
import { createClient } from "../store/database.ts";
import { openDatabaseServer } from "../embedded/server.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Runs the service until SIGTERM or SIGINT, then lets requests in flight finish and closes the database; answers the
 * process's exit code. A signal while it still starts, or a second one, ends the process at once, and with it an
 * embedded database that nobody else uses.
 * @throws ConfigError, or whatever kept it from starting.
 */
export async function serve(env: Environment): Promise<number> {
  const config = parseConfig(env);
  // Nobody reading any more what it says is no reason for a service to end.
  process.stdout.removeAllListeners("error").on("error", () => {});
  if (isWorker) return runWorker(config, env);
  const signals = watchSignals();
  const database = await openDatabaseServer(config, env, { report: say, ending: signals.ending });
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
  const { demoCalls, openDemo } = await import("../admin/demo.ts");
  const client = createClient(mongodbUri);
  try {
    const key = await openDemo(client.db(MONGODB_DB), DATA_DIR);
    if (key !== undefined) say(demoCalls(url, key, TLS_CERT));
  } finally {
    await client.close();
  }
}

/**
 * Serves, says on standard error what kept it from starting, and ends the process: what is still open, such as a worker's
 * channel to the first process, would keep one that serves nothing.
 */
export async function serveAndExit(env: Environment): Promise<never> {
  try {
    return process.exit(await serve(env));
  } catch (error) {
    note(error instanceof Error ? error.message : String(error));
    return process.exit(exitCodeOf(error));
  }
}
