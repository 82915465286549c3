import { execFile } from "node:child_process";
import { once } from "node:events";
import { cpSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { eventCollection, rowsBetween } from "../../src/store/events.ts";
import { eventually } from "../support/processes.ts";
import { createTenant, useService } from "../support/service.ts";
import { findTool, toolsPath } from "../support/tools.ts";

/** The commands of docs/clients.md that generate code from `proto/`, and the examples that use it. */

const suite = useService();
const root = resolve(import.meta.dirname, "../..");
const page = readFileSync(join(root, "docs/clients.md"), "utf8");
const commands = [...page.matchAll(/^```bash\n([^]*?)^```$/gm)].map(([, command = ""]) => command);

const commandFor = (language: string): string => {
  const found = commands.filter((command) => command.includes(`gen/${language}`));
  expect(found).toHaveLength(1);
  // Use buf from node_modules, and the Python that has grpcio-tools.
  return (found[0] as string).replace(/npx --yes (--package \S+ )+-- /, "").replace("python3 ", "ingest-test-python ");
};

/** A caller's folder with only `proto/`, after the page's command has run in it. */
async function generated(language: string): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "ingest-proto-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  cpSync(join(root, "proto"), join(folder, "proto"), { recursive: true });
  await run(folder, "bash", "-euo", "pipefail", "-c", commandFor(language));
  return folder;
}

async function run(folder: string, command: string, ...args: string[]): Promise<string> {
  return runWith({}, folder, command, ...args);
}

async function runWith(more: NodeJS.ProcessEnv, folder: string, command: string, ...args: string[]): Promise<string> {
  const path = [join(root, "node_modules/.bin"), toolsPath].join(delimiter);
  const options = { cwd: folder, env: { ...process.env, PATH: path, ...more } };
  const { stdout } = await promisify(execFile)(command, args, options).catch((error) =>
    expect.unreachable(`${command}: ${error.stdout}${error.stderr}`),
  );
  return stdout;
}

/**
 * Forwards connections. It cuts the first one that sends a batch after its events are stored, so that the answer is
 * lost.
 */
async function losesFirstAnswer(url: string, isStored: () => Promise<boolean>): Promise<string> {
  const { hostname, port } = new URL(url);
  let hasLost = false;
  const front = createServer((caller) => {
    const service = connect(Number(port), hostname);
    for (const side of [caller, service]) side.on("error", () => side.destroy());
    caller.on("close", () => service.destroy());
    service.on("close", () => caller.destroy());
    caller.on("data", (bytes) => {
      service.write(bytes);
      if (hasLost || !bytes.includes("crm-user-42")) return;
      hasLost = true;
      service.pause();
      void eventually(isStored, "the events are stored").finally(() => caller.destroy());
    });
    service.on("data", (bytes) => caller.write(bytes));
  });
  await once(front.listen(0, "127.0.0.1"), "listening");
  onTestFinished(() => void front.close());
  return `http://127.0.0.1:${(front.address() as AddressInfo).port}`;
}

/**
 * Copies an example into the folder. Returns a function that runs it, and checks that it retries and stores its event
 * once.
 */
function example(folder: string, path: string): (command: string, ...args: string[]) => Promise<void> {
  const file = path.slice(path.indexOf("/") + 1);
  const text = readFileSync(join(root, "examples", path), "utf8");
  expect(text.split("\n").length).toBeLessThanOrEqual(60);
  writeFileSync(join(folder, file), text);
  return async (command, ...args) => {
    const { app, admin } = suite.service;
    const { organizationId, key } = await createTenant(admin);
    const stored = () => eventCollection(app.db).countDocuments(rowsBetween(organizationId));
    const url = await losesFirstAnswer(suite.url, async () => (await stored()) > 0);
    const printed = await runWith({ WEPEOPLE_BASE_URL: url, WEPEOPLE_API_KEY: key }, folder, command, ...args);
    expect(printed).toMatch(/^accepted 1\n.*rejected .*forbidden_event_type/s);
    expect(await stored()).toBe(1);
  };
}

const lacks = (...tools: string[]) => tools.some((tool) => findTool(tool) === undefined);
const patience = 240_000;

test("TypeScript: the generated code compiles, and the example retries", { timeout: patience }, async () => {
  const folder = await generated("ts");
  symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
  writeFileSync(join(folder, "package.json"), '{"type": "module"}');
  const runExample = example(folder, "typescript/main.ts");
  const options = "--strict --target es2024 --module nodenext --types node --skipLibCheck";
  await run(folder, "tsc", "--outDir", "out", ...options.split(" "), "main.ts");
  await runExample("node", "out/main.js");
});

test("REST: the example retries", async () => {
  const folder = mkdtempSync(join(tmpdir(), "ingest-rest-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  await example(folder, "rest/main.mjs")("node", "main.mjs");
});

test.skipIf(lacks("ingest-test-python"))(
  "Python: the example retries with the generated code (skipped without .ci/tools)",
  { timeout: patience },
  async () => {
    await example(await generated("python"), "python/main.py")("ingest-test-python", "main.py");
  },
);

test.skipIf(lacks("go", "protoc-gen-go", "protoc-gen-go-grpc"))(
  "Go: the generated code builds, and the example retries (skipped without .ci/tools)",
  { timeout: patience },
  async () => {
    const folder = await generated("go");
    const runExample = example(folder, "go/main.go");
    await run(folder, "go", "mod", "init", "example.com/you");
    await run(folder, "go", "mod", "tidy");
    await run(folder, "go", "build", "-ldflags", "-s -w", "-o", "main", ".");
    await runExample("./main");
  },
);

const jars = globSync("/usr/share/java/*.jar").filter((path) => !/-\d/.test(path));

test.skipIf(lacks("javac", "protoc", "grpc_java_plugin") || !jars.some((path) => path.endsWith("/netty-all.jar")))(
  "Java: the generated code compiles, and the example retries (skipped without .ci/tools)",
  { timeout: patience },
  async () => {
    const folder = await generated("java");
    const runExample = example(folder, "java/Main.java");
    // JDK 8 has this annotation; newer ones need javax.annotation-api.
    mkdirSync(join(folder, "gen/java/javax/annotation"), { recursive: true });
    writeFileSync(
      join(folder, "gen/java/javax/annotation/Generated.java"),
      'package javax.annotation; public @interface Generated { String value(); String comments() default ""; }',
    );
    // Ours, and of Google's types those that ours and the example use.
    const sources = globSync("gen/java/ingest/**/*.java", { cwd: folder });
    expect(sources).toContain("gen/java/ingest/v1/IngestGrpc.java");
    const classes = jars.join(delimiter);
    // Only the first compiler: warming up the second takes longer than it saves.
    const quick = ["-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-proc:none", "-nowarn"];
    const paths = ["-cp", classes, "-sourcepath", "gen/java", "-d", "out"];
    await run(folder, "javac", ...quick, ...paths, "-encoding", "UTF-8", "Main.java", ...sources);
    await runExample("java", "-XX:TieredStopAtLevel=1", "-cp", ["out", classes].join(delimiter), "Main");
  },
);
