import type { Db } from "mongodb";
import { type CollectionDefinition, faultOfDatabase } from "./database.ts";
import { eventCollection } from "./events.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";
import { firstUlidAt } from "../ids.ts";

/** Events that count against an organisation's quota in one month. */
export interface UsageDocument {
  /** `<organisation id>/<YYYY-MM>`, month in UTC by time of receipt. */
  _id: string;
  organizationId: string;
  month: string;
  events: number;
}

export const usage: CollectionDefinition = {
  name: "usage",
  indexes: [{ key: { organizationId: 1, month: 1 }, why: "the usage of an organisation is listed by month" }],
};

export const usageCollection = (db: Db) => db.collection<UsageDocument>(usage.name);

/** `YYYY-MM` in UTC. */
export const monthOf = (date: Date) => date.toISOString().slice(0, 7);

export interface QuotaRequest {
  readonly organizationId: string;
  readonly month: string;
  /** Events wanted, at least 1. */
  readonly events: number;
  /** The organisation's quota, in events a month. */
  readonly quotaEvents: number;
}

/** Takes quota and gives it back. Requests of one organisation share one update; it is allotted in order of arrival. */
export class UsageStore {
  readonly #db: Db;
  readonly #takes: GroupCommit<QuotaRequest, number>;

  constructor(db: Db, hooks: BatchHooks = {}) {
    this.#db = db;
    this.#takes = new GroupCommit({
      name: "quota",
      concurrencyMax: 2,
      batchWeightMax: 2_000,
      queueWeightMax: 20_000,
      ...hooks,
      run: async (batch) => {
        const outcomes = new Array<Settled<number>>(batch.length);
        await Promise.all(
          [...groupByMonth(batch)].map(async (indices) => {
            try {
              allot(batch, indices, await this.#take(batch, indices), outcomes);
            } catch (error) {
              for (const i of indices) outcomes[i] = { error: faultOfDatabase(error) };
            }
          }),
        );
        return outcomes;
      },
    });
  }

  /** Takes up to `request.events`; answers how many fitted the quota, 0 to all. */
  take(request: QuotaRequest, wanted?: () => boolean): Promise<number> {
    return this.#takes.submit(request, 1, wanted);
  }

  /** Gives back what was taken and not used. A failure is left to `recount`. */
  async giveBack(organizationId: string, month: string, events: number): Promise<void> {
    if (events > 0) {
      await usageCollection(this.#db).updateOne(
        { _id: `${organizationId}/${month}` },
        { $inc: { events: -events } },
        { writeConcern: { w: 1 } },
      );
    }
  }

  /** One update for all: the server decides how many fit, so that instances need not agree with each other. */
  async #take(batch: readonly QuotaRequest[], indices: readonly number[]): Promise<number> {
    const first = batch[indices[0] as number] as QuotaRequest;
    const wanted = indices.reduce((sum, i) => sum + (batch[i] as QuotaRequest).events, 0);
    const before = await usageCollection(this.#db).findOneAndUpdate(
      { _id: `${first.organizationId}/${first.month}` },
      [
        {
          $set: {
            organizationId: first.organizationId,
            month: first.month,
            events: {
              $let: {
                vars: { used: { $ifNull: ["$events", 0] } },
                in: { $max: ["$$used", { $min: [{ $add: ["$$used", wanted] }, first.quotaEvents] }] },
              },
            },
          },
        },
      ],
      // The majority write that follows on the same replica set carries it; a recount mends what a crash takes.
      { upsert: true, returnDocument: "before", projection: { events: 1 }, writeConcern: { w: 1 } },
    );
    return Math.max(0, Math.min(wanted, first.quotaEvents - (before?.events ?? 0)));
  }
}

function groupByMonth(batch: readonly QuotaRequest[]): Iterable<number[]> {
  const groups = new Map<string, number[]>();
  batch.forEach(({ organizationId, month, quotaEvents }, i) => {
    const key = `${organizationId}/${month}/${quotaEvents}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [i]);
    else group.push(i);
  });
  return groups.values();
}

function allot(
  batch: readonly QuotaRequest[],
  indices: readonly number[],
  granted: number,
  outcomes: Settled<number>[],
): void {
  let left = granted;
  for (const i of indices) {
    const value = Math.min(left, (batch[i] as QuotaRequest).events);
    left -= value;
    outcomes[i] = { value };
  }
}

/** Sets the usage of a month to the number of rows stored in it; answers both numbers. */
export async function recount(
  db: Db,
  organizationId: string,
  month: string,
): Promise<{ before: number; after: number }> {
  const start = new Date(`${month}-01T00:00:00Z`);
  const end = new Date(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + 1, 1));
  const _id = `${organizationId}/${month}`;
  for (;;) {
    const before = (await usageCollection(db).findOne({ _id }))?.events ?? 0;
    const after = await eventCollection(db).countDocuments({
      organizationId,
      _id: { $gte: `evt_${firstUlidAt(start)}`, $lt: `evt_${firstUlidAt(end)}` },
    });
    // Only if nothing was taken meanwhile: otherwise what is under way would be lost from the count.
    const result = await usageCollection(db).updateOne(
      before === 0 ? { _id, events: { $in: [0] } } : { _id, events: before },
      { $set: { organizationId, month, events: after } },
    );
    if (result.matchedCount === 1) return { before, after };
    if (before === 0 && (await usageCollection(db).findOne({ _id })) === null) {
      if (after > 0) await usageCollection(db).insertOne({ _id, organizationId, month, events: after });
      return { before, after };
    }
  }
}
