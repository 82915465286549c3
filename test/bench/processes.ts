import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { listeningUrl } from "../support/announced.ts";

/** A serving child process, and its costs. */
export class Served {
  readonly child: ChildProcess;
  readonly url: string;

  private constructor(child: ChildProcess, url: string) {
    this.child = child;
    this.url = url;
  }

  /** Runs a Node program and waits until it says `Listening on <url>`. @throws with its output if it ends first. */
  static async start(script: string, env: Record<string, string>, args: readonly string[] = []): Promise<Served> {
    const child = spawn(process.execPath, [...args, script], {
      env: { ...process.env, NODE_ENV: "production", ...env },
      stdio: ["ignore", "pipe", "pipe", "ipc"],
    });
    const said: string[] = [];
    child.stderr?.on("data", (chunk: Buffer) => said.push(String(chunk)));
    const listening = new Promise<string>((resolve, reject) => {
      createInterface({ input: child.stdout as NodeJS.ReadableStream }).on("line", (line) => {
        said.push(line);
        const url = listeningUrl(line);
        if (url !== undefined) resolve(url);
      });
      child.once("exit", (code) => reject(new Error(`${script} ended with ${code}:\n${said.join("\n")}`)));
    });
    return new Served(child, await listening);
  }

  /** Sends a message and waits for the answer. */
  async ask<Reply>(request: object): Promise<Reply> {
    this.child.send(request);
    const [reply] = await once(this.child, "message");
    return reply as Reply;
  }

  async stop(): Promise<void> {
    if (this.child.exitCode !== null) return;
    this.child.kill("SIGTERM");
    await once(this.child, "exit");
  }

  /** CPU time so far, in seconds; undefined if the system does not tell. */
  async cpuSeconds(): Promise<number | undefined> {
    return cpuSecondsOf(this.child.pid as number);
  }

  /** Begins a new measurement of peak memory. */
  async resetPeak(): Promise<void> {
    await writeFile(`/proc/${this.child.pid}/clear_refs`, "5").catch(() => {});
  }

  /** Peak of resident memory since `resetPeak`, in megabytes; undefined if the system does not tell. */
  async peakMegabytes(): Promise<number | undefined> {
    const status = await readFile(`/proc/${this.child.pid}/status`, "utf8").catch(() => "");
    const kilobytes = /^VmHWM:\s+(\d+)/m.exec(status)?.[1];
    return kilobytes === undefined ? undefined : Number(kilobytes) / 1024;
  }
}

const ticksPerSecond = 100;

export async function cpuSecondsOf(pid: number): Promise<number | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields === undefined ? undefined : (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}
