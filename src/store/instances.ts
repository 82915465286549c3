import { setTimeout as delay } from "node:timers/promises";
import type { Db, Timestamp } from "mongodb";
import { bounded, type CollectionDefinition } from "./database.ts";
import { revisionCollection, type RevisionName } from "./revisions.ts";
import { schemaVersion } from "./schema-version.ts";
import type { ServerClock } from "./server-clock.ts";

export interface InstanceDocument {
  _id: string;
  /** Host and process, for display. */
  name: string;
  /** By the server's clock, so that the instances' clocks do not matter. */
  seenAt: Date;
  /** The schema version that it writes; instances of versions before 3 do not say. */
  schemaVersion?: number;
  /** The latest revision that it has heard of; it acts on all earlier changes. */
  revision: number;
  /** The same for changes of workers. All requests from before it have ended, too. */
  workersRevision: number;
}

/** A write of an instance that a majority has stored. */
export interface Beat {
  /** In milliseconds of `performance.now()`. */
  readonly sentAtMs: number;
  /** The database's operation time of the write. */
  readonly time: Timestamp;
}

export const instances: CollectionDefinition = {
  name: "instances",
  indexes: [
    // Other instances remove it within seconds, see `UsageKeeper`. Without others, the next one to start does.
    {
      key: { seenAt: 1 },
      options: { expireAfterSeconds: 90 * 86_400 },
      why: "the server removes an instance that was killed",
    },
  ],
};

const instanceCollection = (db: Db) => db.collection<InstanceDocument>(instances.name);

export const beatEveryMs = 1_000;
/**
 * An instance without a beat for this many milliseconds counts as gone. Longer than `trustMs`, so that an instance
 * without the database admits no key by then.
 */
export const goneAfterMs = 10_000;
/** Longest time for a majority to store a beat, in milliseconds. */
const beatWithinMs = 2_000;

export interface InstanceOptions {
  readonly id: string;
  readonly name: string;
  readonly clock: Pick<ServerClock, "measure">;
  /** Resolves when all events and snapshots that are in flight now are stored or refused. */
  readonly requestsEnded: () => Promise<unknown>;
  readonly onError: (error: unknown) => void;
}

/**
 * Tells other instances and commands that this instance runs, and which revision it acts on. A majority must store this
 * write, so it also shows whether the database has its majority.
 */
export class Instance {
  readonly #db: Db;
  readonly #options: InstanceOptions;
  readonly #revisions: Record<RevisionName, number> = { revision: 0, workersRevision: 0 };
  #workersHeard = 0;
  #lastBeat: Beat | undefined;
  readonly #madeAtMs = performance.now();
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

  /** In milliseconds of `performance.now()`. Before the first beat: when this object was made. */
  get storedAtMs(): number {
    return this.#lastBeat?.sentAtMs ?? this.#madeAtMs;
  }

  /** The last beat that a majority has stored. */
  get lastBeat(): Beat | undefined {
    return this.#lastBeat;
  }

  /** This instance acts on all changes from before these revisions. */
  heard({ revision, workersRevision }: Readonly<Record<RevisionName, number>>): void {
    this.#act("revision", revision);
    if (workersRevision <= this.#workersHeard) return;
    this.#workersHeard = workersRevision;
    // A request that began earlier may have read a worker as it was, and may be about to store rows of it.
    void this.#options.requestsEnded().then(() => this.#act("workersRevision", workersRevision));
  }

  #act(name: RevisionName, revision: number): void {
    if (revision <= this.#revisions[name]) return;
    this.#revisions[name] = revision;
    this.#beat();
  }

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
    const sentAtMs = performance.now();
    const said = { name: { $literal: name }, schemaVersion, ...this.#revisions, seenAt: "$$NOW" };
    const update = [{ $set: said }];
    const options = { upsert: true, writeConcern: { w: "majority", wtimeout: beatWithinMs } } as const;
    try {
      // If a beat is lost, another one must follow before this instance counts as gone.
      const writing = this.#db.client.withSession(async (session) => {
        await instanceCollection(this.#db).updateOne({ _id }, update, { ...options, session });
        this.#lastBeat = { sentAtMs, time: session.operationTime as Timestamp };
      });
      await Promise.all([bounded(writing, 2 * beatWithinMs), clock.measure()]);
    } catch (error) {
      onError(error);
    }
    clearTimeout(this.#timer);
    if (!this.#stopped) this.#timer = setTimeout(() => this.#beat(), beatEveryMs).unref();
  }
}

const isRunning = { $expr: { $gt: ["$seenAt", { $subtract: ["$$NOW", goneAfterMs] }] } };

/**
 * Whether work that one instance does for all is this one's: the running instance with the smallest id does it. While that
 * changes two may, so the work must bear being done twice.
 */
export async function isFirstInstance(db: Db, id: string): Promise<boolean> {
  const [first] = await instanceCollection(db).find(isRunning).sort({ _id: 1 }).limit(1).toArray();
  return first?._id === id;
}

/** What each known instance wrote last; a restore brings back those of the time of the backup. */
export const instanceSigns = (db: Db) =>
  instanceCollection(db)
    .aggregate<Omit<InstanceDocument, RevisionName> & { readonly isRunning: boolean }>([
      { $project: { name: 1, seenAt: 1, schemaVersion: 1, isRunning: isRunning.$expr } },
    ])
    .toArray();

export const goneInstances = (db: Db): Promise<InstanceDocument[]> =>
  instanceCollection(db)
    .find({ $expr: { $not: isRunning.$expr } })
    .toArray();

/** The names of running instances of older versions. */
export const olderInstances = (db: Db): Promise<string[]> =>
  instanceCollection(db)
    .find({ schemaVersion: { $not: { $gte: schemaVersion } }, ...isRunning })
    .map(({ name }) => name)
    .toArray();

/** Removes an instance, unless it has come back since. */
export async function forgetInstance(db: Db, _id: string, seenAt: Date): Promise<void> {
  await instanceCollection(db).deleteOne({ _id, seenAt });
}

/**
 * Waits until every running instance acts on all changes written before this call: of keys, apps and organisations, or of
 * workers.
 * @returns the names of instances that did not confirm it within `secondsMax`.
 * @throws the signal's reason as an AbortError when it aborts.
 */
export async function settleOnInstances(
  db: Db,
  secondsMax: number,
  name: RevisionName = "revision",
  signal?: AbortSignal,
): Promise<string[]> {
  const next = await revisionCollection(db).findOneAndUpdate(
    { _id: "access" },
    { $inc: { [name]: 1 } },
    { upsert: true, returnDocument: "after" },
  );
  const deadline = performance.now() + secondsMax * 1000;
  for (;;) {
    const behind = await instanceCollection(db)
      // An instance of an older version has no `workersRevision`.
      .find({ [name]: { $not: { $gte: next?.[name] ?? 0 } }, ...isRunning })
      .map(({ name }) => name)
      .toArray();
    if (behind.length === 0 || performance.now() > deadline) return behind;
    await delay(50, undefined, { signal });
  }
}
