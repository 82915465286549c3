import type { Db, Filter } from "mongodb";
import { bounded, durable, everyShard } from "./database.ts";
import { forgetInstance, goneInstances } from "./instances.ts";
import { countRows } from "./recount.ts";
import { hasOldRows } from "./version-2.ts";
import { type UsageDocument, usageCollection, usageKey, type UsageOwner, type UsageStore } from "./usage.ts";

const lookEveryMs = 10_000;
/**
 * Milliseconds between a doubt and the count. By then every request charged before the doubt is stored or given up: a
 * request waits at most 45 s to begin, and retries come within ten minutes.
 */
const countAfterMs = 15 * 60_000;
/** A request ends, or its instance dies, at most this many milliseconds after it was charged. */
const underWayMs = 2 * 60_000;
/** Allowed difference between the clocks that make ids, in milliseconds. */
const clockMs = 10_000;

export interface UsageKeeperOptions {
  readonly usage: Pick<UsageStore, "doubtful">;
  readonly onError: (error: unknown) => void;
  /** The server's clock. */
  readonly now: () => number;
  readonly countAfterMs?: number;
}

/**
 * Keeps the charge equal to the stored rows. Three failures can break that:
 * - An instance dies before it stores events that it has charged.
 * - An election undoes a charge, which is written `w: 1`, but not the rows.
 * - An operation fails, although the server may have done it.
 *
 * Usage is then in doubt, and an instance counts the rows later. Requests continue, so it corrects only what is
 * certain:
 * - Each event charged before the doubt was stored, given back, or lost. So subtract the rows from before the doubt,
 *   and all that was given back until now. The rest was charged for nothing.
 * - Instances charge events before they store them. So the charge must be at least the number of rows.
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
    // Check at once, to learn the current election.
    look();
    this.#timer = setInterval(look, lookEveryMs).unref();
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#stopping.abort();
    await this.#looking;
    await this.#markFailed().catch(this.#options.onError);
  }

  /** Never rejects. */
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
    const organizationIds = ids.map((id) => id.split("/", 1)[0] as string);
    await this.#mark({ _id: { $in: ids }, organizationId: { $in: organizationIds } });
    for (const id of ids) doubtful.delete(id);
  }

  async #markElection(): Promise<void> {
    const { electionId } = await bounded(this.#db.admin().command({ hello: 1 }));
    const election = String(electionId);
    if (election === this.#election) return;
    // At the first check there is no earlier election to compare with.
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

  /** An existing doubt stays; a second one follows after its count. */
  async #mark(filter: Filter<UsageDocument>): Promise<void> {
    const again = { $mergeObjects: ["$doubt", { again: true }] };
    const doubt = { $cond: [{ $eq: [{ $type: "$doubt" }, "missing"] }, newDoubt, again] };
    const options = {
      writeConcern: durable,
      ...everyShard("an election or a dead instance concerns any organisation"),
    };
    await bounded(usageCollection(this.#db).updateMany(filter, [{ $set: { doubt } }], options));
  }

  async #countDue(): Promise<void> {
    const { now, countAfterMs: afterMs = countAfterMs } = this.#options;
    const due = { "doubt.at": { $lte: new Date(now() - afterMs) } };
    // A count would miss rows that are still to be copied.
    if (await hasOldRows(this.#db)) return;
    const finding = usageCollection(this.#db).find(due, everyShard("any organisation's count may be in doubt"));
    const found = await bounded(finding.sort({ "doubt.at": 1 }).limit(100).toArray());
    for (const { organizationId, month, doubt } of found) {
      if (doubt === undefined) continue;
      const moment = new Date(doubt.at.getTime() + clockMs);
      const { signal } = this.#stopping;
      const rows = await countRows(this.#db, { organizationId, month }, { moment, signal });
      await bounded(this.#correct({ organizationId, month }, doubt, rows));
    }
  }

  /** Does nothing if another instance has corrected this doubt. */
  #correct(
    owner: UsageOwner,
    { at, charged }: NonNullable<UsageDocument["doubt"]>,
    rows: { readonly all: number; readonly before: number },
  ) {
    const unused = { $max: [0, { $subtract: [charged, { $add: [returned, rows.before] }] }] };
    const stages = [
      { $set: { unused: { $min: ["$events", unused] } } },
      { $set: { events: { $subtract: ["$events", "$unused"] }, returned: { $add: [returned, "$unused"] } } },
      { $set: { events: { $max: ["$events", rows.all] } } },
      { $set: { doubt: { $cond: [{ $eq: ["$doubt.again", true] }, newDoubt, "$$REMOVE"] } } },
      { $unset: "unused" },
    ];
    const filter = { ...usageKey(owner), "doubt.at": at };
    return usageCollection(this.#db).updateOne(filter, stages, { writeConcern: durable });
  }
}

const returned = { $ifNull: ["$returned", 0] };
const newDoubt = { at: "$$NOW", charged: { $add: ["$events", returned] } };
