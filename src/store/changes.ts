import type { ChangeStream, Db, Document, Timestamp } from "mongodb";
import { apps } from "./apps.ts";
import { bounded } from "./database.ts";
import { instances, revisions } from "./instances.ts";
import { keys } from "./keys.ts";
import { organizations } from "./organizations.ts";

export interface AccessListener {
  /** An instance or a command changed the key, app or organisation. Undefined: any may have changed. */
  accessChanged(id: string | undefined): void;
  /** The stream has reported all changes from before this revision. */
  revisionHeard(revision: number): void;
  /** The stream was opened or reopened, so any change may have been missed. */
  newsMissed(): void;
}

export interface ChangeFeedOptions {
  onError(error: unknown): void;
  /** A change arrived `lagMs` after the server made it, by the server's clock. */
  onLag?(lagMs: number): void;
  /** The server's clock, in milliseconds since 1970. */
  now(): number;
}

/**
 * How long an instance trusts its cache of keys, in milliseconds. The time begins when it sends a beat that comes back
 * through the stream, or a linearizable read. It limits the delay of a revocation during any failure, and how long keys
 * work without the database.
 */
export const trustMs = 4_000;

const answerEveryMs = 1_000;
const reopenAfterMs = 500;

/**
 * Reports changes to keys, apps and organisations, made by any instance or command. It uses one change stream, which it
 * reopens after a failure.
 *
 * A change stream stays on the member where it was opened. If that member is cut off from its replica set, the stream
 * is silent. So silence proves nothing: the news is complete only up to the last beat of this instance (see `Instance`)
 * that came back. If no beat comes back for `trustMs`, the feed closes the stream and reopens it on the current
 * primary.
 */
export class ChangeFeed {
  readonly #db: Db;
  readonly #instanceId: string;
  readonly #options: ChangeFeedOptions;
  #stream: ChangeStream | undefined;
  #freshAtMs = Number.NEGATIVE_INFINITY;
  #heardTime: Timestamp | undefined;
  #opened = 0;
  #stopped = false;
  #running: Promise<void> | undefined;

  constructor(db: Db, instanceId: string, options: ChangeFeedOptions) {
    this.#db = db;
    this.#instanceId = instanceId;
    this.#options = options;
  }

  /**
   * The stream has reported every change stored before this time of `performance.now()`; -Infinity until a beat comes
   * back.
   */
  get freshAtMs(): number {
    return this.#freshAtMs;
  }

  /** The operation time of the latest news; undefined while news may be missing. */
  get heardTime(): Timestamp | undefined {
    return this.connected ? this.#heardTime : undefined;
  }

  get opened(): number {
    return this.#opened;
  }

  get connected(): boolean {
    return performance.now() - this.#freshAtMs < trustMs;
  }

  start(listener: AccessListener): void {
    this.#running ??= this.#run(listener);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#close();
    await this.#running;
  }

  async #close(): Promise<void> {
    if (this.#stream !== undefined) await bounded(this.#stream.close(), trustMs).catch(() => {});
  }

  async #run(listener: AccessListener): Promise<void> {
    while (!this.#stopped) {
      try {
        await this.#follow(listener);
      } catch (error) {
        if (!this.#stopped) this.#options.onError(error);
      } finally {
        // Do not wait: a member that hangs must not delay the next stream.
        void this.#close();
      }
      if (!this.#stopped) await new Promise((resolve) => setTimeout(resolve, reopenAfterMs));
    }
  }

  async #follow(listener: AccessListener): Promise<void> {
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
        // There may be a gap between the last stream's news and this one's.
        this.#freshAtMs = Number.NEGATIVE_INFINITY;
        listener.newsMissed();
      }
      if (change !== null) this.#tell(change, listener);
      if (performance.now() - Math.max(openedAtMs, this.#freshAtMs) >= trustMs) {
        throw new Error(`the change stream has not returned a beat of this instance for ${trustMs} ms`);
      }
    }
  }

  #tell(change: Document, listener: AccessListener): void {
    this.#heardTime = change.clusterTime;
    if (change.ns?.coll === instances.name) {
      if (typeof change.beat === "number") this.#freshAtMs = Math.max(this.#freshAtMs, change.beat);
      return;
    }
    if (change.wallTime instanceof Date) this.#options.onLag?.(this.#options.now() - change.wallTime.getTime());
    if (change.ns?.coll === revisions.name) listener.revisionHeard(Number(change.revision ?? 0));
    else listener.accessChanged(change.documentKey?._id);
  }
}
