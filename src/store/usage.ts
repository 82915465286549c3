import type { Db } from "mongodb";
import { bounded, type CollectionDefinition, faultOfDatabase, isDuplicateKey, retried } from "./database.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";
import { timeOfId } from "../ids.ts";

/** Events that count against an organisation's quota in one month. */
export interface UsageDocument {
  /** `<organisation id>/<YYYY-MM>`, month in UTC by time of receipt. */
  _id: string;
  organizationId: string;
  month: string;
  /** Charged: by requests before they store their events, and ahead by busy instances. */
  events: number;
  /** All that was charged and given back. With `events` it is all that was ever charged, which never shrinks. */
  returned?: number;
  /** When it was last charged, by the server's clock. */
  chargedAt?: Date;
  /** What the latest update for the rest of the quota granted, for its sender to read. */
  granted?: number;
  /** Set when charges may have been lost or left behind, see `UsageKeeper`: when, and what had ever been charged by then. */
  doubt?: { at: Date; charged: number; again?: boolean };
}

export const usage: CollectionDefinition = {
  name: "usage",
  indexes: [
    { key: { organizationId: 1, month: 1 }, why: "the usage of an organisation is listed by month" },
    { key: { "doubt.at": 1 }, options: { sparse: true }, why: "counts in doubt are looked for every few seconds" },
  ],
};

export const usageCollection = (db: Db) => db.collection<UsageDocument>(usage.name);

/** `YYYY-MM` in UTC. */
export const monthOf = (date: Date) => date.toISOString().slice(0, 7);

/**
 * The month a request counts in, that of its receipt. Taken from its id, as are the ids of its rows, so that a recount by
 * ids finds exactly the rows that were counted.
 */
export const monthOfRequest = (requestId: string) => monthOf(timeOfId(requestId));

/** Whose document, and of which month. */
export type UsageOwner = Pick<UsageDocument, "organizationId" | "month">;

export interface QuotaRequest extends Readonly<UsageOwner> {
  /** Events wanted, at least 1. */
  readonly events: number;
  /** The organisation's quota, in events a month. */
  readonly quotaEvents: number;
}

/**
 * Charges quota and gives it back, exactly over any number of instances: an event is stored only after it was charged to
 * the month's document. Requests of one organisation share one update, allotted in order of arrival.
 *
 * While an organisation is busy and much of its quota is left, an instance charges some events ahead (a reservation) and
 * serves requests from memory. It returns the rest within a second, before the events that are left can be used up. So
 * near the end nothing is reserved, and exactly the quota is accepted. `UsageKeeper` returns what a dead instance leaves.
 */
