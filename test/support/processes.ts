import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { listeningUrl, messageOf, operatorsUrl } from "./announced.ts";

/** A minute, because a slow machine is no failure. */
const patienceMs = 60_000;

/**
 * The error of a start on a stalled machine: the service waits only two seconds for its database. Helpers then start
 * again, at most `startsMax` times. A database that refuses connections is away, which is another case.
 */
export const stalledStart = /The database cannot be reached: (?!.*ECONNREFUSED)/;
export const startsMax = 3;

const path = (file: string) => fileURLToPath(new URL(`../../${file}`, import.meta.url));

type Environment = Readonly<Record<string, string | undefined>>;

/** The environment of a child: this process's without the service's variables, plus `env`. */
function environment(env: Environment): NodeJS.ProcessEnv {
  const names = ["MONGODB_URI", "MONGODB_DB", "DATA_DIR", "PUBLIC_URL", "TLS_CERT", "TLS_KEY", "LOG_LEVEL", "EMBEDDED"];
  return { ...process.env, ...Object.fromEntries(names.map((name) => [name, undefined])), ...env };
}

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `ingest` with these arguments as a process. It gets the input, if any, through a socket. */
export async function runIngest(args: readonly string[], env: Environment, input?: string): Promise<Finished> {
  for (let starts = 1; ; starts++) {
    const finished = await runOnce(args, env, input);
    if (starts === startsMax || !stalledStart.test(finished.stderr)) return finished;
  }
}

async function runOnce(args: readonly string[], env: Environment, input?: string): Promise<Finished> {
  const child = spawn(process.execPath, [path("src/cli.ts"), ...args], {
    env: environment(env),
    stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
  });
  child.stdin?.end(input);
  let stdout = "";
  let stderr = "";
  child.stdout?.on("data", (chunk: Buffer) => (stdout += String(chunk)));
  child.stderr?.on("data", (chunk: Buffer) => (stderr += String(chunk)));
  const [code] = await once(child, "close");
  return { code, stdout, stderr };
}

/** The service as a process. */
export class ServiceProcess {
  readonly child: ChildProcess;
  /** Its output so far. */
  readonly lines: string[] = [];
  /** The same, with the message of each JSON line. */
  readonly #messages: string[] = [];
  readonly #exit: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;

  constructor(env: Environment, nodeArgs: readonly string[] = []) {
    this.child = spawn(process.execPath, [...nodeArgs, path("src/main.ts")], {
      env: environment({ PORT: "0", HOST: "127.0.0.1", ...env }),
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const input of [this.child.stdout, this.child.stderr]) {
      createInterface({ input: input as NodeJS.ReadableStream }).on("line", (line) => {
        this.lines.push(line);
        this.#messages.push(messageOf(line));
      });
    }
    this.#exit = once(this.child, "close").then(([code, signal]) => ({ code, signal }));
  }

  /** Starts it and waits until it listens. @throws with its output if it ends first. */
  static async start(env: Environment, nodeArgs: readonly string[] = []): Promise<ServiceProcess> {
    for (let starts = 1; ; starts++) {
      const service = new ServiceProcess(env, nodeArgs);
      try {
        await service.said(/^Listening on /);
        return service;
      } catch (error) {
        service.child.kill("SIGKILL");
        if (starts === startsMax || !stalledStart.test((error as Error).message)) throw error;
      }
    }
  }

  get url(): string {
    return this.lines.map(listeningUrl).find(Boolean) as string;
  }

  /** Address for operators. */
  get adminUrl(): string {
    return this.lines.map(operatorsUrl).find(Boolean) as string;
  }

  /** Waits for a line of its output. @throws with its output if it ends first, or after a minute. */
  async said(pattern: RegExp): Promise<RegExpExecArray> {
    const deadline = performance.now() + patienceMs;
    for (;;) {
      const match = this.#line(pattern);
      if (match !== undefined) return match;
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        await this.#exit;
        const last = this.#line(pattern);
        if (last !== undefined) return last;
        throw new Error(`the service ended and never said ${pattern}:\n${this.lines.join("\n")}`);
      }
      if (performance.now() > deadline) throw new Error(`the service never said ${pattern}:\n${this.lines.join("\n")}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** Sends a signal and waits for the end. */
  async end(signal: NodeJS.Signals = "SIGTERM"): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
    this.child.kill(signal);
    return this.ended();
  }

  /** Waits for its end. @throws with its output after a minute. */
  async ended(): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
    const patience = new AbortController();
    const late = delay(patienceMs, undefined, { signal: patience.signal }).then(() => {
      throw new Error(`the service does not end:\n${this.lines.join("\n")}`);
    });
    try {
      return await Promise.race([this.#exit, late]);
    } finally {
      patience.abort();
      late.catch(() => {});
    }
  }

  #line(pattern: RegExp): RegExpExecArray | undefined {
    for (const message of this.#messages) {
      const match = pattern.exec(message);
      if (match !== null) return match;
    }
    return undefined;
  }
}

/**
 * Retries until the answer is truthy. @throws after `secondsMax`, which is generous, because a slow machine is no
 * failure.
 */
export async function eventually<T>(
  ask: () => T | Promise<T>,
  what: string,
  secondsMax = 30,
  everyMs = 20,
): Promise<Exclude<T, undefined | false | null>> {
  const deadline = performance.now() + secondsMax * 1000;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined && answer !== false && answer !== null) {
      return answer as Exclude<T, undefined | false | null>;
    }
    if (performance.now() > deadline) throw new Error(`not within ${secondsMax} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}
