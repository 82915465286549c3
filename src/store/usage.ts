import { setTimeout as delay } from "node:timers/promises";
import type { Db, Document } from "mongodb";
import { bounded, type CollectionDefinition, faultOfDatabase, isDuplicateKey, retried } from "./database.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";
import { timeOfId } from "../ids.ts";

/** Events that count against an organisation's quota in one month. */
export interface UsageDocument {
  /** `<organisation id>/<YYYY-MM>`, month in UTC by time of receipt. */
  _id: string;
  organizationId: string;
  month: string;
  /** Used, and counted; what was used of a reservation follows within some milliseconds. */
  events: number;
  /** Charged ahead by instances, beside `events`; what they used of it moves over. May pass below 0 for a moment. */
  reserved?: number;
  /** After it, by the server's clock, what is reserved counts as used: its instance is gone. */
  reservedUntil?: Date;
  /** What the latest update decided, for its sender to read. */
  latest?: { granted: number; reserved: number };
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

/**
 * Takes quota and gives it back, exactly over any number of instances: an event is accepted only when it was charged to
 * the month's document first.
 *
 * Requests of one organisation share one update, allotted in order of arrival. While much of the quota is left, an
 * instance charges some ahead (a reservation) and serves requests from memory; what they use moves from `reserved` to
 * `events` by a report some milliseconds later. `events` and `reserved` together are what is charged,
 * so that instances can never accept more than the quota. Near its end nothing is reserved any more, and a request is
 * refused only once no reservation is left that might still be returned: then exactly the quota is accepted.
 *
 * A reservation that is not renewed or returned in time (a killed instance) counts as used: like quota that was taken
 * by a request that died, it is for a recount to mend.
 */
export class UsageStore {
  readonly #db: Db;
  readonly #onError: (error: unknown) => void;
  readonly #takes: GroupCommit<QuotaRequest, Taken>;
  readonly #reservations = new Map<string, Reservation>();
  readonly #reports = new Map<string, Report>();
  #sweeper: NodeJS.Timeout | undefined;
  #isStopping = false;

  constructor(db: Db, hooks: BatchHooks = {}, onError: (error: unknown) => void = () => {}) {
    this.#db = db;
    this.#onError = onError;
    this.#takes = new GroupCommit({
      name: "quota",
      ownerOf: ({ organizationId }) => organizationId,
      concurrencyMax: 2,
      batchWeightMax: 2_000,
      queueWeightMax: 20_000,
      ...hooks,
      run: async (batch) => {
        const outcomes = Array.from<Settled<Taken>>({ length: batch.length });
        await Promise.all(
          [...groupByMonth(batch)].map(async (indices) => {
            try {
              allot(batch, indices, await bounded(this.#take(batch, indices)), outcomes);
            } catch (error) {
              for (const i of indices) outcomes[i] = { error: faultOfDatabase(error) };
            }
          }),
        );
        return outcomes;
      },
    });
  }

