import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { readmePath, withTables } from "../support/readme.ts";

const project = resolve(import.meta.dirname, "../..");

/** Commands of the README that this test does not run, and why. Whatever is not here is run as it stands. */
const notRun: Readonly<Record<string, string>> = {
  "npm ci && npm start": "installing is what .ci/run has just done; `npm start` alone is what starts the service below",
  "npm ci && npm test": "is this very run",
  "npm run check": "is the first half of `npm test`",
  "npx ingest tail --rejected": "runs until Ctrl-C; test/observe/requests.test.ts runs it",
};

/** The calls of the published reference, as they stand there. */
const referenceCalls = [
  `curl "$WEPEOPLE_BASE_URL/api/v1/ingest/ping" \\
-H "Authorization: Bearer $WEPEOPLE_API_KEY"`,
  `curl -X POST "$WEPEOPLE_BASE_URL/api/v1/ingest/events" \\
-H "Authorization: Bearer $WEPEOPLE_API_KEY" \\
-H "Content-Type: application/json" \\
-H "Idempotency-Key: crm-batch-8412" \\
-d '{
"events": [
{
"eventType": "ticket.resolved",
"category": "project_management",
"actor": { "externalId": "crm-user-42" },
"duration": 240,
"metadata": { "ticket_id": "SUP-431" }
}
]
}'`,
];

interface Block {
  readonly command: string;
  /** The fenced block right behind it. */
  readonly answer: { readonly language: string; readonly text: string } | undefined;
}

const readme = readFileSync(readmePath, "utf8");

function blocksOf(markdown: string): Block[] {
  const fenced = /^```sh\n([^]*?)^```\n(?:\n```(json|text)\n([^]*?)^```\n)?/gm;
  return [...markdown.matchAll(fenced)].map(([, command = "", language, text = ""]) => ({
    command: command.trim(),
    answer: language === undefined ? undefined : { language, text },
  }));
}

const blocks = blocksOf(readme);

/** What differs from run to run. */
const mask = (text: string) =>
  text
    .replace(/\b(org|app|key|wrk|req|evt)_[0-9A-Z]{26}\b/g, "$1_…")
    .replace(/\bwp_live_(?!0{32})[0-9a-f]{32}\b/g, "wp_live_…")
    .replace(/\bwp_live_[0-9a-f]{4}…/g, "wp_live_xxxx…")
    .replace(/\b(?!2026-04-19)20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, "<time>")
    .replace(/localhost:\d+/g, "localhost:8080");

const jsonOf = (text: string): unknown => {
  try {
    return JSON.parse(mask(text));
  } catch {
    return `not JSON: ${text}`;
  }
};
const linesOf = (text: string) =>
  mask(text.trim())
    .split("\n")
    .map((line) => line.replace(/\s+/g, " ").trim());

/** One shell for the whole page: a variable set in one block is there in the next, as for the reader. */
class Shell {
  readonly #process: ChildProcess;
  readonly #directory: string;
  readonly #lines: AsyncIterator<string>;
  #count = 0;

  constructor(cwd: string, env: NodeJS.ProcessEnv) {
    this.#directory = mkdtempSync(join(tmpdir(), "ingest-shell-"));
    this.#process = spawn("bash", ["--noprofile", "--norc"], { cwd, env, stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#process.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
    this.#process.stdin?.write("set -o pipefail; trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n");
  }

