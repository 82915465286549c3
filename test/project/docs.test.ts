import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, normalize } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { listeningUrl, operatorsUrl } from "../support/announced.ts";
import { pages, project, withTables } from "../support/docs.ts";
import { toolsPath } from "../support/tools.ts";

/** Commands that this test does not run, with the reasons. It runs all others unchanged. */
const notRun: Readonly<Record<string, string>> = {
  "npm ci && npm start": "installing is what .ci/run has just done; `npm start` alone is what starts the service below",
  "npm ci && npm test": "is this very run",
  "npm run check": "is the first half of `npm test`",
  "npm run generate": "test/project/generated.test.ts and test/openapi/openapi.test.ts compare what it makes",
  "npm run dev": "runs until Ctrl-C; test/project/scripts.unit.test.ts compares it with `npm start`",
  "npx ingest tail": "runs until Ctrl-C, like the next one",
  "npx ingest tail --rejected": "runs until Ctrl-C; test/observe/requests.test.ts runs it",
};

/** The calls of the published reference, unchanged. */
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
  /** The fenced block directly after it. */
  readonly answer: { readonly language: string; readonly text: string } | undefined;
}

const texts = new Map(pages.map((page) => [page, readFileSync(join(project, page), "utf8")]));

function blocksOf(markdown: string): Block[] {
  const fenced = /^```sh\n([^]*?)^```\n(?:\n```(json|text)\n([^]*?)^```\n)?/gm;
  return [...markdown.matchAll(fenced)].map(([, command = "", language, text = ""]) => ({
    command: command.trim(),
    answer: language === undefined ? undefined : { language, text },
  }));
}

const blocksOfPage = new Map([...texts].map(([page, text]) => [page, blocksOf(text)]));
const blocks = [...blocksOfPage.values()].flat();
/** The reader of each page has set these, as the README says. */
const exports = blocks.find(({ command }) => command.startsWith("export WEPEOPLE_BASE_URL"))?.command as string;

/** Masks values that differ from run to run. */
const mask = (text: string) =>
  text
    .replace(/\b(org|app|key|wrk|req|evt|tok)_[0-9A-Z]{26}\b/g, "$1_…")
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

/** One shell for each page, so that blocks see the variables of earlier blocks. */
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

  /** Runs a block in the shell itself. `stderr` names the failed command, if any. */
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

/** A clone as the pages' commands see it. The test thus leaves the data of its user alone. */
function cloneProject(): string {
  const folder = mkdtempSync(join(tmpdir(), "ingest-readme-"));
  for (const name of ["package.json", "node_modules", "src", "deploy"]) {
    symlinkSync(join(project, name), join(folder, name));
  }
  return folder;
}

let clone: string;
let service: ChildProcess;
let printed = "";
let authority: string;
let adminAuthority: string;
let shell: Shell;
let env: NodeJS.ProcessEnv;

