import type { ChangeStream, ChangeStreamOptions, Db, Timestamp } from "mongodb";
import { bounded, everyShard, retried } from "./database.ts";
import { type EventDocument, type EventRow, eventCollection, events, rowOf, rowsInOrder } from "./events.ts";
import {
  beginAt,
  feedError,
  type FeedPosition,
  type Placed,
  PositionLost,
  positionOf,
  resumePosition,
  tokenStart,
} from "./feed-position.ts";
import { following } from "./following.ts";
import { liveOrganizationOf, ulidOf } from "../ids.ts";
import type { RowFilter } from "./timeline.ts";

/** Lets organisations take turns. `begin` is called at their turn, or with the reason why it never comes. */
export interface Turns {
  enter(organization: string, cost: number, begin: (refusal: Error | undefined) => void): { leave(): void };
}

/** The turns of readers that catch up. */
export interface FeedTurns {
  /** To hold rows until the caller has taken them; the cost is in bytes. */
  readonly holding: Turns;
  /** To read rows, shared with pages; the cost is always 1. */
  readonly reading: Turns;
}

/**
 * Bytes, as stored, that a reader catches up in one turn, plus the rest of the database's last reply. Its next turn
 * comes when the caller has taken them.
 */
export const catchUpBytes = 256 * 1_024;
/** Rows in one reply of the database to a reader that catches up. The driver would take 16 MB of them. */
const catchUpRows = 16;

export interface FeedBounds {
  /** Rows kept for a slow reader. */
  readonly rowsMax: number;
  /** The same, in bytes as stored. */
  readonly bytesMax: number;
}

export interface FeedBatch {
  /** In the order of storage. */
  readonly rows: readonly EventRow[];
  /** The reader has read all its rows up to here. */
  readonly position: FeedPosition;
  /** The reader was too slow. Rows after the position were not kept, and no more come. */
  readonly overflowed: boolean;
}

/** Milliseconds after which the server answers even if nothing happened. */
const awaitMs = 500;
/** The same for a reader that catches up, because others wait for its turn to end. */
const catchUpAwaitMs = 1;
/** Milliseconds between two checks whether the shared stream has reached a reader that has caught up. */
const lookEveryMs = 50;
const reopenAfterMs = 500;

interface Insert extends Placed {
  readonly fullDocument: EventDocument;
  /** As stored. */
  readonly bytes: number;
}

/**
 * Streams rows as any instance stores them. All readers of this process share one change stream, which asks only for
 * the rows of their organisations. A reader that begins now joins it at once. A reader from an older position first
 * catches up on its own stream. Each reader knows its position, so it misses no row and skips those it had.
 * Organisations take turns at catching up, which limits the memory.
 */
export class EventFeed {
  readonly #db: Db;
  readonly #bounds: FeedBounds;
  readonly #turns: FeedTurns;
  readonly #onError: (error: unknown) => void;
  readonly #readers = new Set<FeedReader>();
  readonly #catchUps = new Set<Promise<void>>();
  /** Readers, with their organisations, that wait until the shared stream reopens at their positions or earlier. */
  readonly #joining = new Map<FeedReader, string>();
  /** For each organisation with readers, those on the shared stream. */
  readonly #organizations = new Map<string, { readers: number; readonly attached: Set<FeedReader> }>();
  /** The organisations of the shared stream, from `#position` on. */
  #covered: ReadonlySet<string> = new Set();
  #position: FeedPosition | undefined;
  #handovers = 0;
  /** The shared stream must reopen for other organisations. */
  #stale = false;
  #running: Promise<void> | undefined;

  constructor(db: Db, bounds: FeedBounds, turns: FeedTurns, onError: (error: unknown) => void) {
    this.#db = db;
    this.#bounds = bounds;
    this.#turns = turns;
    this.#onError = onError;
  }

