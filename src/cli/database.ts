import type { Db } from "mongodb";
import { Admin } from "../admin/admin.ts";
import { type Config, parseConfig } from "../config.ts";
import { createIdSource } from "../ids.ts";
import { collections } from "../store/collections.ts";
import { createClient, createIndexes } from "../store/database.ts";
import { ServerClock } from "../store/server-clock.ts";
import { openDatabaseServer } from "../embedded/server.ts";
import { type OutputFlags, print } from "./output.ts";
import { note } from "../terminal.ts";
import { watchSignals } from "../serve/signals.ts";

/** What a command works with. */
export interface CommandContext {
  readonly db: Db;
  readonly admin: Admin;
  readonly config: Config;
  /** The database server's clock, in milliseconds since 1970: what expires does so by it. */
  readonly now: () => number;
  /** From now on the first Ctrl-C or SIGTERM does not end the process; it comes back here. */
  readonly stopped: () => Promise<unknown>;
}

/** Runs `work` on the database of the environment: MONGODB_URI, or DATA_DIR's, whether or not a service runs on it. */
export async function withDatabase<T>(work: (context: CommandContext) => Promise<T>): Promise<T> {
  const config = parseConfig(process.env);
  const signals = watchSignals();
  const server = await openDatabaseServer(config, process.env, { report: note, ending: signals.ending });
  const client = createClient(server.uri);
  try {
    const db = client.db(config.MONGODB_DB);
    await createIndexes(db, collections);
    const { now } = await ServerClock.start(db);
    return await work({ db, admin: new Admin(db, createIdSource(now), now), config, now, stopped: signals.stop });
  } finally {
    await client.close();
    await server.close();
  }
}

/** Prints what `work` answers, as the flags say; `afterwards` runs when it is printed, and may still fail the command. */
export async function answer(
  flags: OutputFlags,
  work: (admin: Admin) => Promise<object>,
  afterwards?: (admin: Admin) => Promise<void>,
): Promise<void> {
  await withDatabase(async ({ admin }) => {
    print(await work(admin), flags);
    await afterwards?.(admin);
  });
}
