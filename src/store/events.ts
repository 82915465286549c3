import type { Db, Document } from "mongodb";
import {
  eventIds,
  idOf,
  liveOrganizationOf,
  testOrganizationOf,
  timeOfId,
  ulidBytes,
  ulidOf,
  writeUlid,
} from "../ids.ts";
import { limits } from "../limits.ts";
import { unavailable } from "../errors.ts";
import { type CollectionDefinition, durable, everyShard, insertDurably, retried, type Written } from "./database.ts";
import { type CallerObject, callerObject, type JsonText, type StoredObject, storedObject } from "./documents.ts";
import { type BatchHooks, GroupCommit } from "./group-commit.ts";
import { organizationCollection } from "./organizations.ts";

/** A row of the timeline: an event, or a snapshot as it arrived. */
export interface EventRow {
  /** `evt_` and the request's ULID plus 1 + its index. */
  readonly id: string;
  readonly organizationId: string;
  readonly appId: string;
  readonly workerId: string;
  readonly requestId: string;
  readonly kind: "event" | "snapshot";
  /** eventType, or snapshotType. */
  readonly type: string;
  /** Only for events. */
  readonly category?: string;
  readonly timestamp: Date;
  readonly receivedAt: Date;
  readonly durationSeconds?: number;
  /** Only for snapshots. */
  readonly metrics?: CallerObject;
  readonly metadata?: CallerObject;
}

/** A row of a request, before it is stored. */
export interface NewRow extends Pick<EventRow, "workerId" | "type" | "timestamp"> {
  /** In the request. */
  readonly index: number;
  readonly category?: string | undefined;
  readonly durationSeconds?: number | undefined;
  readonly metrics?: CallerObject | JsonText | undefined;
  readonly metadata?: CallerObject | JsonText | undefined;
  /** The caller's id for the event. */
  readonly eventId?: string | undefined;
}

/** The request that rows belong to. */
export type RowOwner = Pick<EventRow, "organizationId" | "appId" | "requestId">;

/**
 * A row as stored. The collection is clustered, in the order of `_id`, so `_id` needs no index. Facts in `_id` are not
 * stored again: the timestamp, the request, the time of receipt, the row's id.
 */
export interface EventDocument {
  /** Organisation, timestamp, request and index, see `rowKey`. So storing a request twice changes nothing. */
  _id: Buffer;
  /** The ULIDs of organisation, app and worker. */
  org: Buffer;
  app: Buffer;
  worker: Buffer;
  type: string;
  category?: string;
  durationSeconds?: number;
  metrics?: StoredObject;
  metadata?: StoredObject;
  eventId?: string;
  /** The time of receipt, if the timestamp differs. */
  received?: Date;
  /** Only in the first row of a request with such timestamps: the request's ULID. */
  request?: Buffer;
  /** In the same row: the places of all such rows of the request. Each is the timestamp and the index, as in `_id`. */
  places?: Buffer;
}

const stored = (configString: string) => ({ storageEngine: { wiredTiger: { configString } } }) as const;
/** Halves the index on disk: an entry has the row's `_id` after its key, and both share parts. */
const compressed = stored("block_compressor=snappy");
/** Each worker adds to a place of its own in the index, and the server writes the whole page again for a few entries. */
const compressedInSmallPages = stored("block_compressor=snappy,leaf_page_max=8KB,allocation_size=1KB");

/**
 * Hints. Each command that finds rows names its index. Otherwise the server may choose `rowsOfWorker` for an `_id`, and
 * looks for it among the rows of every worker.
 */
export const rowsInOrder = { _id: 1 } as const;
export const rowsOfWorker = { org: 1, worker: 1, _id: 1 } as const;
export const datedRowOfRequest = { request: 1 } as const;
export const rowOfEventId = { org: 1, app: 1, eventId: 1 } as const;

/** Each further index would cost every write, and the timeline's other filters do not need one. */
export const events: CollectionDefinition = {
  name: "timeline",
  isClustered: true,
  indexes: [
    { key: rowsOfWorker, options: compressedInSmallPages, why: "the timeline of a worker, by time" },
    {
      key: datedRowOfRequest,
      options: { ...compressed, partialFilterExpression: { request: { $exists: true } } },
      why: "the events of a request, if their timestamps are not the time of receipt",
    },
    {
      key: rowOfEventId,
      options: { ...compressed, unique: true, partialFilterExpression: { eventId: { $exists: true } } },
      why: "an event with an id of the caller's is stored once",
    },
  ],
};

