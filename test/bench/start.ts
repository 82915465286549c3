import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually, ServiceProcess } from "../support/processes.ts";

/**
 * Milliseconds from starting the process to its first `ready`, on its embedded database: once on an empty directory, then
 * warm (the binary cached, data there). `npm run bench:start`.
 */
const rounds = 5;
const dataDir = mkdtempSync(join(tmpdir(), "ingest-start-"));

async function startMs(): Promise<number> {
  const startedMs = performance.now();
  const service = await ServiceProcess.start({ DATA_DIR: dataDir, LOG_LEVEL: "error" });
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

try {
  const cold = await startMs();
  const warm: number[] = [];
  for (let round = 0; round < rounds; round++) warm.push(await startMs());
  warm.sort((a, b) => a - b);
  const shown = (ms: number | undefined) => `${Math.round(ms ?? 0)} ms`;
  console.log(`empty directory: ${shown(cold)}`);
  console.log(`warm: median ${shown(warm[Math.floor(rounds / 2)])}, from ${shown(warm[0])} to ${shown(warm.at(-1))}`);
} finally {
  rmSync(dataDir, { recursive: true, force: true });
}
