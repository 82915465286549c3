import { type Db, type Document, type FindCursor, MaxKey, MinKey } from "mongodb";
import {
  type Card,
  type CardDocument,
  cardCollection,
  cardOf,
  cardsOfOrganization,
  cardsOfWorker,
} from "./snapshots.ts";
import { retried } from "./database.ts";
import { asBytes, documentOf } from "./documents.ts";
import {
  type EventDocument,
  type EventRow,
  eventCollection,
  rowOf,
  rowsBetween,
  rowsInOrder,
  rowsOfWorker,
} from "./events.ts";
import { ulidOf } from "../ids.ts";

/** Where a listing of cards stands: the first card that is not listed yet. */
export interface CardPosition {
  readonly timestamp: Date;
  readonly id: string;
}

/** Members that a row must have; undefined allows any. */
export interface RowFilter {
  readonly workerId?: string | undefined;
  readonly type?: string | undefined;
  readonly category?: string | undefined;
  readonly kind?: EventRow["kind"] | undefined;
}

export interface PageBounds {
  /** At least 1. */
  readonly rowsMax: number;
  /** As stored. A page always has its first row, whatever its size. */
  readonly bytesMax: number;
  /** Rows examined for the filters that no index serves. */
  readonly scannedRowsMax: number;
}

interface Range<Place> {
  readonly organizationId: string;
  /** Inclusive. */
  readonly startTime?: Date | undefined;
  /** Exclusive. */
  readonly endTime?: Date | undefined;
  /** The first row. Default: the newest. */
  readonly from?: Place | undefined;
}

/** The place of a row is its `_id`. */
export interface EventsQuery extends RowFilter, Range<Buffer> {}

export interface CardsQuery extends Range<CardPosition> {
  readonly workerId?: string | undefined;
  readonly snapshotType?: string | undefined;
}

export interface Page<Row, Place> {
  readonly rows: readonly Row[];
  /** The first row of the next page; undefined if there is none. */
  readonly next: Place | undefined;
}

/** How long one read may take in the database, in milliseconds. The bounds keep reads far below it. */
const readMs = 3_000;

/** A row that was read cannot be rolled back, so what a caller has listed stays. */
const readOptions = { readConcern: "majority", maxTimeMS: readMs, ...asBytes } as const;

/** Lists an organisation's rows, newest first. */
export async function listEvents(
  db: Db,
  { organizationId, workerId, type, category, kind, startTime, endTime, from }: EventsQuery,
  bounds: PageBounds,
): Promise<Page<EventRow, Buffer>> {
  if (isEmpty(startTime, endTime)) return { rows: [], next: undefined };
  const { org, _id } = rowsBetween(organizationId, startTime, endTime);
  const [hint, owner] =
    workerId === undefined ? [rowsInOrder, { org }] : [rowsOfWorker, { org, worker: ulidOf(workerId) }];
  const page = await listNewest<EventDocument, Buffer>(
    {
      find: (filter, first, end) =>
        eventCollection(db)
          .find<Uint8Array>({ ...owner, _id: { $gt: end, $lte: first }, ...filter }, { ...readOptions, hint })
          .sort({ _id: -1 }),
      placeOf: ({ _id }) => _id,
      placeNames: ["_id"],
    },
    defined({ type, category, metrics: kind && { $exists: kind === "snapshot" } }),
    from ?? _id.$lt,
    _id.$gte,
    bounds,
  );
  return { ...page, rows: page.rows.map(rowOf) };
}

/**
 * Lists an organisation's cards, newest first. A renewed card moves to the front, so no card is listed twice. A card that
 * is renewed during the listing may be missed.
 */
