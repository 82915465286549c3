import { inject, vi } from "vitest";
import { createProgram } from "../../src/cli/program.ts";

/** Where a command works: on a database of the tests' mongod, or with a service. */
export type Target = string | { readonly url: string; readonly token: string };

/**
 * Runs a command in this process. A separate process would take most of a second to start.
 * @returns what it wrote to standard output and standard error, and what it threw.
 */
export async function runInProcess(
  target: Target,
  args: readonly string[],
): Promise<{ readonly printed: string; readonly notes: string; readonly error?: Error }> {
  const env =
    typeof target === "string"
      ? { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: target, INGEST_URL: undefined, INGEST_TOKEN: undefined }
      : { MONGODB_URI: undefined, MONGODB_DB: undefined, INGEST_URL: target.url, INGEST_TOKEN: target.token };
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
  const written = { stdout: "", stderr: "" };
  const streams = (["stdout", "stderr"] as const).map((name) =>
    vi.spyOn(process[name], "write").mockImplementation((text) => (written[name] += String(text)) !== ""),
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
