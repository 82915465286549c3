import { parseArgs } from "node:util";
import type { Db } from "mongodb";
import { limits } from "../../src/limits.ts";
import { createIdSource, timeOfId } from "../../src/ids.ts";
import { apps } from "../../src/store/apps.ts";
import { keys } from "../../src/store/keys.ts";
import { documentsOf, eventCollection, type EventRow, rowOf } from "../../src/store/events.ts";
import { organizations } from "../../src/store/organizations.ts";
import { batches, single } from "./bodies.ts";
import { restLoad } from "./load.ts";
import type { Served } from "./processes.ts";
import { openStage, type Stage } from "./stage.ts";
import { measureStarts } from "./start.ts";

/**
 * `npm run bench:stored -- [--events N] [--rounds N]`: figures that a comparison with peers does not show. It compares
 * the throughput with 5 million stored events and with those of the load alone, in turns. It measures the memory under
 * 512 connections, and the start on a warm embedded database. The stored events are spread over the month and over
 * workers of the same organisation.
 */
const { values } = parseArgs({
  options: { events: { type: "string", default: "5000000" }, rounds: { type: "string", default: "5" } },
});
const count = Number(values.events);
const rounds = Number(values.rounds);
const mark = (isMet: boolean) => (isMet ? "met" : "not met");

const started = medianOf((await measureStarts(3)).warmMs) / 1000;
console.log(`start on a warm embedded database: ready in ${started.toFixed(2)} s (at most 2: ${mark(started <= 2)})`);
const stage = await openStage();
try {
  const [few, many] = [await stage.startService(), await startWithTenant(stage, "stored")];
  await few.resetPeak();
  await loadOf(few, single, 512, 10);
  const megabytes = (await few.peakMegabytes()) ?? 0;
  console.log(`memory under 512 connections: ${megabytes.toFixed(0)} MB at most (below 250: ${mark(megabytes < 250)})`);

  await loadOf(many, single, 64, 1);
  await fill(stage.client.db("stored"));
  for (const [name, bodies, connections] of [
    ["one event, 64 connections", single, 64],
    ["500 events, 8 connections", batches, 8],
  ] as const) {
    const rates: Record<"few" | "many", number[]> = { few: [], many: [] };
    // Once, so that both have collections in use.
    await stage.clear();
    for (let round = -1; round < rounds; round++) {
      await loadOf(few, bodies, connections, 1);
      await loadOf(many, bodies, connections, 1);
      const rate = {
        few: await loadOf(few, bodies, connections, 3),
        many: await loadOf(many, bodies, connections, 3),
      };
      if (round < 0) continue;
      rates.few.push(rate.few);
      rates.many.push(rate.many);
    }
    const [alone, stored] = [medianOf(rates.few), medianOf(rates.many)];
    const ratio = stored / alone;
    console.log(
      `${name}: ${alone.toFixed(0)} requests/s with at most ${await stage.stored("ingest")} events stored, ${stored.toFixed(0)} with ${count} more: ${ratio.toFixed(2)} (at least 0.85: ${mark(ratio >= 0.85)})`,
    );
  }
} finally {
  await stage.close();
}

/** The service on a new database, with the stage's tenant. */
async function startWithTenant({ client, startService }: Stage, database: string): Promise<Served> {
  const served = await startService({ MONGODB_DB: database });
  for (const { name } of [organizations, apps, keys]) {
    const documents = await client.db("ingest").collection(name).find().toArray();
    await client.db(database).collection(name).insertMany(documents);
  }
  return served;
}

/** Requests a second. @throws if one failed. */
async function loadOf(
  { url }: Served,
  bodies: readonly string[],
  connections: number,
  seconds: number,
): Promise<number> {
  const target = { url, method: "POST", path: "/api/v1/ingest/events", authorization: stage.authorization } as const;
  const load = await restLoad({ ...target, bodies }, connections, seconds);
  if (load.failed > 0) throw new Error(`${load.failed} requests failed`);
  return load.requests / load.seconds;
}

function medianOf(list: readonly number[]): number {
  return list.toSorted((a, b) => a - b)[list.length >> 1] as number;
}

/** Rows like the service's own, on days of another month, written directly. */
async function fill(db: Db): Promise<void> {
  const collection = eventCollection(db);
  const samples = (await collection.find().limit(limits.eventsMax).toArray()).map(rowOf);
  if (samples.length === 0) throw new Error("the load has stored nothing to take as an example");
  const spanMs = 28 * 86_400_000;
  const startMs = Date.now() - spanMs - 86_400_000;
  let atMs = startMs;
  const ids = createIdSource(() => atMs);
  for (let filled = 0; filled < count; filled += 8 * samples.length) {
    atMs = startMs + Math.floor((filled / count) * spanMs);
    await Promise.all(
      Array.from({ length: 8 }, () => {
        const owner = { ...(samples[0] as EventRow), requestId: ids.next("req") };
        const rows = samples.map((row, index) => ({ ...row, index, timestamp: timeOfId(owner.requestId) }));
        return collection.insertMany(documentsOf(owner, rows), { ordered: false, writeConcern: { w: 1 } });
      }),
    );
  }
}
