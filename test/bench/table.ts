import { readFile, writeFile } from "node:fs/promises";
import { arch, cpus, totalmem } from "node:os";
import { tools } from "./load.ts";
import type { Result, Timing } from "./measure.ts";
import type { Row } from "./rows.ts";
import type { Members } from "./stage.ts";

const columns = [
  "workload",
  "program",
  "requests/s",
  "events/s",
  "p50 ms",
  "p99 ms",
  "peak MB",
  "CPU s per 1 000",
  "Ingest is",
] as const;

const whole = (value: number) => Math.round(value).toLocaleString("en-US").replaceAll(",", " ");
const fine = (value: number | undefined, digits: number) => (value === undefined ? "–" : value.toFixed(digits));

export const heading = () =>
  `| ${columns.join(" | ")} |\n|${columns.map((_, i) => (i < 2 || i === 8 ? "---" : "--:")).join("|")}|`;

/** A measured row in Markdown, one line for each program. */
export function lines(row: Row, results: readonly Result[]): string[] {
  const ours = results.find(({ role }) => role === "ingest");
  return results.map((result, i) => {
    const rates = [
      whole(result.requestsPerSecond),
      row.events === 0 ? "–" : whole(result.eventsPerSecond),
      fine(result.p50Ms, 2),
      fine(result.p99Ms, 2),
      fine(result.peakMegabytes, 0),
      fine(result.cpuSecondsPer1000, 3),
    ];
    const cells = [i === 0 ? row.name : "", result.name, ...rates, verdict(row, result, ours)];
    return `| ${cells.join(" | ")} |`;
  });
}

function verdict(row: Row, result: Result, ours: Result | undefined): string {
  if (result.invalid !== undefined) return `**invalid: ${result.invalid}**`;
  if (ours === undefined || ours === result || ours.invalid !== undefined) return "";
  const ratio = ours.requestsPerSecond / result.requestsPerSecond;
  const bar = row.bars.find(({ of }) => of === result.role);
  const said = [`${ratio.toFixed(2)} ×${bar === undefined ? "" : mark(ratio >= bar.times, `at least ${bar.times}`)}`];
  if (row.isLatencyBound && result.role === "peer") {
    said.push(`p50 ${(ours.p50Ms / result.p50Ms).toFixed(2)} ×${mark(ours.p50Ms <= result.p50Ms, "at most 1")}`);
  }
  return said.join(", ");
}

const mark = (isMet: boolean, bar: string) => ` (${bar}: ${isMet ? "met" : "**not met**"})`;

/** The circumstances of the measurement. */
export function circumstances({ rounds, seconds }: Timing, mongod: string, members: Members = 1): string {
  const database = members === 1 ? `mongod ${mongod}` : `${members} members of a replica set of mongod ${mongod}`;
  return [
    `${new Date().toISOString().slice(0, 10)}, ${cpus().length} × ${cpus()[0]?.model.trim() ?? arch()}, ${whole(totalmem() / 2 ** 30)} GB, shared by the program, ${database} and the load`,
    `Node ${process.versions.node}; load by ${tools.http} and ${tools.grpc}; median of ${rounds} interleaved rounds of ${seconds} s`,
    "every write with majority and journal; logs at warn; memory and CPU are of the program's own process; CPU per 1 000 events (pings)",
  ].join("; ");
}

/** Writes a measured text into docs/performance.md, between the markers of this name. */
export async function writeSection(name: string, text: string): Promise<void> {
  const page = new URL("../../docs/performance.md", import.meta.url);
  const before = await readFile(page, "utf8");
  const begin = `<!-- ${name} -->`;
  const end = `<!-- /${name} -->`;
  const [from, to] = [before.indexOf(begin), before.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`docs/performance.md has no ${begin} … ${end}`);
  await writeFile(page, `${before.slice(0, from)}${begin}\n\n${text}\n\n${before.slice(to)}`);
}
