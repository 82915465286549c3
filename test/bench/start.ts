import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually, ServiceProcess } from "../support/processes.ts";
import { startFlags } from "./stage.ts";

export interface Starts {
  /** In an empty directory. */
  readonly coldMs: number;
  /** With a cached binary and existing data; the shortest first. */
  readonly warmMs: readonly number[];
}

/** Milliseconds from the start of the process to its first `ready`, with its embedded database. */
export async function measureStarts(rounds: number): Promise<Starts> {
  const dataDir = mkdtempSync(join(tmpdir(), "ingest-start-"));
  try {
    const coldMs = await startMs(dataDir);
    const warmMs: number[] = [];
    for (let round = 0; round < rounds; round++) warmMs.push(await startMs(dataDir));
    return { coldMs, warmMs: warmMs.sort((a, b) => a - b) };
  } finally {
    rmSync(dataDir, { recursive: true, force: true });
  }
}

async function startMs(dataDir: string): Promise<number> {
  const startedMs = performance.now();
  const service = await ServiceProcess.start({ DATA_DIR: dataDir, LOG_LEVEL: "error" }, startFlags);
  const isReady = () =>
    fetch(`${service.url}/readyz`).then(
      ({ status }) => status === 200,
      () => false,
    );
  await eventually(isReady, "the service is ready");
  const ms = performance.now() - startedMs;
  await service.end();
  return ms;
}

/** `npm run bench:start`: the times to start, cold and warm. */
if (import.meta.main) {
  const { coldMs, warmMs } = await measureStarts(5);
  const shown = (ms: number | undefined) => `${Math.round(ms ?? 0)} ms`;
  console.log(`empty directory: ${shown(coldMs)}`);
  console.log(`warm: median ${shown(warmMs[warmMs.length >> 1])}, from ${shown(warmMs[0])} to ${shown(warmMs.at(-1))}`);
}
