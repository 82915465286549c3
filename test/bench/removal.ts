import { spawn } from "node:child_process";
import { once } from "node:events";
import { Agent, request } from "node:http";
import { cpus, totalmem } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Db } from "mongodb";
import { createIdSource, timeOfId } from "../../src/ids.ts";
import { limits } from "../../src/limits.ts";
import { documentsOf, eventCollection, rowsBetween } from "../../src/store/events.ts";
import { single } from "./bodies.ts";
import { percentiles } from "./load.ts";
import { openStage, type Stage } from "./stage.ts";
import { writeSection } from "./table.ts";
import { Setup } from "../support/setup.ts";

const usage = `npm run bench:removal -- [--erase ROWS] [--purge ROWS] [--stay ROWS] [--rate N] [--calm S] [--write]
  --erase ROWS   events of the worker that is erased (default 1000000; 0: no erasure)
  --purge ROWS   events that are too old (default 5000000; 0: no purge)
  --stay ROWS    further events of the same organisation that are not too old (default 0)
  --rate N       requests of one event a second, meanwhile and before (default 300)
  --calm S       seconds of load before each removal and after it (default 60)
  --write        put the table into docs/performance.md, between its marks`;

const { values } = parseArgs({
  options: {
    erase: { type: "string", default: "1000000" },
    purge: { type: "string", default: "5000000" },
    stay: { type: "string", default: "0" },
    rate: { type: "string", default: "300" },
    calm: { type: "string", default: "60" },
    write: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const rate = Number(values.rate);
const calmSeconds = Number(values.calm);
const dayMs = 86_400_000;
const retainDays = 30;
const barTimes = 1.2;

const stage = await openStage();
try {
  const db = stage.client.db("ingest");
  const admin = new Setup(db);
  const service = await stage.startService();
  const load = startLoad(service.url, stage.authorization);
  const table = ["| removal | rows | seconds | rows/s | p50 ms calm, meanwhile | p99 ms calm, meanwhile | p99 |"];
  table.push("|---|--:|--:|--:|--:|--:|---|");
  const say = (line: string) => (table.push(line), console.log(line));
  console.log(table.join("\n"));
  for (const [name, rows, remove] of [
    ["erasure of a worker", Number(values.erase), eraseWorker],
    ["purge by age", Number(values.purge), purge],
  ] as const) {
    if (rows === 0) continue;
    const start = await remove(stage, db, admin, rows);
    await load.during(() => delay(5_000));
    const before = await load.during(() => delay(calmSeconds * 1000));
    let seconds = 0;
    const meanwhile = await load.during(async () => {
      const end = await start();
      const startedMs = performance.now();
      await end();
      seconds = (performance.now() - startedMs) / 1000;
    });
    const after = await load.during(() => delay(calmSeconds * 1000));
    const calm = typical([...before, ...after]);
    const then = typical(meanwhile);
    const ratio = then.p99Ms / calm.p99Ms;
    const both = (of: "p50Ms" | "p99Ms") => `${calm[of].toFixed(2)}, ${then[of].toFixed(2)}`;
    const bar = `${ratio.toFixed(2)} × (at most ${barTimes}: ${ratio <= barTimes ? "met" : "**not met**"})`;
    const figures = [rows, Math.round(seconds), Math.round(rows / seconds), both("p50Ms"), both("p99Ms"), bar];
    say(`| ${[name, ...figures].join(" | ")} |`);
  }
  const { failed } = await load.stop();
  if (failed > 0) throw new Error(`${failed} requests of the load failed`);
  const { version } = await stage.client.db("admin").command({ buildInfo: 1 });
  const flags = process.argv.slice(2).join(" ");
  const note = [
    new Date().toISOString().slice(0, 10),
    `${cpus().length} × ${cpus()[0]?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GB, shared by the service, mongod ${version}, the command and the load`,
    `beside ${rate} requests of one event a second`,
    "latencies from the moment at which a request was due; medians of the percentiles of each 5 seconds",
    `calm: ${calmSeconds} s before and ${calmSeconds} s after`,
  ].join("; ");
  console.log(note);
  const text = `\`npm run bench:removal${flags === "" ? "" : ` -- ${flags}`}\`: ${note}.\n\n${table.join("\n")}`;
  if (values.write) await writeSection("removal", text);
} finally {
  await stage.close();
}

/*
 * Each function prepares a removal. A call of its answer begins, and returns when the first rows go. A call of that answer
 * waits for the end.
 */

/** The command `ingest worker erase`. Of each request of the worker, a fifth of the rows is about others. */
async function eraseWorker({ uri }: Stage, db: Db, admin: Setup, rows: number) {
  const owner = await newOwner(admin, "Erasure");
  const workerIds = Array.from({ length: 5 }, () => createIdSource().next("wrk"));
  const [workerId] = workerIds;
  await db.collection("workers").insertOne({
    ...{ _id: workerId as never, organizationId: owner.organizationId, links: [], createdAt: new Date() },
  });
  await fill(db, owner, (rows * 5) / 4, (i) => (i % 5 === 0 ? workerIds[1 + ((i / 5) % 4)] : workerId) as string, 10);
  const main = new URL("../../src/cli.ts", import.meta.url).pathname;
  const env = { ...process.env, MONGODB_URI: uri, MONGODB_DB: "ingest" };
  return async () => {
    const child = spawn(process.execPath, [main, "worker", "erase", workerId as string], {
      ...{ env, stdio: ["ignore", "inherit", "inherit"] as const },
    });
    return async () => {
      const [code] = await once(child, "exit");
      if (code !== 0) throw new Error(`the erasure ended with ${code}`);
    };
  };
}

/** The service removes what is older than `retainDays`. */
async function purge(_: Stage, db: Db, admin: Setup, rows: number) {
  const owner = await newOwner(admin, "Purge");
  const workerIds = Array.from({ length: 1_000 }, () => createIdSource().next("wrk"));
  const workerOf = (i: number) => workerIds[i % workerIds.length] as string;
  await fill(db, owner, rows, workerOf, 40);
  await fill(db, owner, Number(values.stay), workerOf, 1);
  // Each read begins at the row that was the oldest before: it would pass the entries of all removed rows otherwise.
  const range = rowsBetween(owner.organizationId, undefined, new Date(Date.now() - retainDays * dayMs));
  let oldest: Buffer | undefined = range._id.$gte;
  const look = async () => {
    const filter = { ...range, _id: { ...range._id, $gte: oldest as Buffer } };
    const found = await eventCollection(db).findOne(filter, { projection: { _id: 1 }, sort: { _id: 1 } });
    oldest = found?._id;
  };
  return async () => {
    await look();
    const first = oldest;
    await admin.updateOrganization(owner.organizationId, { retainDays });
    for (; first !== undefined && oldest?.equals(first); await look()) await delay(100);
    return async () => {
      for (; oldest !== undefined; await look()) await delay(1_000);
    };
  };
}

async function newOwner(admin: Setup, name: string) {
  const { id: organizationId } = await admin.createOrganization({ name });
  const app = await admin.createApp(organizationId, "crm-hub", "CRM Hub", ["ticket.*"]);
  return { organizationId, appId: app.id };
}

/**
 * Rows as a collector sends them, in full batches: received over 28 days up to `daysAgo`, each event at a time of its own
 * in the ten minutes before. They are written directly.
 */
async function fill(
  db: Db,
  owner: { readonly organizationId: string; readonly appId: string },
  rows: number,
  workerOf: (i: number) => string,
  daysAgo: number,
): Promise<void> {
  const spanMs = 28 * dayMs;
  const startMs = Date.now() - daysAgo * dayMs - spanMs;
  let atMs = startMs;
  const ids = createIdSource(() => atMs);
  const collection = eventCollection(db);
  const size = limits.eventsMax;
  for (let filled = 0; filled < rows; filled += 4 * size) {
    atMs = startMs + Math.floor((filled / rows) * spanMs);
    await Promise.all(
      Array.from({ length: 4 }, (_, n) => {
        const requestId = ids.next("req");
        const receivedMs = timeOfId(requestId).getTime();
        const newRows = Array.from({ length: size }, (_, index) => ({
          index,
          workerId: workerOf(filled + n * size + index),
          type: "ticket.resolved",
          category: "project_management",
          timestamp: new Date(receivedMs - 1 - ((index * 7_919 + filled) % 600_000)),
          durationSeconds: 240,
          metadata: { ticket_id: `SUP-${filled + index}` },
        }));
        const documents = documentsOf({ ...owner, requestId }, newRows);
        return collection.insertMany(documents, { ordered: false, writeConcern: { w: 1 } });
      }),
    );
  }
}

/** The medians of the percentiles of each 5 seconds, so that other work on the machine spoils only some. */
function typical(latenciesMs: readonly number[]): { p50Ms: number; p99Ms: number } {
  const size = 5 * rate;
  const parts = Array.from({ length: Math.max(1, Math.floor(latenciesMs.length / size)) }, (_, i) =>
    percentiles(latenciesMs.slice(i * size, (i + 1) * size)),
  );
  const medianOf = (of: "p50Ms" | "p99Ms") => percentiles(parts.map((part) => part[of])).p50Ms;
  return { p50Ms: medianOf("p50Ms"), p99Ms: medianOf("p99Ms") };
}

/** Sends requests at fixed times, whatever the answers do. */
function startLoad(url: string, authorization: string) {
  const agent = new Agent({ keepAlive: true, maxSockets: 64 });
  const headers = { authorization, "content-type": "application/json" };
  let latenciesMs: number[] = [];
  let [sent, failed, running] = [0, 0, 0];
  const startedMs = performance.now();
  const send = (dueMs: number) => {
    running++;
    const ended = (isGood: boolean) => {
      running--;
      if (isGood) latenciesMs.push(performance.now() - dueMs);
      else failed++;
    };
    const call = request(`${url}/api/v1/ingest/events`, { method: "POST", agent, headers }, (response) => {
      response.resume().on("end", () => ended(response.statusCode === 202));
    });
    call.on("error", () => ended(false));
    call.end(single[sent % single.length]);
  };
  const timer = setInterval(() => {
    for (let dueMs; (dueMs = startedMs + (sent * 1000) / rate) <= performance.now(); sent++) send(dueMs);
  }, 1);
  return {
    /** The latencies of the requests that end while `work` runs. */
    async during(work: () => Promise<unknown>): Promise<readonly number[]> {
      latenciesMs = [];
      await work();
      return latenciesMs;
    },
    async stop() {
      clearInterval(timer);
      while (running > 0) await delay(10);
      agent.destroy();
      return { failed };
    },
  };
}
