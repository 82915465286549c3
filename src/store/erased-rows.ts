import type { Db } from "mongodb";
import { retried } from "./database.ts";
import type { EventRow } from "./events.ts";
import { workerCollection } from "./workers.ts";

/**
 * Says which rows of a change stream are about workers that are gone: the oplog keeps for a while what an erasure has
 * removed. While an erasure runs, rows of workers that were merged before may still come.
 * @param openedAt when the stream began, by the server's clock. Rows received later were just stored.
 */
export async function erasedAmong(
  db: Db,
  rows: readonly EventRow[],
  openedAt: Date,
): Promise<(row: EventRow) => boolean> {
  const isOld = ({ receivedAt }: EventRow) => receivedAt < openedAt;
  const there = new Set<string>();
  for (const [organizationId, own] of Map.groupBy(rows.filter(isOld), (row) => row.organizationId)) {
    const which = { organizationId, _id: { $in: [...new Set(own.map(({ workerId }) => workerId))] } };
    const options = { projection: { _id: 1 }, readConcern: "majority" } as const;
    const filter = { ...which, erasing: { $exists: false } };
    const found = await retried(() => workerCollection(db).find(filter, options).toArray());
    for (const { _id } of found) there.add(_id);
  }
  return (row) => isOld(row) && !there.has(row.workerId);
}
