import { setTimeout as delay } from "node:timers/promises";
import type { Db, Timestamp } from "mongodb";
import { bounded, readSince } from "./database.ts";
import type { Beat } from "./instances.ts";
import { organizationOfWorkers, type RevisionDocument, type RevisionName, revisionCollection } from "./revisions.ts";

export interface ChangeListener {
  /** An administrator changed the organisation, app or key. */
  accessChanged(id: string): void;
  /** An administrator changed workers of the organisation. */
  workersChanged(organizationId: string): void;
  /** Any of them may have changed. */
  newsMissed(): void;
  /** All changes from before these revisions have been reported. */
  revisionsHeard(revisions: Readonly<Record<RevisionName, number>>): void;
}

export interface ChangeFeedOptions {
  /** The last write of this instance that a majority has stored. */
  lastBeat(): Beat | undefined;
  onError(error: unknown): void;
}

/**
 * How long an instance trusts its cache of keys, in milliseconds. The time begins when it sends a beat, or a linearizable
 * read. It limits the delay of a revocation during any failure, and how long keys work without the database.
 */
export const trustMs = 4_000;

/**
 * How long an instance remembers a key or a worker without reading it again, in milliseconds. So it notices what somebody
 * changed in the database by hand.
 */
export const cachedMsMax = 60_000;

/** A change acts on every instance within a second. */
const askEveryMs = 250;

/**
 * Reports what administration changes, by any instance or command. It reads one document several times a second. A change
 * stream would read every write of every caller on the server, for each instance.
 *
 * A primary that lost its majority still answers, with old data. So a reading counts as current only up to the last beat
 * of this instance (see `Instance`): the server answers when it has that beat, and then it has every earlier change.
 */
export class ChangeFeed {
  readonly #db: Db;
  readonly #options: ChangeFeedOptions;
  readonly #ending = new AbortController();
  #freshAtMs = Number.NEGATIVE_INFINITY;
  #heardTime: Timestamp | undefined;
  /** The number of changes that were told. Before the first reading, any may have been missed. */
  #told = Number.NEGATIVE_INFINITY;
  #running: Promise<void> | undefined;

  constructor(db: Db, options: ChangeFeedOptions) {
    this.#db = db;
    this.#options = options;
  }

  /** Every change stored before this time of `performance.now()` has been reported; -Infinity before the first beat. */
  get freshAtMs(): number {
    return this.#freshAtMs;
  }

  /** The operation time of the latest news; undefined while news may be missing. */
  get heardTime(): Timestamp | undefined {
    return performance.now() - this.#freshAtMs < trustMs ? this.#heardTime : undefined;
  }

  start(listener: ChangeListener): void {
    this.#running ??= this.#run(listener);
  }

  async stop(): Promise<void> {
    this.#ending.abort();
    await this.#running;
  }

  async #run(listener: ChangeListener): Promise<void> {
    const { signal } = this.#ending;
    while (!signal.aborted) {
      try {
        await this.#ask(listener);
      } catch (error) {
        if (!signal.aborted) this.#options.onError(error);
      }
      await delay(askEveryMs, undefined, { signal, ref: false }).catch(() => {});
    }
  }

  async #ask(listener: ChangeListener): Promise<void> {
    const beat = this.#options.lastBeat();
    const reading = readSince(this.#db, beat?.time, async (options) => {
      const [news] = await revisionCollection(this.#db).find({ _id: "access" }, options).toArray();
      return { news: news ?? { _id: "access" as const }, time: options.session?.operationTime };
    });
    const { news, time } = await bounded(reading, trustMs);
    this.#tell(news, listener);
    this.#heardTime = time;
    if (beat !== undefined) this.#freshAtMs = Math.max(this.#freshAtMs, beat.sentAtMs);
    listener.revisionsHeard({ revision: news.revision ?? 0, workersRevision: news.workersRevision ?? 0 });
  }

  #tell(news: RevisionDocument, listener: ChangeListener): void {
    const { latest = [], changes = 0 } = news;
    const missed = changes - this.#told;
    this.#told = changes;
    if (missed === 0) return;
    // A restore of the database may also have taken changes back.
    if (missed < 0 || missed > latest.length) listener.newsMissed();
    else {
      for (const one of latest.slice(-missed)) {
        const organizationId = organizationOfWorkers(one);
        if (organizationId === undefined) listener.accessChanged(one);
        else listener.workersChanged(organizationId);
      }
    }
  }
}
