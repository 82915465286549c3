import { seeded } from "./crash.ts";
import { type Fault, failover, faults, type Stretch } from "./failover.ts";
import { ReplicaSet } from "./replica-set.ts";
import { report, runLine, table } from "./report.ts";
import { seedOf } from "../support/seed.ts";

/**
 * `npm run test:failover [seed]`: the long run. It writes its table to README.md; the exit code says whether all was
 * exact.
 */
const seed = seedOf(process.argv[2]);
const rounds = Number(process.env.ROUNDS ?? 8);
console.log(`seed ${seed}`);
const set = await ReplicaSet.start({ electionTimeoutMs: 1_000, isBreakable: true });
const random = seeded(seed);
const round = () =>
  (Object.keys(faults) as Fault[]).map((fault) => [random(), fault] as const).sort(([a], [b]) => a - b);
const result = await failover({
  ...{ set, seed, instances: 2, clients: 8, calmMs: 10_000, probeMs: 20, rollingRestarts: 2 },
  faults: Array.from({ length: rounds }, round).flatMap((one) => one.map(([, fault]) => fault)),
  report: (line) => console.log(line),
}).finally(() => set.stop());

const { problems, stretches } = result;
for (const problem of problems.slice(0, 50)) console.log(problem);
if (problems.length > 50) console.log(`… and ${problems.length - 50} more`);
// Without a rollback the run proves nothing.
if (result.rollbacks === 0) console.log("no rollback was seen");

const median = (values: readonly number[]) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;
const names = [...new Set(stretches.map(({ name }) => name))];
const rowOf = (name: string): (string | number)[] => {
  const ones = stretches.filter((one) => one.name === name);
  const of = (value: (one: Stretch) => number) => ones.map(value);
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const both = (values: readonly number[]) => `${Math.round(median(values))} / ${Math.round(Math.max(...values))}`;
  const revocations = ones.flatMap(({ revocationMs }) => revocationMs ?? []);
  return [
    ...[name, ones.length, `${sum(of((one) => one.tries))} / ${sum(of((one) => one.failedTries))}`],
    ...[both(of((one) => one.serviceGapMs)), both(of((one) => one.driverGapMs))],
    ...[revocations.length === 0 ? "–" : both(revocations), median(of((one) => one.passedPerSecond)).toFixed(1)],
  ];
};
const head = [
  ...["what happens", "times", "tries / failed", "gap, ms: median / longest", "a bare driver's", "revocation, ms"],
  "of a limit of 20/s passed",
];
const counts: [string, string | number][] = [
  ["Rollbacks of a member", result.rollbacks],
  ["Requests answered, over REST and gRPC", result.answered],
  ["Of these, with event ids beside an Idempotency-Key", result.namedWithKey],
  ["Of these, with event ids and no Idempotency-Key", result.namedWithoutKey],
  ["Replays, each compared to the byte", result.replays],
  ["Events and snapshots acknowledged", result.acknowledgedEvents],
  ["Rows in the database", result.rows],
  ["**Lost**: acknowledged and not stored", result.lost],
  ["**Doubled**: stored more than once", result.doubled],
  ["Rows without a request", result.unasked],
  ["Cards that do not show the newest snapshot", result.wrongCards],
  ["Lines that `ingest send` stored, each once", result.sentLines],
  ["Rows that WatchEvents reported, each once", result.watchedRows],
  ["Rows that `ingest tail` reported, each once", result.tailedRows],
  ["Quota charged at the end", result.quotaBefore],
  ["Quota charged after the count", result.quotaAfter],
  ["Other errors", problems.length],
];
const text = `## A replica set of three

${runLine()}; seed ${seed}, ${result.seconds} s; elections after 1 s of silence

${table(head, names.map(rowOf))}

${table(["What", "Count"], counts)}`;
console.log(text);
report("failover", text);
process.exit(problems.length === 0 && result.rollbacks > 0 ? 0 : 1);
