import { existsSync, readFileSync, statSync } from "node:fs";
import { open, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { makeDirectory, reasonOfDirectory, replaceFile } from "../files.ts";
import { locateMongod, warningOfVersion } from "./binary.ts";
import { openPassword, refuseOpenDirectory } from "./password.ts";
import type { Environment, Report } from "./report.ts";
import {
  becomePrimary,
  freePort,
  identifyMongod,
  isFree,
  type MongodAuth,
  MongodStartError,
  rotateLog,
  signalMongod,
  startMongod,
  stopMongod,
  uriOf,
} from "./mongod.ts";
import { announce, exclusively, type Presence, present, processIdentity } from "../process-lock.ts";

export interface EmbeddedOptions {
  /** Created if it is missing, with access only for its owner. */
  readonly dataDir: string;
  readonly env: Environment;
  readonly report: Report;
  /** Aborted when the process must end at once. It then releases the database without waiting for mongod to stop. */
  readonly ending?: AbortSignal;
}

export interface EmbeddedDatabase {
  readonly uri: string;
  /** Releases the database; the last process to do so stops mongod. A second call does nothing. */
  close(): Promise<void>;
}

/** Interval between two checks that mongod lives, in milliseconds. */
const watchEveryMs = 250;
/** Interval between two attempts to restart mongod, in milliseconds. */
const restartEveryMs = 5_000;
/** Longest wait for a mongod that another process starts or stops, in milliseconds. */
const settleMsMax = 30_000;
const logBytesMax = 20_000_000;

/**
 * The mongod of a data directory, a replica set of one node. Processes on the same directory share it; the first one
 * starts it. It requires a password that only the directory's owner can read. It survives a killed process, and the
 * next process adopts it. If it dies, it restarts on the same port, which its replica set remembers.
 * @throws Error if the directory is unusable or mongod cannot be found or started; the message says what to do.
 */
export async function openEmbeddedDatabase({
  dataDir,
  env,
  report,
  ending,
}: EmbeddedOptions): Promise<EmbeddedDatabase> {
  const directory = await openDirectory(dataDir);
  const keyFile = join(directory, "mongod.key");
  const auth = { keyFile, password: await openPassword(keyFile) };
  const mongod = new SharedMongod({ directory, auth, env, report });
  ending?.addEventListener("abort", () => mongod.abandon());
  await mongod.open();
  return { uri: mongod.uri, close: () => mongod.close() };
}

/** @throws Error that says what to do if we cannot write there. */
async function openDirectory(dataDir: string): Promise<string> {
  try {
    await makeDirectory(resolve(dataDir), 0o700);
    const directory = await realpath(dataDir);
    const probe = join(directory, `.probe.${process.pid}`);
    try {
      await writeFile(probe, Buffer.alloc(probeBytes), { flush: true });
    } finally {
      await rm(probe, { force: true });
    }
    await refuseOpenDirectory(directory);
    return directory;
  } catch (error) {
    const reason = reasonOfDirectory(error);
    if (reason === undefined) throw error;
    throw new Error(`DATA_DIR '${dataDir}' cannot be used: ${reason}.`, { cause: error });
  }
}

/** With less free space than this, mongod would fail during its start. */
const probeBytes = 1_048_576;

interface Running {
  readonly pid: number;
  /** Distinguishes it from a later process with the same pid. */
  readonly identity: string | undefined;
  readonly port: number;
}

type PortChoice = "any port" | "only this port";

interface SharedMongodOptions {
  readonly directory: string;
  readonly auth: MongodAuth;
  readonly env: Environment;
  readonly report: Report;
}

class SharedMongod {
  readonly #directory: string;
  readonly #auth: MongodAuth;
  readonly #env: Environment;
  readonly #report: Report;
  #running: Running = { pid: 0, identity: undefined, port: 0 };
  /** The mongod that we are starting or adopting. */
  #comingPid: number | undefined;
  #presence: Presence | undefined;
  #timer: NodeJS.Timeout | undefined;
  #reviving: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  /** Consecutive ones. */
  #failedStarts = 0;

  constructor({ directory, auth, env, report }: SharedMongodOptions) {
    this.#directory = directory;
    this.#auth = auth;
    this.#env = env;
    this.#report = report;
  }

  get uri(): string {
    return uriOf(this.#running.port, this.#auth.password);
  }

  async open(): Promise<void> {
    await this.#alone(async () => {
      this.#presence = announce(this.#users);
      try {
        const port = await this.#rememberedPort();
        // Other processes hold connection strings with this port, and a stranger may listen there now.
        const choice = present(this.#users).length > 1 ? "only this port" : "any port";
        await this.#run(port, choice);
      } catch (error) {
        this.#presence.leave();
        throw error;
      }
    });
    this.#watch(watchEveryMs);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  abandon(): void {
    clearTimeout(this.#timer);
    this.#presence?.leave();
    const { pid, identity } = this.#running;
    const living = identity !== undefined && processIdentity(pid) === identity ? pid : undefined;
    const last = this.#comingPid ?? living;
    if (last !== undefined && present(this.#users).length === 0) signalMongod(last, "SIGTERM");
  }

  async #close(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#reviving;
    await this.#alone(async () => {
      this.#presence?.leave();
      if (present(this.#users).length > 0) return;
      // Another process may have restarted mongod, so we look it up. Without an answer we use the last known pid.
      const { pid, identity, port } = this.#running;
      const found = await this.#identify(port);
      await (found === undefined ? stopMongod(pid, identity) : stopMongod(found.pid));
    });
  }

  /** Lets one process at a time start, adopt or stop mongod. */
  #alone(task: () => Promise<void>): Promise<void> {
    return exclusively(join(this.#directory, "turn"), task, (pid) =>
      this.#report(`Waiting for process ${pid}, which is starting or stopping the database in ${this.#directory} …`),
    );
  }

  get #users(): string {
    return join(this.#directory, "users");
  }

  get #dbPath(): string {
    return join(this.#directory, "mongo");
  }

  get #logPath(): string {
    return join(this.#directory, "mongod.log");
  }

  /** This file exists while a new database is being made. Until it is removed, the database has taken no write. */
  get #unfinishedPath(): string {
    return join(this.#directory, "mongo.unfinished");
  }

  /** Adopts the mongod that runs on our data, or starts one. */
  async #run(port: number | undefined, choice: PortChoice): Promise<void> {
    this.#running = (await this.#takeOver(port)) ?? (await this.#start(port, choice));
    if (existsSync(this.#unfinishedPath)) await this.#finish();
  }

  /** Removes the file for good: after a power failure it must not come back beside data. */
  async #finish(): Promise<void> {
    await rm(this.#unfinishedPath);
    const handle = await open(this.#directory);
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  }

  /**
   * The mongod on the port, if it is ours. It must know the password, and our lock file must name its process, which
   * must belong to this user. We never trust the other side's word alone.
   */
  async #identify(port: number): Promise<{ pid: number; version: string } | undefined> {
    const found = await identifyMongod(port, this.#auth.password);
    return found?.dbPath === this.#dbPath && found.pid === this.#lockHolder() ? found : undefined;
  }

  /** This user's process that our lock file names. */
  #lockHolder(): number | undefined {
    try {
      const pid = Number.parseInt(readFileSync(join(this.#dbPath, "mongod.lock"), "utf8"), 10);
      const isOwn = process.platform !== "linux" || statSync(`/proc/${pid}`).uid === process.geteuid?.();
      return isOwn && processIdentity(pid) !== undefined ? pid : undefined;
    } catch {
      return undefined;
    }
  }

  async #takeOver(port: number | undefined): Promise<Running | undefined> {
    const found = port === undefined ? undefined : await this.#identify(port);
    if (port === undefined || found === undefined) return undefined;
    this.#comingPid = found.pid;
    try {
      await becomePrimary(port, this.#auth.password, found.pid, AbortSignal.timeout(settleMsMax));
      await rotateLog(this.#logPath, logBytesMax, found.pid);
    } finally {
      this.#comingPid = undefined;
    }
    this.#report(
      `Database: embedded MongoDB ${found.version}, running already (process ${found.pid}), data in ${this.#directory}`,
    );
    return { pid: found.pid, identity: processIdentity(found.pid), port };
  }

  /** Starts mongod, on `lastPort` if possible; with `only this port` other processes depend on that port. */
  async #start(lastPort: number | undefined, choice: PortChoice): Promise<Running> {
    const binary = await locateMongod(this.#env, this.#report);
    if (!existsSync(this.#dbPath)) await writeFile(this.#unfinishedPath, "", { mode: 0o600, flush: true });
    await makeDirectory(this.#dbPath, 0o700);
    await rotateLog(this.#logPath, logBytesMax);
    const { directory, deadlineMs } = { directory: this.#directory, deadlineMs: performance.now() + settleMsMax };
    let port = lastPort;
    if (port === undefined || (choice === "any port" && !(await isFree(port)))) port = await freePort();
    for (let isAnew = false; ;) {
      await this.#rememberPort(port);
      try {
        const pid = await startMongod({
          ...{ binary: binary.path, dbPath: this.#dbPath, port, logPath: this.#logPath, detached: true },
          auth: this.#auth,
          onSpawn: (pid) => (this.#comingPid = pid),
        });
        const source = `${binary.origin}: ${binary.path}`;
        this.#report(`Database: embedded MongoDB ${binary.version} (${source}), data in ${directory}`);
        const warning = warningOfVersion(binary.version);
        if (warning !== undefined) this.#report(warning);
        return { pid, identity: processIdentity(pid), port };
      } catch (error) {
        if (!(error instanceof MongodStartError)) throw error;
        if (error.reason === "port taken" && choice === "any port") port = await freePort();
        else if (error.reason === "data in use" && lastPort !== undefined && performance.now() < deadlineMs) {
          // A killed process left a mongod that is starting or stopping. It will answer soon, or be gone. The next start
          // must find it, too, if this one is killed or gives up.
          await this.#rememberPort(lastPort);
          const running = await this.#takeOver(lastPort);
          if (running !== undefined) return running;
          await delay(200);
        } else if (error.reason === "other" && !isAnew && existsSync(this.#unfinishedPath)) {
          // The process that made it was killed. mongod cannot open the files of every moment of its first start.
          isAnew = true;
          this.#report(`The database in ${directory} was left unfinished; making it anew.`);
          await rm(this.#dbPath, { recursive: true, force: true });
          await makeDirectory(this.#dbPath, 0o700);
        } else throw new Error(this.#explain(error, binary.version, port), { cause: error });
      } finally {
        this.#comingPid = undefined;
      }
    }
  }

  #explain({ reason, message }: MongodStartError, version: string, port: number): string {
    const remedies = {
      "other data version": `The data are of another MongoDB version than ${version}: set MONGOD_BINARY to a mongod of that version, or DATA_DIR to an empty directory.`,
      "data in use": "Another mongod has these data open: stop it, or set DATA_DIR to another directory.",
      "port taken": `Another program listens on port ${port}, which clients of this database use: stop it, or restart the service.`,
      other: `The log of mongod is ${this.#logPath}.`,
    };
    return `The embedded database in ${this.#directory} does not start: ${message}\n${remedies[reason]}`;
  }

  async #rememberedPort(): Promise<number | undefined> {
    const text = await readFile(join(this.#directory, "port"), "utf8").catch(() => "");
    const port = Number.parseInt(text, 10);
    return port > 0 && port < 65_536 ? port : undefined;
  }

  /** Called before mongod starts, so that others find it even if this process is killed right after. */
  #rememberPort(port: number): Promise<void> {
    return replaceFile(join(this.#directory, "port"), `${port}\n`);
  }

  /** Restarts a mongod that has died. The driver reconnects, since the port stays the same. */
  #watch(afterMs: number): void {
    const look = () => {
      const { pid, identity } = this.#running;
      if (identity !== undefined && processIdentity(pid) === identity) return this.#watch(watchEveryMs);
      this.#reviving = this.#revive(pid).then((again) => {
        if (this.#closing === undefined) this.#watch(again ? watchEveryMs : restartEveryMs);
      });
    };
    this.#timer = setTimeout(look, afterMs).unref();
  }

  /** Returns whether it succeeded. */
  async #revive(pid: number): Promise<boolean> {
    if (this.#failedStarts === 0) this.#report(`The database's mongod (process ${pid}) has ended; starting it again.`);
    try {
      const { port } = this.#running;
      await this.#alone(() => this.#run(port, "only this port"));
      if (this.#failedStarts > 0) this.#report(`The database is back, after ${this.#failedStarts} starts that failed.`);
      this.#failedStarts = 0;
      return true;
    } catch (error) {
      // Report only the first failure: the next ones would say the same.
      if (this.#failedStarts++ === 0) {
        this.#report(`${(error as Error).message}\nTrying again every ${restartEveryMs / 1000} seconds.`);
      }
      return false;
    }
  }
}
