import { inject, vi } from "vitest";
import { createProgram } from "../../src/cli/program.ts";

/** Where a command works: on a database of the tests' mongod, on an embedded database, or with a service. */
export type Target = string | { readonly dataDir: string } | { readonly url: string; readonly token: string };

function variablesOf(target: Target): Record<string, string | undefined> {
  if (typeof target === "string") return { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: target };
  return "dataDir" in target ? { DATA_DIR: target.dataDir } : { INGEST_URL: target.url, INGEST_TOKEN: target.token };
}

const noTarget = {
  ...{ MONGODB_URI: undefined, MONGODB_DB: undefined, DATA_DIR: undefined },
  ...{ INGEST_URL: undefined, INGEST_TOKEN: undefined },
};

/**
 * Runs a command in this process. A separate process would take most of a second to start.
 * @returns what it wrote to standard output and standard error, and what it threw.
 */
export async function runInProcess(
  target: Target,
  args: readonly string[],
): Promise<{ readonly printed: string; readonly notes: string; readonly error?: Error }> {
  for (const [name, value] of Object.entries({ ...noTarget, ...variablesOf(target) })) vi.stubEnv(name, value);
  const written = { stdout: "", stderr: "" };
  const streams = (["stdout", "stderr"] as const).map((name) =>
    vi.spyOn(process[name], "write").mockImplementation((text, ...callbacks: unknown[]) => {
      written[name] += String(text);
      for (const callback of callbacks) if (typeof callback === "function") callback();
      return true;
    }),
  );
  const done = () => ({ printed: written.stdout, notes: written.stderr });
  try {
    await createProgram().parseAsync(args, { from: "user" });
    return done();
  } catch (error) {
    return { ...done(), error: error as Error };
  } finally {
    for (const stream of streams) stream.mockRestore();
    vi.unstubAllEnvs();
  }
}
