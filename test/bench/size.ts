import { parseArgs } from "node:util";
import type { Db } from "mongodb";
import { createIdSource, timeOfId } from "../../src/ids.ts";
import { limits } from "../../src/limits.ts";
import { documentsOf, eventCollection, type EventRow, events, type NewRow, rowOf } from "../../src/store/events.ts";
import { migrate } from "../../src/store/migrations.ts";
import { times } from "./bodies.ts";
import { openStage } from "./stage.ts";
import { writeSection } from "./table.ts";

const usage = `npm run bench:size -- [--events N] [--write]
  --events N   events of each kind (default 1000000)
  --write      put the table into docs/performance.md, between its marks`;

const { values } = parseArgs({
  options: {
    events: { type: "string", default: "1000000" },
    write: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const count = Number(values.events);
/** The part of the old layout's disk space that an event may take now. */
const bar = 0.65;

interface Size {
  readonly bson: number;
  /** On disk. */
  readonly rows: number;
  readonly indexes: number;
  /** In the server's cache, if all of it is there. */
  readonly rowsInCache: number;
  readonly indexesInCache: number;
}

/** The event of the API reference, from 1 000 workers in turn. */
const kinds: Readonly<Record<string, (row: NewRow, received: Date) => NewRow>> = {
  "received as they happen": (row) => row,
  "timestamps of their own": (row, received) => dated(row, received),
  "timestamps and ids of their own": (row, received) => ({
    ...dated(row, received),
    eventId: `crm-${received.getTime()}-${row.index}`,
  }),
};
const dated = (row: NewRow, received: Date): NewRow => ({
  ...row,
  timestamp: new Date(received.getTime() - 1 - ((row.index * 7_919) % 60_000)),
});

const stage = await openStage();
try {
  const head = [
    "events",
    "BSON",
    "on disk: rows, indexes, together",
    "in memory: rows, indexes",
    "of schema version 2",
  ];
  const table = [`| ${head.join(" | ")} |`, "|---|--:|--:|--:|---|"];
  const say = (line: string) => (table.push(line), console.log(line));
  console.log(table.join("\n"));
  const oldDb = stage.client.db("size-old");
  await oldDb.createCollection("events");
  await oldDb
    .collection("events")
    .createIndexes([
      { key: { organizationId: 1, timestamp: -1, _id: -1 } },
      { key: { organizationId: 1, workerId: 1, timestamp: -1, _id: -1 } },
    ]);
  const old = await sizeOf(oldDb, "events", (rows) =>
    oldDb.collection<{ _id: string }>("events").insertMany(
      rows.map(({ id: _id, ...row }) => ({ _id, ...row })),
      { ordered: false, writeConcern: { w: 1 } },
    ),
  );
  const cells = ({ bson, rows, indexes, rowsInCache, indexesInCache }: Size) => [
    bson.toFixed(0),
    `${rows.toFixed(0)}, ${indexes.toFixed(0)}, ${(rows + indexes).toFixed(0)}`,
    `${rowsInCache.toFixed(0)}, ${indexesInCache.toFixed(0)}`,
  ];
  say(`| ${["schema version 2, for comparison", ...cells(old), ""].join(" | ")} |`);
  for (const [name, change] of Object.entries(kinds)) {
    const db = stage.client.db(`size-${name.replaceAll(" ", "-")}`);
    await migrate(db, [events]);
    const size = await sizeOf(db, events.name, (rows) => {
      const [first] = rows as readonly [EventRow];
      const newRows = rows.map((row, index) => change({ ...row, index }, first.receivedAt));
      return eventCollection(db).insertMany(documentsOf(first, newRows), { ordered: false, writeConcern: { w: 1 } });
    });
    const disk = (size.rows + size.indexes) / (old.rows + old.indexes);
    const ratios = `BSON ${(size.bson / old.bson).toFixed(2)} ×, disk ${disk.toFixed(2)} ×`;
    // Version 2 had no ids of callers.
    const verdict = name.includes("ids") ? "" : ` (at most ${bar}: ${disk <= bar ? "met" : "**not met**"})`;
    say(`| ${[name, ...cells(size), ratios + verdict].join(" | ")} |`);
  }
  const { version } = await stage.client.db("admin").command({ buildInfo: 1 });
  const flags = process.argv.slice(2).join(" ");
  const note = `${new Date().toISOString().slice(0, 10)}, mongod ${version}, ${count} events of each kind, bytes an event`;
  const text = `\`npm run bench:size${flags === "" ? "" : ` -- ${flags}`}\`: ${note}.\n\n${table.join("\n")}`;
  if (values.write) await writeSection("size", text);
} finally {
  await stage.close();
}

/** Stores events, batch by batch, and returns what one of them takes. */
async function sizeOf(
  db: Db,
  collection: string,
  insert: (rows: readonly EventRow[]) => Promise<unknown>,
): Promise<Size> {
  let atMs = Date.now() - 28 * 86_400_000;
  const ids = createIdSource(() => atMs);
  const [organizationId, appId] = [ids.next("org"), ids.next("app")];
  const workerIds = times(1_000, () => ids.next("wrk"));
  for (let stored = 0; stored < count; stored += limits.eventsMax) {
    atMs += 1_000;
    const owner = { organizationId, appId, requestId: ids.next("req") };
    const rows = times(limits.eventsMax, (index): NewRow => ({
      index,
      workerId: workerIds[(stored + index * 7) % workerIds.length] as string,
      type: "ticket.resolved",
      category: "project_management",
      timestamp: timeOfId(owner.requestId),
      durationSeconds: 240,
      metadata: { ticket_id: `SUP-${stored + index}` },
    }));
    await insert(documentsOf(owner, rows).map(rowOf));
  }
  // Until a checkpoint, files may be empty.
  await db.admin().command({ fsync: 1 });
  const stats = await db.command({ collStats: collection, indexDetails: true });
  const cached = ({ cache }: any) => Number(cache["bytes currently in the cache"]);
  const details = Object.values(stats.indexDetails ?? {});
  return {
    bson: stats.avgObjSize,
    rows: stats.storageSize / count,
    indexes: stats.totalIndexSize / count,
    rowsInCache: cached(stats.wiredTiger) / count,
    indexesInCache: details.reduce((sum: number, one) => sum + cached(one), 0) / count,
  };
}
