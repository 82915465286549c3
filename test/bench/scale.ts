import { parseArgs } from "node:util";
import { batches, single } from "./bodies.ts";
import { type Load, restLoad } from "./load.ts";
import type { Served } from "./processes.ts";
import { openStage, type Stage } from "./stage.ts";

/**
 * `npm run bench:scale -- [--seconds S] [--rounds N]`: 1, 2 and 4 instances on one database share the load. First they
 * share the cores with it, with the database and with each other. Then each has a
 * quarter of a core, which leaves room for the others on two cores.
 */
const { values } = parseArgs({
  options: { seconds: { type: "string", default: "4" }, rounds: { type: "string", default: "3" } },
});
const seconds = Number(values.seconds);
const rounds = Number(values.rounds);
const instanceCounts = [1, 2, 4];
const workloads = [
  { name: "one event, 64 connections", bodies: single, events: 1, connections: 64, isKeyed: false },
  { name: "one event with Idempotency-Key, 64 connections", bodies: single, events: 1, connections: 64, isKeyed: true },
  { name: "500 events, 8 connections", bodies: batches, events: 500, connections: 8, isKeyed: false },
];
type Workload = (typeof workloads)[number];
type Measure = (instances: readonly Served[], workload: Workload, seconds: number) => Promise<number>;

const stage = await openStage();
try {
  const instances = await Promise.all(Array.from({ length: Math.max(...instanceCounts) }, () => stage.startService()));
  const heads = instanceCounts.map((n) => `${n} instance${n === 1 ? "" : "s"}, events/s`);
  const together: Measure = (...given) => spread(stage, ...given);
  for (const [name, measure] of [
    ["all cores", together],
    ["a quarter of a core each", apart],
  ] as const) {
    console.log(`\n| ${[name, ...heads].join(" | ")} |\n|---|${instanceCounts.map(() => "--:|").join("")}`);
    for (const workload of workloads) {
      const medians = await mediansOf(instances, workload, measure);
      console.log(`| ${workload.name} | ${medians.join(" | ")} |`);
    }
  }
} finally {
  await stage.close();
}

async function mediansOf(instances: readonly Served[], workload: Workload, measure: Measure): Promise<number[]> {
  await stage.clear();
  const rates = instanceCounts.map(() => [] as number[]);
  for (let round = -1; round < rounds; round++) {
    for (const [i, count] of instanceCounts.entries()) {
      const rate = await measure(instances.slice(0, count), workload, round < 0 ? 1 : seconds);
      if (round >= 0) rates[i]?.push(rate);
    }
  }
  return rates.map((list) => Math.round(list.toSorted((a, b) => a - b)[list.length >> 1] ?? 0));
}

/** Stops each instance for three quarters of the time, in turns, as if it had a smaller core. */
async function apart(instances: readonly Served[], workload: Workload, measuredSeconds: number): Promise<number> {
  const quarterMs = 5;
  let quarter = 0;
  const signal = (name: "SIGSTOP" | "SIGCONT", at: number) => instances[at % 4]?.child.kill(name);
  const turns = setInterval(() => {
    signal("SIGSTOP", quarter);
    signal("SIGCONT", ++quarter);
  }, quarterMs);
  try {
    return await spread(stage, instances, workload, measuredSeconds);
  } finally {
    clearInterval(turns);
    for (const { child } of instances) child.kill("SIGCONT");
  }
}

/** Events a second over all instances. @throws if a request failed or an acknowledged event is not stored. */
async function spread(
  { authorization, stored }: Stage,
  instances: readonly Served[],
  { bodies, events, connections, isKeyed }: Workload,
  measuredSeconds: number,
): Promise<number> {
  const before = await stored("ingest");
  const loads: Load[] = await Promise.all(
    instances.map(({ url }) => {
      const target = { url, method: "POST", path: "/api/v1/ingest/events", authorization, bodies, isKeyed } as const;
      return restLoad(target, connections / instances.length, measuredSeconds);
    }),
  );
  const sum = (of: (load: Load) => number) => loads.reduce((total, load) => total + of(load), 0);
  const missing = sum(({ requests }) => requests) * events - ((await stored("ingest")) - before);
  if (sum(({ failed }) => failed) > 0 || missing > 0)
    throw new Error(`${sum((load) => load.failed)} requests failed, ${missing} events are missing`);
  return sum((load) => (load.requests * events) / load.seconds);
}
