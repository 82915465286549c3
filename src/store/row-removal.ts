import type { AnyBulkWriteOperation, Db, Filter, IndexSpecification } from "mongodb";
import { idOf, isTestOrganization, ulidOf } from "../ids.ts";
import { limits } from "../limits.ts";
import { bounded, durable } from "./database.ts";
import {
  type EventDocument,
  eventCollection,
  events,
  lateMs,
  placesAt,
  placesOf,
  receivedAtOf,
  rowsBetween,
  rowsInOrder,
  rowsOfWorker,
} from "./events.ts";
import { foundRowsMax, Pace } from "./pace.ts";
import { keepCounts } from "./recount.ts";
import { dayOf } from "../time.ts";

export interface RemovalOptions {
  readonly now: Date;
  readonly signal?: AbortSignal;
  /** Default: a new one. */
  readonly pace?: Pace;
}

/** Rows that one command counts before the first ones of a month go. */
const countedRowsMax = 5_000;

const ownedBy = (organizationId: string, workerId: string) => ({
  org: ulidOf(organizationId),
  worker: ulidOf(workerId),
});

export const countRowsOfWorker = (db: Db, organizationId: string, workerId: string): Promise<number> =>
  eventCollection(db).countDocuments(ownedBy(organizationId, workerId), { hint: rowsOfWorker });

/** Reads the next rows that an index has for the filter, and the one after them, in one reply. */
const nextRows = (db: Db, filter: Filter<EventDocument>, hint: IndexSpecification) => {
  const projection = { org: 1, app: 1, type: 1, request: 1, places: 1 } as const;
  const options = { projection, hint, sort: { _id: 1 }, limit: foundRowsMax + 1, batchSize: foundRowsMax + 2 } as const;
  return bounded(eventCollection(db).find(filter, options).toArray());
};

type Range = Filter<EventDocument> & { readonly _id?: { readonly $gte: Buffer; readonly $lt: Buffer } };

/**
 * Does the work on all rows that an index has for the filter, some at a time and in order. Each command begins at a row
 * that is there: entries of removed rows stay for a while, and the server would pass all of them.
 * @param work returns the number of rows that are done. If some are not, another pass follows.
 * @param prepare is called before, for the rows of several steps at once.
 */
async function* inSteps(
  db: Db,
  filter: Range,
  hint: IndexSpecification,
  work: (rows: readonly EventDocument[], these: Filter<EventDocument>) => Promise<number>,
  pace = new Pace(),
  prepare: (rows: readonly EventDocument[]) => Promise<void> = async () => {},
): AsyncGenerator<number, void> {
  for (let isDone = false; !isDone;) {
    isDone = true;
    for (let rest: Range | undefined = filter; rest !== undefined;) {
      const found: EventDocument[] = await nextRows(db, rest, hint);
      const next = found.splice(foundRowsMax)[0]?._id;
      await prepare(found);
      while (found.length > 0) {
        const rows = found.splice(0, pace.rows);
        const [first, last] = [rows[0]?._id, rows.at(-1)?._id];
        const count = await work(rows, { ...filter, _id: { $gte: first, $lte: last } } as Filter<EventDocument>);
        isDone &&= count >= rows.length;
        yield count;
      }
      rest = next && ({ ...filter, _id: { ...filter._id, $gte: next } } as Range);
    }
  }
}

/**
 * Removes all rows that an index has for the filter, durably. A recount keeps the counts of their days; test data has no
 * counts.
 * @param isDue rows for which it is false stay, and new rows. Default: every row that the filter selects goes.
 */
function remove(
  db: Db,
  organizationId: string,
  filter: Range,
  hint: IndexSpecification,
  { now, signal, pace = new Pace() }: RemovalOptions,
  isDue?: (row: EventDocument) => boolean,
): AsyncGenerator<number, void> {
  const dueOf = (found: readonly EventDocument[]) => (isDue === undefined ? found : found.filter(isDue));
  let lists: readonly EventDocument[] = [];
  const prepare = async (found: readonly EventDocument[]) => {
    const rows = dueOf(found);
    if (rows.length === 0) return;
    const days = rows.map(({ _id, app, type }) => {
      return { organizationId, day: dayOf(receivedAtOf(_id)), appId: idOf("app", app), type };
    });
    if (!isTestOrganization(organizationId)) {
      const rest = (tookMs: number) => pace.rest(tookMs, signal);
      await keepCounts(db, organizationId, days, now, { sliceRows: countedRowsMax, rest, signal });
    }
    lists = rows.filter(({ request }) => request !== undefined);
    const going = new Set(rows.map(({ _id }) => textOf(_id)));
    const last = rows.at(-1)?._id as Buffer;
    // By age, everything up to the last row goes.
    const stays = (id: Buffer) => !going.has(textOf(id)) && (hint !== rowsInOrder || id.compare(last) > 0);
    await passOnPlaces(db, lists, stays);
  };
  const work = async (found: readonly EventDocument[], these: Filter<EventDocument>) => {
    const rows = dueOf(found);
    if (rows.length === 0) return found.length;
    // A row that another command has just made the list of its request stays for the next pass.
    const isSame = { places: { $in: [null, ...lists.map(({ places }) => places)] } } as Filter<EventDocument>;
    const some = { org: ulidOf(organizationId), _id: { $in: rows.map(({ _id }) => _id) } };
    // A row that came between them since the read may be one to keep.
    const which = isDue === undefined ? these : some;
    const options = { hint, writeConcern: durable };
    const { deletedCount } = await bounded(eventCollection(db).deleteMany({ ...which, ...isSame }, options));
    return deletedCount + found.length - rows.length;
  };
  return inSteps(db, filter, hint, work, pace, prepare);
}

