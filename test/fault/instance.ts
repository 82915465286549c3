import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { listeningUrl } from "../support/announced.ts";

/** A running service in a separate process. */
export interface Instance {
  readonly url: string;
  readonly kill: () => Promise<void>;
}

/** Starts the service on a free port; returns when it listens. It retries while its database is away. */
export async function startInstance(env: Readonly<Record<string, string>>): Promise<Instance> {
  for (;;) {
    const child = spawn(process.execPath, ["src/main.ts"], {
      env: {
        PATH: process.env.PATH,
        NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE,
        PORT: "0",
        HOST: "127.0.0.1",
        LOG_LEVEL: "silent",
        ...env,
      },
      stdio: ["ignore", "pipe", "inherit"],
    });
    const url = await listening(child);
    if (url !== undefined) return { url, kill: () => kill(child) };
  }
}

async function listening(child: ChildProcess): Promise<string | undefined> {
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    const url = listeningUrl(line);
    if (url !== undefined) {
      child.stdout?.resume();
      return url;
    }
  }
  return undefined;
}

/** SIGKILL; returns when the process is gone. */
async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}
