import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { readFile, rename, stat } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { type Db, MongoClient, MongoError, MongoServerError } from "mongodb";
import { processIdentity } from "../process-lock.ts";
import { withoutSecrets } from "./report.ts";

/** The only address an embedded server listens on. Every user of the machine can open a socket here. */
export const mongodHost = "127.0.0.1";
const replicaSet = "ingest";

/** mongod's own exit codes that say more than that it failed. */
const exitCodes = { portTaken: 48, otherDataVersion: 62 } as const;

/** Why a mongod did not start, as far as something can be done about it. */
export type StartFailure = "port taken" | "data in use" | "other data version" | "other";

export interface MongodOptions {
  readonly binary: string;
  /** Must exist. */
  readonly dbPath: string;
  readonly port: number;
  /** Appended to. */
  readonly logPath: string;
  /** With it mongod asks for a password: who does not know it is told nothing. Default none, for tests. */
  readonly auth?: MongodAuth | undefined;
  /** More arguments, after the usual ones. */
  readonly args?: readonly string[];
  /** In a session of its own, out of reach of the terminal's Ctrl-C and of this process's end. Default false. */
  readonly detached?: boolean;
  /** Told the pid as soon as there is one, long before mongod takes writes. */
  readonly onSpawn?: (pid: number) => void;
}

export interface MongodAuth {
  /** Holds the password, and is mongod's key file. */
  readonly keyFile: string;
  readonly password: string;
}

/** mongod ended before it could be used; the message is the last error that it logged. */
export class MongodStartError extends Error {
  readonly reason: StartFailure;
  constructor(message: string, reason: StartFailure, options?: ErrorOptions) {
    super(message, options);
    this.name = "MongodStartError";
    this.reason = reason;
  }
}

/** The connection string of an embedded server. */
export function uriOf(port: number, password?: string): string {
  return `${baseOf(port, password)}&replicaSet=${replicaSet}`;
}

/**
 * With a password, as `__system`: the members of a replica set call each other by this name, and the key file is its
 * password. SCRAM proves to both sides that the other one knows it, and shows it to none.
 */
function baseOf(port: number, password: string | undefined): string {
  return password === undefined
    ? `mongodb://${mongodHost}:${port}/?appName=ingest`
    : `mongodb://__system:${password}@${mongodHost}:${port}/?authSource=local&authMechanism=SCRAM-SHA-256`;
}

/**
 * Starts mongod as a replica set of one and returns its pid once it takes writes. Data of a set that remembers another
 * port is moved to this one.
 * @throws MongodStartError when it ends first, or takes no writes within two minutes (it is then killed).
 */
export async function startMongod(options: MongodOptions): Promise<number> {
  const logOffset = (await sizeOf(options.logPath)) ?? 0;
  const child = spawnMongod(options);
  const given = new AbortController();
  const ended = endOf(child, given.signal);
  try {
    const pid = child.pid;
    if (pid === undefined) throw await ended;
    options.onSpawn?.(pid);
    // A journal to replay after a crash takes its time; the bound is there for what would never end.
    const signal = AbortSignal.any([given.signal, AbortSignal.timeout(120_000)]);
    await Promise.race([
      becomePrimary(options.port, options.auth?.password, pid, signal),
      ended.then((error) => Promise.reject(error)),
    ]);
    child.unref();
    return pid;
  } catch (error) {
    child.kill("SIGKILL");
    const message = (await lastErrorInLog(options.logPath, logOffset)) ?? (error as Error).message;
    throw new MongodStartError(message, failureOf(child.exitCode, message), { cause: error });
  } finally {
    given.abort();
  }
}

/**
 * Ends mongod cleanly and waits; after `secondsMax` by force. Does nothing when it no longer lives.
 * @param identity tells it from a later process with its pid; default: that of whoever has the pid now.
 */
