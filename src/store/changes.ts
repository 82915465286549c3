import type { ChangeStream, Db, Document, Timestamp } from "mongodb";
import { apps } from "./apps.ts";
import { bounded } from "./database.ts";
import { instances, revisions } from "./instances.ts";
import { keys } from "./keys.ts";
import { organizations } from "./organizations.ts";

export interface ChangeListener {
  /** The key, app or organisation of this id was changed by any instance; undefined: any may have been. */
  accessChanged(id: string | undefined): void;
  /** All that was written before this revision has been told. */
  revisionHeard(revision: number): void;
  /** Anything may have changed without notice: the stream begins, or begins anew. */
  newsMissed(): void;
  onError(error: unknown): void;
  /** A change was told `lagMs` after it was made, by the server's clock. */
  onLag?(lagMs: number): void;
  /** The server's clock, in milliseconds since 1970. */
  now(): number;
}

/**
 * How long what is remembered of keys is trusted after it was last known to be current, in milliseconds: from the moment
 * at which a beat was sent that came back through the stream, or a linearizable read was. It bounds how late a revocation
 * acts, whatever happens to the replica set, and how long keys outlive a database that is away.
 */
export const trustMs = 4_000;

/** The server answers an idle stream at least this often, in milliseconds. */
const answerEveryMs = 500;
const reopenAfterMs = 500;

/**
 * News of changes to keys, apps and organisations, made by any instance or the command line, through one change stream
 * that reopens by itself.
 *
 * A change stream stays on the member where it was opened, and is silent when that member no longer follows the set. So
 * silence says nothing: news counts as complete only up to the last beat of this instance (see `Instance`) that came back.
 * A stream that brings none back for `trustMs` is closed, and opened on the member that is primary then.
 */
export class ChangeFeed {
  readonly #db: Db;
  readonly #instanceId: string;
  readonly #listener: ChangeListener;
  #stream: ChangeStream | undefined;
  #freshAtMs = Number.NEGATIVE_INFINITY;
  #heardTime: Timestamp | undefined;
  #opened = 0;
  #stopped = false;
  #running: Promise<void> | undefined;

  constructor(db: Db, instanceId: string, listener: ChangeListener) {
    this.#db = db;
    this.#instanceId = instanceId;
    this.#listener = listener;
  }

  /**
   * All that a majority had stored before this moment has been told; in milliseconds of `performance.now()`, -Infinity
   * while the stream has brought no beat back.
   */
  get freshAtMs(): number {
    return this.#freshAtMs;
  }

  /** Where in the database's history the latest news stands; undefined while news is not known to be complete. */
  get heardTime(): Timestamp | undefined {
    return this.connected ? this.#heardTime : undefined;
  }

  /** How often the stream was opened. */
  get opened(): number {
    return this.#opened;
  }

  /** Whether news comes: a beat has come back within `trustMs`. */
  get connected(): boolean {
    return performance.now() - this.#freshAtMs < trustMs;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#close();
    await this.#running;
  }

  async #close(): Promise<void> {
    if (this.#stream !== undefined) await bounded(this.#stream.close(), trustMs).catch(() => {});
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      try {
        await this.#follow();
      } catch (error) {
        if (!this.#stopped) this.#listener.onError(error);
      } finally {
        // Not waited for: a member that hangs must not keep the next stream from another one.
        void this.#close();
      }
      if (!this.#stopped) await new Promise((resolve) => setTimeout(resolve, reopenAfterMs));
    }
  }

  async #follow(): Promise<void> {
    const watched = [organizations.name, apps.name, keys.name, revisions.name];
    const valueOf = (field: string) => ({
      $ifNull: [`$updateDescription.updatedFields.${field}`, `$fullDocument.${field}`],
    });
    const pipeline = [
      {
        $match: {
          $or: [{ "ns.coll": { $in: watched } }, { "ns.coll": instances.name, "documentKey._id": this.#instanceId }],
        },
      },
      {
        $project: {
          ...{ "ns.coll": 1, "documentKey._id": 1, operationType: 1, wallTime: 1, clusterTime: 1 },
          ...{ revision: valueOf("revision"), beat: valueOf("beat") },
        },
      },
    ];
    const stream = this.#db.watch(pipeline, { maxAwaitTimeMS: answerEveryMs });
    this.#stream = stream;
    let openedAtMs: number | undefined;
    while (!this.#stopped) {
      const change = (await bounded(stream.tryNext(), trustMs)) as Document | null;
      if (openedAtMs === undefined) {
        openedAtMs = performance.now();
        this.#opened++;
        // What was told before and what this stream tells need not join.
        this.#freshAtMs = Number.NEGATIVE_INFINITY;
        this.#listener.newsMissed();
      }
      if (change !== null) this.#tell(change);
      if (performance.now() - Math.max(openedAtMs, this.#freshAtMs) >= trustMs) {
        throw new Error(`the change stream has told nothing for ${trustMs} ms of what this instance wrote`);
      }
    }
  }

  #tell(change: Document): void {
    this.#heardTime = change.clusterTime;
    if (change.ns?.coll === instances.name) {
      if (typeof change.beat === "number") this.#freshAtMs = Math.max(this.#freshAtMs, change.beat);
      return;
    }
    if (change.wallTime instanceof Date) this.#listener.onLag?.(this.#listener.now() - change.wallTime.getTime());
    if (change.ns?.coll === revisions.name) this.#listener.revisionHeard(Number(change.revision ?? 0));
    else this.#listener.accessChanged(change.documentKey?._id);
  }
}
