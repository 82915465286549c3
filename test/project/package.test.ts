import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, expect, test } from "vitest";
import { eventually } from "../support/processes.ts";

/**
 * The package as others get it. Takes half a minute, needs the registry, and builds `dist` anew under the other tests'
 * hands: `npm run test:package`.
 */
const asked = process.env.PACKAGE !== undefined;
const root = resolve(import.meta.dirname, "../..");
const directory = mkdtempSync(join(tmpdir(), "ingest-package-"));
const folder = join(directory, "empty");
const env: NodeJS.ProcessEnv = {
  ...process.env,
  // The Node that runs this, and no command of this repository.
  PATH: [dirname(process.execPath), ...(process.env.PATH ?? "").split(delimiter)]
    .filter((path) => !path.startsWith(join(root, "node_modules", ".bin")))
    .join(delimiter),
  PORT: "0",
  HOST: "127.0.0.1",
};
let service: ChildProcess | undefined;

afterAll(() => {
  if (service?.exitCode === null && service.signalCode === null) process.kill(-(service.pid as number), "SIGKILL");
  rmSync(directory, { recursive: true, force: true });
});

const npm = (args: readonly string[], cwd: string) =>
  execFileSync("npm", [...args, "--no-audit", "--no-fund"], {
    cwd,
    env,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });

test.skipIf(!asked)(
  "the packed package installs without scripts and serves in an empty folder",
  { timeout: 300_000 },
  async () => {
    npm(["pack", "--silent", "--pack-destination", directory], root);
    const tarball = readdirSync(directory).find((name) => name.endsWith(".tgz")) as string;
    mkdirSync(folder);
    writeFileSync(join(folder, "package.json"), "{}");
    npm(["install", "--ignore-scripts", "--prefer-offline", join(directory, tarball)], folder);
    expect(readdirSync(folder).sort()).toEqual(["node_modules", "package-lock.json", "package.json"]);

    // In a group of its own: npx hands on no signal.
    const npx = spawn("npx", ["ingest", "serve"], {
      cwd: folder,
      env,
      stdio: ["ignore", "pipe", "inherit"],
      detached: true,
    });
    service = npx;
    let text = "";
    createInterface({ input: npx.stdout }).on("line", (line) => (text += `${line}\n`));
    await eventually(() => text.includes("buf curl"), "it says how to call it", 120);
    const url = /^Listening on (.*)$/m.exec(text)?.[1]?.replace("localhost", "127.0.0.1") as string;
    const key = /WEPEOPLE_API_KEY=(\S+)/.exec(text)?.[1] as string;
    expect(text).toContain("npx --package @bufbuild/buf buf curl");
    const ping = await fetch(`${url}/api/v1/ingest/ping`, { headers: { authorization: `Bearer ${key}` } });
    expect(await ping.json()).toMatchObject({ ok: true, app: { slug: "crm-hub" } });
    for (const path of ["/openapi/v1.yaml", "/docs", "/docs/errors/invalid_key", "/readyz"]) {
      expect((await fetch(`${url}${path}`)).status, path).toBe(200);
    }
    const listed = execFileSync("npx", ["ingest", "org", "list", "--json"], { cwd: folder, env, encoding: "utf8" });
    expect(JSON.parse(listed)).toMatchObject([{ name: "Demo" }]);
    process.kill(-(npx.pid as number), "SIGTERM");
    await eventually(() => npx.exitCode !== null || npx.signalCode !== null, "it ends", 60);
    await eventually(
      () =>
        fetch(url).then(
          () => false,
          () => true,
        ),
      "nobody listens any more",
      60,
    );
  },
);
