import { spawn } from "node:child_process";
import { tmpdir } from "node:os";
import { MongoClient } from "mongodb";
import { startChild } from "../support/child-service.ts";
import { findTool } from "../support/tools.ts";
import { Setup } from "../support/setup.ts";

/** `.ci/tools` installs it. */
export const schemathesis = findTool("schemathesis");

const configuration = new URL("schemathesis.toml", import.meta.url).pathname;
const hooks = new URL("hooks.py", import.meta.url).pathname;

export interface SchemaRun {
  readonly passed: boolean;
  /** Number of cases. */
  readonly cases: number;
  readonly output: string;
}

/** Runs all checks of the served OpenAPI document against the service in a separate process. */
export async function runSchemathesis(
  command: string,
  mongodbUri: string,
  options: { readonly examples: number; readonly seed?: number; readonly phases?: string },
): Promise<SchemaRun> {
  const database = `schema-${process.pid}-${Date.now()}`;
  const client = new MongoClient(mongodbUri);
  const service = await startChild({ MONGODB_URI: mongodbUri, MONGODB_DB: database });
  try {
    const admin = new Setup(client.db(database));
    const plenty = { keyRequestsPerSecond: 100_000, organizationRequestsPerSecond: 100_000 };
    const { id } = await admin.createOrganization({ name: "Schema", quotaEventsPerMonth: 1_000_000_000, ...plenty });
    const app = await admin.createApp(id, "schema", "Schema", ["*"]);
    const { key } = await admin.createKey(app.id);
    const { key: readKey } = await admin.createKey(app.id, undefined, "read");
    const args = [
      ...["--config-file", configuration, "run", `${service.url}/openapi/v1.yaml`, "--checks", "all"],
      ...["--continue-on-failure", "--no-color", "--generation-database", "none"],
      ...["--max-examples", String(options.examples)],
      ...(options.seed === undefined ? [] : ["--seed", String(options.seed)]),
      ...(options.phases === undefined ? [] : ["--phases", options.phases]),
    ];
    const { status, output } = await outputOf(command, args, {
      INGEST_KEY: key,
      READ_KEY: readKey,
      SCHEMATHESIS_HOOKS: hooks,
      PYTHONDONTWRITEBYTECODE: "1",
    });
    const cases = Number(/(\d+) generated/.exec(output)?.[1] ?? 0);
    return { passed: status === 0 && cases > 0, cases, output };
  } finally {
    await service.stop();
    await client.db(database).dropDatabase();
    await client.close();
  }
}

function outputOf(command: string, args: readonly string[], env: Record<string, string>) {
  return new Promise<{ status: number | null; output: string }>((resolve, reject) => {
    // It stores notes for its `replay` in its working directory.
    const child = spawn(command, args, { env: { ...process.env, ...env }, cwd: tmpdir() });
    let output = "";
    child.stdout.on("data", (chunk) => (output += chunk));
    child.stderr.on("data", (chunk) => (output += chunk));
    child.once("error", reject);
    child.once("close", (status) => resolve({ status, output }));
  });
}
