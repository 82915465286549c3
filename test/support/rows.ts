import type { Db, Filter } from "mongodb";
import { type EventDocument, type EventRow, eventCollection, rowOf } from "../../src/store/events.ts";

/** The rows stored, oldest first; by default all. */
export const storedRows = async (db: Db, filter: Filter<EventDocument> = {}): Promise<EventRow[]> =>
  (await eventCollection(db).find(filter).sort({ _id: 1 }).toArray()).map(rowOf);

/** The rows of a request, in its order. It reads all rows, so that it proves what a search by index would miss. */
export const storedRowsOf = async (db: Db, requestId: string): Promise<EventRow[]> =>
  (await storedRows(db)).filter((row) => row.requestId === requestId).sort((a, b) => (a.id < b.id ? -1 : 1));
