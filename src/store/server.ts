import type { Config } from "../config.ts";

/** A MongoDB to work on, and how to let go of it. */
export interface DatabaseServer {
  readonly uri: string;
  /** Whether it is the embedded one of DATA_DIR. */
  readonly embedded: boolean;
  /** Lets go of an embedded database, which the last process to do so stops; of MONGODB_URI there is nothing to let go. */
  close(): Promise<void>;
}

/**
 * The server that the configuration names: MONGODB_URI, or the embedded one of DATA_DIR, whose code is loaded only then.
 * @param report gets one line for people about what takes time and which mongod is used.
 * @throws Error when the embedded one cannot be started, saying what to install or set.
 */
export async function openDatabaseServer(
  config: Config,
  env: Readonly<Record<string, string | undefined>>,
  report: (line: string) => void,
): Promise<DatabaseServer> {
  if (config.MONGODB_URI !== undefined) return { uri: config.MONGODB_URI, embedded: false, close: async () => {} };
  const { openEmbeddedDatabase } = await import("./embedded/embedded.ts");
  const { uri, close } = await openEmbeddedDatabase({ dataDir: config.DATA_DIR, env, report });
  return { uri, embedded: true, close };
}