export async function listCards(
  db: Db,
  { organizationId, workerId, snapshotType, startTime, endTime, from }: CardsQuery,
  bounds: PageBounds,
): Promise<Page<Card, CardPosition>> {
  if (isEmpty(startTime, endTime)) return { rows: [], next: undefined };
  const [index, owner] =
    workerId === undefined ? [cardsOfOrganization, { organizationId }] : [cardsOfWorker, { organizationId, workerId }];
  const keyOf = ({ timestamp, id }: CardPlace) => ({ ...owner, timestamp, _id: id });
  const begin = { timestamp: endTime ?? new MaxKey(), id: endTime === undefined ? new MaxKey() : new MinKey() };
  const page = await listNewest<CardDocument, CardPlace>(
    {
      // The bounds are keys of the index, so that nothing outside them is read, even if many cards share a timestamp.
      find: (filter, first, end) =>
        cardCollection(db)
          .find<Uint8Array>(
            { ...owner, ...filter },
            { ...readOptions, hint: index, min: keyOf(first), max: keyOf(end) },
          )
          .sort(index),
      placeOf: ({ timestamp, _id: id }) => ({ timestamp, id }),
      placeNames: Object.keys(index),
    },
    defined({ snapshotType }),
    from ?? begin,
    { timestamp: startTime ?? new MinKey(), id: new MinKey() },
    bounds,
  );
  return { rows: page.rows.map(cardOf), next: page.next as CardPosition | undefined };
}

const isEmpty = (startTime: Date | undefined, endTime: Date | undefined): boolean =>
  startTime !== undefined && endTime !== undefined && endTime <= startTime;

/** A place in the index: of a card, or before or after all cards. */
interface CardPlace {
  readonly timestamp: Date | MinKey | MaxKey;
  readonly id: string | MinKey | MaxKey;
}

/** An index that runs from the newest row to the oldest. */
interface NewestFirst<Stored, Place> {
  /** Finds the rows from `first` on and before `end`. */
  find(filter: Document, first: Place, end: Place): FindCursor<Uint8Array>;
  placeOf(stored: Stored): Place;
  /** The members that `placeOf` needs. */
  readonly placeNames: readonly string[];
}

/**
 * Reads a page. The index bounds owner and time. It applies the filter `looked` to at most `scannedRowsMax` rows. So a
 * page may hold few rows or none, and still have a next one.
 */
async function listNewest<Stored, Place>(
  index: NewestFirst<Stored, Place>,
  looked: Document,
  first: Place,
  end: Place,
  bounds: PageBounds,
): Promise<Page<Stored, Place>> {
  const isFiltered = Object.keys(looked).length > 0;
  const behind = isFiltered ? await placeBehind(index, first, end, bounds.scannedRowsMax) : undefined;
  const page = await pageOf(index, looked, first, behind ?? end, bounds);
  return { rows: page.rows, next: page.next ?? behind };
}

/** The place of the first row that may not be examined. */
async function placeBehind<Stored, Place>(
  { find, placeOf, placeNames }: NewestFirst<Stored, Place>,
  first: Place,
  end: Place,
  rowsMax: number,
): Promise<Place | undefined> {
  const projection = Object.fromEntries(placeNames.map((name) => [name, 1]));
  const row = await retried(() => find({}, first, end).project<Uint8Array>(projection).skip(rowsMax).limit(1).next());
  return row === null ? undefined : placeOf(documentOf<Stored>(row));
}

const defined = (filter: Readonly<Record<string, unknown>>): Document =>
  Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== undefined));

/**
 * Rows of the first read. Their size tells how many more fit the page: 500 rows of 33 KB in one read would cost 16 MB for
 * an answer of 1 MB.
 */
const firstRowsMax = 64;

async function pageOf<Stored, Place>(
  { find, placeOf }: NewestFirst<Stored, Place>,
  looked: Document,
  first: Place,
  end: Place,
  { rowsMax, bytesMax }: PageBounds,
): Promise<Page<Stored, Place>> {
  const rows: Stored[] = [];
  let bytes = 0;
  let from = first;
  for (;;) {
    const fitting = rows.length === 0 ? firstRowsMax : Math.ceil(((bytesMax - bytes) * rows.length) / bytes);
    const wanted = Math.max(1, Math.min(rowsMax - rows.length, fitting));
    // One more row tells whether there is a next page, and where the next read begins.
    const stored = await retried(() =>
      find(looked, from, end)
        .limit(wanted + 1)
        .batchSize(wanted + 2)
        .toArray(),
    );
    for (const [i, bson] of stored.entries()) {
      const row = documentOf<Stored>(bson);
      const isFull = rows.length === rowsMax || (rows.length > 0 && bytes + bson.length > bytesMax);
      if (isFull) return { rows, next: placeOf(row) };
      if (i === wanted) {
        from = placeOf(row);
        break;
      }
      bytes += bson.length;
      rows.push(row);
    }
    if (stored.length <= wanted) return { rows, next: undefined };
  }
}
