import { crash } from "./crash.ts";
import { report, runLine, table } from "./report.ts";
import { seedOf } from "../support/seed.ts";

/**
 * `npm run test:crash [seed]`: the long run. It writes its table to this folder's README.md; the exit code says whether
 * all was exact.
 */
const seed = seedOf(process.argv[2]);
console.log(`seed ${seed}`);
const result = await crash({
  ...{ seed, instances: 3, clients: 12, instanceKills: 100, databaseKills: 20, pauseMsMax: 1_000 },
  report: (line) => console.log(line),
});
const { problems } = result;
for (const problem of problems.slice(0, 50)) console.log(problem);
if (problems.length > 50) console.log(`… and ${problems.length - 50} more`);
console.log(
  `Lost ${result.lost}, doubled ${result.doubled}; ${result.unasked} unasked, ${result.wrongCards} wrong cards, ${problems.length} problems; ${result.seconds} s`,
);
const rows: [string, string | number][] = [
  ["SIGKILLs of a service instance", result.instanceKills],
  ["SIGKILLs of mongod", result.databaseKills],
  ["Requests answered, over REST and gRPC", result.answered],
  ["Of these, with event ids beside an Idempotency-Key", result.namedWithKey],
  ["Of these, with event ids and no Idempotency-Key", result.namedWithoutKey],
  ["Tries, replays included", result.tries],
  ["Requests refused for the quota", result.refused],
  ["Replays, each compared to the byte", result.replays],
  ["Events and snapshots acknowledged", result.acknowledgedEvents],
  ["Rows in the database", result.rows],
  ["**Lost**: acknowledged and not stored", result.lost],
  ["**Doubled**: stored more than once", result.doubled],
  ["Rows without a request", result.unasked],
  ["Cards that do not show the newest snapshot", result.wrongCards],
  ["Quota charged at the end", result.quotaBefore],
  ["Quota charged after the count", result.quotaAfter],
  ["Other errors", problems.length],
];
report("crash", `${runLine()}; seed ${seed}, ${result.seconds} s\n\n${table(["What", "Count"], rows)}`);
process.exit(problems.length === 0 ? 0 : 1);
