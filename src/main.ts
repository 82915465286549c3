import { Admin } from "./admin/admin.ts";
import { demoCalls, demoKey } from "./admin/demo.ts";
import { startApp } from "./app.ts";
import { parseConfig } from "./config.ts";
import { createIdSource } from "./ids.ts";
import { createLogger } from "./observe/log.ts";
import { redactSecrets } from "./redact.ts";
import { openDatabaseServer } from "./store/server.ts";

/** Runs the service until SIGTERM or SIGINT; answers the process's exit code. */
export async function serve(env: Readonly<Record<string, string | undefined>>): Promise<number> {
  const config = parseConfig(env);
  const say = (line: string) => process.stdout.write(`${line}\n`);
  const database = await openDatabaseServer(config, env, say);
  try {
    const logger = createLogger({ level: config.LOG_LEVEL, pretty: process.stdout.isTTY });
    const app = await startApp({ config, mongodbUri: database.uri, logger });
    const stop = stopSignal();
    say(`Listening on ${app.url}`);
    if (database.embedded) {
      const key = await demoKey(new Admin(app.db, createIdSource()), config.DATA_DIR);
      if (key !== undefined) say(demoCalls(app.url, key));
    }
    say(`Stopping after ${await stop}: requests in flight have ${config.DRAIN_SECONDS} s to finish.`);
    await app.close();
    return 0;
  } finally {
    await database.close();
  }
}

function stopSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => resolve(signal));
  });
}

if (import.meta.main) {
  serve(process.env).then(
    (code) => process.exit(code),
    (error: unknown) => {
      process.stderr.write(`${redactSecrets(error instanceof Error ? error.message : String(error))}\n`);
      process.exit(1);
    },
  );
}
