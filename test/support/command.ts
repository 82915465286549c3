import { inject, vi } from "vitest";
import { createProgram } from "../../src/cli/program.ts";

/**
 * Runs a command in this process, on a database of the tests' mongod. A separate process would take most of a second to
 * start.
 * @returns its output, and what it threw.
 */
export async function runInProcess(
  database: string,
  args: readonly string[],
): Promise<{ readonly printed: string; readonly error?: Error }> {
  vi.stubEnv("MONGODB_URI", inject("mongodbUri"));
  vi.stubEnv("MONGODB_DB", database);
  let printed = "";
  const stdout = vi.spyOn(process.stdout, "write").mockImplementation((text) => (printed += String(text)) !== "");
  try {
    await createProgram().parseAsync(args, { from: "user" });
    return { printed };
  } catch (error) {
    return { printed, error: error as Error };
  } finally {
    stdout.mockRestore();
    vi.unstubAllEnvs();
  }
}