  /** Takes up to `request.events`; answers how many fitted the quota, 0 to all. At once where quota is reserved. */
  take(request: QuotaRequest, wanted?: () => boolean): number | Promise<number> {
    const reservation = this.#reservations.get(reservationKey(request));
    if (reservation === undefined || reservation.left < request.events) return this.#takeSlowly(request, wanted);
    this.#use(request, reservation, request.events);
    if (reservation.left < reservation.size / 2 && !reservation.isAsking) {
      reservation.isAsking = true;
      const more = this.#takes.submit({ ...request, events: 0 });
      more.catch(this.#onError).finally(() => (reservation.isAsking = false));
    }
    return request.events;
  }

  /** Whether `take` would answer at once, and without touching the last of the quota. */
  isReserved(request: QuotaRequest): boolean {
    return (this.#reservations.get(reservationKey(request))?.left ?? 0) >= request.events;
  }

  /** Resolves when everything taken so far is in the month's `events`; undefined when it is. Never rejects. */
  settled(organizationId: string, month: string): Promise<void> | undefined {
    return this.#reports.get(documentId(organizationId, month))?.done;
  }

  /** How many events still fit the quota. Takes nothing. */
  async left({ organizationId, month, quotaEvents }: QuotaRequest): Promise<number> {
    const _id = documentId(organizationId, month);
    const used = await retried(() => usageCollection(this.#db).findOne({ _id }));
    return Math.max(0, quotaEvents - (used?.events ?? 0));
  }

  /** Gives back what was taken and not used; never below 0. A failure is left to `recount`. */
  async giveBack(organizationId: string, month: string, events: number): Promise<void> {
    if (events === 0) return;
    await this.settled(organizationId, month);
    await bounded(
      usageCollection(this.#db).updateOne(
        { _id: documentId(organizationId, month) },
        [{ $set: { events: { $max: [0, { $subtract: ["$events", events] }] } } }],
        { writeConcern: { w: 1 } },
      ),
    );
  }

  /** Returns what is reserved and not used. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    clearInterval(this.#sweeper);
    this.#returnIf(() => true);
    await Promise.all([...this.#reports.values()].map(({ done }) => done));
  }

  async #takeSlowly(request: QuotaRequest, wanted: (() => boolean) | undefined): Promise<number> {
    const deadlineMs = performance.now() + 2 * reservedMs;
    let granted = 0;
    try {
      for (;;) {
        const taken = await this.#takes.submit({ ...request, events: request.events - granted }, 1, wanted);
        granted += taken.events;
        // What others have reserved may come back.
        if (granted === request.events || !taken.isReserved || performance.now() > deadlineMs) return granted;
        await delay(settleEveryMs);
      }
    } catch (error) {
      await this.giveBack(request.organizationId, request.month, granted).catch(this.#onError);
      throw error;
    }
  }

  #use({ organizationId, month }: QuotaRequest, reservation: Reservation, events: number): void {
    reservation.left -= events;
    reservation.usedAtMs = performance.now();
    this.#note(documentId(organizationId, month), events, 0);
  }

  /** Adds to the report that leaves next, after the one under way. */
  #note(_id: string, used: number, returned: number): void {
    const last = this.#reports.get(_id);
    if (last !== undefined && !last.isSent) {
      last.used += used;
      last.returned += returned;
      return;
    }
    const report: Report = { used, returned, isSent: false, done: Promise.resolve() };
    this.#reports.set(_id, report);
    report.done = this.#send(_id, report, last);
  }

  async #send(_id: string, report: Report, last: Report | undefined): Promise<void> {
    await last?.done;
    if (!this.#isStopping) await delay(reportAfterMs, undefined, { ref: false });
    report.isSent = true;
    const $inc = { events: report.used, reserved: -report.used - report.returned };
    try {
      await bounded(usageCollection(this.#db).updateOne({ _id }, { $inc }, { writeConcern: { w: 1 } }));
    } catch (error) {
      // What was used stays charged, as reserved, and then counts as used.
      this.#onError(error);
    }
    if (this.#reports.get(_id) === report) this.#reports.delete(_id);
  }

  /** Uses up what is reserved, then asks the server: it decides how many fit, so that instances need not agree. */
  async #take(batch: readonly QuotaRequest[], indices: readonly number[]): Promise<Taken> {
    const first = batch[indices[0] as number] as QuotaRequest;
    const wanted = indices.reduce((sum, i) => sum + (batch[i] as QuotaRequest).events, 0);
    const key = reservationKey(first);
    const reservation = this.#reservations.get(key);
    const own = Math.min(wanted, reservation?.left ?? 0);
    if (reservation !== undefined && own > 0) this.#use(first, reservation, own);
    const ask = sizeOf(reservation, wanted);
    const { reserved, latest } = await this.#update(first, { wanted: wanted - own, ask }).catch((error: unknown) => {
      // All of the batch fails, and none of it uses what it had. One that is given up as lost is left to a recount.
      if (own > 0) this.#note(documentId(first.organizationId, first.month), -own, own);
      throw error;
    });
    if (latest.reserved > 0) this.#reserve(key, latest.reserved, ask);
    return { events: own + latest.granted, isReserved: reserved > 0 };
  }

  #reserve(key: string, events: number, size: number): void {
    const nowMs = performance.now();
    const known = this.#reservations.get(key);
    if (known === undefined) {
      this.#reservations.set(key, { left: events, size, sinceMs: nowMs, usedAtMs: nowMs, isAsking: false });
    } else {
      known.left += events;
      known.size = size;
      known.sinceMs = nowMs;
    }
    this.#sweeper ??= setInterval(() => this.#sweep(), idleMs).unref();
  }

  #sweep(): void {
    const nowMs = performance.now();
    this.#returnIf(({ sinceMs, usedAtMs }) => nowMs - usedAtMs > idleMs || nowMs - sinceMs > reservedMs / 2);
  }

  #returnIf(isDue: (reservation: Reservation) => boolean): void {
    for (const [key, reservation] of this.#reservations) {
      if (!isDue(reservation)) continue;
      this.#reservations.delete(key);
      this.#note(key.slice(0, key.lastIndexOf("/")), 0, reservation.left);
    }
  }

  async #update(first: QuotaRequest, amounts: Amounts, triesMax = 3): Promise<UpdatedUsage> {
    try {
      return await this.#findAndAdd(first, amounts);
    } catch (error) {
      // Two instances made the month's document at once: it is there now.
      if (triesMax > 1 && isDuplicateKey(error)) return this.#update(first, amounts, triesMax - 1);
      throw error;
    }
  }

