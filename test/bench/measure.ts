import type { Load } from "./load.ts";
import type { Contestant, Role, Row } from "./rows.ts";
import type { Stage } from "./stage.ts";

/** One contestant's round of one row. */
export interface Round extends Load {
  readonly requestsPerSecond: number;
  readonly eventsPerSecond: number;
  /** Of the contestant's process alone. */
  readonly peakMegabytes: number | undefined;
  /** Of the contestant's process alone; undefined for rows without events. */
  readonly cpuSecondsPer1000: number | undefined;
  /** Why the round proves nothing. */
  readonly invalid?: string;
}

export interface Result extends Round {
  readonly role: Role;
  readonly name: string;
}

export interface Timing {
  readonly rounds: number;
  readonly seconds: number;
  /** Seconds before the first round that are not measured. */
  readonly warmSeconds: number;
}

/** Measures a row. The contestants' rounds alternate (A B A B), so that a disturbance hits all of them. */
export async function measureRow(
  stage: Pick<Stage, "clear" | "stored">,
  row: Row,
  { rounds, seconds, warmSeconds }: Timing,
): Promise<Result[]> {
  await stage.clear();
  for (const { run } of row.contestants) await run(warmSeconds);
  const seen = new Map<Contestant, Round[]>(row.contestants.map((one) => [one, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [one, results] of seen) results.push(await measureRound(stage, row, one, seconds));
  }
  return [...seen].map(([{ role, name }, results]) => ({ role, name, ...medianOf(results) }));
}

async function measureRound(
  stage: Pick<Stage, "stored">,
  row: Row,
  { served, database, run }: Contestant,
  seconds: number,
): Promise<Round> {
  const storedBefore = database === undefined ? 0 : await stage.stored(database);
  await served.resetPeak();
  const cpuBefore = await served.cpuSeconds();
  const load = await run(seconds);
  const cpuAfter = await served.cpuSeconds();
  const peakMegabytes = await served.peakMegabytes();
  const stored = database === undefined ? 0 : (await stage.stored(database)) - storedBefore;
  const events = load.requests * row.events;
  const units = row.events === 0 ? load.requests : events;
  const cpuSeconds = cpuAfter === undefined || cpuBefore === undefined ? undefined : cpuAfter - cpuBefore;
  const invalid = whyInvalid(load, database === undefined ? undefined : events - stored);
  return {
    ...load,
    requestsPerSecond: load.requests / load.seconds,
    eventsPerSecond: events / load.seconds,
    peakMegabytes,
    cpuSecondsPer1000: cpuSeconds === undefined || units === 0 ? undefined : (cpuSeconds / units) * 1000,
    ...(invalid === undefined ? {} : { invalid }),
  };
}

/** All answers must be good, and all acknowledged events must be stored. */
function whyInvalid({ requests, failed }: Load, missing = 0): string | undefined {
  if (failed > 0) return `${failed} requests failed`;
  if (requests === 0) return "no request was answered";
  return missing > 0 ? `${missing} acknowledged events are not stored` : undefined;
}

/** The median round by rate; one invalid round makes the whole invalid. */
function medianOf(rounds: readonly Round[]): Round {
  const invalid = rounds.find((round) => round.invalid !== undefined);
  const sorted = rounds.toSorted((a, b) => a.requestsPerSecond - b.requestsPerSecond);
  return invalid ?? (sorted[sorted.length >> 1] as Round);
}
