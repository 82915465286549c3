import type { Db, Filter } from "mongodb";
import { bounded, durable } from "./database.ts";
import { forgetInstance, goneInstances } from "./instances.ts";
import { countRows } from "./recount.ts";
import { type UsageDocument, usageCollection, type UsageStore } from "./usage.ts";

/** Between two looks, in milliseconds. */
const lookEveryMs = 10_000;
/**
 * How long after a doubt the rows are counted, in milliseconds. By then every request that was charged before it is stored
 * or given up: it waits 45 s to begin at most, and a retry with its Idempotency-Key comes within ten minutes.
 */
const countAfterMs = 15 * 60_000;
/** A request is charged at most this long before it fails or its instance dies, in milliseconds. */
const underWayMs = 2 * 60_000;
/** How much clocks may differ by which ids are made, in milliseconds. */
const clockMs = 10_000;

export interface UsageKeeperOptions {
  readonly usage: Pick<UsageStore, "doubtful">;
  readonly onError: (error: unknown) => void;
  /** The server's clock, in milliseconds since 1970. */
  readonly now: () => number;
  readonly countAfterMs?: number;
}

/**
 * Keeps what is charged equal to what is stored. An instance that dies leaves events charged that it did not store. An
 * election may take back a charge, which is written `w: 1`, but not the rows. An operation that fails may have been done.
 * Each makes the usage of those organisations doubtful, and some time later an instance counts their rows.
 *
 * It counts while requests go on, so it corrects only what is certain:
 * - All that was ever charged before the doubt was stored, given back, or lost. Rows with ids of before the doubt, and all
 *   that was given back until now, are no fewer than that. What is missing was charged for nothing.
 * - Events are charged before they are stored. So no fewer may be charged now than rows were stored before.
 */
export class UsageKeeper {
  readonly #db: Db;
  readonly #options: UsageKeeperOptions;
  #election: string | undefined;
  #timer: NodeJS.Timeout | undefined;
  #looking: Promise<void> = Promise.resolve();
  readonly #stopping = new AbortController();

  constructor(db: Db, options: UsageKeeperOptions) {
    this.#db = db;
    this.#options = options;
  }

  start(): void {
    const look = () => {
      this.#looking = this.#looking.then(() => this.look());
    };
    // At once, so that it knows the election of its start.
    look();
    this.#timer = setInterval(look, lookEveryMs).unref();
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#stopping.abort();
    await this.#looking;
    await this.#markFailed().catch(this.#options.onError);
  }

  /** Finds what is in doubt, and counts what has been for long enough. Never rejects. */
  async look(): Promise<void> {
    try {
      await this.#markFailed();
      await this.#markElection();
      await this.#markGone();
      await this.#countDue();
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.#options.onError(error);
    }
  }

  async #markFailed(): Promise<void> {
    const { doubtful } = this.#options.usage;
    const ids = [...doubtful];
    if (ids.length === 0) return;
    await this.#mark({ _id: { $in: ids } });
    for (const id of ids) doubtful.delete(id);
  }

  async #markElection(): Promise<void> {
    const { electionId } = await bounded(this.#db.admin().command({ hello: 1 }));
    const election = String(electionId);
    if (election === this.#election) return;
    // Of the first one seen it is not known what came before.
    const sinceMs = this.#options.now() - underWayMs - lookEveryMs;
    if (this.#election !== undefined) await this.#mark({ chargedAt: { $gte: new Date(sinceMs) } });
    this.#election = election;
  }

  async #markGone(): Promise<void> {
    for (const { _id, seenAt } of await bounded(goneInstances(this.#db))) {
      await this.#mark({ chargedAt: { $gte: new Date(seenAt.getTime() - underWayMs) } });
      await bounded(forgetInstance(this.#db, _id, seenAt));
    }
  }

  /** A doubt that is there stays: it is followed by another when it has been dealt with. */
  async #mark(filter: Filter<UsageDocument>): Promise<void> {
    const again = { $mergeObjects: ["$doubt", { again: true }] };
    const doubt = { $cond: [{ $eq: [{ $type: "$doubt" }, "missing"] }, newDoubt, again] };
    const marking = usageCollection(this.#db).updateMany(filter, [{ $set: { doubt } }], { writeConcern: durable });
    await bounded(marking);
  }

  async #countDue(): Promise<void> {
    const { now, countAfterMs: afterMs = countAfterMs } = this.#options;
    const due = { "doubt.at": { $lte: new Date(now() - afterMs) } };
    const found = await bounded(usageCollection(this.#db).find(due).sort({ "doubt.at": 1 }).limit(100).toArray());
    for (const { _id, organizationId, month, doubt } of found) {
      if (doubt === undefined) continue;
      const moment = new Date(doubt.at.getTime() + clockMs);
      const { signal } = this.#stopping;
      const rows = await countRows(this.#db, { organizationId, month }, { moment, signal });
      await bounded(this.#correct(_id, doubt, rows));
    }
  }

  /** Nothing where another instance was faster. */
  #correct(_id: string, { at, charged }: NonNullable<UsageDocument["doubt"]>, rows: { all: number; before: number }) {
    const unused = { $max: [0, { $subtract: [charged, { $add: [returned, rows.before] }] }] };
    const stages = [
      { $set: { unused: { $min: ["$events", unused] } } },
      { $set: { events: { $subtract: ["$events", "$unused"] }, returned: { $add: [returned, "$unused"] } } },
      { $set: { events: { $max: ["$events", rows.all] } } },
      { $set: { doubt: { $cond: [{ $eq: ["$doubt.again", true] }, newDoubt, "$$REMOVE"] } } },
      { $unset: "unused" },
    ];
    return usageCollection(this.#db).updateOne({ _id, "doubt.at": at }, stages, { writeConcern: durable });
  }
}

const returned = { $ifNull: ["$returned", 0] };
const newDoubt = { at: "$$NOW", charged: { $add: ["$events", returned] } };
