import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { useService } from "../support/service.ts";
import { findTool } from "../support/tools.ts";

/** Generates clients from the published document and uses them. Their tools: `npm run tools` and `.ci/tools`. */

const suite = useService();
const root = resolve(import.meta.dirname, "../..");
const workspace = join(root, "test/openapi-client");
const modules = join(workspace, "node_modules");
const ours = join(root, "openapi/v1.yaml");

const run = async (command: string, args: readonly string[], cwd: string): Promise<string> => {
  const { stdout } = await promisify(execFile)(command, args, { cwd }).catch((error) =>
    expect.unreachable(`${command} ${args.join(" ")}: ${error.stdout}${error.stderr}`),
  );
  return stdout;
};
const node = (cwd: string, path: string, ...args: string[]) =>
  run(process.execPath, [join(modules, path), ...args], cwd);

/** A folder with these files, below the workspace so that its packages are found. */
function folder(...files: string[]): string {
  const directory = mkdtempSync(join(workspace, "run-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  for (const name of [...files, "tsconfig.json"]) cpSync(join(workspace, name), join(directory, name));
  return directory;
}

const typesFrom = (directory: string, document: string) =>
  node(directory, "openapi-typescript/bin/cli.js", document, "-o", "types.d.ts");
/** TypeScript 7 takes a fifth of the time of version 5, which the workspace has for the generators. */
const compile = (directory: string, ...args: string[]) =>
  run(join(root, "node_modules/.bin/tsc"), ["-p", ".", ...args], directory);

const said = {
  slug: "crm-hub",
  status: 207,
  rejectedCode: "forbidden_event_type",
  workerId: expect.stringMatching(/^wrk_/),
  code: "invalid_key",
};
const readToo = { listed: "ticket.resolved", watched: "string" };
const readKey = async () => (await suite.service.admin.createKey(suite.tenant.appId, undefined, "read")).key;

test("with openapi-typescript's types, valid calls compile and work, and invalid ones do not compile", async () => {
  const directory = folder("openapi-fetch.ts", "product.ts");
  await typesFrom(directory, ours);
  const called = run(process.execPath, ["openapi-fetch.ts", suite.url, suite.tenant.key], directory);
  const [output] = await Promise.all([called, compile(directory)]);
  expect(JSON.parse(output)).toEqual(said);
}, 240_000);

test("the client in product.ts, which compiled against our document, compiles unchanged against the product's", async () => {
  const directory = folder("product.ts");
  await typesFrom(directory, join(workspace, "product.yaml"));
  await compile(directory);
}, 240_000);

test("a client of @hey-api/openapi-ts compiles, and its calls work", async () => {
  const directory = folder("hey-api.ts");
  const options = ["-i", ours, "-o", "hey-api", "-c", "@hey-api/client-fetch"];
  await node(directory, "@hey-api/openapi-ts/bin/run.js", ...options);
  await compile(directory, "--noEmit", "false", "--allowImportingTsExtensions", "false", "--outDir", "dist", "--exactOptionalPropertyTypes", "false");
  const output = await run(process.execPath, ["dist/hey-api.js", suite.url, suite.tenant.key, await readKey()], directory);
  expect(JSON.parse(output)).toEqual({ ...said, ...readToo });
}, 240_000);

const generator = findTool("openapi-python-client");
const python = findTool("ingest-test-python");

test.skipIf(generator === undefined || python === undefined)(
  "the calls of a Python client from openapi-python-client work (skipped without .ci/tools)",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "ingest-python-client-"));
    onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
    cpSync(join(workspace, "openapi_python_client.py"), join(directory, "main.py"));
    const options = ["generate", "--path", ours, "--output-path", "client", "--meta", "none"];
    await run(generator as string, options, directory);
    const output = await run(
      python as string,
      ["main.py", suite.url, suite.tenant.key, await readKey()],
      directory,
    );
    expect(JSON.parse(output)).toEqual({ ...said, ...readToo });
  },
  240_000,
);
