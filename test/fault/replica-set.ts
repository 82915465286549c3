import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type Document, MongoClient } from "mongodb";
import { locateMongod } from "../../src/embedded/binary.ts";
import { freePort } from "../../src/embedded/mongod.ts";
import { databaseFolder } from "../support/database-folder.ts";
import { findable, MemberProxy } from "./member-proxy.ts";

const name = "failover";
const host = "127.0.0.1";
/** Each look at a member opens a connection, which costs some milliseconds of work. */
const lookEveryMs = 100;
/** Longest time for an election on a slow machine, in milliseconds. */
const patienceMs = 60_000;

interface Member {
  readonly index: number;
  readonly port: number;
  /** The port for the other members and for clients. */
  readonly sharedPort: number;
  /** Only if the set is breakable. */
  readonly proxy: MemberProxy | undefined;
  readonly directory: string;
  readonly start: () => ChildProcess;
  process: ChildProcess;
}

export interface ReplicaSetOptions {
  /** Silence of a primary after which the others elect a new one, in milliseconds. */
  readonly electionTimeoutMs: number;
  /** Whether each member is behind a proxy, for `cutOff`, and takes test commands. Both make the set slower. */
  readonly isBreakable: boolean;
}

/** Three members of a replica set, each a process. */
export class ReplicaSet {
  readonly #members: Member[];
  readonly #directory: string;
  readonly #cutOff = new Set<number>();

  private constructor(members: Member[], directory: string) {
    this.#members = members;
    this.#directory = directory;
  }

