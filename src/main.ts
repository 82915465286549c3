import { constants } from "node:os";
import { type App, startApp } from "./app.ts";
import { exitCodeOf } from "./cli/exit.ts";
import { note, say } from "./cli/output.ts";
import { type Config, parseConfig } from "./config.ts";
import { createLogger } from "./observe/log.ts";
import { type DatabaseServer, openDatabaseServer } from "./store/server.ts";
import { wantsTracing } from "./tracing.ts";

/**
 * Runs the service until SIGTERM or SIGINT, then lets requests in flight finish and closes the database; answers the
 * process's exit code. A signal while it still starts, or a second one, ends the process at once.
 * @throws ConfigError, or whatever kept it from starting.
 */
export async function serve(env: Readonly<Record<string, string | undefined>>): Promise<number> {
  const config = parseConfig(env);
  let database: DatabaseServer | undefined;
  const signals = watchSignals(() => database?.abandon());
  database = await openDatabaseServer(config, env, say);
  try {
    const logger = createLogger({ level: config.LOG_LEVEL, pretty: process.stdout.isTTY });
    const tracing = wantsTracing(env) ? await (await import("./observe/tracing.ts")).startTracing(logger) : undefined;
    const app = await startApp({ config, mongodbUri: database.uri, logger, tracing });
    const stop = signals.stop();
    say(`Listening on ${app.url}`);
    if (database.embedded) await sayDemo(app, config);
    say(`Stopping after ${await stop}: requests in flight have ${config.DRAIN_SECONDS} s to finish.`);
    await app.close();
    await tracing?.close();
    return 0;
  } finally {
    await database.close();
  }
}

/** Calls to paste, with the key of the demo organisation of an embedded database. */
async function sayDemo(app: App, { DATA_DIR, TLS_CERT }: Config): Promise<void> {
  const { demoCalls, openDemo } = await import("./admin/demo.ts");
  const key = await openDemo(app.db, DATA_DIR);
  if (key !== undefined) say(demoCalls(app.url, key, TLS_CERT));
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
