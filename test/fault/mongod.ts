import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { locateMongod } from "../../src/embedded/binary.ts";
import {
  freePort,
  mongodHost,
  MongodStartError,
  signalMongod,
  startMongod,
  stopMongod,
  uriOf,
} from "../../src/embedded/mongod.ts";
import { databaseFolder } from "../support/database-folder.ts";

/** A mongod that can be killed and restarted on the same port with the same data. */
export class TestMongod {
  readonly port: number;
  readonly #binary: string;
  readonly #directory: string;
  #pid: number;

  private constructor(port: number, binary: string, directory: string, pid: number) {
    this.port = port;
    this.#binary = binary;
    this.#directory = directory;
    this.#pid = pid;
  }

  static async start(): Promise<TestMongod> {
    const { path } = await locateMongod(process.env, (line) => console.log(line));
    const directory = await databaseFolder("fault");
    for (let tries = 5; ; tries--) {
      const port = await freePort();
      try {
        return new TestMongod(port, path, directory, await start(path, directory, port));
      } catch (error) {
        // Another process took the port first.
        if (tries === 1 || !(error instanceof MongodStartError) || error.reason !== "port taken") throw error;
      }
    }
  }

  get uri(): string {
    return uriOf(this.port);
  }

  get address(): { host: string; port: number } {
    return { host: mongodHost, port: this.port };
  }

  /** SIGKILL; returns when the process is gone. */
  async kill(): Promise<void> {
    signalMongod(this.#pid, "SIGKILL");
    await stopMongod(this.#pid);
  }

  /** Lets it hang: connections stay open, and it answers nothing until `thaw`. */
  freeze(): void {
    signalMongod(this.#pid, "SIGSTOP");
  }

  thaw(): void {
    signalMongod(this.#pid, "SIGCONT");
  }

  /** Starts it again; returns when it accepts writes. */
  async restart(): Promise<void> {
    // The killed process's socket may hold the port for a moment, or another process that looks for a free port.
    for (let tries = 60; ; tries--) {
      try {
        this.#pid = await start(this.#binary, this.#directory, this.port);
        return;
      } catch (error) {
        if (tries === 1 || !(error instanceof MongodStartError)) throw error;
        await delay(250);
      }
    }
  }

  /** Ends it and removes its data. */
  async stop(): Promise<void> {
    await this.kill();
    await rm(this.#directory, { recursive: true, force: true });
  }
}

const start = (binary: string, directory: string, port: number) =>
  startMongod({
    ...{ binary, port, dbPath: directory, logPath: join(directory, "mongod.log") },
    args: ["--setParameter", "enableTestCommands=1"],
  });
