import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { readFile, rename, stat } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { type Db, MongoClient, MongoError, MongoServerError } from "mongodb";
import { processIdentity } from "../process-lock.ts";
import { withoutSecrets } from "./report.ts";

/** The only address on which mongod listens. Every user of the machine can connect to it. */
export const mongodHost = "127.0.0.1";
const replicaSet = "ingest";

/** Exit codes of mongod that name a cause. */
const exitCodes = { portTaken: 48, otherDataVersion: 62 } as const;

/** Causes of a failed start that a user can fix. */
export type StartFailure = "port taken" | "data in use" | "other data version" | "other";

export interface MongodOptions {
  readonly binary: string;
  /** Must exist. */
  readonly dbPath: string;
  readonly port: number;
  /** Appended to. */
  readonly logPath: string;
  /** With it mongod requires the password. Default: none, for tests. */
  readonly auth?: MongodAuth | undefined;
  readonly args?: readonly string[];
  /** Runs mongod in its own session, so that it survives Ctrl-C and the end of this process. Default: false. */
  readonly detached?: boolean;
  /** Gets the pid as soon as there is one, long before mongod takes writes. */
  readonly onSpawn?: (pid: number) => void;
}

export interface MongodAuth {
  /** Contains the password; mongod reads it as its key file. */
  readonly keyFile: string;
  readonly password: string;
}

/** mongod ended before it was ready. The message is the last error in its log. */
export class MongodStartError extends Error {
  readonly reason: StartFailure;
  constructor(message: string, reason: StartFailure, options?: ErrorOptions) {
    super(message, options);
    this.name = "MongodStartError";
    this.reason = reason;
  }
}

export function uriOf(port: number, password?: string): string {
  return `${baseOf(port, password)}&replicaSet=${replicaSet}`;
}

/**
 * With a password we log in as `__system`, the internal user of replica sets, whose password is the key file. SCRAM
 * proves to each side that the other knows the password, without sending it.
 */
function baseOf(port: number, password: string | undefined): string {
  return password === undefined
    ? `mongodb://${mongodHost}:${port}/?appName=ingest`
    : `mongodb://__system:${password}@${mongodHost}:${port}/?authSource=local&authMechanism=SCRAM-SHA-256`;
}

/**
 * Starts mongod as a replica set of one node, and returns its pid when it accepts writes. Reconfigures a set that
 * remembers another port.
 * @throws MongodStartError if mongod ends first, or accepts no writes within two minutes (it is then killed).
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
    // Recovery after a crash can take long; the limit is for a start that would never end.
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
 * Stops mongod cleanly, and kills it after `secondsMax`. Does nothing if it has ended.
 * @param identity distinguishes it from a later process with the same pid. Default: the current process with this pid.
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

/** Sends a signal. A process that has ended is no error. */
export function signalMongod(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/**
 * The mongod on `port` of this machine and its data directory; undefined if nothing answers like mongod within two
 * seconds. It must prove that it knows the password.
 */
export async function identifyMongod(
  port: number,
  password: string,
): Promise<{ pid: number; dbPath: string; version: string } | undefined> {
  if (!(await isListening(port))) return undefined;
  try {
    return await withServer(port, password, identity);
  } catch {
    return undefined;
  }
}

/** Waits until the mongod with this pid on `port` accepts writes. @throws if `signal` aborts first. */
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
      // Try again: a killed predecessor's socket may linger, the machine may be slow, or a stranger may hold the port.
      if (!(error instanceof MongoError)) throw error;
      await delay(50, undefined, { signal });
    }
  }
}

async function becomePrimaryOf(admin: Db, port: number, pid: number, signal: AbortSignal): Promise<void> {
  // Another mongod may have taken the port; do not reconfigure its replica set.
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
 * A free port below the ephemeral range: no outgoing connection takes it, so it is probably free after a restart.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries++) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    if (await isFree(port)) return port;
  }
  throw new Error(`no free port found on ${mongodHost} between 20000 and 29999`);
}

/** Keeps one old log. @param pid of the mongod that writes it, if one does. */
export async function rotateLog(logPath: string, bytesMax: number, pid?: number): Promise<void> {
  if (((await sizeOf(logPath)) ?? 0) <= bytesMax) return;
  await rename(logPath, `${logPath}.1`);
  if (pid !== undefined) signalMongod(pid, "SIGUSR1");
}

function spawnMongod(options: MongodOptions): ChildProcess {
  // Before mongod opens its log it reports errors, such as a bad argument, on its output.
  const log = openSync(options.logPath, "a", 0o600);
  try {
    return spawn(
      options.binary,
      [
        ...["--dbpath", options.dbPath, "--port", String(options.port), "--bind_ip", mongodHost, "--nounixsocket"],
        ...["--replSet", replicaSet, "--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.5"],
        ...["--logpath", options.logPath, "--logappend", "--logRotate", "reopen", "--quiet", "--slowms", "1000"],
        ...["--setParameter", "diagnosticDataCollectionEnabled=false"],
        // Compression is useless on loopback, and CVE-2025-14847 leaks memory through it.
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

/** Without the second parameter the first local caller could create an administrator. */
const authArguments = (auth: MongodAuth | undefined) =>
  auth === undefined ? [] : ["--keyFile", auth.keyFile, "--setParameter", "enableLocalhostAuthBypass=false"];

function failureOf(exitCode: number | null, message: string): StartFailure {
  if (exitCode === exitCodes.portTaken) return "port taken";
  if (exitCode === exitCodes.otherDataVersion) return "other data version";
  // mongod exits with the generic code here.
  return message.includes("DBPathInUse") ? "data in use" : "other";
}

/** Resolves with the cause when the child ends or cannot start. */
function endOf(child: ChildProcess, signal: AbortSignal): Promise<Error> {
  return new Promise((resolve) => {
    child.once("error", resolve);
    const onExit = (code: number | null, by: NodeJS.Signals | null) =>
      resolve(new Error(by === null ? `mongod ended with exit code ${code}` : `mongod was killed by ${by}`));
    child.once("exit", onExit);
    signal.addEventListener("abort", () => child.removeListener("exit", onExit), { once: true });
  });
}

/** Initiates a new replica set, or reconfigures one that remembers another address. */
async function configure(admin: Db, host: string): Promise<void> {
  try {
    const { config } = await admin.command({ replSetGetConfig: 1 });
    const [member] = config.members;
    if (member.host === host) return;
    const moved = { ...config, version: config.version + 1, members: [{ ...member, host }] };
    await admin.command({ replSetReconfig: moved, force: true });
  } catch (error) {
    // Any other refusal means that mongod is still starting; the caller's loop asks again.
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

/** The last error in the log after `offset`, as one line. */
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
