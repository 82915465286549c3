import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";
import { attacks } from "./attacks.ts";
import { calmTimesMax, peakMegabytesMax, runHostile } from "./hostile.ts";
import { report, runLine, table } from "./report.ts";

/**
 * `npm run test:hostile [WORD…]`: every attack at full size, or those whose name contains one of the words. A complete
 * run writes the table of README.md.
 */
const words = process.argv.slice(2).map((word) => word.toLowerCase());
const chosen = attacks.filter(
  ({ name }) => words.length === 0 || words.some((word) => name.toLowerCase().includes(word)),
);
const connectionsWanted = 5_000;
// This process and the service have the same limit, and both need some files for other things.
const files = (process.report.getReport() as { userLimits?: { open_files?: { soft: number | string } } }).userLimits;
const filesMax = Number(files?.open_files?.soft) || Number.POSITIVE_INFINITY;
const connections = Math.max(100, Math.min(connectionsWanted, filesMax - 500));
const scaled = connections < connectionsWanted ? ` (not ${connectionsWanted}: ${filesMax} open files are allowed)` : "";

const filling = new Set(attacks.filter(({ fillsMachine }) => fillsMachine).map(({ name }) => name));

const dataDir = await mkdtemp(join(tmpdir(), "ingest-hostile-"));
const database = await openEmbeddedDatabase({ dataDir, env: process.env, report: console.log });
try {
  const scale = { connections, floodMs: 5_000, untilCut: true, calmMs: 2_000 };
  console.log(`${chosen.length} attacks with up to ${connections} connections${scaled}`);
  const run = await runHostile(database.uri, chosen, scale, console.log);
  const verdict =
    run.problems.length === 0
      ? "The service was the same process throughout, answered every request of the good caller, held no connection more than before at the end, and stopped cleanly."
      : `Problems: ${run.problems.join("; ")}`;
  const text = `## Hostile callers

${runLine()}. Up to ${connections} connections at once${scaled}. Peak memory of the service ${Math.round(run.peakMegabytes)} MB; the run fails above ${peakMegabytesMax} MB. The good caller is another organisation, in a process of its own; its calm figures are taken just before each attack. The run fails when its median is more than ${calmTimesMax} times the calm one, except where the attacker's own work fills the machine (marked \\*), when a request of it fails, or when \`/readyz\` does not answer 200. ${verdict}

${table(
  [
    "attack",
    "what was sent and what became of it",
    "peak MB",
    "good caller: requests",
    "calm p50 ms",
    "p50 ms",
    "max ms",
  ],
  run.attacks.map((one) => [
    filling.has(one.name) ? `${one.name} \\*` : one.name,
    one.outcome,
    Number.isNaN(one.peakMegabytes) ? "–" : Math.round(one.peakMegabytes),
    one.attacked.requests,
    one.calm?.p50Ms.toFixed(1) ?? "–",
    one.attacked.p50Ms.toFixed(1),
    Math.round(one.attacked.maxMs),
  ]),
)}`;
  console.log(`\n${text}`);
  if (chosen.length === attacks.length) report("hostile", text);
  process.exitCode = run.problems.length === 0 ? 0 : 1;
} finally {
  await database.close();
  await rm(dataDir, { recursive: true, force: true });
}
