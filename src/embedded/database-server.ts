import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Config } from "../config.ts";

export interface DatabaseServer {
  readonly uri: string;
  /** Whether it is the embedded database of DATA_DIR. */
  readonly embedded: boolean;
  /** The last process to close an embedded database stops it. Does nothing for MONGODB_URI. */
  close(): Promise<void>;
}

export interface OpenOptions {
  /** Receives one line about each slow step and about the mongod in use. */
  readonly report: (line: string) => void;
  /** Aborted when the process must end at once: it then releases the embedded database without waiting. */
  readonly ending: AbortSignal;
  /** Whether to create a missing embedded database. */
  readonly create: boolean;
}

/**
 * Opens MONGODB_URI, or the embedded database of DATA_DIR, whose code loads only then.
 * @throws Error if no embedded database exists or can start; the message says what to install or set.
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
