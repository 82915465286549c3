import { execFile } from "node:child_process";
import { cpSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { useService } from "../support/service.ts";
import { findTool, toolsPath } from "../support/tools.ts";

/** The commands of docs/clients.md that generate code from `proto/` alone, and what comes of them. */

const suite = useService();
const root = resolve(import.meta.dirname, "../..");
const page = readFileSync(join(root, "docs/clients.md"), "utf8");
const commands = [...page.matchAll(/^```bash\n([^]*?)^```$/gm)].map(([, command = ""]) => command);

const commandFor = (language: string): string => {
  const found = commands.filter((command) => command.includes(`gen/${language}`));
  expect(found).toHaveLength(1);
  // The registry's copy of buf is the one in node_modules; Python is the one that has grpcio-tools.
  return (found[0] as string).replace(/npx --yes (--package \S+ )+-- /, "").replace("python3 ", "ingest-test-python ");
};

/** A caller's folder with nothing but `proto/`, in which the page's command has run. */
async function generated(language: string): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "ingest-proto-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  cpSync(join(root, "proto"), join(folder, "proto"), { recursive: true });
  await run(folder, "bash", "-euo", "pipefail", "-c", commandFor(language));
  return folder;
}

async function run(folder: string, command: string, ...args: string[]): Promise<string> {
  const path = [join(root, "node_modules/.bin"), toolsPath].join(delimiter);
  const options = { cwd: folder, env: { ...process.env, PATH: path } };
  const { stdout } = await promisify(execFile)(command, args, options).catch((error) =>
    expect.unreachable(`${command}: ${error.stdout}${error.stderr}`),
  );
  return stdout;
}

const write = (folder: string, name: string, text: string): void => {
  mkdirSync(dirname(join(folder, name)), { recursive: true });
  writeFileSync(join(folder, name), text);
};

const lacks = (...tools: string[]) => tools.some((tool) => findTool(tool) === undefined);
const patience = 240_000;

test("what TypeScript gets compiles", { timeout: patience }, async () => {
  const folder = await generated("ts");
  symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
  write(folder, "package.json", '{"type": "module"}');
  write(
    folder,
    "main.ts",
    `import { createClient, type Transport } from "@connectrpc/connect";
import { Ingest } from "./gen/ts/ingest/v1/ingest_pb.js";
export const ping = (transport: Transport) => createClient(Ingest, transport).ping({});
`,
  );
  await run(
    folder,
    "tsc",
    "--noEmit",
    "--strict",
    "--module",
    "nodenext",
    "--types",
    "node",
    "--skipLibCheck",
    "main.ts",
  );
});

test.skipIf(lacks("ingest-test-python"))(
  "what Python gets calls the service over gRPC (skipped where .ci/tools has not run)",
  { timeout: patience },
  async () => {
    const folder = await generated("python");
    write(
      folder,
      "main.py",
      `import sys
import grpc

sys.path.insert(0, "gen/python")
from ingest.v1 import ingest_pb2, ingest_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    metadata = [("authorization", f"Bearer {sys.argv[2]}")]
    print(ingest_pb2_grpc.IngestStub(channel).Ping(ingest_pb2.PingRequest(), metadata=metadata).app.slug)
`,
    );
    const { host } = new URL(suite.url);
    expect(await run(folder, "ingest-test-python", "main.py", host, suite.tenant.key)).toBe("crm-hub\n");
  },
);

test.skipIf(lacks("go", "protoc-gen-go", "protoc-gen-go-grpc"))(
  "what Go gets builds (skipped where .ci/tools has not run)",
  { timeout: patience },
  async () => {
    const folder = await generated("go");
    await run(folder, "go", "mod", "init", "example.com/you");
    await run(folder, "go", "mod", "tidy");
    await run(folder, "go", "build", "./...");
  },
);

const jars = globSync("/usr/share/java/{grpc-api,grpc-stub,grpc-protobuf,guava,protobuf}.jar");

test.skipIf(lacks("javac", "protoc", "grpc_java_plugin") || jars.length < 5)(
  "what Java gets compiles (skipped where .ci/tools has not run)",
  { timeout: patience },
  async () => {
    const folder = await generated("java");
    // Of JDK 8; builds with a newer one take it from javax.annotation-api.
    write(
      folder,
      "gen/java/javax/annotation/Generated.java",
      'package javax.annotation; public @interface Generated { String value(); String comments() default ""; }',
    );
    const sources = globSync("gen/java/**/*.java", { cwd: folder });
    expect(sources).toContain("gen/java/ingest/v1/IngestGrpc.java");
    await run(folder, "javac", "-nowarn", "-cp", jars.join(delimiter), "-d", "out", ...sources);
  },
);
