import type { Config } from "../config.ts";

/** A MongoDB to work on, and how to let go of it. */
export interface DatabaseServer {
  readonly uri: string;
  /** Whether it is the embedded one of DATA_DIR. */
  readonly embedded: boolean;
  /** Lets go of an embedded database, which the last process to do so stops; of MONGODB_URI there is nothing to let go. */
  close(): Promise<void>;
  /** The same for a process that must end at once: without waiting. */
  abandon(): void;
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
  const { MONGODB_URI: uri, DATA_DIR: dataDir } = config;
  if (uri !== undefined) return { uri, embedded: false, close: async () => {}, abandon: () => {} };
  const { openEmbeddedDatabase } = await import("./embedded/embedded.ts");
  return { ...(await openEmbeddedDatabase({ dataDir, env, report })), embedded: true };
}
