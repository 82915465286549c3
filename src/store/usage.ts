import type { Db } from "mongodb";
import { setTimeout as delay } from "node:timers/promises";
import { type CollectionDefinition, durable, faultOfDatabase, isDuplicateKey, retried } from "./database.ts";
import { eventCollection, timelineOfOrganization } from "./events.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";
import { firstUlidAt, timeOfId } from "../ids.ts";

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

/**
 * The month a request counts in, that of its receipt. Taken from its id, as are the ids of its rows, so that a recount by
 * ids finds exactly the rows that were counted.
 */
export const monthOfRequest = (requestId: string) => monthOf(timeOfId(requestId));

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
        const outcomes = Array.from<Settled<number>>({ length: batch.length });
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

  /** How many events still fit the quota. Takes nothing. */
  async left({ organizationId, month, quotaEvents }: QuotaRequest): Promise<number> {
    const used = await retried(() => usageCollection(this.#db).findOne({ _id: `${organizationId}/${month}` }));
    return Math.max(0, quotaEvents - (used?.events ?? 0));
  }

  /** Gives back what was taken and not used; never below 0. A failure is left to `recount`. */
  async giveBack(organizationId: string, month: string, events: number): Promise<void> {
    if (events === 0) return;
    await usageCollection(this.#db).updateOne(
      { _id: `${organizationId}/${month}` },
      [{ $set: { events: { $max: [0, { $subtract: ["$events", events] }] } } }],
      { writeConcern: { w: 1 } },
    );
  }

  /** One update for all: the server decides how many fit, so that instances need not agree with each other. */
  async #take(batch: readonly QuotaRequest[], indices: readonly number[]): Promise<number> {
    const first = batch[indices[0] as number] as QuotaRequest;
    const wanted = indices.reduce((sum, i) => sum + (batch[i] as QuotaRequest).events, 0);
    const before = await this.#update(first, wanted);
    return Math.max(0, Math.min(wanted, first.quotaEvents - (before?.events ?? 0)));
  }

  async #update(first: QuotaRequest, wanted: number, triesMax = 3): Promise<{ events: number } | null> {
    try {
      return await this.#findAndAdd(first, wanted);
    } catch (error) {
      // Two instances made the month's document at once: it is there now.
      if (triesMax > 1 && isDuplicateKey(error)) return this.#update(first, wanted, triesMax - 1);
      throw error;
    }
  }

  /** Adds what fits; the document before. Sent once more by the driver after a lost answer, and done only once. */
  #findAndAdd(first: QuotaRequest, wanted: number): Promise<{ events: number } | null> {
    return usageCollection(this.#db).findOneAndUpdate(
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

export interface RecountOptions {
  /** How long count and rows must stand still before the count is changed, in milliseconds. */
  readonly quietMs: number;
  /** How long to wait for that, in milliseconds. */
  readonly patienceMs: number;
}

/**
 * Sets the usage of a month to the number of rows stored in it; answers both numbers, or undefined when the organisation
 * did not come to rest. A request takes its quota before it stores its rows, so the two may differ while it is under way;
 * only a difference that outlasts every request is mended.
 */
export async function recount(
  db: Db,
  organizationId: string,
  month: string,
  { quietMs, patienceMs }: RecountOptions,
): Promise<{ before: number; after: number } | undefined> {
  const deadlineMs = performance.now() + patienceMs;
  let seen = await counted(db, organizationId, month);
  while (seen.rows !== (seen.events ?? 0)) {
    if (performance.now() >= deadlineMs) return undefined;
    await delay(quietMs);
    const now = await counted(db, organizationId, month);
    if (now.rows === seen.rows && now.events === seen.events && (await setEvents(db, organizationId, month, now))) {
      return { before: now.events ?? 0, after: now.rows };
    }
    seen = now;
  }
  return { before: seen.rows, after: seen.rows };
}

interface Counted {
  /** As counted when quota was taken; undefined when it never was. */
  readonly events: number | undefined;
  readonly rows: number;
}

async function counted(db: Db, organizationId: string, month: string): Promise<Counted> {
  const start = new Date(`${month}-01T00:00:00Z`);
  const end = new Date(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + 1, 1));
  const events = (await usageCollection(db).findOne({ _id: `${organizationId}/${month}` }))?.events;
  const range = { $gte: `evt_${firstUlidAt(start)}`, $lt: `evt_${firstUlidAt(end)}` };
  // The index holds both, so no row is read.
  const options = { hint: timelineOfOrganization, readConcern: "majority" } as const;
  const rows = await eventCollection(db).countDocuments({ organizationId, _id: range }, options);
  return { events, rows };
}

/** Only if nothing was taken meanwhile: what is under way must not be lost from the count. */
async function setEvents(db: Db, organizationId: string, month: string, { events, rows }: Counted): Promise<boolean> {
  try {
    const result = await usageCollection(db).updateOne(
      { _id: `${organizationId}/${month}`, events: events ?? { $exists: false } },
      { $set: { organizationId, month, events: rows } },
      { upsert: events === undefined, writeConcern: durable },
    );
    return result.matchedCount + result.upsertedCount === 1;
  } catch (error) {
    if (isDuplicateKey(error)) return false;
    throw error;
  }
}