beforeAll(async () => {
  clone = cloneProject();
  const { MONGODB_URI: _uri, DATA_DIR: _dir, PUBLIC_URL: _url, ...outer } = process.env;
  service = spawn("npm", ["start"], {
    cwd: clone,
    env: { ...outer, PORT: "0", LOG_LEVEL: "warn" },
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  service.stdout?.on("data", (chunk: Buffer) => (printed += chunk.toString()));
  const find = () => printed.split("\n").map(listeningUrl).find(Boolean);
  await vi.waitFor(() => expect(find()).toBeDefined(), { timeout: 180_000, interval: 50 });
  authority = `localhost:${new URL(find() as string).port}`;
  const operators = printed.split("\n").map(operatorsUrl).find(Boolean) as string;
  adminAuthority = `localhost:${new URL(operators).port}`;
  env = { ...outer, PATH: `${quickNpx()}${delimiter}${toolsPath}` };
}, 240_000);

afterAll(() => {
  if (service?.exitCode === null) process.kill(-(service.pid as number), "SIGKILL");
  rmSync(clone, { recursive: true, force: true });
});

/** npx takes longer to start than the command. test/project/package.test.ts uses the real one. */
function quickNpx(): string {
  const folder = join(clone, ".quick");
  mkdirSync(folder);
  const script = `#!/bin/sh
name=$1; shift
[ "$name" = ingest ] && exec "${process.execPath}" "${join(project, "src/cli.ts")}" "$@"
exec "${join(project, "node_modules/.bin")}/$name" "$@"
`;
  writeFileSync(join(folder, "npx"), script, { mode: 0o755 });
  return folder;
}

/** The tool that a block needs and this machine does not have. */
async function missingTool(command: string): Promise<string | undefined> {
  for (const [, tool] of command.matchAll(/^(?:.*\| )?(grpcurl|jq|docker|promtool)\b/gm)) {
    if ((await shell.run(`command -v ${tool} || true`)).stdout === "") return tool;
  }
  return undefined;
}

const run = (command: string) =>
  shell.run(command.replaceAll("localhost:8080", authority).replaceAll("localhost:8081", adminAuthority));

// Each command starts a process, which is slow on a busy machine.
vi.setConfig({ testTimeout: 120_000 });

/** The anchors of a page's headings. */
const anchorsOf = (page: string) =>
  [...(texts.get(page) ?? "").matchAll(/^#+ (.*)$/gm)].map(([, title = ""]) =>
    title
      .toLowerCase()
      .replace(/[^\w -]/g, "")
      .replaceAll(" ", "-"),
  );

const isRun = ({ command }: Block) => !Object.hasOwn(notRun, command);

describe.each([...blocksOfPage].filter(([, found]) => found.some(isRun)))("%s", (page, found) => {
  beforeAll(async () => {
    shell = new Shell(clone, env);
    if (page !== "README.md") await run(exports);
  });
  afterAll(() => shell.close());

  for (const { command, answer } of found.filter(isRun)) {
    test(`does what the page says: ${command.replaceAll("\n", " ").slice(0, 100)}`, async ({ skip }) => {
      const missing = await missingTool(command);
      if (missing !== undefined) skip(`${missing} is not installed`);
      const { stdout, stderr } = await run(command);
      expect(stderr).not.toMatch(/^failed: /m);
      if (answer?.language === "json") expect(jsonOf(stdout), stdout + stderr).toEqual(jsonOf(answer.text));
      else if (answer !== undefined) expect(linesOf(stdout), stderr).toEqual(linesOf(answer.text));
    });
  }
});

describe("the pages together", () => {
  beforeAll(async () => {
    shell = new Shell(clone, env);
    await run(exports);
  });
  afterAll(() => shell.close());

  test.each([...texts])("%s has the code's tables (`npm run generate` makes them)", (_page, text) => {
    expect(text).toBe(withTables(text));
  });

  test("the README is short, and links to every page of docs/", () => {
    const readme = texts.get("README.md") as string;
    expect(readme.trimEnd().split("\n").length).toBeLessThanOrEqual(200);
    const ofDocs = pages.filter((page) => /^docs\/[\w-]+\.md$/.test(page));
    expect(ofDocs.filter((page) => !readme.includes(`](${page})`))).toEqual([]);
  });

  test("the pages have the reference's own curl calls, unchanged", () => {
    expect(blocks.map(({ command }) => command)).toEqual(expect.arrayContaining(referenceCalls));
  });

  test("the pages show every call of the service with its answer", () => {
    const calls = blocks.filter(({ command }) => /^(curl|grpcurl|npx buf curl)\b/m.test(command));
    expect(calls.length).toBeGreaterThan(10);
    expect(calls.filter(({ answer }) => answer === undefined)).toEqual([]);
  });

  test.each([...texts])("%s names only existing scripts, files, headings and links", (page, text) => {
    const { scripts } = JSON.parse(readFileSync(join(project, "package.json"), "utf8"));
    const named = [...text.matchAll(/\bnpm run ([\w:]+)/g)].map(([, name]) => name as string);
    expect(named.filter((name) => !Object.hasOwn(scripts, name))).toEqual([]);
    const paths = [...text.matchAll(/`((?:src|test|proto|openapi|docs|deploy)\/[\w./-]*)`/g)].map(
      ([, path]) => path as string,
    );
    // A test run creates test/screenshots.
    const exists = (path: string) => path === "test/screenshots" || existsSync(join(project, path));
    expect(paths.filter((path) => !exists(path))).toEqual([]);
    const links = [...text.matchAll(/\]\((?!\w+:)([^)#]*)(?:#([^)]+))?\)/g)].map(([, path, anchor]) => ({
      path: path === "" ? page : normalize(join(dirname(page), path as string)),
      anchor,
    }));
    const broken = links.filter(
      ({ path, anchor }) => !exists(path) || (anchor !== undefined && !anchorsOf(path).includes(anchor)),
    );
    expect(broken).toEqual([]);
  });

  test("docs/architecture.md names every folder of src", () => {
    const folders = readdirSync(join(project, "src"), { withFileTypes: true }).filter((entry) => entry.isDirectory());
    const text = texts.get("docs/architecture.md") as string;
    expect(folders.map(({ name }) => `src/${name}/`).filter((folder) => !text.includes(`\`${folder}\``))).toEqual([]);
  });

  test("the pages have the commands that are not run", () => {
    const commands = blocks.map(({ command }) => command);
    expect(commands).toEqual(expect.arrayContaining(Object.keys(notRun)));
  });

  test("an Idempotency-Key makes the reference's curl line repeatable: the same bytes again", async () => {
    const { command } = blocks.find(({ command }) => command.includes("crm-batch-8412")) as Block;
    const first = await run(command);
    expect(JSON.parse(first.stdout).accepted).toBe(1);
    expect((await run(command)).stdout).toBe(first.stdout);
  });
});

test("`npm start` gets the signal from npm, and ends with 0", async () => {
  // Its output ends when the last process that shares it ends.
  const closed = once(service, "close");
  service.kill("SIGTERM");
  expect(await closed).toEqual([0, null]);
  expect(printed).toContain("Stopping after SIGTERM");
});
