import { BSON, type Db, type Document, type FindCursor, MaxKey, MinKey } from "mongodb";
import { type CardDocument, cardCollection, cardIdsOf, cardsOfOrganization } from "./cards.ts";
import { retried } from "./database.ts";
import { type EventDocument, eventCollection, timelineOfOrganization, timelineOfWorker } from "./events.ts";

/** Where a listing stands: the first row that is not listed yet. */
export interface EventPosition {
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

export interface EventsQuery extends RowFilter {
  readonly organizationId: string;
  /** Inclusive. */
  readonly startTime?: Date | undefined;
  /** Exclusive. */
  readonly endTime?: Date | undefined;
  /** Where to begin. Default: at the newest row. */
  readonly from?: EventPosition | undefined;
}

export interface CardsQuery {
  readonly organizationId: string;
  readonly workerId?: string | undefined;
  readonly snapshotType?: string | undefined;
  /** The card's id to begin at. Default: at the first one. */
  readonly from?: string | undefined;
}

export interface Page<Row, Position> {
  readonly rows: readonly Row[];
  /** Undefined when there is nothing more. */
  readonly next: Position | undefined;
}

/** The longest that one read may take in the database, in milliseconds: a backstop, far above what the bounds allow. */
const readMs = 3_000;

/** Rows that are read cannot be rolled back: what has once been listed stays. */
const readOptions = { readConcern: "majority", maxTimeMS: readMs } as const;

/**
 * An organisation's rows, newest first. Two indexes serve every combination of filters: the worker and the time are found
 * in one of them, type, category and kind are looked at row by row, at most `scannedRowsMax` of them. A page may
 * therefore hold few rows, or none, and still have a next one.
 */
export async function listEvents(
  db: Db,
  query: EventsQuery,
  bounds: PageBounds,
): Promise<Page<EventDocument, EventPosition>> {
  const { organizationId, workerId, type, category, kind, startTime, endTime, from } = query;
  const index = workerId === undefined ? timelineOfOrganization : timelineOfWorker;
  const owner = workerId === undefined ? { organizationId } : { organizationId, workerId };
  if (startTime !== undefined && endTime !== undefined && endTime <= startTime) return empty;
  // The index runs from the newest row to the oldest; its bounds are given as keys, so that nothing outside them is
  // touched however many rows share a timestamp.
  const begin = from ?? { timestamp: endTime ?? new MaxKey(), id: endTime === undefined ? new MaxKey() : new MinKey() };
  const min = { ...owner, timestamp: begin.timestamp, _id: begin.id };
  const end = { ...owner, timestamp: startTime ?? new MinKey(), _id: new MinKey() };
  const find = (filter: Document, max: Document) =>
    eventCollection(db)
      .find({ ...owner, ...filter }, { ...readOptions, hint: index, min, max })
      .sort(index);

  const looked = defined({ type, category, kind });
  if (Object.keys(looked).length === 0) return pageOf(() => find({}, end), bounds, positionOf, undefined);
  const floor = await retried(() =>
    find({}, end)
      .project<EventDocument>(Object.fromEntries(Object.keys(index).map((name) => [name, 1])))
      .skip(bounds.scannedRowsMax)
      .limit(1)
      .next(),
  );
  const max = floor === null ? end : { ...owner, timestamp: floor.timestamp, _id: floor._id };
  return pageOf(() => find(looked, max), bounds, positionOf, floor ?? undefined);
}

const empty = { rows: [], next: undefined } as const;

const positionOf = ({ timestamp, _id }: EventDocument): EventPosition => ({ timestamp, id: _id });

/** An organisation's cards, in the order of their ids: worker, app, snapshot type. */
export async function listCards(db: Db, query: CardsQuery, bounds: PageBounds): Promise<Page<CardDocument, string>> {
  const { organizationId, workerId, snapshotType, from } = query;
  const ids = workerId === undefined ? { $gte: "" } : cardIdsOf(workerId);
  const begin = from === undefined ? {} : { $gte: from };
  const find = (filter: Document, range: Document) =>
    cardCollection(db)
      .find(
        { organizationId, ...defined({ workerId }), ...filter, _id: { ...ids, ...begin, ...range } },
        { ...readOptions, hint: cardsOfOrganization },
      )
      .sort({ _id: 1 });

  const positionOfCard = ({ _id }: CardDocument) => _id;
  if (snapshotType === undefined) return pageOf(() => find({}, {}), bounds, positionOfCard, undefined);
  const floor = await retried(() =>
    find({}, {}).project<CardDocument>({ _id: 1 }).skip(bounds.scannedRowsMax).limit(1).next(),
  );
  return pageOf(
    () => find({ snapshotType }, floor === null ? {} : { $lt: floor._id }),
    bounds,
    positionOfCard,
    floor ?? undefined,
  );
}

const defined = (filter: Readonly<Record<string, unknown>>): Document =>
  Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== undefined));

/** `floor` is the first row behind what may be looked at. */
function pageOf<Row extends Document, Position>(
  find: () => FindCursor<Row>,
  { rowsMax, bytesMax }: PageBounds,
  positionOf: (row: Row) => Position,
  floor: Row | undefined,
): Promise<Page<Row, Position>> {
  return retried(async () => {
    const rows: Row[] = [];
    let bytes = 0;
    const cursor = find()
      .limit(rowsMax + 1)
      .batchSize(rowsMax + 1);
    for await (const row of cursor) {
      bytes += BSON.calculateObjectSize(row);
      if (rows.length === rowsMax || (rows.length > 0 && bytes > bytesMax)) return { rows, next: positionOf(row) };
      rows.push(row);
    }
    return { rows, next: floor === undefined ? undefined : positionOf(floor) };
  });
}