  /** Returns when the set accepts writes and can lose a member. */
  static async start({ electionTimeoutMs, isBreakable }: ReplicaSetOptions): Promise<ReplicaSet> {
    const { path } = await locateMongod(process.env, (line) => console.log(line));
    const directory = await (isBreakable ? databaseFolder("members") : mkdtemp(join(tmpdir(), "ingest-members-")));
    const members: Member[] = [];
    for (let index = 0; index < 3; index++) {
      const own = join(directory, String(index));
      await mkdir(own);
      const port = await freePort();
      const proxy = isBreakable ? await MemberProxy.start(port) : undefined;
      const start = () => spawnMember(path, port, own, isBreakable);
      members.push({ index, port, sharedPort: proxy?.port ?? port, proxy, directory: own, start, process: start() });
    }
    const set = new ReplicaSet(members, directory);
    await Promise.all(members.map(({ index }) => set.#answers(index)));
    await set.command(0, {
      replSetInitiate: {
        _id: name,
        members: members.map(({ index, sharedPort }) => ({ _id: index, host: `${host}:${sharedPort}` })),
        settings: { electionTimeoutMillis: electionTimeoutMs, heartbeatIntervalMillis: electionTimeoutMs / 4 },
      },
    });
    await set.whole();
    return set;
  }

  get uri(): string {
    return `mongodb://${this.#members.map(({ sharedPort }) => `${host}:${sharedPort}`).join(",")}/?replicaSet=${name}`;
  }

  /** Waits for the member that accepts writes and is not cut off. */
  async primary(): Promise<number> {
    for (const deadlineMs = performance.now() + patienceMs; performance.now() < deadlineMs;) {
      for (const { index } of this.#members) {
        if (!this.#cutOff.has(index) && (await this.hello(index))?.isWritablePrimary === true) return index;
      }
      await delay(lookEveryMs);
    }
    throw new Error(`no primary that is not cut off within ${patienceMs} ms`);
  }

  async hello(index: number): Promise<Document | undefined> {
    return this.command(index, { hello: 1 }).catch(() => undefined);
  }

  /** Waits until all members are primary or secondary, because a set that has lost one cannot lose another. */
  async whole(): Promise<void> {
    for (const { index } of this.#members) {
      for (;;) {
        const { isWritablePrimary, secondary } = (await this.hello(index)) ?? {};
        if (isWritablePrimary === true || secondary === true) break;
        await delay(lookEveryMs);
      }
    }
    await this.primary();
  }

  /** Runs a command on the member itself, without the proxy. */
  async command(index: number, command: Document): Promise<Document> {
    const { port } = this.#members[index] as Member;
    const client = new MongoClient(`mongodb://${host}:${port}/?directConnection=true`, {
      serverSelectionTimeoutMS: 1_000,
      appName: "harness",
    });
    try {
      return await client.db("admin").command(command, { timeoutMS: 5_000 });
    } finally {
      await client.close();
    }
  }

  /** Makes the primary a secondary that cannot become primary again within `seconds`. */
  async stepDown(index: number, seconds = 2): Promise<void> {
    await this.command(index, { replSetStepDown: seconds, secondaryCatchUpPeriodSecs: 1, force: true });
  }

  /** Cuts a member of a breakable set off from the others; clients still reach all of them. */
  cutOff(index: number): void {
    this.#cutOff.add(index);
    this.#cut();
  }

  heal(): void {
    this.#cutOff.clear();
    this.#cut();
  }

  #cut(): void {
    const pids = new Map(this.#members.map(({ index, process }) => [process.pid, index]));
    for (const { index, proxy } of this.#members) {
      const isCut = (pid: number) => {
        const from = pids.get(pid);
        return from !== undefined && from !== index && (this.#cutOff.has(from) || this.#cutOff.has(index));
      };
      proxy?.cut(this.#cutOff.size === 0 ? undefined : isCut);
    }
  }

  freeze(index: number): void {
    this.#members[index]?.process.kill("SIGSTOP");
  }

  thaw(index: number): void {
    this.#members[index]?.process.kill("SIGCONT");
  }

  /** Sends SIGKILL, or SIGTERM, after which it steps down first. Returns when the process is gone. */
  async end(index: number, signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    const { process } = this.#members[index] as Member;
    const gone = once(process, "exit");
    process.kill(signal);
    process.kill("SIGCONT");
    await gone;
    findable.delete(process.pid as number);
  }

  /** Starts it again; returns when it answers. */
  async restart(index: number): Promise<void> {
    const member = this.#members[index] as Member;
    member.process = member.start();
    this.#cut();
    await this.#answers(index);
  }

  /** The number of rollbacks in the members' logs. */
  async rollbacks(): Promise<number> {
    const logs = await Promise.all(this.#members.map((member) => readFile(logOf(member.directory), "utf8")));
    return logs.reduce((sum, log) => sum + log.split('"msg":"Rollback summary"').length - 1, 0);
  }

  async stop(): Promise<void> {
    for (const { process, proxy } of this.#members) {
      if (process.exitCode === null && process.signalCode === null) {
        const gone = once(process, "exit");
        process.kill("SIGKILL");
        await gone;
      }
      findable.delete(process.pid as number);
      proxy?.close();
    }
    await rm(this.#directory, { recursive: true, force: true });
  }

  async #answers(index: number): Promise<void> {
    const { process } = this.#members[index] as Member;
    while ((await this.hello(index)) === undefined) {
      if (process.exitCode !== null) {
        throw new Error(`member ${index} ended: ${await readFile(logOf(this.#members[index]!.directory), "utf8")}`);
      }
      await delay(lookEveryMs);
    }
  }
}

const logOf = (directory: string) => join(directory, "mongod.log");

function spawnMember(binary: string, port: number, directory: string, takesTestCommands: boolean): ChildProcess {
  const child = spawn(
    binary,
    [
      ...["--dbpath", directory, "--port", String(port), "--bind_ip", host, "--nounixsocket", "--replSet", name],
      ...["--oplogSize", "256", "--wiredTigerCacheSizeGB", "0.5", "--logpath", logOf(directory), "--logappend"],
      ...["--slowms", "1000", "--setParameter", "diagnosticDataCollectionEnabled=false"],
      // Without this, its shutdown waits 15 seconds.
      ...["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"],
      ...(takesTestCommands ? ["--setParameter", "enableTestCommands=1"] : []),
    ],
    { stdio: "ignore", cwd: directory },
  );
  findable.add(child.pid as number);
  return child;
}
