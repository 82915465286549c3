import { type ChildProcess, execFileSync, spawn } from "node:child_process";
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
import { delimiter, dirname, join, resolve } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { freePort } from "../../src/embedded/mongod.ts";
import { eventually } from "../support/processes.ts";

/**
 * A fresh clone, and the package made from it. This takes a minute and needs the registry, so it runs in CI and with
 * `npm run test:package`.
 */
const asked = process.env.PACKAGE !== undefined || process.env.CI !== undefined;
const root = resolve(import.meta.dirname, "../..");
const directory = mkdtempSync(join(tmpdir(), "ingest-package-"));
const clone = join(directory, "clone");
const folder = join(directory, "empty");

/** The environment of a new user: this Node, and no command of this checkout. */
const env: NodeJS.ProcessEnv = {
  ...process.env,
  NODE_COMPILE_CACHE: join(directory, "compiled"),
  PATH: [
    dirname(process.execPath),
    ...(process.env.PATH ?? "").split(delimiter).filter((path) => !path.startsWith(root)),
  ].join(delimiter),
};
let service: ChildProcess | undefined;

afterEach(() => {
  if (service?.exitCode === null && service.signalCode === null) process.kill(-(service.pid as number), "SIGKILL");
});

const run = (command: string, args: readonly string[], cwd: string) =>
  execFileSync(command, args, { cwd, env, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });

/** Starts the service, uses it as a new user would, and stops it. */
async function serveFrom(cwd: string, command: string, args: readonly string[]): Promise<void> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  // A new process group, because npm and npx do not forward signals.
  const child = spawn(command, args, {
    cwd,
    env: { ...env, PORT: String(port), HOST: "127.0.0.1", ADMIN_PORT: "0" },
    stdio: ["ignore", process.stderr.fd, process.stderr.fd],
    detached: true,
  });
  service = child;
  const keyFile = join(cwd, ".data/demo-key");
  await eventually(
    async () => existsSync(keyFile) && (await fetch(`${url}/readyz`).catch(() => undefined))?.status === 200,
    "it is ready",
    240,
  );
  const key = readFileSync(keyFile, "utf8").trim();
  const ping = await fetch(`${url}/api/v1/ingest/ping`, { headers: { authorization: `Bearer ${key}` } });
  expect(await ping.json()).toMatchObject({ ok: true, app: { slug: "crm-hub" } });
  const page = await (await fetch(`${url}/console/`)).text();
  const script = /<script [^>]*src="\.(\/assets\/[^"]+)"/.exec(page)?.[1];
  for (const path of ["/openapi/v1.yaml", "/docs", "/docs/grpc", "/docs/errors/invalid_key", `/console${script}`]) {
    expect((await fetch(`${url}${path}`)).status, path).toBe(200);
  }
  const listed = run("npx", ["ingest", "org", "list", "--json"], cwd);
  expect(JSON.parse(listed)).toMatchObject([{ name: "Demo" }]);
  process.kill(-(child.pid as number), "SIGTERM");
  await eventually(() => child.exitCode !== null || child.signalCode !== null, "it ends", 60);
  const isClosed = () =>
    fetch(url).then(
      () => false,
      () => true,
    );
  await eventually(isClosed, "the port is closed", 60);
}

describe.skipIf(!asked)("as others get it (in CI, or by npm run test:package)", { timeout: 400_000 }, () => {
  test("a fresh clone builds and starts", async () => {
    run("git", ["clone", "--quiet", root, clone], directory);
    // The rest of the README's `npm ci && npm start`: .ci/run has installed the packages in a fresh clone.
    symlinkSync(join(root, "node_modules"), join(clone, "node_modules"));
    run("npm", ["run", "--silent", "prepare"], clone);
    await serveFrom(clone, "npm", ["start"]);
  });

  test("the package made from the clone installs without scripts and serves from an empty folder", async () => {
    // Without the script that has just built it.
    run("npm", ["pack", "--silent", "--ignore-scripts", "--pack-destination", directory], clone);
    const tarball = readdirSync(directory).find((name) => name.endsWith(".tgz")) as string;
    mkdirSync(folder);
    writeFileSync(join(folder, "package.json"), "{}");
    const quiet = ["--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"];
    run("npm", ["install", ...quiet, join(directory, tarball)], folder);
    expect(readdirSync(folder).sort()).toEqual(["node_modules", "package-lock.json", "package.json"]);
    await serveFrom(folder, "npx", ["ingest", "serve"]);
    rmSync(directory, { recursive: true, force: true });
  });
});
