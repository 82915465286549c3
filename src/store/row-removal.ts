import { setTimeout as delay } from "node:timers/promises";
import type { Db, Filter, IndexSpecification } from "mongodb";
import { ulidOf } from "../ids.ts";
import { bounded, durable } from "./database.ts";
import {
  type EventDocument,
  eventCollection,
  placesAt,
  placesOf,
  receivedAtOf,
  rowsBetween,
  rowsOfWorker,
} from "./events.ts";
import { keepCounts } from "./usage-days.ts";

/** Rows that one command removes or moves, so that callers' writes never wait long for one. */
const batchRowsMax = 500;

/** After each step it rests for this many times as long as the step took, so that callers keep most of the database. */
const restTimes = 4;
const restMsMin = 20;

/** Rests after a step that took this long. Ends early, without an error, when the signal aborts. */
export async function restAfter(tookMs: number, signal?: AbortSignal): Promise<void> {
  await delay(Math.max(restMsMin, restTimes * tookMs), undefined, { signal }).catch(() => {});
}

const byId = { _id: 1 } as const;

const ownedBy = (organizationId: string, workerId: string) => ({
  org: ulidOf(organizationId),
  worker: ulidOf(workerId),
});

export const countRowsOfWorker = (db: Db, organizationId: string, workerId: string): Promise<number> =>
  eventCollection(db).countDocuments(ownedBy(organizationId, workerId), { hint: rowsOfWorker });

/** Reads the ids of the first rows that an index has for the filter. */
const firstIds = async (db: Db, filter: Filter<EventDocument>, hint: IndexSpecification): Promise<Buffer[]> => {
  const options = { projection: { _id: 1 }, hint, sort: { _id: 1 }, limit: batchRowsMax } as const;
  const found = await bounded(eventCollection(db).find(filter, options).toArray());
  return found.map(({ _id }) => _id);
};

/** Removes these rows, which the filter selects up to the last one. A recount keeps the counts of their days. */
async function remove(
  db: Db,
  organizationId: string,
  ids: readonly Buffer[],
  filter: Filter<EventDocument>,
  hint: IndexSpecification,
): Promise<number> {
  const last = ids.at(-1);
  if (last === undefined) return 0;
  await keepCounts(db, organizationId, ids.map(receivedAtOf));
  const upToLast = { ...filter, _id: { ...(filter._id as object | undefined), $lte: last } };
  await passOnPlaces(db, ids, upToLast, hint);
  const options = { hint, writeConcern: durable };
  return (await bounded(eventCollection(db).deleteMany(upToLast, options))).deletedCount;
}

/** One row of a request lists where the others are. If it goes, the next one that stays lists them. */
async function passOnPlaces(
  db: Db,
  ids: readonly Buffer[],
  filter: Filter<EventDocument>,
  hint: IndexSpecification,
): Promise<void> {
  const rows = eventCollection(db);
  const projection = { org: 1, request: 1, places: 1 } as const;
  const lists = await bounded(rows.find({ ...filter, request: { $exists: true } }, { projection, hint }).toArray());
  if (lists.length === 0) return;
  const going = new Set(ids.map((id) => id.toString("hex")));
  for (const { request, ...list } of lists) {
    // By age, everything up to the last row has gone.
    const isGone = (id: Buffer) =>
      going.has(id.toString("hex")) || (hint === byId && id.compare(ids.at(-1) ?? id) <= 0);
    const staying = placesOf(list).filter(({ _id }) => !isGone(_id));
    const places = placesAt(staying.map(({ _id }) => _id));
    for (const place of staying) {
      // Most may have gone in earlier steps, and a write of nothing waits for the majority.
      if ((await bounded(rows.findOne(place, { projection: { _id: 1 } }))) === null) continue;
      const change = { $set: { request: request as Buffer, places } };
      if ((await bounded(rows.updateOne(place, change, { writeConcern: durable }))).matchedCount === 1) break;
    }
  }
}

/** Removes some rows of a worker, durably. @returns their number; 0 if there is none left. */
export async function removeRowsOfWorker(db: Db, organizationId: string, workerId: string): Promise<number> {
  const filter = ownedBy(organizationId, workerId);
  return remove(db, organizationId, await firstIds(db, filter, rowsOfWorker), filter, rowsOfWorker);
}

/** Removes some rows of an organisation with earlier timestamps, durably. @returns their number; 0 if there is none left. */
export async function removeRowsBefore(db: Db, organizationId: string, time: Date): Promise<number> {
  const filter = rowsBetween(organizationId, undefined, time);
  return remove(db, organizationId, await firstIds(db, filter, byId), filter, byId);
}

/** Gives some rows of a worker to another one, durably. @returns their number; 0 if there is none left. */
export async function moveRowsOfWorker(db: Db, organizationId: string, from: string, to: string): Promise<number> {
  const owner = ownedBy(organizationId, from);
  const last = (await firstIds(db, owner, rowsOfWorker)).at(-1);
  if (last === undefined) return 0;
  const change = { $set: { worker: ulidOf(to) } };
  const options = { hint: rowsOfWorker, writeConcern: durable };
  const filter = { ...owner, _id: { $lte: last } };
  return (await bounded(eventCollection(db).updateMany(filter, change, options))).modifiedCount;
}
