import { type Collection, type Db, type Document, type Filter, type FindCursor, MaxKey, MinKey } from "mongodb";
import { type CardDocument, cardCollection, cardsOfOrganization, cardsOfWorker } from "./snapshots.ts";
import { retried } from "./database.ts";
import { asBytes, documentOf } from "./documents.ts";
import { type EventDocument, eventCollection, timelineOfOrganization, timelineOfWorker } from "./events.ts";

/** Where a listing stands: the first row that is not listed yet. */
export interface RowPosition {
  readonly timestamp: Date;
  readonly id: string;
}

/** What a row must have; undefined = anything. */
export interface RowFilter {
  readonly workerId?: string | undefined;
  readonly type?: string | undefined;
  readonly category?: string | undefined;
  readonly kind?: EventDocument["kind"] | undefined;
}

export interface PageBounds {
  /** At least 1. */
  readonly rowsMax: number;
  /** As stored; the first row goes whatever its size. */
  readonly bytesMax: number;
  /** Rows looked at for the filters that no index serves. */
  readonly scannedRowsMax: number;
}

interface Range {
  readonly organizationId: string;
  /** Inclusive. */
  readonly startTime?: Date | undefined;
  /** Exclusive. */
  readonly endTime?: Date | undefined;
  /** Where to begin. Default: at the newest row. */
  readonly from?: RowPosition | undefined;
}

export interface EventsQuery extends RowFilter, Range {}

export interface CardsQuery extends Range {
  readonly workerId?: string | undefined;
  readonly snapshotType?: string | undefined;
}

export interface Page<Row> {
  readonly rows: readonly Row[];
  /** Undefined when there is nothing more. */
  readonly next: RowPosition | undefined;
}

/** The longest that one read may take in the database, in milliseconds: a backstop, far above what the bounds allow. */
const readMs = 3_000;

/** Rows that are read cannot be rolled back: what has once been listed stays. */
const readOptions = { readConcern: "majority", maxTimeMS: readMs } as const;

/** An organisation's rows, newest first. */
export function listEvents(db: Db, query: EventsQuery, bounds: PageBounds): Promise<Page<EventDocument>> {
  const { organizationId, workerId, type, category, kind, ...range } = query;
  const source =
    workerId === undefined
      ? { index: timelineOfOrganization, owner: { organizationId } }
      : { index: timelineOfWorker, owner: { organizationId, workerId } };
  return listNewest(eventCollection(db), source, defined({ type, category, kind }), range, bounds);
}

/**
 * An organisation's cards, newest first. A card that is renewed moves to the front, so none is listed twice, and one that
 * is renewed while it is still to be listed has gone past the reader.
 */
export function listCards(db: Db, query: CardsQuery, bounds: PageBounds): Promise<Page<CardDocument>> {
  const { organizationId, workerId, snapshotType, ...range } = query;
  const source =
    workerId === undefined
      ? { index: cardsOfOrganization, owner: { organizationId } }
      : { index: cardsOfWorker, owner: { organizationId, workerId } };
  return listNewest(cardCollection(db), source, defined({ snapshotType }), range, bounds);
}

/** An index that runs through the rows of an owner from the newest (timestamp, id) to the oldest. */
interface NewestFirst {
  readonly index: Readonly<Record<string, 1 | -1>>;
  readonly owner: Readonly<Record<string, string>>;
}

/**
 * The index finds the owner and the time; what rows must have beside (`looked`) is looked at row by row, at most
 * `scannedRowsMax` of them. A page may therefore hold few rows, or none, and still have a next one.
 */
async function listNewest<Row extends Document & { _id: string; timestamp: Date }>(
  collection: Collection<Row>,
  { index, owner }: NewestFirst,
  looked: Document,
  { startTime, endTime, from }: Omit<Range, "organizationId">,
  bounds: PageBounds,
): Promise<Page<Row>> {
  if (startTime !== undefined && endTime !== undefined && endTime <= startTime) return { rows: [], next: undefined };
  // The index's bounds are given as keys, so that nothing outside them is touched however many rows share a timestamp.
  const begin = from ?? { timestamp: endTime ?? new MaxKey(), id: endTime === undefined ? new MaxKey() : new MinKey() };
  const end = { ...owner, timestamp: startTime ?? new MinKey(), _id: new MinKey() };
  const find = (filter: Document, { timestamp, id }: Place, max: Document) => {
    const min = { ...owner, timestamp, _id: id };
    return collection
      .find<Uint8Array>({ ...owner, ...filter } as Filter<Row>, { ...readOptions, ...asBytes, hint: index, min, max })
      .sort(index);
  };

  if (Object.keys(looked).length === 0) return pageOf<Row>((place) => find({}, place, end), begin, bounds, undefined);
  const behind = await retried(() =>
    find({}, begin, end)
      .project<Uint8Array>(Object.fromEntries(Object.keys(index).map((name) => [name, 1])))
      .skip(bounds.scannedRowsMax)
      .limit(1)
      .next(),
  );
  const floor = behind === null ? undefined : documentOf<Row>(behind);
  const max = floor === undefined ? end : { ...owner, timestamp: floor.timestamp, _id: floor._id };
  return pageOf((place) => find(looked, place, max), begin, bounds, floor);
}

const positionOf = ({ timestamp, _id }: { timestamp: Date; _id: string }): RowPosition => ({ timestamp, id: _id });

const defined = (filter: Readonly<Record<string, unknown>>): Document =>
  Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== undefined));

/**
 * Rows that are read first: their size tells how many more fit the page. Read at once, 500 rows of 33 KB would cost 16 MB
 * to answer with 1 MB.
 */
const firstRowsMax = 64;

/** A place in the index, of a row or before or behind all of them. */
interface Place {
  readonly timestamp: Date | MinKey | MaxKey;
  readonly id: string | MinKey | MaxKey;
}

/** `floor` is the first row behind what may be looked at. */
async function pageOf<Row extends Document & { _id: string; timestamp: Date }>(
  find: (from: Place) => FindCursor<Uint8Array>,
  begin: Place,
  { rowsMax, bytesMax }: PageBounds,
  floor: Row | undefined,
): Promise<Page<Row>> {
  const rows: Row[] = [];
  let bytes = 0;
  let from = begin;
  for (;;) {
    const fitting = rows.length === 0 ? firstRowsMax : Math.ceil(((bytesMax - bytes) * rows.length) / bytes);
    const wanted = Math.max(1, Math.min(rowsMax - rows.length, fitting));
    // One more tells whether there is a next page, and where the next read begins.
    const stored = await retried(() =>
      find(from)
        .limit(wanted + 1)
        .batchSize(wanted + 2)
        .toArray(),
    );
    for (const [i, bson] of stored.entries()) {
      const row = documentOf<Row>(bson);
      const isFull = rows.length === rowsMax || (rows.length > 0 && bytes + bson.length > bytesMax);
      if (isFull) return { rows, next: positionOf(row) };
      if (i === wanted) {
        from = positionOf(row);
        break;
      }
      bytes += bson.length;
      rows.push(row);
    }
    if (stored.length <= wanted) return { rows, next: floor === undefined ? undefined : positionOf(floor) };
  }
}