  /** Runs a block in the shell itself. `stderr` names the command that failed, when one did. */
  async run(command: string): Promise<{ stdout: string; stderr: string }> {
    const base = join(this.#directory, String(++this.#count));
    writeFileSync(`${base}.sh`, `${command}\n`);
    this.#process.stdin?.write(`. ${base}.sh >${base}.out 2>${base}.err </dev/null; echo\n`);
    await this.#lines.next();
    return { stdout: readFileSync(`${base}.out`, "utf8"), stderr: readFileSync(`${base}.err`, "utf8") };
  }

  async close(): Promise<void> {
    this.#process.stdin?.end();
    if (this.#process.exitCode === null) await once(this.#process, "exit");
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** The project as a newcomer has it, so that nothing here touches the data or the build of whoever runs the tests. */
function cloneProject(): string {
  const clone = mkdtempSync(join(tmpdir(), "ingest-readme-"));
  const list = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], { cwd: project });
  for (const path of list.toString().split("\0").filter(Boolean)) {
    mkdirSync(dirname(join(clone, path)), { recursive: true });
    cpSync(join(project, path), join(clone, path), { force: true });
  }
  symlinkSync(join(project, "node_modules"), join(clone, "node_modules"));
  return clone;
}

let clone: string;
let service: ChildProcess;
let printed = "";
let authority: string;
let shell: Shell;

beforeAll(async () => {
  clone = cloneProject();
  // `npm ci` builds the package (script `prepare`).
  execFileSync("npm", ["run", "--silent", "build"], { cwd: clone, stdio: ["ignore", "inherit", "inherit"] });
  const { MONGODB_URI: _uri, DATA_DIR: _dir, PUBLIC_URL: _url, ...env } = process.env;
  service = spawn("npm", ["start"], {
    cwd: clone,
    env: { ...env, PORT: "0", LOG_LEVEL: "warn" },
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  service.stdout?.on("data", (chunk: Buffer) => (printed += chunk.toString()));
  await vi.waitFor(() => expect(printed).toMatch(/buf curl/), { timeout: 180_000, interval: 50 });
  authority = /Listening on http:\/\/(\S+)/.exec(printed)?.[1] as string;
  // npx keeps what it links in its cache, which must not be the reader's own.
  shell = new Shell(clone, {
    ...env,
    npm_config_cache: join(clone, ".npm"),
    PATH: `${process.env.PATH}:${join(homedir(), "go/bin")}`,
  });
}, 240_000);

afterAll(async () => {
  await shell?.close();
  // Ctrl-C reaches the whole group too; npm ends at once, the service once it has let go of its database.
  if (service?.pid === undefined) return;
  const group = -service.pid;
  process.kill(group, "SIGINT");
  await vi.waitFor(() => expect(() => process.kill(group, 0)).toThrow("ESRCH"), { timeout: 100_000, interval: 50 });
  rmSync(clone, { recursive: true, force: true });
}, 120_000);

/** The tool that a block needs and this machine lacks. */
async function missingTool(command: string): Promise<string | undefined> {
  for (const [, tool] of command.matchAll(/^(?:.*\| )?(grpcurl|jq|docker|promtool)\b/gm)) {
    if ((await shell.run(`command -v ${tool} || true`)).stdout === "") return tool;
  }
  return undefined;
}

const run = (command: string) => shell.run(command.replaceAll("localhost:8080", authority));

// The command line starts a process for every command, which a busy machine takes its time for.
vi.setConfig({ testTimeout: 120_000 });

describe("README", () => {
  test("its tables are those of the code (`npm run generate` makes them)", () => {
    expect(readme).toBe(withTables(readme));
  });

  test("the reference's own curl calls are on it, as they stand", () => {
    expect(blocks.map(({ command }) => command)).toEqual(expect.arrayContaining(referenceCalls));
  });

  test("every call of the service is shown with its answer", () => {
    const calls = blocks.filter(({ command }) => /^(curl|grpcurl|npx buf curl)\b/m.test(command));
    expect(calls.length).toBeGreaterThan(10);
    expect(calls.filter(({ answer }) => answer === undefined)).toEqual([]);
  });

  for (const { command, answer } of blocks.filter(({ command }) => !Object.hasOwn(notRun, command))) {
    test(`does what the page says: ${command.replaceAll("\n", " ").slice(0, 100)}`, async ({ skip }) => {
      const missing = await missingTool(command);
      if (missing !== undefined) skip(`${missing} is not installed`);
      const { stdout, stderr } = await run(command);
      expect(stderr).not.toMatch(/^failed: /m);
      if (answer?.language === "json") expect(jsonOf(stdout), stdout + stderr).toEqual(jsonOf(answer.text));
      else if (answer !== undefined) expect(linesOf(stdout), stderr).toEqual(linesOf(answer.text));
    });
  }

  test("what it names exists: scripts, files, headings; and every folder of src is named", () => {
    const { scripts } = JSON.parse(readFileSync(join(project, "package.json"), "utf8"));
    const named = [...readme.matchAll(/\bnpm run ([\w:]+)/g)].map(([, name]) => name as string);
    expect(named.filter((name) => !Object.hasOwn(scripts, name))).toEqual([]);
    const paths = [...readme.matchAll(/`((?:src|test|proto|openapi)\/[\w./-]*)`/g)].map(([, path]) => path as string);
    const links = [...readme.matchAll(/\]\(([^)#]+)\)/g)].map(([, path]) => path as string);
    const folders = readdirSync(join(project, "src"), { withFileTypes: true }).filter((entry) => entry.isDirectory());
    expect(folders.map(({ name }) => `src/${name}/`).filter((folder) => !paths.includes(folder))).toEqual([]);
    // Made by a run of the tests.
    const made = ["test/screenshots"];
    expect([...paths, ...links].filter((path) => !made.includes(path) && !existsSync(join(project, path)))).toEqual([]);
    const anchors = [...readme.matchAll(/^#+ (.*)$/gm)].map(([, title = ""]) =>
      title
        .toLowerCase()
        .replace(/[^\w -]/g, "")
        .replaceAll(" ", "-"),
    );
    const inside = [...readme.matchAll(/\]\(#([^)]+)\)/g)].map(([, anchor]) => anchor as string);
    expect(inside.filter((anchor) => !anchors.includes(anchor))).toEqual([]);
  });

  test("the commands that are not run are on the page", () => {
    const commands = blocks.map(({ command }) => command);
    expect(commands).toEqual(expect.arrayContaining(Object.keys(notRun)));
  });

  test("an Idempotency-Key makes the reference's curl line safe to repeat: the same bytes again", async () => {
    const { command } = blocks.find(({ command }) => command.includes("crm-batch-8412")) as Block;
    const first = await run(command);
    expect(JSON.parse(first.stdout).accepted).toBe(1);
    expect((await run(command)).stdout).toBe(first.stdout);
  });

  test("the calls that the service prints when it starts run as they stand", async () => {
    const lines = printed.split("\n").map((line) => line.trim());
    const calls = lines.filter((line) => /^(export|curl|grpcurl|npx buf curl) /.test(line));
    expect(calls.map((line) => line.split(" ")[0])).toEqual(["export", "curl", "curl", "grpcurl", "npx"]);
    for (const call of calls) {
      if ((await missingTool(call)) !== undefined) continue;
      const { stdout, stderr } = await run(call);
      expect(stderr).not.toMatch(/^failed: /m);
      if (!call.startsWith("export")) expect(JSON.parse(stdout)).not.toHaveProperty("error");
    }
  });
});