/** For so many milliseconds after its receipt, an instance may still store rows of a request. */
export const lateMs = 15 * 60_000;

export const eventCollection = (db: Db) => db.collection<EventDocument>(events.name, { promoteBuffers: true });

const timeAt = ulidBytes;
const timeBytes = 6;
const requestAt = timeAt + timeBytes;
const indexAt = requestAt + ulidBytes;
const keyBytes = indexAt + 2;
const placeBytes = timeBytes + 2;

/** Times are stored as milliseconds since the year 0, so that no valid time is negative. */
const yearZeroMs = Date.parse("0000-01-01T00:00:00Z");
const storedTimeMax = 2 ** (8 * timeBytes) - 1;

function writeTime(time: Date, target: Buffer, offset: number): void {
  target.writeUIntBE(Math.min(time.getTime() - yearZeroMs, storedTimeMax), offset, timeBytes);
}

/** The `_id` of a row. Without a request: a bound below all rows of this time and above all earlier ones. */
export function rowKey(organizationId: string, time: Date, requestId?: string, index = 0): Buffer {
  const key = Buffer.allocUnsafe(keyBytes);
  writeUlid(organizationId, key, 0);
  writeTime(time, key, timeAt);
  if (requestId === undefined) key.fill(0, requestAt, indexAt);
  else writeUlid(requestId, key, requestAt);
  key.writeUInt16BE(index, indexAt);
  return key;
}

/** Selects the rows of an organisation with timestamps from `start` on and before `end`. */
export const rowsBetween = (organizationId: string, start = new Date(yearZeroMs), end = new Date(8.64e15)) => ({
  org: ulidOf(organizationId),
  _id: { $gte: rowKey(organizationId, start), $lt: rowKey(organizationId, end) },
});

/** The time of receipt of the row with this `_id`. */
export const receivedAtOf = (_id: Buffer): Date => timeOfId(idOf("req", _id, requestAt));

export function rowOf(document: EventDocument): EventRow {
  const { _id, app, worker, type, category, durationSeconds, metrics, metadata } = document;
  const requestId = idOf("req", _id, requestAt);
  return {
    id: eventIds(requestId)(_id.readUInt16BE(indexAt)),
    organizationId: idOf("org", _id),
    appId: idOf("app", app),
    workerId: idOf("wrk", worker),
    requestId,
    kind: metrics === undefined ? "event" : "snapshot",
    type,
    ...(category === undefined ? {} : { category }),
    timestamp: new Date(_id.readUIntBE(timeAt, timeBytes) + yearZeroMs),
    receivedAt: timeOfId(requestId),
    ...(durationSeconds === undefined ? {} : { durationSeconds }),
    ...(metrics === undefined ? {} : { metrics: callerObject(metrics) }),
    ...(metadata === undefined ? {} : { metadata: callerObject(metadata) }),
  };
}

/** The documents of a request's rows. */
export function documentsOf({ organizationId, appId, requestId }: RowOwner, rows: readonly NewRow[]): EventDocument[] {
  const received = timeOfId(requestId);
  const key = rowKey(organizationId, received, requestId);
  const [org, app] = [ulidOf(organizationId), ulidOf(appId)];
  const dated: EventDocument[] = [];
  const documents = rows.map((row, i) => {
    const { timestamp } = row;
    // The last row needs no copy: most requests have one.
    const _id = i === rows.length - 1 ? key : Buffer.from(key);
    _id.writeUInt16BE(row.index, indexAt);
    const document: EventDocument = { _id, org, app, worker: ulidOf(row.workerId), type: row.type };
    if (row.category !== undefined) document.category = row.category;
    if (row.durationSeconds !== undefined) document.durationSeconds = row.durationSeconds;
    if (row.metrics !== undefined) document.metrics = storedObject(row.metrics);
    if (row.metadata !== undefined) document.metadata = storedObject(row.metadata);
    if (row.eventId !== undefined) document.eventId = row.eventId;
    if (timestamp.getTime() !== received.getTime()) {
      writeTime(timestamp, _id, timeAt);
      document.received = received;
      dated.push(document);
    }
    return document;
  });
  const [first] = dated;
  if (first !== undefined) {
    first.request = ulidOf(requestId);
    first.places = placesAt(dated.map(({ _id }) => _id));
  }
  return documents;
}

