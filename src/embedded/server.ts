import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Config } from "../config.ts";

/** A MongoDB to work on, and how to let go of it. */
export interface DatabaseServer {
  readonly uri: string;
  /** Whether it is the embedded one of DATA_DIR. */
  readonly embedded: boolean;
  /** Lets go of an embedded database, which the last process to do so stops; of MONGODB_URI there is nothing to let go. */
  close(): Promise<void>;
}

export interface OpenOptions {
  /** Gets one line for people about what takes time and which mongod is used. */
  readonly report: (line: string) => void;
  /** Aborted when the process must end at once: an embedded database is let go of without waiting, started or not. */
  readonly ending: AbortSignal;
  /** Whether an embedded database is made where there is none. */
  readonly create: boolean;
}

/**
 * The server that the configuration names: MONGODB_URI, or the embedded one of DATA_DIR, whose code is loaded only then.
 * @throws Error when there is no embedded one, or when it cannot be started, saying what to install or set.
 */
export async function openDatabaseServer(
  config: Config,
  env: Readonly<Record<string, string | undefined>>,
  { create, ...options }: OpenOptions,
): Promise<DatabaseServer> {
  const { MONGODB_URI: uri, DATA_DIR: dataDir } = config;
  if (uri !== undefined) return { uri, embedded: false, close: async () => {} };
  if (!create && !existsSync(join(dataDir, "mongo"))) {
    throw new Error(
      `There is no database in ${resolve(dataDir)}: set DATA_DIR to the folder of one, MONGODB_URI to a replica set, or make one with \`ingest serve\`.`,
    );
  }
  const { openEmbeddedDatabase } = await import("./embedded.ts");
  return { ...(await openEmbeddedDatabase({ dataDir, env, ...options })), embedded: true };
}
