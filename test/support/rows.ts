import type { Db, Filter } from "mongodb";
import { type EventDocument, type EventRow, eventCollection, rowOf } from "../../src/store/events.ts";

/** The stored rows, oldest first. Default: all. */
export const storedRows = async (db: Db, filter: Filter<EventDocument> = {}): Promise<EventRow[]> =>
  (await eventCollection(db).find(filter).sort({ _id: 1 }).toArray()).map(rowOf);

/** The rows of a request, in order. It reads all rows, because an index might miss some. */
export const storedRowsOf = async (db: Db, requestId: string): Promise<EventRow[]> =>
  (await storedRows(db)).filter((row) => row.requestId === requestId).sort((a, b) => (a.id < b.id ? -1 : 1));

/** The number of rows of all steps. */
export async function sumOf(steps: AsyncIterable<number>): Promise<number> {
  let sum = 0;
  for await (const count of steps) sum += count;
  return sum;
}