/** The outcome of a request's rows. */
export interface StoredRows {
  readonly isNew: boolean;
  /** By the row's index: the row that has its event id, from another request or earlier in this one. */
  readonly taken: ReadonlyMap<number, EventRow>;
}

const none: ReadonlyMap<number, EventRow> = new Map();

interface RequestRows {
  readonly organizationId: string;
  readonly documents: readonly EventDocument[];
}

/** The outcome of one row: `duplicate` if it was stored before, `taken` if another row has its event id. */
type Fate = "written" | "duplicate" | "taken";

function fateOf(outcome: Written): Fate {
  if ("error" in outcome) throw outcome.error;
  if (outcome.keyPattern?.eventId !== undefined) return "taken";
  return outcome.isRepeated === true ? "written" : outcome.value;
}

/** Stores the rows of requests; rows of concurrent requests share one write. */
export class EventStore {
  readonly #db: Db;
  readonly #writes: GroupCommit<RequestRows, readonly Fate[]>;

  constructor(db: Db, hooks: BatchHooks = {}) {
    this.#db = db;
    this.#writes = new GroupCommit<RequestRows, readonly Fate[]>({
      name: "events",
      ownerOf: ({ organizationId }) => liveOrganizationOf(organizationId),
      concurrencyMax: 2,
      fullConcurrencyMax: 6,
      batchWeightMax: limits.eventsMax,
      queueWeightMax: 50_000,
      ...hooks,
      run: async (requests) => {
        const all = requests.flatMap(({ documents }) => documents);
        const outcomes = await insertDurably(db, events.name, all);
        let offset = 0;
        return requests.map(({ documents }) => {
          const own = outcomes.slice(offset, (offset += documents.length));
          const failed = own.find((outcome) => "error" in outcome);
          if (failed !== undefined) return failed as { error: unknown };
          return { value: own.map(fateOf) };
        });
      },
    });
  }

  /**
   * Stores a request's rows durably. Rows that are stored stay as they are.
   * @throws Fault unavailable if the database cannot be reached or the queue is full.
   */
  insert(owner: RowOwner, rows: readonly NewRow[]): Promise<StoredRows> {
    if (rows.length === 0) return Promise.resolve({ isNew: false, taken: none });
    const { organizationId } = owner;
    const documents = documentsOf(owner, rows);
    return this.#writes.submit({ organizationId, documents }, rows.length).then((fates) => {
      const isNew = fates.includes("written");
      if (!fates.includes("taken")) return { isNew, taken: none };
      return this.#takenOf(owner, rows, documents, fates).then((taken) => ({ isNew, taken }));
    });
  }

  /** The rows that have the event ids of rows that were not stored. */
  async #takenOf(
    owner: RowOwner,
    rows: readonly NewRow[],
    documents: readonly EventDocument[],
    fates: readonly Fate[],
  ): Promise<StoredRows["taken"]> {
    await this.#movePlaces(documents, fates);
    const ids = rows.flatMap(({ eventId }, i) => (fates[i] === "taken" ? (eventId as string) : []));
    const holders = await this.findByEventId(owner, ids);
    const taken = new Map<number, EventRow>();
    rows.forEach(({ index, eventId }, i) => {
      if (fates[i] !== "taken") return;
      const holder = holders.get(eventId as string);
      if (holder === undefined) throw unavailable(new Error(`the row of event id '${eventId}' is gone`));
      taken.set(index, holder);
    });
    return taken;
  }

  /** Returns the result of `insert`, but stores nothing. @throws Fault unavailable. */
  async preview(owner: RowOwner, rows: readonly NewRow[]): Promise<StoredRows> {
    const ids = rows.flatMap(({ eventId }) => eventId ?? []);
    const holders = await this.findByEventId(owner, ids);
    const taken = new Map<number, EventRow>();
    const idOf = eventIds(owner.requestId);
    for (const { index, eventId, ...row } of rows) {
      if (eventId === undefined) continue;
      const id = idOf(index);
      const holder = holders.get(eventId);
      if (holder === undefined) holders.set(eventId, { ...owner, ...row, id } as EventRow);
      else if (holder.id !== id) taken.set(index, holder);
    }
    return { isNew: false, taken };
  }

  /** The app's stored rows with these event ids. @throws Fault unavailable. */
  async findByEventId(
    { organizationId, appId }: Pick<RowOwner, "organizationId" | "appId">,
    ids: readonly string[],
  ): Promise<Map<string, EventRow>> {
    if (ids.length === 0) return new Map();
    const filter = { org: ulidOf(organizationId), app: ulidOf(appId), eventId: { $in: [...ids] } };
    const options = { hint: rowOfEventId, readConcern: "majority" } as const;
    const found = await retried(() => eventCollection(this.#db).find(filter, options).toArray());
    return new Map(found.map((document) => [document.eventId as string, rowOf(document)]));
  }

  /** If the row that lists the places was not stored, the next one lists them. */
  async #movePlaces(documents: readonly EventDocument[], fates: readonly Fate[]): Promise<void> {
    const { request, places } = documents.find((document, i) => document.request && fates[i] === "taken") ?? {};
    const next = documents.find(({ received }, i) => received !== undefined && fates[i] !== "taken");
    if (request === undefined || places === undefined || next === undefined) return;
    const { _id, org } = next;
    const update = { $set: { request, places } };
    const options = { hint: rowsInOrder, writeConcern: durable };
    await retried(() => eventCollection(this.#db).updateOne({ _id, org }, update, options));
  }

  /** Whether all of the rows are stored durably. @throws Fault unavailable. */
  async has(owner: RowOwner, rows: readonly NewRow[]): Promise<boolean> {
    const options = { projection: { _id: 1 }, readConcern: "majority" } as const;
    // One by one: for several ids the server would scan everything between the first and the last.
    for (const { _id, org, app, eventId } of documentsOf(owner, rows)) {
      // Another row may have its event id. Then this one is never stored.
      const [filter, hint] =
        eventId === undefined ? [{ _id, org }, rowsInOrder] : [{ org, app, eventId }, rowOfEventId];
      const found = await retried(() => eventCollection(this.#db).findOne(filter, { ...options, hint }));
      if (found === null) return false;
    }
    return true;
  }
}

/**
 * The rows of a request, in order.
 * @param organizationId the request's organisation. Without it, and if all events have the time of receipt, it looks in
 * every organisation.
 */
export async function findRowsOfRequest(db: Db, requestId: string, organizationId?: string): Promise<EventRow[]> {
  const rows = eventCollection(db);
  // There are several if `ingest migrate` copied the request in parts.
  const options = { hint: datedRowOfRequest, ...everyShard("an operator may know the request's id alone") };
  const dated = await rows.find({ request: ulidOf(requestId) }, options).toArray();
  const known = dated[0] === undefined ? organizationId : idOf("org", dated[0]._id);
  const received = timeOfId(requestId);
  const found: EventDocument[] = [];
  for (const id of known === undefined ? await organizationIds(db) : [known]) {
    const [first, last] = [0, limits.eventsMax - 1].map((index) => rowKey(id, received, requestId, index));
    const range = { org: ulidOf(id), _id: { $gte: first, $lte: last } } as Document;
    found.push(...(await rows.find(range, { hint: rowsInOrder }).toArray()));
    if (found.length > 0) break;
  }
  // While a list is passed on, two rows have it.
  const places = new Map(dated.flatMap(placesOf).map((place) => [place._id.toString("base64"), place]));
  for (const place of places.values()) {
    const row = await rows.findOne(place, { hint: rowsInOrder });
    if (row !== null) found.push(row);
  }
  return found.map(rowOf).sort((a, b) => (a.id < b.id ? -1 : 1));
}

const organizationIds = async (db: Db): Promise<string[]> => {
  const found = await organizationCollection(db)
    .find({}, { projection: { _id: 1 } })
    .toArray();
  return found.flatMap(({ _id }) => [_id, testOrganizationOf(_id)]);
};

/** The value of `places` for the rows with these ids. */
export const placesAt = (ids: readonly Buffer[]): Buffer =>
  Buffer.concat(ids.flatMap((_id) => [_id.subarray(timeAt, requestAt), _id.subarray(indexAt)]));

/** Selects each of the rows that a row lists in `places`. */
export function placesOf({
  _id,
  org,
  places = Buffer.alloc(0),
}: Pick<EventDocument, "_id" | "org" | "places">): Pick<EventDocument, "_id" | "org">[] {
  return Array.from({ length: places.length / placeBytes }, (_, i) => {
    const key = Buffer.from(_id);
    places.copy(key, timeAt, i * placeBytes, i * placeBytes + timeBytes);
    places.copy(key, indexAt, i * placeBytes + timeBytes, (i + 1) * placeBytes);
    return { _id: key, org };
  });
}
