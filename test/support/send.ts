import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { join } from "node:path";
import { createCaller, createPoster, ownerOf } from "../../src/send/client.ts";
import { Journal } from "../../src/send/journal.ts";
import { sourceKinds } from "../../src/send/kinds.ts";
import { sendFile, type SendOptions } from "../../src/send/send.ts";

export interface Run {
  readonly process: ChildProcess;
  /** Exit code, standard output and standard error after its end. */
  readonly ended: Promise<{ code: number | null; out: string; err: string }>;
}

export interface RunOptions {
  readonly input?: string | Buffer;
  /** Whether more input may follow. */
  readonly isOpen?: boolean;
  readonly cwd?: string;
  /** Whether to answer as text instead of JSON. */
  readonly asText?: boolean;
}

/** The `ingest` command. */
export const cli = join(import.meta.dirname, "../../src/cli.ts");

/** Runs `ingest send` with the key only in its environment. */
export function runSend(key: string, url: string, args: readonly string[], options: RunOptions = {}): Run {
  const { input = "", isOpen = false, cwd, asText = false } = options;
  const child = spawn(process.execPath, [cli, "send", ...args, "--url", url, ...(asText ? [] : ["--json"])], {
    env: { ...process.env, WEPEOPLE_API_KEY: key },
    stdio: ["pipe", "pipe", "pipe"],
    ...(cwd === undefined ? {} : { cwd }),
  });
  child.stdin.on("error", () => {});
  child.stdin.write(input);
  if (!isOpen) child.stdin.end();
  let out = "";
  let err = "";
  child.stdout.on("data", (chunk) => (out += chunk));
  child.stderr.on("data", (chunk) => (err += chunk));
  return { process: child, ended: once(child, "close").then(([code]) => ({ code: code as number | null, out, err })) };
}

export type HereOptions = Partial<SendOptions>;

/** The same in this process, which saves starting one. */
export async function sendInProcess(key: string, url: string, path: string, options: HereOptions = {}) {
  const { kind = sourceKinds.event } = options;
  const call = createCaller(url, key);
  const journal = await Journal.open(`${path}.ingest-state`, `${path}.rejected.ndjson`, { defaultSourceName: path });
  try {
    return await sendFile({
      source: createReadStream(path),
      format: path.endsWith(".csv") ? "csv" : "ndjson",
      kind,
      post: createPoster(call, kind),
      owner: () => ownerOf(call, key),
      journal,
      concurrency: 4,
      giveUpSeconds: 60,
      strict: false,
      signal: new AbortController().signal,
      now: Date.now,
      onProgress: () => {},
      onTrouble: () => {},
      ...options,
    });
  } finally {
    await journal.close();
  }
}
