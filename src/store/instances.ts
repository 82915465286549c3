import type { Db } from "mongodb";
import { bounded, type CollectionDefinition } from "./database.ts";
import type { ServerClock } from "./server-clock.ts";

/** A running instance, and how far it has followed the changes of keys. */
export interface InstanceDocument {
  _id: string;
  /** Host and process, for people. */
  name: string;
  /** By the server's clock, so that nobody's clock matters. */
  seenAt: Date;
  /** The greatest revision that it has heard of: whatever was written before that revision, it acts on. */
  revision: number;
  /**
   * When this was written, by the instance's own monotonic clock, in milliseconds; means something to that instance only.
   * When it comes back through the change stream, all that a majority had stored before that moment has come too: only what
   * a majority has stored comes through a stream, in order.
   */
  beat: number;
}

export const instances: CollectionDefinition = {
  name: "instances",
  indexes: [
    // The others forget it within seconds, see `UsageKeeper`; when there are none, the next one does.
    {
      key: { seenAt: 1 },
      options: { expireAfterSeconds: 90 * 86_400 },
      why: "an instance that was killed is forgotten",
    },
  ],
};

/**
 * Counts up after a change that somebody waits for. News of it comes through the same change stream, behind the change: who
 * has heard of the revision has heard of the change.
 */
export interface RevisionDocument {
  _id: "access";
  revision: number;
}

export const revisions: CollectionDefinition = { name: "revisions", indexes: [] };

const instanceCollection = (db: Db) => db.collection<InstanceDocument>(instances.name);
const revisionCollection = (db: Db) => db.collection<RevisionDocument>(revisions.name);

/** Between two beats, in milliseconds. */
export const beatEveryMs = 1_000;
/**
 * An instance that has said nothing for this long counts as gone, in milliseconds. Longer than it trusts what it remembers
 * without a beat (`trustMs`), so that one that lives but cannot reach the database lets no key in by then.
 */
export const goneAfterMs = 10_000;
/** Longest that a majority may take to store a beat, in milliseconds. */
const beatWithinMs = 2_000;

export interface InstanceOptions {
  readonly id: string;
  readonly name: string;
  /** Measured with every beat. */
  readonly clock: Pick<ServerClock, "measure">;
  /** Drops what is remembered of keys, apps and organisations. */
  readonly forget: () => void;
  readonly onError: (error: unknown) => void;
}

/**
 * Tells the others that this instance runs and what it has heard of. The same write, which a majority must store, shows
 * the instance that the database's majority follows what it writes.
 */
export class Instance {
  readonly #db: Db;
  readonly #options: InstanceOptions;
  #revision = 0;
  #storedAtMs = performance.now();
  #timer: NodeJS.Timeout | undefined;
  #beating: Promise<void> = Promise.resolve();
  #stopped = false;

  constructor(db: Db, options: InstanceOptions) {
    this.#db = db;
    this.#options = options;
  }

  start(): void {
    this.#beat();
  }

  /** When a majority last stored a beat, in milliseconds of `performance.now()`; before the first, when this was made. */
  get storedAtMs(): number {
    return this.#storedAtMs;
  }

  /** News of a revision has come, behind the news of all that was written before it. */
  heard(revision: number): void {
    if (revision <= this.#revision) return;
    this.#revision = revision;
    this.#beat();
  }

  /** The stream of news has begun anew: what it would have told is not known, so what is remembered is dropped. */
  async newsMissed(): Promise<void> {
    try {
      const reading = revisionCollection(this.#db).findOne({ _id: "access" }, { readConcern: "majority" });
      const current = await bounded(reading);
      // After the read: what was read of keys until now may be older than the revision.
      this.#options.forget();
      this.heard(current?.revision ?? 0);
    } catch (error) {
      this.#options.onError(error);
    }
    // Until one comes back through the new stream, its news does not count as complete.
    this.#beat();
  }

  /** Says that this instance is gone. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#beating;
    await bounded(instanceCollection(this.#db).deleteOne({ _id: this.#options.id })).catch((error: unknown) =>
      this.#options.onError(error),
    );
  }

  #beat(): void {
    clearTimeout(this.#timer);
    this.#beating = this.#beating.then(() => this.#say());
  }

  async #say(): Promise<void> {
    if (this.#stopped) return;
    const { id: _id, name, clock, onError } = this.#options;
    const beat = performance.now();
    const update = [{ $set: { name: { $literal: name }, revision: this.#revision, seenAt: "$$NOW", beat } }];
    const options = { upsert: true, writeConcern: { w: "majority", wtimeout: beatWithinMs } } as const;
    try {
      // So that one that is lost is followed by another before this instance counts as gone.
      const writing = bounded(instanceCollection(this.#db).updateOne({ _id }, update, options), 2 * beatWithinMs);
      await Promise.all([writing.then(() => (this.#storedAtMs = beat)), clock.measure()]);
    } catch (error) {
      onError(error);
    }
    clearTimeout(this.#timer);
    if (!this.#stopped) this.#timer = setTimeout(() => this.#beat(), beatEveryMs).unref();
  }
}

/** Instances that count as gone: killed, or for long without the database. */
export const goneInstances = (db: Db): Promise<InstanceDocument[]> =>
  instanceCollection(db)
    .find({ $expr: { $lt: ["$seenAt", { $subtract: ["$$NOW", goneAfterMs] }] } })
    .toArray();

/** Nothing when it has come back since. */
export async function forgetInstance(db: Db, _id: string, seenAt: Date): Promise<void> {
  await instanceCollection(db).deleteOne({ _id, seenAt });
}

/**
 * Waits until every running instance acts on all that was written before this call.
 * @returns the names of those that have not said so within `secondsMax`.
 */
export async function settleOnInstances(db: Db, secondsMax: number): Promise<string[]> {
  const next = await revisionCollection(db).findOneAndUpdate(
    { _id: "access" },
    { $inc: { revision: 1 } },
    { upsert: true, returnDocument: "after" },
  );
  const deadline = performance.now() + secondsMax * 1000;
  for (;;) {
    const behind = await instanceCollection(db)
      .find({
        revision: { $lt: next?.revision ?? 0 },
        $expr: { $gt: ["$seenAt", { $subtract: ["$$NOW", goneAfterMs] }] },
      })
      .map(({ name }) => name)
      .toArray();
    if (behind.length === 0 || performance.now() > deadline) return behind;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
