import { readFileSync, statSync } from "node:fs";
import { readFile, realpath, rename, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { makeDirectory, reasonOfDirectory } from "../files.ts";
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
  /** Made when missing, for its owner alone. */
  readonly dataDir: string;
  readonly env: Environment;
  readonly report: Report;
  /** Aborted when the process must end at once: it lets go without waiting, and the last one tells mongod to stop. */
  readonly ending?: AbortSignal;
}

export interface EmbeddedDatabase {
  readonly uri: string;
  /** Lets go of the database; the last process that does so stops it. More often than once does nothing. */
  close(): Promise<void>;
}

/** How often a process looks whether its mongod lives, in milliseconds. */
const watchEveryMs = 250;
/** Time between two attempts to bring a mongod back, in milliseconds. */
const restartEveryMs = 5_000;
/** How long a mongod that starts or stops under another's hands is waited for, in milliseconds. */
const settleMsMax = 30_000;
const logBytesMax = 20_000_000;

/**
 * The mongod of a data directory, a replica set of one node: started if none runs on it, shared with the other processes
 * that use it otherwise. It asks for a password, which only the owner of the directory can read. It outlives a process that is killed (the next one takes it over) and comes back on its port,
 * which its replica set remembers. A mongod that dies while it is used is started again on the same port.
 * @throws Error when the directory cannot be used, no mongod can be found or it does not start; it says what to do.
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

/** Makes the directory when it is missing, and tries to write there. @throws Error that names it and says what to do. */
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

/** Less room than this is a full disk: mongod would end in the midst of its start. */
const probeBytes = 1_048_576;

interface Running {
  readonly pid: number;
  /** Tells it from a later process with its pid. */
  readonly identity: string | undefined;
  readonly port: number;
}

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
  /** The mongod that is being started or taken over, until it is the running one. */
  #comingPid: number | undefined;
  #presence: Presence | undefined;
  #timer: NodeJS.Timeout | undefined;
  #reviving: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  /** In a row. */
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
        // The others hold addresses with its port, and whoever has taken it must not come between them and the database.
        const choice = present(this.#users).length > 1 ? "only this port" : "any port";
        this.#running = (await this.#takeOver(port)) ?? (await this.#start(port, choice));
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
      // Looked up, since another process may have started it again; one that cannot answer goes by its last known pid.
      const { pid, identity, port } = this.#running;
      const found = await this.#identify(port);
      await (found === undefined ? stopMongod(pid, identity) : stopMongod(found.pid));
    });
  }

  /** One process at a time starts, takes over or stops the mongod. */
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

  /**
   * The mongod on the port, if it is ours: it knows the password, and the lock file of our data names its process, which
   * belongs to this user. What the other side says alone is never believed.
   */
  async #identify(port: number): Promise<{ pid: number; version: string } | undefined> {
    const found = await identifyMongod(port, this.#auth.password);
    return found?.dbPath === this.#dbPath && found.pid === this.#lockHolder() ? found : undefined;
  }

  /** The process of this user that the lock file of our data names. */
  #lockHolder(): number | undefined {
    try {
      const pid = Number.parseInt(readFileSync(join(this.#dbPath, "mongod.lock"), "utf8"), 10);
      const isOwn = process.platform !== "linux" || statSync(`/proc/${pid}`).uid === process.geteuid?.();
      return isOwn && processIdentity(pid) !== undefined ? pid : undefined;
    } catch {
      return undefined;
    }
  }

  /** The mongod that runs on our data already, however it came to be. */
  async #takeOver(port: number | undefined): Promise<Running | undefined> {
    const found = port === undefined ? undefined : await this.#identify(port);
    if (port === undefined) return undefined;
    if (found === undefined) {
      await this.#stopOpenOne(port);
      return undefined;
    }
    this.#comingPid = found.pid;
    try {
      await becomePrimary(port, this.#auth.password, found.pid, AbortSignal.timeout(settleMsMax));
      await rotateLog(found.pid, this.#logPath, logBytesMax);
    } finally {
      this.#comingPid = undefined;
    }
    this.#report(
      `Database: embedded MongoDB ${found.version}, running already (process ${found.pid}), data in ${this.#directory}`,
    );
    return { pid: found.pid, identity: processIdentity(found.pid), port };
  }

  /** Stops the mongod that an earlier version left on our data without a password, when no other process uses it. */
  async #stopOpenOne(port: number): Promise<void> {
    const pid = this.#lockHolder();
    if (pid === undefined || present(this.#users).length > 1) return;
    const open = await identifyMongod(port, undefined);
    if (open?.dbPath === this.#dbPath && open.pid === pid) await stopMongod(pid);
  }

  /** Starts a mongod, on `lastPort` where possible; `only this port` when addresses with it have been given out. */
  async #start(lastPort: number | undefined, choice: "any port" | "only this port"): Promise<Running> {
    const binary = await locateMongod(this.#env, this.#report);
    await makeDirectory(this.#dbPath, 0o700);
    const { directory, deadlineMs } = { directory: this.#directory, deadlineMs: performance.now() + settleMsMax };
    let port = lastPort;
    if (port === undefined || (choice === "any port" && !(await isFree(port)))) port = await freePort();
    for (;;) {
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
          // The mongod of a process that was killed while it started or stopped it: it will answer soon, or be gone.
          const running = await this.#takeOver(lastPort);
          if (running === undefined) await delay(200);
          else {
            await this.#rememberPort(running.port);
            return running;
          }
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
      other: `What mongod logged is in ${this.#logPath}.`,
    };
    return `The embedded database in ${this.#directory} does not start: ${message}\n${remedies[reason]}`;
  }

  async #rememberedPort(): Promise<number | undefined> {
    const text = await readFile(join(this.#directory, "port"), "utf8").catch(() => "");
    const port = Number.parseInt(text, 10);
    return port > 0 && port < 65_536 ? port : undefined;
  }

  /** Before mongod starts, so that a process killed right after leaves it where it can be found. */
  async #rememberPort(port: number): Promise<void> {
    const path = join(this.#directory, "port");
    await writeFile(`${path}.new`, `${port}\n`, { mode: 0o600 });
    await rename(`${path}.new`, path);
  }

  /** Brings back a mongod that has died. The driver finds it by itself, since it comes back on its port. */
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

  /** Whether it succeeded. */
  async #revive(pid: number): Promise<boolean> {
    if (this.#failedStarts === 0) this.#report(`The database's mongod (process ${pid}) has ended; starting it again.`);
    try {
      const { port } = this.#running;
      await this.#alone(async () => {
        this.#running = (await this.#takeOver(port)) ?? (await this.#start(port, "only this port"));
      });
      if (this.#failedStarts > 0) this.#report(`The database is back, after ${this.#failedStarts} starts that failed.`);
      this.#failedStarts = 0;
      return true;
    } catch (error) {
      // The first of many: every further one would say the same.
      if (this.#failedStarts++ === 0) {
        this.#report(`${(error as Error).message}\nTrying again every ${restartEveryMs / 1000} seconds.`);
      }
      return false;
    }
  }
}