export class UsageStore {
  /** Documents whose charges may be wrong since an operation failed, for `UsageKeeper`. */
  readonly doubtful = new Set<string>();
  readonly #db: Db;
  readonly #onError: (error: unknown) => void;
  readonly #takes: GroupCommit<QuotaRequest, number>;
  readonly #reservations = new Map<string, Reservation>();
  readonly #returning = new Set<Promise<void>>();
  #sweeper: NodeJS.Timeout | undefined;

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
        const outcomes = new Map<QuotaRequest, Settled<number>>();
        const runs = [...Map.groupBy(batch, quotaKey).values()].map(async (requests) => {
          try {
            allot(requests, await bounded(this.#take(requests)), outcomes);
          } catch (error) {
            for (const one of requests) {
              this.doubt(one);
              outcomes.set(one, { error: faultOfDatabase(error) });
            }
          }
        });
        await Promise.all(runs);
        return batch.map((request) => outcomes.get(request) as Settled<number>);
      },
    });
  }

  /** Takes up to `request.events`; answers how many fitted the quota, 0 to all. At once where quota is reserved. */
  take(request: QuotaRequest, wanted?: () => boolean): number | Promise<number> {
    const reservation = this.#reservationOf(request);
    // Each with an object of its own, by which its outcome is found.
    if (reservation === undefined || reservation.left < request.events) {
      return this.#takes.submit({ ...request }, 1, wanted);
    }
    use(reservation, request.events);
    if (reservation.left < reservation.size / 2 && !reservation.isAsking) {
      reservation.isAsking = true;
      const more = this.#takes.submit({ ...request, events: 0 });
      more.catch(this.#onError).finally(() => (reservation.isAsking = false));
    }
    return request.events;
  }

  /** Whether `take` would answer at once, and without touching the last of the quota. */
  isReserved(request: QuotaRequest): boolean {
    return (this.#reservationOf(request)?.left ?? 0) >= request.events;
  }

  /** How many events still fit the quota. Takes nothing. */
  async left(request: QuotaRequest): Promise<number> {
    const used = await retried(() => usageCollection(this.#db).findOne({ _id: usageId(request) }));
    return Math.max(0, request.quotaEvents - (used?.events ?? 0));
  }

  /** Gives back what was taken and not used; never below 0. */
  async giveBack(owner: UsageOwner, events: number): Promise<void> {
    if (events === 0) return;
    const returned = { $min: [events, "$events"] };
    const stage = {
      events: { $subtract: ["$events", returned] },
      returned: { $add: [{ $ifNull: ["$returned", 0] }, returned] },
    };
    try {
      const update = usageCollection(this.#db).updateOne({ _id: usageId(owner) }, [{ $set: stage }], {
        writeConcern: { w: 1 },
      });
      await bounded(update);
    } catch (error) {
      this.doubt(owner);
      this.#onError(error);
    }
  }

  /** What was taken may not have been used, or may be given back twice: it will be counted. */
  doubt(owner: UsageOwner): void {
    this.doubtful.add(usageId(owner));
  }

  /** Returns what is reserved and not used. */
  async stop(): Promise<void> {
    clearInterval(this.#sweeper);
    this.#returnIf(() => true);
    await Promise.all(this.#returning);
  }

  /** Uses up what is reserved, then asks the server: it decides how many fit, so that instances need not agree. */
  async #take(requests: readonly QuotaRequest[]): Promise<number> {
    const first = requests[0] as QuotaRequest;
    const wanted = requests.reduce((sum, { events }) => sum + events, 0);
    const known = this.#reservationOf(first);
    const own = Math.min(wanted, known?.left ?? 0);
    if (known !== undefined) use(known, own);
    const ask = sizeOf(known, wanted);
    try {
      if (await this.#charge(first, wanted - own + ask, ask === 0 ? 0 : reserveAboveEvents)) {
        this.#reserve(first, ask, false);
        return wanted;
      }
      this.#reserve(first, 0, ask > 0);
      return own === wanted ? wanted : own + (await this.#takeRest(first, wanted - own));
    } catch (error) {
      // All of the batch fails, and none of it uses what was reserved.
      await this.giveBack(first, own);
      throw error;
    }
  }

  /** Charges all of the events if that leaves `rest`. Not the first ones of a month, which has no document yet. */
  async #charge(request: QuotaRequest, events: number, rest: number): Promise<boolean> {
    const { matchedCount } = await usageCollection(this.#db).updateOne(
      { _id: usageId(request), events: { $lte: request.quotaEvents - events - rest } },
      { $inc: { events }, $currentDate: { chargedAt: true } },
      { writeConcern: { w: 1 } },
    );
    return matchedCount === 1;
  }

  /** Charges what is left of the quota, up to the events. */
  async #takeRest(request: QuotaRequest, events: number, triesMax = 3): Promise<number> {
    const { organizationId, month, quotaEvents } = request;
    const charged = { $ifNull: ["$events", 0] };
    const granted = { $max: [0, { $min: [events, { $subtract: [quotaEvents, charged] }] }] };
    try {
      const after = await usageCollection(this.#db).findOneAndUpdate(
        { _id: usageId(request) },
        [
          { $set: { organizationId, month, granted, chargedAt: "$$NOW" } },
          { $set: { events: { $add: [charged, "$granted"] } } },
        ],
        { upsert: true, returnDocument: "after", projection: { granted: 1 }, writeConcern: { w: 1 } },
      );
      return after?.granted ?? 0;
    } catch (error) {
      // Two instances made the month's document at once: it is there now.
      if (triesMax > 1 && isDuplicateKey(error)) return this.#takeRest(request, events, triesMax - 1);
      throw error;
    }
  }

  #reserve(owner: QuotaRequest, events: number, isLow: boolean): void {
    const key = quotaKey(owner);
    const nowMs = performance.now();
    const known = this.#reservations.get(key);
    const left = (known?.left ?? 0) + events;
    const isAsking = known?.isAsking ?? false;
    const reservation = { owner, left, size: events, isLow, sinceMs: nowMs, usedAtMs: nowMs, isAsking };
    if (known === undefined) this.#reservations.set(key, reservation);
    else Object.assign(known, reservation);
    this.#sweeper ??= setInterval(() => this.#sweep(), idleMs).unref();
  }

  #reservationOf(request: QuotaRequest): Reservation | undefined {
    const reservation = this.#reservations.get(quotaKey(request));
    if (reservation === undefined || !isOld(reservation)) return reservation;
    this.#returnIf(isOld);
    return undefined;
  }

  #sweep(): void {
    const nowMs = performance.now();
    this.#returnIf(({ sinceMs, usedAtMs }) => nowMs - usedAtMs > idleMs || nowMs - sinceMs > heldMs);
  }

  #returnIf(isDue: (reservation: Reservation) => boolean): void {
    for (const [key, reservation] of this.#reservations) {
      if (!isDue(reservation)) continue;
      this.#reservations.delete(key);
      if (isOld(reservation)) {
        this.doubt(reservation.owner);
        continue;
      }
      const returning = this.giveBack(reservation.owner, reservation.left).finally(() =>
        this.#returning.delete(returning),
      );
      this.#returning.add(returning);
    }
  }
}