  /**
   * Streams the organisation's rows that match the filter, after `from`, or from now on. The caller closes the reader.
   * @param signal closes it, too, also while it waits for its turn.
   * @throws Fault unavailable; PositionLost.
   */
  async open(
    organizationId: string,
    filter: RowFilter,
    from?: FeedPosition,
    signal?: AbortSignal,
  ): Promise<FeedReader> {
    const begin = from ?? (await this.#now());
    const reader = new FeedReader(filter, begin, this.#bounds, () => {
      this.#readers.delete(reader);
      this.#joining.delete(reader);
      this.#leave(organizationId, reader);
    });
    this.#readers.add(reader);
    this.#enter(organizationId);
    signal?.addEventListener("abort", () => reader.close(), { once: true });
    if (signal?.aborted === true) {
      reader.close();
      return reader;
    }
    if (from === undefined) {
      if (this.#hasReached(reader, organizationId)) this.#attach(reader, organizationId);
      else {
        this.#joining.set(reader, organizationId);
        this.#reopen();
      }
      return reader;
    }
    if (!this.#covered.has(organizationId)) this.#reopen();
    const own = this.#watch([organizationId], begin, { batchSize: catchUpRows, maxAwaitTimeMS: catchUpAwaitMs });
    const catchingUp = this.#catchUp(reader, own, organizationId).finally(() => this.#catchUps.delete(catchingUp));
    this.#catchUps.add(catchingUp);
    try {
      // Wait, so that the caller learns at once if the database no longer remembers its position.
      await reader.opened;
      return reader;
    } catch (error) {
      reader.close();
      throw error;
    }
  }

  /** All readers, those on the shared stream, and how often one has moved to it. */
  get counts(): { readonly readers: number; readonly attached: number; readonly handovers: number } {
    const attached = [...this.#organizations.values()].reduce((sum, one) => sum + one.attached.size, 0);
    return { readers: this.#readers.size, attached, handovers: this.#handovers };
  }

  async stop(): Promise<void> {
    for (const reader of this.#readers) reader.close();
    await Promise.all([this.#running, ...this.#catchUps]);
  }

  /**
   * The position after everything that is stored durably, and before everything else. So a reader that begins here does
   * not miss a row that is being written.
   */
  async #now(): Promise<FeedPosition> {
    const find = { find: events.name, filter: { _id: "" }, hint: rowsInOrder, limit: 1, singleBatch: true };
    const behindAll = everyShard("the place lies behind the rows of all shards");
    const reply = await retried(() => this.#db.command({ ...find, ...behindAll, readConcern: { level: "majority" } }));
    const { t, i } = reply.operationTime as Timestamp;
    const time = { t, i: i + 1 };
    return { data: tokenStart(time), time };
  }

  #watch(organizationIds: readonly string[], from: FeedPosition, options: ChangeStreamOptions): ChangeStream {
    const pipeline = [
      { $match: { operationType: "insert", "fullDocument.org": { $in: organizationIds.map(ulidOf) } } },
      { $project: { fullDocument: 1, clusterTime: 1, bytes: { $bsonSize: "$fullDocument" } } },
    ];
    return eventCollection(this.#db).watch(pipeline, {
      ...options,
      ...beginAt(from),
    });
  }

  async #catchUp(reader: FeedReader, own: ChangeStream, organizationId: string): Promise<void> {
    const next = following<Insert>(own);
    const { holding, reading } = this.#turns;
    try {
      while (!reader.closed) {
        const leave = await turnOf(holding, organizationId, catchUpBytes, reader);
        let became: Became;
        try {
          const leaveReading = await turnOf(reading, organizationId, 1, reader);
          try {
            became = await this.#readTurn(reader, own, next, organizationId);
          } finally {
            leaveReading();
          }
          if (became === "attached") break;
          await reader.drained();
        } finally {
          leave();
        }
        if (became === "waiting") await withTimeout(reader.ended, lookEveryMs);
      }
    } catch (error) {
      reader.fail(feedError(error));
    } finally {
      await bounded(own.close()).catch(this.#onError);
    }
  }

  async #readTurn(
    reader: FeedReader,
    own: ChangeStream,
    next: () => Promise<Insert | null>,
    organizationId: string,
  ): Promise<Became> {
    let rows = 0;
    for (let bytes = 0; !reader.closed;) {
      const change = await next();
      if (change === null) reader.advance(resumePosition(own));
      else {
        const stored = storedOf(change);
        reader.keep(stored, positionOf(change));
        bytes += stored.bytes;
        rows++;
      }
      reader.markOpened();
      // The rows that the driver already has belong to this turn.
      if (own.bufferedCount() > 0) continue;
      if (this.#hasReached(reader, organizationId)) {
        this.#attach(reader, organizationId);
        this.#handovers++;
        return "attached";
      }
      if (change === null) return "waiting";
      // Leave room for rows that arrive when the reader is on the shared stream.
      if (bytes >= catchUpBytes || rows >= this.#bounds.rowsMax / 2) break;
    }
    return "behind";
  }

  /** Whether the shared stream has all rows that the reader still wants. */
  #hasReached({ seen, closed }: FeedReader, organizationId: string): boolean {
    const shared = this.#position;
    return !closed && shared !== undefined && this.#covered.has(organizationId) && seen.data >= shared.data;
  }

  #attach(reader: FeedReader, organizationId: string): void {
    this.#organizations.get(organizationId)?.attached.add(reader);
  }

  #enter(organizationId: string): void {
    const known = this.#organizations.get(organizationId);
    if (known !== undefined) known.readers++;
    else this.#organizations.set(organizationId, { readers: 1, attached: new Set() });
  }

  #leave(organizationId: string, reader: FeedReader): void {
    const known = this.#organizations.get(organizationId);
    if (known === undefined) return;
    known.attached.delete(reader);
    if (--known.readers > 0) return;
    this.#organizations.delete(organizationId);
    if (this.#organizations.size === 0) {
      this.#position = undefined;
      this.#covered = new Set();
    }
    this.#reopen();
  }

  /**
   * Reopens the shared stream, for other organisations or for readers that join. It closes between two reads, because
   * the server would keep a stream that is closed while it opens.
   */
  #reopen(): void {
    this.#stale = true;
    this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    while (this.#organizations.size > 0) {
      let stream: ChangeStream | undefined;
      try {
        const begin = this.#position ?? this.#joining.keys().next().value?.seen ?? (await this.#now());
        // All readers may have left.
        if (this.#organizations.size === 0) break;
        this.#position = begin;
        for (const [reader, organizationId] of this.#joining) {
          if (reader.seen.data < this.#position.data) this.#position = reader.seen;
          this.#attach(reader, organizationId);
        }
        this.#joining.clear();
        this.#stale = false;
        this.#covered = new Set(this.#organizations.keys());
        stream = this.#watch([...this.#covered], this.#position, { maxAwaitTimeMS: awaitMs });
        await this.#follow(stream);
      } catch (error) {
        await this.#failed(error);
      } finally {
        if (stream !== undefined) await bounded(stream.close()).catch(this.#onError);
      }
    }
    this.#running = undefined;
  }

  async #follow(stream: ChangeStream): Promise<void> {
    const next = following<Insert>(stream);
    const covered = this.#covered;
    // Rows that the driver already has go out first: otherwise readers that come and go would hold the others up.
    while (!this.#stale || stream.bufferedCount() > 0) {
      const change = await next();
      // All readers of this stream have left. New ones must not wait for the rows that it has not read.
      if (covered !== this.#covered) return;
      if (change === null) {
        const position = resumePosition(stream);
        if (position.data > (this.#position?.data ?? "")) this.#position = position;
        for (const { attached } of this.#organizations.values()) {
          for (const reader of attached) reader.advance(position);
        }
        continue;
      }
      const position = positionOf(change);
      this.#position = position;
      const stored = storedOf(change);
      const attached = this.#organizations.get(stored.row.organizationId)?.attached;
      for (const reader of attached ?? []) {
        reader.offer(stored, position);
        if (reader.overflowed) attached?.delete(reader);
      }
    }
  }

  async #failed(error: unknown): Promise<void> {
    this.#onError(error);
    if (feedError(error) instanceof PositionLost) {
      this.#position = undefined;
      for (const { attached } of this.#organizations.values()) {
        for (const reader of attached) reader.fail(feedError(error));
        attached.clear();
      }
    }
    await new Promise((resolve) => setTimeout(resolve, reopenAfterMs));
  }
}

interface Stored {
  readonly row: EventRow;
  /** As stored. */
  readonly bytes: number;
}

const storedOf = ({ fullDocument, bytes }: Insert): Stored => ({ row: rowOf(fullDocument), bytes });

interface Kept extends Stored {
  readonly position: FeedPosition;
}

/** The result of a reader's turn: it moved to the shared stream, has no rows to read yet, or has more. */
type Became = "attached" | "waiting" | "behind";

/** Waits for the reader's turn, or its end. Returns a function that ends the turn. @throws Fault unavailable. */
async function turnOf(turns: Turns, organizationId: string, cost: number, reader: FeedReader): Promise<() => void> {
  const begun = Promise.withResolvers<void>();
  const turn = turns.enter(liveOrganizationOf(organizationId), cost, (refusal) =>
    refusal === undefined ? begun.resolve() : begun.reject(refusal),
  );
  await Promise.race([begun.promise, reader.ended]);
  return () => turn.leave();
}

/** Keeps one reader's rows, in order, until the caller takes them. */
export class FeedReader {
  readonly #filter: readonly (readonly [keyof EventRow, unknown])[];
  readonly #bounds: FeedBounds;
  readonly #onClose: () => void;
  readonly #opened = Promise.withResolvers<void>();
  readonly #ended = Promise.withResolvers<void>();
  /** The caller has taken rows and is still writing them. */
  #isWriting = false;
  #kept: Kept[] = [];
  #bytes = 0;
  #seen: FeedPosition;
  #taken: FeedPosition;
  #overflowed = false;
  #closed = false;
  #failure: Error | undefined;
  /** Settles when there are rows to take, or when some were taken. */
  #changed = Promise.withResolvers<void>();

  constructor(filter: RowFilter, from: FeedPosition, bounds: FeedBounds, onClose: () => void) {
    this.#filter = Object.entries(filter).filter(([, value]) => value !== undefined) as never;
    this.#seen = from;
    this.#taken = from;
    this.#bounds = bounds;
    this.#onClose = onClose;
    this.#opened.promise.catch(() => {});
  }

  /** Settles when the stream runs; rejects if it cannot. */
  get opened(): Promise<void> {
    return this.#opened.promise;
  }

  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  get closed(): boolean {
    return this.#closed;
  }

  get overflowed(): boolean {
    return this.#overflowed;
  }

  /** All rows up to here were offered. */
  get seen(): FeedPosition {
    return this.#seen;
  }

  /**
   * Returns the rows that have arrived, after waiting at most `waitMs` for the first one. Always returns a position.
   * @throws Fault unavailable; PositionLost.
   */
  async next(rowsMax: number, bytesMax: number, waitMs: number): Promise<FeedBatch> {
    if (this.#isWriting) {
      this.#isWriting = false;
      this.#wake();
    }
    if (this.#kept.length === 0 && !this.#overflowed && !this.#closed && this.#failure === undefined) {
      await withTimeout(this.#changed.promise, waitMs);
    }
    const rows: EventRow[] = [];
    let bytes = 0;
    for (let kept = this.#kept[0]; kept !== undefined && rows.length < rowsMax; kept = this.#kept[0]) {
      if (rows.length > 0 && bytes + kept.bytes > bytesMax) break;
      this.#kept.shift();
      bytes += kept.bytes;
      this.#bytes -= kept.bytes;
      this.#taken = kept.position;
      rows.push(kept.row);
    }
    this.#isWriting = rows.length > 0;
    if (this.#kept.length === 0) {
      if (rows.length === 0 && this.#failure !== undefined) throw this.#failure;
      this.#taken = this.#seen;
    }
    this.#wake();
    return { rows, position: this.#taken, overflowed: this.#overflowed && this.#kept.length === 0 };
  }

  /** `next` returns at once from now on. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#opened.resolve();
    this.#ended.resolve();
    this.#wake();
    this.#onClose();
  }

  markOpened(): void {
    this.#opened.resolve();
  }

  /** Keeps a row that is new and matches the filter. If there is no room, the reader ends. */
  offer(stored: Stored, position: FeedPosition): void {
    if (position.data <= this.#seen.data || this.#overflowed) return;
    if (this.#fits(stored) && this.#kept.length > 0 && this.#isFull(stored.bytes)) this.#overflowed = true;
    else this.keep(stored, position);
  }

  /** The same, but without the limit, because a turn limits the rows. */
  keep(stored: Stored, position: FeedPosition): void {
    if (position.data <= this.#seen.data || this.#overflowed) return;
    if (this.#fits(stored)) {
      this.#kept.push({ ...stored, position });
      this.#bytes += stored.bytes;
      this.#wake();
    }
    this.#seen = position;
  }

  #fits({ row }: Stored): boolean {
    return this.#filter.every(([name, value]) => row[name] === value);
  }

  /** There are no more rows up to here. */
  advance(position: FeedPosition): void {
    if (position.data > this.#seen.data && !this.#overflowed) this.#seen = position;
  }

  fail(error: Error): void {
    this.#failure = error;
    this.#opened.reject(error);
    this.#wake();
  }

  /** Settles when the caller has taken and written all rows. */
  async drained(): Promise<void> {
    while (!this.#closed && (this.#kept.length > 0 || this.#isWriting)) await this.#changed.promise;
  }

  #isFull(bytes: number): boolean {
    return this.#kept.length >= this.#bounds.rowsMax || this.#bytes + bytes > this.#bounds.bytesMax;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
  }
}

async function withTimeout(promise: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  await Promise.race([promise, new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))]);
  clearTimeout(timer);
}
