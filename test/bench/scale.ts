import { parseArgs } from "node:util";
import { batches, single } from "./bodies.ts";
import { type Load, restLoad } from "./load.ts";
import type { Served } from "./processes.ts";
import { openStage, type Stage } from "./stage.ts";

/** `npm run bench:scale -- [--seconds S] [--rounds N]`: 1, 2 and 4 instances on one database share the load. */
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

const stage = await openStage();
try {
  const instances = await Promise.all(Array.from({ length: Math.max(...instanceCounts) }, () => stage.startService()));
  console.log(
    `| workload | ${instanceCounts.map((n) => `${n} instance${n === 1 ? "" : "s"}, events/s`).join(" | ")} |`,
  );
  console.log(`|---|${instanceCounts.map(() => "--:|").join("")}`);
  for (const workload of workloads) {
    await stage.clear();
    const rates = instanceCounts.map(() => [] as number[]);
    for (let round = -1; round < rounds; round++) {
      for (const [i, count] of instanceCounts.entries()) {
        const rate = await spread(stage, instances.slice(0, count), workload, round < 0 ? 1 : seconds);
        if (round >= 0) rates[i]?.push(rate);
      }
    }
    const medians = rates.map((list) => Math.round(list.toSorted((a, b) => a - b)[list.length >> 1] ?? 0));
    console.log(`| ${workload.name} | ${medians.join(" | ")} |`);
  }
} finally {
  await stage.close();
}

/** Events a second over all instances. @throws if a request failed or an acknowledged event is not stored. */
async function spread(
  { authorization, stored }: Stage,
  instances: readonly Served[],
  { bodies, events, connections, isKeyed }: (typeof workloads)[number],
  seconds: number,
): Promise<number> {
  const before = await stored("ingest");
  const loads: Load[] = await Promise.all(
    instances.map(({ url }) => {
      const target = { url, method: "POST", path: "/api/v1/ingest/events", authorization, bodies, isKeyed } as const;
      return restLoad(target, connections / instances.length, seconds);
    }),
  );
  const sum = (of: (load: Load) => number) => loads.reduce((total, load) => total + of(load), 0);
  const missing = sum(({ requests }) => requests) * events - ((await stored("ingest")) - before);
  if (sum(({ failed }) => failed) > 0 || missing > 0)
    throw new Error(`${sum((load) => load.failed)} requests failed, ${missing} events are missing`);
  return sum((load) => (load.requests * events) / load.seconds);
}
