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
  const min = { ...owner, timestamp: begin.timestamp, _id: begin.id };
  const end = { ...owner, timestamp: startTime ?? new MinKey(), _id: new MinKey() };
  const find = (filter: Document, max: Document) =>
    collection
      .find<Uint8Array>({ ...owner, ...filter } as Filter<Row>, { ...readOptions, ...asBytes, hint: index, min, max })
      .sort(index);

  if (Object.keys(looked).length === 0) return pageOf<Row>(() => find({}, end), bounds, undefined);
  const behind = await retried(() =>
    find({}, end)
      .project<Uint8Array>(Object.fromEntries(Object.keys(index).map((name) => [name, 1])))
      .skip(bounds.scannedRowsMax)
      .limit(1)
      .next(),
  );
  const floor = behind === null ? undefined : documentOf<Row>(behind);
  const max = floor === undefined ? end : { ...owner, timestamp: floor.timestamp, _id: floor._id };
  return pageOf(() => find(looked, max), bounds, floor);
}

const positionOf = ({ timestamp, _id }: { timestamp: Date; _id: string }): RowPosition => ({ timestamp, id: _id });

const defined = (filter: Readonly<Record<string, unknown>>): Document =>
  Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== undefined));

/** `floor` is the first row behind what may be looked at. */
function pageOf<Row extends Document & { _id: string; timestamp: Date }>(
  find: () => FindCursor<Uint8Array>,
  { rowsMax, bytesMax }: PageBounds,
  floor: Row | undefined,
): Promise<Page<Row>> {
  return retried(async () => {
    const rows: Row[] = [];
    let bytes = 0;
    const cursor = find()
      .limit(rowsMax + 1)
      .batchSize(rowsMax + 1);
    for await (const stored of cursor) {
      const row = documentOf<Row>(stored);
      bytes += stored.length;
      if (rows.length === rowsMax || (rows.length > 0 && bytes > bytesMax)) return { rows, next: positionOf(row) };
      rows.push(row);
    }
    return { rows, next: floor === undefined ? undefined : positionOf(floor) };
  });
}