const textOf = (id: Buffer) => id.toString("base64");

type ListRow = Pick<EventDocument, "_id" | "org" | "request" | "places">;

/**
 * One row of a request lists where the others are. If it goes, the newest one that stays lists them: by age that one goes
 * last. It may have a list already, if a crash or an older version left two. Doing this again changes nothing.
 */
async function passOnPlaces(db: Db, lists: readonly ListRow[], stays: (id: Buffer) => boolean): Promise<void> {
  let waiting = lists.map((list) => ({
    request: list.request as Buffer,
    places: placesOf(list)
      .filter(({ _id }) => stays(_id))
      .sort((a, b) => b._id.compare(a._id)),
  }));
  // Most often the first look finds an heir. If most rows are gone, a look at one row after another would take long.
  for (let width = 1; ; width *= 2) {
    waiting = waiting.filter(({ places }) => places.length > 0);
    if (waiting.length === 0) return;
    const looks = waiting.flatMap(({ places }) => places.slice(0, width));
    const found = new Map((await rowsAt(db, looks)).map((row) => [textOf(row._id), row]));
    const changes = waiting.map((list) => {
      const at = list.places.slice(0, width).findIndex(({ _id }) => found.has(textOf(_id)));
      list.places = list.places.slice(at < 0 ? width : at);
      return at < 0 ? [] : [changeOf(list, found)];
    });
    if (changes.every((change) => change.length === 0)) continue;
    const options = { ordered: false, writeConcern: durable };
    const { matchedCount } = await bounded(eventCollection(db).bulkWrite(changes.flat(), options));
    // Otherwise another command has removed or changed an heir: look at all again.
    if (matchedCount === changes.flat().length) waiting = waiting.filter((_, i) => changes[i]?.length === 0);
  }
}

/** Lets the first of the places list all of them. */
function changeOf(
  { request, places }: { readonly request: Buffer; readonly places: readonly ListRow[] },
  found: ReadonlyMap<string, ListRow>,
): AnyBulkWriteOperation<EventDocument> {
  const heir = found.get(textOf((places[0] as ListRow)._id)) as ListRow;
  const all = new Map([...placesOf(heir), ...places].map(({ _id }) => [textOf(_id), _id]));
  const filter = { _id: heir._id, org: heir.org, places: heir.places ?? null } as Filter<EventDocument>;
  const update = { $set: { request, places: placesAt([...all.values()]) } };
  return { updateOne: { filter, update, hint: rowsInOrder } };
}

/** Places in one command. */
const placesMax = 100;

/**
 * Reads the rows at these places. A `$in` would scan everything between the first and the last one. A union takes no
 * hint, so the sort selects the order of the collection.
 */
async function rowsAt(db: Db, places: readonly ListRow[]): Promise<ListRow[]> {
  const found: ListRow[] = [];
  for (let at = 0; at < places.length; at += placesMax) {
    const [first = [], ...others] = places
      .slice(at, at + placesMax)
      .map(({ _id, org }) => [{ $match: { _id, org } }, { $sort: rowsInOrder }, { $project: { org: 1, places: 1 } }]);
    const unions = others.map((pipeline) => ({ $unionWith: { coll: events.name, pipeline } }));
    const reading = eventCollection(db).aggregate<ListRow>([...first, ...unions], { hint: rowsInOrder });
    found.push(...(await bounded(reading.toArray())));
  }
  return found;
}

/** Removes the rows of a worker, durably. Yields the number of each step. */
export const removeRowsOfWorker = (db: Db, organizationId: string, workerId: string, options: RemovalOptions) =>
  remove(db, organizationId, ownedBy(organizationId, workerId), rowsOfWorker, options);

/**
 * Removes rows of an organisation with earlier timestamps, durably. Rows of the last minutes before `now` stay: while
 * others of their request may come, nobody knows which row will list them. Yields the number of each step.
 */
export const removeRowsBefore = (db: Db, organizationId: string, time: Date, options: RemovalOptions) => {
  const isComplete = { received: { $not: { $gte: new Date(options.now.getTime() - lateMs) } } };
  const old = { ...rowsBetween(organizationId, undefined, time), ...isComplete };
  return remove(db, organizationId, old, rowsInOrder, options);
};

/**
 * Removes rows of an organisation that were received earlier, whatever their timestamps, durably. It reads all older
 * rows to find them. Yields the number of rows that each step looked at.
 */
export const removeRowsReceivedBefore = (db: Db, organizationId: string, time: Date, options: RemovalOptions) => {
  const last = new Date(time.getTime() + limits.timestampAheadSecondsMax * 1000);
  const isDue = ({ _id }: EventDocument) => receivedAtOf(_id) < time;
  return remove(db, organizationId, rowsBetween(organizationId, undefined, last), rowsInOrder, options, isDue);
};

/** Gives the rows of a worker to another one, durably. Yields the number of each step. */
export function moveRowsOfWorker(db: Db, organizationId: string, from: string, to: string, pace?: Pace) {
  const move = async (_: readonly EventDocument[], these: Filter<EventDocument>) => {
    const change = { $set: { worker: ulidOf(to) } };
    const options = { hint: rowsOfWorker, writeConcern: durable };
    return (await bounded(eventCollection(db).updateMany(these, change, options))).modifiedCount;
  };
  return inSteps(db, ownedBy(organizationId, from), rowsOfWorker, move, pace);
}
