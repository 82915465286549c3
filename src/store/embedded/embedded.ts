import { spawn } from "node:child_process";
import { mkdir, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { MongoClient } from "mongodb";
import { locateMongod } from "./binary.ts";

export interface EmbeddedOptions {
  readonly dataDir: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Gets one line for people about what is going on. */
  readonly report: (line: string) => void;
}

export interface EmbeddedDatabase {
  readonly uri: string;
  /** Lets go of the database; the last process that does so stops it. */
  close(): Promise<void>;
}

interface State {
  readonly pid: number;
  readonly port: number;
}

const replicaSet = "ingest";
const startMs = 60_000;
const lockStaleMs = 90_000;
const logBytesMax = 20_000_000;

/**
 * The mongod of a data directory, a replica set of one node: started if none runs on it, shared with the other processes
 * that use it otherwise. It outlives a process that is killed (the next one takes it over), and comes back on its port,
 * which its replica set remembers.
 * @throws Error when no mongod can be found or it does not start.
 */
export async function openEmbeddedDatabase(options: EmbeddedOptions): Promise<EmbeddedDatabase> {
  const directory = resolve(options.dataDir);
  await mkdir(join(directory, "users"), { recursive: true, mode: 0o700 });
  const release = await lock(directory);
  try {
    let state = await readState(directory);
    if (state === undefined || !(await isOurs(state, directory))) {
      state = await start(directory, state?.port, options);
    }
    await writeFile(join(directory, "users", String(process.pid)), "");
    const { port } = state;
    return { uri: uriOf(port), close: () => leave(directory, port) };
  } finally {
    await release();
  }
}

const uriOf = (port: number) => `mongodb://127.0.0.1:${port}/?replicaSet=${replicaSet}`;
const directUriOf = (port: number) => `mongodb://127.0.0.1:${port}/?directConnection=true`;

/** The directory is the lock: making it is atomic. One left by a dead process is taken over. */
async function lock(directory: string): Promise<() => Promise<void>> {
  const path = join(directory, "lock");
  const deadline = Date.now() + lockStaleMs;
  for (;;) {
    try {
      await mkdir(path);
      await writeFile(join(path, String(process.pid)), "");
      return () => rm(path, { recursive: true, force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const [holder] = await readdir(path).catch(() => []);
    if ((holder !== undefined && !isAlive(Number(holder))) || Date.now() > deadline) {
      await rm(path, { recursive: true, force: true });
    } else await sleep(20);
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

async function readState(directory: string): Promise<State | undefined> {
  try {
    return JSON.parse(await readFile(join(directory, "mongod.json"), "utf8")) as State;
  } catch {
    return undefined;
  }
}

async function withAdmin<T>(port: number, work: (client: MongoClient) => Promise<T>): Promise<T> {
  const client = new MongoClient(directUriOf(port), { serverSelectionTimeoutMS: 3_000, connectTimeoutMS: 3_000 });
  try {
    return await work(client);
  } finally {
    await client.close();
  }
}

/** Whether the mongod that the state names runs on this very directory, and not something else on its port. */
async function isOurs({ pid, port }: State, directory: string): Promise<boolean> {
  if (!isAlive(pid)) return false;
  try {
    return await withAdmin(port, async (client) => {
      const { parsed } = await client.db("admin").command({ getCmdLineOpts: 1 });
      return parsed?.storage?.dbPath === join(directory, "mongo");
    });
  } catch {
    return false;
  }
}

async function start(directory: string, lastPort: number | undefined, options: EmbeddedOptions): Promise<State> {
  const binary = await locateMongod(options.env, options.report);
  options.report(
    `Database: embedded MongoDB ${binary.version} (${binary.origin}: ${binary.path}), data in ${directory}`,
  );
  const dbPath = join(directory, "mongo");
  const logPath = join(directory, "mongod.log");
  await mkdir(dbPath, { recursive: true, mode: 0o700 });
  if ((await stat(logPath).catch(() => undefined))?.size ?? 0 > logBytesMax) await truncate(logPath, 0);
  const port = lastPort !== undefined && (await isFree(lastPort)) ? lastPort : await freePort();
  const child = spawn(
    binary.path,
    [
      "--dbpath",
      dbPath,
      "--port",
      String(port),
      "--bind_ip",
      "127.0.0.1",
      "--replSet",
      replicaSet,
      "--logpath",
      logPath,
      "--logappend",
      "--wiredTigerCacheSizeGB",
      "0.5",
      "--quiet",
    ],
    // A group of its own: Ctrl-C must reach the service only, which drains before it lets go of the database.
    { detached: true, stdio: "ignore" },
  );
  let exit: string | undefined;
  child.once("error", (error) => (exit = error.message));
  child.once("exit", (code, signal) => (exit = `code ${code ?? signal}`));
  child.unref();
  try {
    await becomePrimary(port, () => exit, logPath);
  } catch (error) {
    child.kill();
    throw error;
  }
  const state = { pid: child.pid as number, port };
  await writeFile(join(directory, "mongod.json"), JSON.stringify(state), { mode: 0o600 });
  return state;
}

async function becomePrimary(port: number, exited: () => string | undefined, logPath: string): Promise<void> {
  const deadline = Date.now() + startMs;
  const check = async () => {
    if (exited() !== undefined) throw new Error(`mongod ended (${exited()}); see ${logPath}`);
    if (Date.now() > deadline)
      throw new Error(`mongod did not become ready within ${startMs / 1000} s; see ${logPath}`);
    await sleep(20);
  };
  // The driver looks again only after half a second, so it is not asked before somebody listens.
  while (await isFree(port)) await check();
  await withAdmin(port, async (client) => {
    for (;;) {
      const hello = await client.db("admin").command({ hello: 1 });
      if (hello.isWritablePrimary === true) return;
      if (hello.isreplicaset === true) await configure(client, port);
      await check();
    }
  });
}

/** Initiates the replica set, or tells it its new port: it refuses to serve under an address that is not its own. */
async function configure(client: MongoClient, port: number): Promise<void> {
  const members = [{ _id: 0, host: `127.0.0.1:${port}` }];
  const config = await client
    .db("local")
    .collection<{ _id: string; version: number; members: object[] }>("system.replset")
    .findOne({});
  if (config === null) await client.db("admin").command({ replSetInitiate: { _id: replicaSet, members } });
  else {
    const next = { ...config, version: config.version + 1, members: [{ ...config.members[0], ...members[0] }] };
    await client.db("admin").command({ replSetReconfig: next, force: true });
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((settle) => {
    const probe = createServer();
    probe.once("error", () => settle(false));
    probe.listen(port, "127.0.0.1", () => probe.close(() => settle(true)));
  });
}

function freePort(): Promise<number> {
  return new Promise((settle, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const address = probe.address();
      probe.close(() => settle(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

async function leave(directory: string, port: number): Promise<void> {
  const release = await lock(directory);
  try {
    await rm(join(directory, "users", String(process.pid)), { force: true });
    for (const user of await readdir(join(directory, "users"))) {
      if (isAlive(Number(user))) return;
      await rm(join(directory, "users", user), { force: true });
    }
    const state = await readState(directory);
    // The connection breaks when the server obeys.
    await withAdmin(port, (client) => client.db("admin").command({ shutdown: 1, force: true, timeoutSecs: 1 })).catch(
      () => {},
    );
    const deadline = Date.now() + 10_000;
    while (state !== undefined && isAlive(state.pid) && Date.now() < deadline) await sleep(20);
  } finally {
    await release();
  }
}
