import type { Db } from "mongodb";
import { type Config, ConfigError, parseConfig, warningsOf } from "../config.ts";
import { createIdSource, type IdSource } from "../ids.ts";
import { note, outputEnded } from "../terminal.ts";
import { type Signals, watchSignals } from "../serve/signals.ts";

export interface CommandContext {
  readonly db: Db;
  readonly config: Config;
  readonly ids: IdSource;
  /** The database server's clock, by which keys and records expire, in milliseconds since 1970. */
  readonly now: () => number;
  /** Resolves at the first Ctrl-C or SIGTERM, which then does not end the process, or when nobody reads the output. */
  readonly stopped: () => Promise<unknown>;
}

export interface DatabaseOptions {
  /** Whether to create a missing database. Default: false, because the command may run in the wrong folder. */
  readonly init?: boolean | undefined;
  /** Whether the database may be older than this version, and operations may take long. Default: false. */
  readonly migrating?: boolean;
}

/** Waits for a reason to end a command that has no end. */
export const stopOf =
  ({ stop }: Signals): CommandContext["stopped"] =>
  () =>
    Promise.race([stop(), outputEnded]);

/** @throws ConfigError if only the address of a service is known, for a command that the service cannot run. */
export function assertDatabase(command: string): void {
  const { INGEST_URL, MONGODB_URI, DATA_DIR, EMBEDDED } = process.env;
  if (!INGEST_URL?.trim() || (MONGODB_URI ?? DATA_DIR ?? EMBEDDED) !== undefined) return;
  throw new ConfigError(
    `\`ingest ${command}\` needs the database itself, and INGEST_URL only names a service: set MONGODB_URI, DATA_DIR or EMBEDDED=1, or unset INGEST_URL.`,
  );
}

/**
 * Runs `work` on the database of MONGODB_URI, or on the one in DATA_DIR. A service may be running on it.
 * @throws Error that says what to do if there is no database, or if it does not fit this version.
 */
export async function withDatabase<T>(
  work: (context: CommandContext) => Promise<T>,
  { init = false, migrating = false }: DatabaseOptions = {},
): Promise<T> {
  const config = parseConfig(process.env);
  for (const warning of warningsOf(process.env)) note(warning);
  // The driver takes as long to load as all the rest, and most commands call a service.
  const [
    { openDatabaseServer },
    { createClient },
    { collections },
    { connectDatabase, prepareDatabase },
    { ServerClock },
  ] = await Promise.all([
    import("../embedded/database-server.ts"),
    import("../store/database.ts"),
    import("../store/collections.ts"),
    import("../store/migrations.ts"),
    import("../store/server-clock.ts"),
  ]);
  const signals = watchSignals();
  const options = { report: note, ending: signals.ending, create: init };
  const server = await openDatabaseServer(config, process.env, options);
  const client = createClient(server.uri, { longOperations: migrating || server.embedded });
  try {
    const db = client.db(config.MONGODB_DB);
    await connectDatabase(db);
    if (!migrating) {
      const permission = server.embedded ? "migrate" : init ? "set up" : "look only";
      for (const warning of await prepareDatabase(db, collections, permission)) note(warning);
    }
    const { now } = await ServerClock.start(db);
    const ids = createIdSource(now);
    return await work({ db, config, ids, now, stopped: stopOf(signals) });
  } finally {
    await client.close();
    await server.close();
    signals.release();
  }
}
