import type { Db } from "mongodb";
import { bounded, durable, everyShard, updateDurably } from "./database.ts";
import { forgetInstance, goneInstances } from "./instances.ts";
import { Pace } from "./pace.ts";
import { countRows } from "./recount.ts";
import { hasOldRows } from "./version-2.ts";
import {
  ownerOfUsage,
  usage,
  type UsageDocument,
  usageCollection,
  usageKey,
  type UsageOwner,
  type UsageStore,
} from "./usage.ts";

const lookEveryMs = 10_000;
/**
 * Milliseconds between a doubt and the count. By then every request charged before the doubt is stored or given up: a
 * request waits at most 45 s to begin, and retries come within ten minutes.
 */
const countAfterMs = 15 * 60_000;
/** A request ends, or its instance dies, at most this many milliseconds after it was charged. */
const underWayMs = 2 * 60_000;
/** The most documents that one command marks. */
const markMax = 1_000;
/** Allowed difference between the clocks that make ids, and the life of a reservation, in milliseconds. */
const clockMs = 10_000;
/** Rows that one command counts. */
const sliceRows = 5_000;
/** How long a count waits for a pause of `clockMs` without a charge, in milliseconds. */
const pauseWithinMs = 5 * 60_000;

export interface UsageKeeperOptions {
  readonly usage: Pick<UsageStore, "doubtful" | "watchElections">;
  readonly onError: (error: unknown) => void;
  /** The server's clock. */
  readonly now: () => number;
  readonly countAfterMs?: number;
  /** Whether this instance counts now: one does it for all. Default: it does. */
  readonly isDoer?: () => Promise<boolean>;
}

/**
 * Keeps the charge equal to the stored rows. Three failures can break that:
 * - An instance dies before it stores events that it has charged.
 * - An election undoes a charge, which is written `w: 1`, but not the rows. Only an instance that survived the election
 *   can have stored them, since a majority that has rows has every earlier write. So each instance doubts its own charges.
 *   What remains: it stores such rows, and dies in the same moment, before a majority has its doubt.
 * - An operation fails, although the server may have done it.
 *
 * Usage is then in doubt, and an instance counts the rows later. Requests continue, so it corrects only what is
 * certain:
 * - Each event charged before the doubt was stored, given back, or lost. So subtract the rows from before the doubt,
 *   and all that was given back until now. The rest was charged for nothing.
 * - Instances charge events before they store them. So the charge must be at least the number of rows.
 *
 * Rows received within `clockMs` after the doubt may have been charged before it, so they hide as many lost charges. So
 * a doubt moves on to the first pause of the organisation. If there is none for some minutes, the keeper counts
 * nevertheless, and once more after a pause.
 */
export class UsageKeeper {
  readonly #db: Db;
  readonly #options: UsageKeeperOptions;
  #timer: NodeJS.Timeout | undefined;
  #looking: Promise<void> | undefined;
  #marking: Promise<void> = Promise.resolve();
  #ignoreElections = () => {};
  readonly #stopping = new AbortController();

  constructor(db: Db, options: UsageKeeperOptions) {
    this.#db = db;
    this.#options = options;
  }

  start(): void {
    // A look may take many intervals, if it counts rows.
    const look = () => {
      this.#looking ??= this.look().finally(() => (this.#looking = undefined));
    };
    // A look may count rows for long, so it does not delay the marks of an election.
    this.#ignoreElections = this.#options.usage.watchElections(() => void this.#markDoubtful());
    look();
    this.#timer = setInterval(look, lookEveryMs).unref();
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#stopping.abort();
    await this.#looking;
    await this.#markDoubtful();
    this.#ignoreElections();
  }

  /** Never rejects. */
  async look(): Promise<void> {
    try {
      await this.#markDoubtful();
      await this.#markGone();
      await this.#seekPauses();
      await this.#countDue();
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.#options.onError(error);
    }
  }