export async function stopMongod(pid: number, identity = processIdentity(pid), secondsMax = 20): Promise<void> {
  if (identity === undefined || processIdentity(pid) !== identity) return;
  signalMongod(pid, "SIGTERM");
  const deadline = performance.now() + secondsMax * 1000;
  let forced = false;
  while (processIdentity(pid) === identity) {
    if (!forced && performance.now() > deadline) {
      forced = true;
      signalMongod(pid, "SIGKILL");
    }
    await delay(20);
  }
}

/** Sends a signal; a process that ended meanwhile is no error. */
export function signalMongod(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/**
 * The mongod that listens on `port` of this machine and the directory of its data; `undefined` when nothing does, or
 * something that does not answer like mongod within two seconds. With a password it has proved that it knows it.
 */
export async function identifyMongod(
  port: number,
  password: string | undefined,
): Promise<{ pid: number; dbPath: string; version: string } | undefined> {
  if (!(await isListening(port))) return undefined;
  try {
    return await withServer(port, password, identity);
  } catch {
    return undefined;
  }
}

/** Waits until the mongod with this pid on `port` takes writes. @throws when `signal` aborts first. */
export async function becomePrimary(
  port: number,
  password: string | undefined,
  pid: number,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    while (!(await isListening(port))) await delay(10, undefined, { signal });
    try {
      return await withServer(port, password, (admin) => becomePrimaryOf(admin, port, pid, signal));
    } catch (error) {
      // A killed predecessor's socket may outlive its process for a moment; a busy machine is slow; and a stranger on the
      // port does not know the password.
      if (!(error instanceof MongoError)) throw error;
      await delay(50, undefined, { signal });
    }
  }
}

async function becomePrimaryOf(admin: Db, port: number, pid: number, signal: AbortSignal): Promise<void> {
  // The port may have gone to another's mongod in the meantime, whose replica set is none of our business.
  while ((await identity(admin)).pid !== pid) await delay(100, undefined, { signal });
  while (!(await admin.command({ hello: 1 })).isWritablePrimary) {
    await configure(admin, `${mongodHost}:${port}`);
    await delay(15, undefined, { signal });
  }
}

/** Whether this process could listen on `port`. */
export async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  try {
    server.listen({ host: mongodHost, port, exclusive: true });
    await once(server, "listening");
    return true;
  } catch {
    return false;
  } finally {
    server.close();
  }
}

/**
 * A port nobody listens on. Below the range from which systems take ports of outgoing connections, so that it is likely
 * still free when a server comes back to it.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries++) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    if (await isFree(port)) return port;
  }
  throw new Error(`no free port found on ${mongodHost} between 20000 and 29999`);
}

/** Lets mongod go on in a new log when this one has grown past `bytesMax`; one old log is kept. */
export async function rotateLog(pid: number, logPath: string, bytesMax: number): Promise<void> {
  if (((await sizeOf(logPath)) ?? 0) <= bytesMax) return;
  await rename(logPath, `${logPath}.1`);
  signalMongod(pid, "SIGUSR1");
}

function spawnMongod(options: MongodOptions): ChildProcess {
  // What mongod has to say before it opens its log (a bad argument) goes to the same file.
  const log = openSync(options.logPath, "a", 0o600);
  try {
    return spawn(
      options.binary,
      [
        ...["--dbpath", options.dbPath, "--port", String(options.port), "--bind_ip", mongodHost, "--nounixsocket"],
        ...["--replSet", replicaSet, "--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.5"],
        ...["--logpath", options.logPath, "--logappend", "--logRotate", "reopen", "--quiet", "--slowms", "1000"],
        ...["--setParameter", "diagnosticDataCollectionEnabled=false"],
        // On loopback it only costs, and CVE-2025-14847 lets strangers read memory through it.
        ...["--networkMessageCompressors", "disabled"],
        ...authArguments(options.auth),
        ...(options.args ?? []),
      ],
      {
        stdio: ["ignore", log, log],
        cwd: options.dbPath,
        detached: options.detached ?? false,
        env: withoutSecrets(process.env) as NodeJS.ProcessEnv,
      },
    );
  } finally {
    closeSync(log);
  }
}