/** Quota of one organisation, month and limit that this instance has charged ahead; none at first. */
interface Reservation {
  readonly owner: QuotaRequest;
  left: number;
  /** What was asked for last. */
  size: number;
  /** Less than `reserveAboveEvents` would have been left. */
  isLow: boolean;
  /** When it was last added to, and last used. */
  sinceMs: number;
  usedAtMs: number;
  isAsking: boolean;
}

/**
 * Nothing is reserved when less than this would be left. More than a replica set can store for one organisation while a
 * reservation is held.
 */
const reserveAboveEvents = 100_000;
/** A reservation is about what is used in this time, in milliseconds, within these bounds. */
const reserveForMs = 100;
const reserveEventsMin = 16;
const reserveEventsMax = 10_000;
/** A reservation that was not used for so long, or not added to, is returned; in milliseconds. */
const idleMs = 100;
const heldMs = 500;
/** The process has stood still: another instance may have counted the rows, and returned what this one had reserved. */
const isOld = ({ sinceMs }: Reservation) => performance.now() - sinceMs > 60_000;

function use(reservation: Reservation, events: number): void {
  reservation.left -= events;
  reservation.usedAtMs = performance.now();
}

/** Nothing where the organisation was idle. Grows while it is used up quickly, shrinks while it is not. */
function sizeOf(reservation: Reservation | undefined, wanted: number): number {
  if (reservation === undefined || reservation.isLow) return 0;
  const lastedMs = performance.now() - reservation.sinceMs;
  const factor = lastedMs < reserveForMs ? 2 : lastedMs > 4 * reserveForMs ? 0.5 : 1;
  const least = Math.max(reserveEventsMin, 2 * wanted);
  return Math.min(reserveEventsMax, Math.max(least, Math.round(reservation.size * factor)));
}

export const usageId = ({ organizationId, month }: UsageOwner) => `${organizationId}/${month}`;

const quotaKey = (request: QuotaRequest) => `${usageId(request)}/${request.quotaEvents}`;

function allot(requests: readonly QuotaRequest[], granted: number, outcomes: Map<QuotaRequest, Settled<number>>): void {
  let left = granted;
  for (const request of requests) {
    const events = Math.min(left, request.events);
    left -= events;
    outcomes.set(request, { value: events });
  }
}