  /** Sent once more by the driver after a lost answer, and done only once. */
  async #findAndAdd(first: QuotaRequest, amounts: Amounts): Promise<UpdatedUsage> {
    const after = await usageCollection(this.#db).findOneAndUpdate(
      { _id: documentId(first.organizationId, first.month) },
      chargeStages(first, amounts),
      // The majority write that follows on the same replica set carries it; a recount mends what a crash takes.
      {
        upsert: true,
        returnDocument: "after",
        projection: { _id: 0, reserved: 1, latest: 1 },
        writeConcern: { w: 1 },
      },
    );
    return after as unknown as UpdatedUsage;
  }
}

/** Quota of one organisation, month and limit that this instance has charged ahead. */
interface Reservation {
  left: number;
  /** What was asked for last. */
  size: number;
  /** When it was last added to, and last used. */
  sinceMs: number;
  usedAtMs: number;
  isAsking: boolean;
}

/** What moves from `reserved` to `events` (used) or back to what is free (returned). */
interface Report {
  used: number;
  returned: number;
  isSent: boolean;
  done: Promise<void>;
}

interface Taken {
  readonly events: number;
  /** Whether somebody has reserved quota that may be returned. */
  readonly isReserved: boolean;
}

interface Amounts {
  /** To be used at once. */
  readonly wanted: number;
  /** To be reserved, all or nothing. */
  readonly ask: number;
}

interface UpdatedUsage {
  readonly reserved: number;
  readonly latest: { readonly granted: number; readonly reserved: number };
}

/** Nothing is reserved when less than this would be left: the rest of a quota is taken event by event. */
const reserveAboveEvents = 100_000;
/** A reservation is about what is used in this time, in milliseconds, within these bounds. */
const reserveForMs = 100;
const reserveEventsMin = 16;
const reserveEventsMax = 10_000;
/** How long a reservation may stand, in milliseconds: it is renewed or returned well before. */
const reservedMs = 5_000;
/** A reservation that was not used for so long is returned. */
const idleMs = 1_000;
/** Between two looks at what others have reserved, in milliseconds. */
const settleEveryMs = 100;
/** How long use is collected before it is reported, in milliseconds: how late `events` may be. */
const reportAfterMs = 25;

/** Grows while it is used up quickly, shrinks while it is not. */
function sizeOf(reservation: Reservation | undefined, wanted: number): number {
  const least = Math.max(reserveEventsMin, 2 * wanted);
  if (reservation === undefined) return Math.min(least, reserveEventsMax);
  const lastedMs = performance.now() - reservation.sinceMs;
  const factor = lastedMs < reserveForMs ? 2 : lastedMs > 4 * reserveForMs ? 0.5 : 1;
  return Math.min(reserveEventsMax, Math.max(least, Math.round(reservation.size * factor)));
}

/** Charges what fits, then reserves if enough would be left; what was decided is in `latest`. */
function chargeStages({ organizationId, month, quotaEvents }: QuotaRequest, { wanted, ask }: Amounts): Document[] {
  const orNone = (field: string) => ({ $max: [0, { $ifNull: [field, 0] }] });
  const free = { $subtract: [quotaEvents, { $add: ["$events", "$reserved"] }] };
  const isLapsed = { $lt: [{ $ifNull: ["$reservedUntil", "$$NOW"] }, "$$NOW"] };
  return [
    {
      $set: {
        organizationId,
        month,
        events: { $add: [orNone("$events"), { $cond: [isLapsed, orNone("$reserved"), 0] }] },
        reserved: { $cond: [isLapsed, 0, orNone("$reserved")] },
      },
    },
    { $set: { latest: { granted: { $max: [0, { $min: [wanted, free] }] } } } },
    { $set: { events: { $add: ["$events", "$latest.granted"] } } },
    { $set: { "latest.reserved": { $cond: [{ $gte: [free, ask + reserveAboveEvents] }, ask, 0] } } },
    {
      $set: {
        reserved: { $add: ["$reserved", "$latest.reserved"] },
        reservedUntil: {
          $cond: [{ $gt: ["$latest.reserved", 0] }, { $add: ["$$NOW", reservedMs] }, "$reservedUntil"],
        },
      },
    },
  ];
}

const documentId = (organizationId: string, month: string) => `${organizationId}/${month}`;

const reservationKey = ({ organizationId, month, quotaEvents }: QuotaRequest) =>
  `${organizationId}/${month}/${quotaEvents}`;

function groupByMonth(batch: readonly QuotaRequest[]): Iterable<number[]> {
  const groups = new Map<string, number[]>();
  batch.forEach((request, i) => {
    const key = reservationKey(request);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [i]);
    else group.push(i);
  });
  return groups.values();
}

function allot(
  batch: readonly QuotaRequest[],
  indices: readonly number[],
  { events: granted, isReserved }: Taken,
  outcomes: Settled<Taken>[],
): void {
  let left = granted;
  for (const i of indices) {
    const events = Math.min(left, (batch[i] as QuotaRequest).events);
    left -= events;
    outcomes[i] = { value: { events, isReserved } };
  }
}