/** Without the second one the first caller from this machine could make itself an administrator. */
const authArguments = (auth: MongodAuth | undefined) =>
  auth === undefined ? [] : ["--keyFile", auth.keyFile, "--setParameter", "enableLocalhostAuthBypass=false"];

function failureOf(exitCode: number | null, message: string): StartFailure {
  if (exitCode === exitCodes.portTaken) return "port taken";
  if (exitCode === exitCodes.otherDataVersion) return "other data version";
  // Its exit code is that of any uncaught exception.
  return message.includes("DBPathInUse") ? "data in use" : "other";
}

/** Resolves with the reason once the child ends or cannot be run. */
function endOf(child: ChildProcess, signal: AbortSignal): Promise<Error> {
  return new Promise((resolve) => {
    child.once("error", resolve);
    const onExit = (code: number | null, by: NodeJS.Signals | null) =>
      resolve(new Error(by === null ? `mongod ended with exit code ${code}` : `mongod was killed by ${by}`));
    child.once("exit", onExit);
    signal.addEventListener("abort", () => child.removeListener("exit", onExit), { once: true });
  });
}

/** Gives a fresh server its configuration; points a set that remembers another address to this one. */
async function configure(admin: Db, host: string): Promise<void> {
  try {
    const { config } = await admin.command({ replSetGetConfig: 1 });
    const [member] = config.members;
    if (member.host === host) return;
    const moved = { ...config, version: config.version + 1, members: [{ ...member, host }] };
    await admin.command({ replSetReconfig: moved, force: true });
  } catch (error) {
    // Every other refusal is of a server still on its way: asked again by the caller's loop.
    if (!(error instanceof MongoServerError) || error.codeName !== "NotYetInitialized") return;
    await admin.command({ replSetInitiate: { _id: replicaSet, members: [{ _id: 0, host }] } }).catch(() => {});
  }
}

async function identity(admin: Db): Promise<{ pid: number; dbPath: string; version: string }> {
  const options = await admin.command({ getCmdLineOpts: 1 });
  const status = await admin.command({ serverStatus: 1, repl: 0, metrics: 0, wiredTiger: 0, tcmalloc: 0, locks: 0 });
  return { pid: Number(status.pid), dbPath: String(options.parsed?.storage?.dbPath), version: String(status.version) };
}

async function withServer<T>(port: number, password: string | undefined, use: (admin: Db) => Promise<T>): Promise<T> {
  const client = new MongoClient(baseOf(port, password), {
    directConnection: true,
    serverSelectionTimeoutMS: 2_000,
    connectTimeoutMS: 2_000,
    socketTimeoutMS: 5_000,
  });
  try {
    return await use(client.db("admin"));
  } finally {
    await client.close();
  }
}

function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: mongodHost, port });
    const settle = (listening: boolean) => {
      socket.destroy();
      resolve(listening);
    };
    socket.once("connect", () => settle(true)).once("error", () => settle(false));
    socket.setTimeout(1_000, () => settle(false));
  });
}

/** The last error mongod wrote behind `offset` of its log, in one line. */
async function lastErrorInLog(logPath: string, offset: number): Promise<string | undefined> {
  const text = (await readFile(logPath).catch(() => Buffer.alloc(0))).subarray(offset).toString("utf8");
  const reasons = text.split("\n").flatMap((line) => {
    if (!line.startsWith("{")) return /^error/i.test(line) ? [line] : [];
    const entry = parse(line);
    if (entry === undefined || !/^[EF]$/.test(entry.s)) return [];
    const detail = entry.attr?.error ?? entry.attr?.err ?? entry.attr?.reason;
    const words = typeof detail === "object" && detail !== null ? (detail as { errmsg?: unknown }).errmsg : detail;
    return words === undefined ? [] : [`${entry.msg}: ${String(words)}`];
  });
  return reasons.at(-1);
}

function parse(line: string): { s: string; msg: string; attr?: Record<string, unknown> } | undefined {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.size;
}
