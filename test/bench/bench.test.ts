import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, test } from "vitest";

const run = promisify(execFile);

test(
  "the benchmark measures a row: every answer is good, every acknowledged event is stored",
  { timeout: 120_000 },
  async () => {
    const script = new URL("bench.ts", import.meta.url).pathname;
    const { stdout } = await run(process.execPath, [script, "--quick", "--only", "^snapshots"]);
    const rows = stdout.split("\n").filter((line) => /^\|.*\b(Ingest|Fastify) \|/.test(line));
    expect(rows).toHaveLength(2);
    for (const row of rows) expect(row).toMatch(/\| (Ingest|Fastify) \| [1-9][\d ]* \| [1-9][\d ]* \|/);
    expect(stdout).not.toContain("invalid");
  },
);
