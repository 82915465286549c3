import type { Db } from "mongodb";
import { ulidOf } from "../ids.ts";
import { bounded, durable } from "./database.ts";
import { eventCollection, rowsBetween, rowsOfWorker } from "./events.ts";

/** Rows that one command removes or moves, so that callers' writes never wait long for one. */
const batchRowsMax = 500;

const ownedBy = (organizationId: string, workerId: string) => ({
  org: ulidOf(organizationId),
  worker: ulidOf(workerId),
});

export const countRowsOfWorker = (db: Db, organizationId: string, workerId: string): Promise<number> =>
  eventCollection(db).countDocuments(ownedBy(organizationId, workerId), { hint: rowsOfWorker });

/** Selects the oldest rows of a worker; undefined if there is none. */
async function oldestOfWorker(db: Db, organizationId: string, workerId: string) {
  const owner = ownedBy(organizationId, workerId);
  const ids = await bounded(
    eventCollection(db)
      .find(owner, { projection: { _id: 1 } })
      .hint(rowsOfWorker)
      .sort({ _id: 1 })
      .limit(batchRowsMax)
      .toArray(),
  );
  const last = ids.at(-1);
  return last === undefined ? undefined : { ...owner, _id: { $lte: last._id } };
}

/** Removes some rows of a worker, durably. @returns their number; 0 if there is none left. */
export async function removeRowsOfWorker(db: Db, organizationId: string, workerId: string): Promise<number> {
  const filter = await oldestOfWorker(db, organizationId, workerId);
  if (filter === undefined) return 0;
  const options = { hint: rowsOfWorker, writeConcern: durable };
  return (await bounded(eventCollection(db).deleteMany(filter, options))).deletedCount;
}

/** Gives some rows of a worker to another one, durably. @returns their number; 0 if there is none left. */
export async function moveRowsOfWorker(db: Db, organizationId: string, from: string, to: string): Promise<number> {
  const filter = await oldestOfWorker(db, organizationId, from);
  if (filter === undefined) return 0;
  const options = { hint: rowsOfWorker, writeConcern: durable };
  const change = { $set: { worker: ulidOf(to) } };
  return (await bounded(eventCollection(db).updateMany(filter, change, options))).modifiedCount;
}

/** Removes some rows of an organisation with earlier timestamps, durably. @returns their number; 0 if there is none left. */
export async function removeRowsBefore(db: Db, organizationId: string, time: Date): Promise<number> {
  const { org, _id } = rowsBetween(organizationId, undefined, time);
  const options = { projection: { _id: 1 }, hint: { _id: 1 }, sort: { _id: 1 }, limit: batchRowsMax } as const;
  const last = (await bounded(eventCollection(db).find({ org, _id }, options).toArray())).at(-1);
  if (last === undefined) return 0;
  const filter = { org, _id: { $gte: _id.$gte, $lte: last._id } };
  return (await bounded(eventCollection(db).deleteMany(filter, { writeConcern: durable }))).deletedCount;
}