  /** Never rejects: what it cannot mark stays doubtful. */
  #markDoubtful(): Promise<void> {
    const { doubtful } = this.#options.usage;
    this.#marking = this.#marking.then(async () => {
      for (let ids = [...doubtful]; ids.length > 0; ids = ids.slice(markMax)) {
        await this.#markEach(ids.slice(0, markMax)).catch(this.#options.onError);
      }
    });
    return this.#marking;
  }

  /** Makes a document again that a rollback has removed. */
  async #markEach(ids: readonly string[]): Promise<void> {
    const { doubtful } = this.#options.usage;
    // Before the command, so that a doubt that comes meanwhile stays.
    for (const id of ids) doubtful.delete(id);
    const unmarked = new Set(ids);
    try {
      const statements = ids.map((id) => {
        const owner = ownerOfUsage(id);
        const made = { month: owner.month, events: { $ifNull: ["$events", 0] } };
        return { q: usageKey(owner), u: [{ $set: made }, { $set: { doubt } }], upsert: true };
      });
      const outcomes = await updateDurably(this.#db, usage.name, statements);
      outcomes.forEach((outcome, i) => {
        if ("error" in outcome) this.#options.onError(outcome.error);
        // Otherwise another instance has just made the document.
        else if (outcome.value === "written") unmarked.delete(ids[i] as string);
      });
    } finally {
      for (const id of unmarked) doubtful.add(id);
    }
  }

  async #markGone(): Promise<void> {
    for (const { _id, seenAt } of await bounded(goneInstances(this.#db))) {
      const chargedAt = { $gte: new Date(seenAt.getTime() - underWayMs) };
      const options = { writeConcern: durable, ...everyShard("a dead instance concerns any organisation") };
      await bounded(usageCollection(this.#db).updateMany({ chargedAt }, [{ $set: { doubt } }], options));
      await bounded(forgetInstance(this.#db, _id, seenAt));
    }
  }

  async #seekPauses(): Promise<void> {
    const sought = { "doubt.at": { $exists: true }, "doubt.paused": { $ne: true } } as const;
    const options = { writeConcern: durable, ...everyShard("any organisation's count may be in doubt") };
    await bounded(usageCollection(this.#db).updateMany(sought, [{ $set: { doubt: soughtDoubt } }], options));
  }

  async #countDue(): Promise<void> {
    const { now, countAfterMs: afterMs = countAfterMs, isDoer = async () => true } = this.#options;
    const due = { "doubt.at": { $lte: new Date(now() - afterMs) } };
    // A count would miss rows that are still to be copied.
    if (await hasOldRows(this.#db)) return;
    const finding = usageCollection(this.#db).find(due, everyShard("any organisation's count may be in doubt"));
    const found = await bounded(finding.sort({ "doubt.at": 1 }).limit(100).toArray());
    if (found.length === 0 || !(await isDoer())) return;
    const pace = new Pace();
    const { signal } = this.#stopping;
    const rest = async (tookMs: number) => {
      // A doubt that only this process knows must not wait for the count.
      await this.#markDoubtful();
      await pace.rest(tookMs, signal);
    };
    for (const { organizationId, month, doubt } of found) {
      if (doubt === undefined) continue;
      const moment = new Date(doubt.at.getTime() + clockMs);
      const options = { moment, signal, sliceRows, rest };
      const rows = await countRows(this.#db, { organizationId, month }, options);
      // The next look counts again.
      if (rows !== undefined) await bounded(this.#correct({ organizationId, month }, doubt, rows));
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
      { $set: { doubt: doubtAfterCount } },
      { $unset: "unused" },
    ];
    const filter = { ...usageKey(owner), "doubt.at": at };
    return usageCollection(this.#db).updateOne(filter, stages, { writeConcern: durable });
  }
}

const returned = { $ifNull: ["$returned", 0] };
const sample = { at: "$$NOW", charged: { $add: ["$events", returned] } };
const newDoubt = { ...sample, since: "$$NOW" };
const doubtAgain = { $mergeObjects: ["$doubt", { again: true }] };
/** An existing doubt stays; a second one follows after its count. */
const doubt = { $cond: [{ $eq: [{ $type: "$doubt" }, "missing"] }, newDoubt, doubtAgain] };

const isAgain = { $eq: ["$doubt.again", true] };
const isCounted = { $eq: ["$doubt.counted", true] };
/** A request that was charged later may have been received earlier. */
const isCharged = { $gt: ["$chargedAt", "$doubt.at"] };
const before = (ms: number) => ({ $subtract: ["$$NOW", ms] });

const isPaused = { $and: [{ $not: [isCharged] }, { $lte: ["$doubt.at", before(clockMs)] }] };
const mayMove = { $and: [isCharged, { $or: [isCounted, { $gt: ["$doubt.since", before(pauseWithinMs)] }] }] };
const movedDoubt = { $cond: [{ $and: [isAgain, isCounted] }, newDoubt, { $mergeObjects: ["$doubt", sample] }] };
/** Moves a doubt after the last charge, until `clockMs` pass without one. */
const soughtDoubt = {
  $cond: [isPaused, { $mergeObjects: ["$doubt", { paused: true }] }, { $cond: [mayMove, movedDoubt, "$doubt"] }],
};

const isUnsure = { $and: [isCharged, { $ne: ["$doubt.paused", true] }, { $not: [isCounted] }] };
const unsureDoubt = { $cond: [isUnsure, { ...newDoubt, counted: true }, "$$REMOVE"] };
const doubtAfterCount = { $cond: [isAgain, newDoubt, unsureDoubt] };
