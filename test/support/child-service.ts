import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { listeningUrl, operatorsUrl } from "./announced.ts";

/** The service as users run it: as a process. */
export interface ChildService {
  readonly pid: number;
  readonly port: number;
  readonly url: string;
  /** Address for operators. */
  readonly adminUrl: string;
  /** Undefined while it runs. */
  readonly exit: () => { code: number | null; signal: NodeJS.Signals | null } | undefined;
  /** The last lines of its output. */
  readonly tail: () => string;
  /** Sends SIGTERM, waits, and returns the exit code. */
  stop(): Promise<number | null>;
}

const main = new URL("../../src/main.ts", import.meta.url).pathname;
const tailLinesMax = 40;

/** Starts the service on a free port and waits until it listens. @throws if it ends before that. */
export async function startChild(
  env: Readonly<Record<string, string>>,
  nodeFlags: readonly string[] = [],
): Promise<ChildService> {
  const child: ChildProcess = spawn(process.execPath, [...nodeFlags, main], {
    env: {
      PATH: process.env.PATH,
      NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE,
      PORT: "0",
      HOST: "127.0.0.1",
      LOG_LEVEL: "error",
      ...env,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const lines: string[] = [];
  let exit: { code: number | null; signal: NodeJS.Signals | null } | undefined;
  const exited = once(child, "exit").then(([code, signal]) => (exit = { code, signal }));
  let adminUrl: string | undefined;
  const url = await new Promise<string>((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream as NodeJS.ReadableStream }).on("line", (line) => {
        lines.push(line);
        if (lines.length > tailLinesMax) lines.shift();
        adminUrl ??= operatorsUrl(line);
        const listening = listeningUrl(line);
        if (listening !== undefined) resolve(listening.replace("127.0.0.1", "localhost"));
      });
    }
    void exited.then(() => reject(new Error(`the service ended before it listened:\n${lines.join("\n")}`)));
  });
  return {
    pid: child.pid as number,
    port: Number(new URL(url).port),
    url,
    // Printed before the other one.
    adminUrl: adminUrl as string,
    exit: () => exit,
    tail: () => lines.join("\n"),
    async stop() {
      child.kill("SIGTERM");
      return (await exited).code;
    },
  };
}

/** Whether this system has the facts for the functions below. */
export const hasProc = existsSync("/proc/self/status");

/** The peak memory of a process since the last reset, in megabytes. */
export function peakMegabytes(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024;
}

/** Begins a new peak at the present use. */
export function resetPeak(pid: number): void {
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
}

/** Number of sockets that a process has open. */
export function socketsOf(pid: number): number {
  let sockets = 0;
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      if (readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith("socket:")) sockets++;
    } catch {
      // It was closed in between.
    }
  }
  return sockets;
}
