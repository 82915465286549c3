import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { limits } from "../../src/limits.ts";
import { createIdSource, eventIds } from "../../src/ids.ts";
import { batches, single } from "./bodies.ts";
import { type Load, restLoad } from "./load.ts";
import { Served } from "./processes.ts";
import { openStage, type Stage, startFlags } from "./stage.ts";

/**
 * `npm run bench:stored -- [--events N] [--rounds N]`: what does not show in a comparison with peers. Throughput with
 * 5 million events stored against that with none, memory under 512 connections, and the time to start on a warm embedded
 * database. Stored events are spread over the month and over workers of the same organisation.
 */
const { values } = parseArgs({
  options: { events: { type: "string", default: "5000000" }, rounds: { type: "string", default: "5" } },
});
const count = Number(values.events);
const rounds = Number(values.rounds);
const mark = (isMet: boolean) => (isMet ? "met" : "not met");

const started = await startSeconds();
console.log(`start on a warm embedded database: ready in ${started.toFixed(2)} s (at most 2: ${mark(started <= 2)})`);
const stage = await openStage();
try {
  const service = await stage.startService();
  const target = {
    url: service.url,
    method: "POST",
    path: "/api/v1/ingest/events",
    authorization: stage.authorization,
  } as const;
  const one = () => restLoad({ ...target, bodies: single }, 64, 3);
  const batch = () => restLoad({ ...target, bodies: batches }, 8, 3);
  await service.resetPeak();
  await restLoad({ ...target, bodies: single }, 512, 10);
  const megabytes = (await service.peakMegabytes()) ?? 0;
  console.log(`memory under 512 connections: ${megabytes.toFixed(0)} MB at most (below 250: ${mark(megabytes < 250)})`);

  const none = { one: await medianOf(one), batch: await medianOf(batch) };
  await fill(stage);
  const many = { one: await medianOf(one), batch: await medianOf(batch) };
  for (const kind of ["one", "batch"] as const) {
    const ratio = many[kind] / none[kind];
    const name = kind === "one" ? "one event, 64 connections" : "500 events, 8 connections";
    console.log(
      `${name}: ${none[kind].toFixed(0)} requests/s with none stored, ${many[kind].toFixed(0)} with ${count}: ${ratio.toFixed(2)} (at least 0.85: ${mark(ratio >= 0.85)})`,
    );
  }
} finally {
  await stage.close();
}

async function medianOf(run: () => Promise<Load>): Promise<number> {
  const rates: number[] = [];
  await run();
  for (let round = 0; round < rounds; round++) {
    const load = await run();
    if (load.failed > 0) throw new Error(`${load.failed} requests failed`);
    rates.push(load.requests / load.seconds);
  }
  return rates.toSorted((a, b) => a - b)[rounds >> 1] as number;
}

/** Rows like the service's own, of another month's days, written past the service. */
async function fill({ client }: Stage): Promise<void> {
  const collection = client.db("ingest").collection<{ _id: string; timestamp: Date; receivedAt: Date }>("events");
  const samples = await collection.find().limit(limits.eventsMax).toArray();
  if (samples.length === 0) throw new Error("the load has stored nothing to take as an example");
  const spanMs = 28 * 86_400_000;
  const startMs = Date.now() - spanMs - 86_400_000;
  let atMs = startMs;
  const ids = createIdSource(() => atMs);
  for (let filled = 0; filled < count; filled += 8 * samples.length) {
    atMs = startMs + Math.floor((filled / count) * spanMs);
    await Promise.all(
      Array.from({ length: 8 }, () => {
        const requestId = ids.next("req");
        const idOf = eventIds(requestId);
        const at = new Date(atMs);
        const rows = samples.map((row, i) => ({ ...row, _id: idOf(i), requestId, timestamp: at, receivedAt: at }));
        return collection.insertMany(rows, { ordered: false, writeConcern: { w: 1 } });
      }),
    );
  }
}

/** From the process's start to the first good answer of /readyz, in seconds, on data that is there already. */
async function startSeconds(): Promise<number> {
  const dataDir = await mkdtemp(join(tmpdir(), "ingest-bench-start-"));
  const script = new URL("../../src/main.ts", import.meta.url).pathname;
  const env = { DATA_DIR: dataDir, PORT: "0", HOST: "127.0.0.1", LOG_LEVEL: "warn" };
  const seconds: number[] = [];
  try {
    for (let start = 0; start < 4; start++) {
      const beginMs = performance.now();
      const service = await Served.start(script, env, startFlags);
      while (!(await fetch(`${service.url}/readyz`)).ok);
      seconds.push((performance.now() - beginMs) / 1000);
      await service.stop();
    }
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
  // The first one made the database.
  return seconds.slice(1).toSorted((a, b) => a - b)[1] as number;
}
