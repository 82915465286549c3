import { hash } from "node:crypto";
import type { Db } from "mongodb";
import {
  bounded,
  type CollectionDefinition,
  faultOfDatabase,
  isDuplicateKey,
  onElection,
  retried,
} from "./database.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";
import { timeOfId } from "../ids.ts";
import { monthOf } from "../time.ts";

export interface UsageDocument {
  /** `<organisation id>/<YYYY-MM>`, month in UTC by time of receipt. */
  _id: string;
  organizationId: string;
  month: string;
  /** Charged by requests before they store their events, and ahead by busy instances. */
  events: number;
  /** Events given back. The sum with `events` is all that was ever charged, so it never shrinks. */
  returned?: number;
  chargedAt?: Date;
  /** Requests with an Idempotency-Key that took some of the last events, in order. Old entries have no meaning. */
  takers?: readonly Taker[];
  doubt?: UsageDoubt;
}

/** Charges may be lost or unused, see `UsageKeeper`. */
interface UsageDoubt {
  at: Date;
  /** All that was ever charged until `at`. */
  charged: number;
  /** When the doubt came; `at` may move on. Older instances do not say. */
  since?: Date;
  /** Nothing was charged in the seconds after `at`. */
  paused?: true;
  /** The organisation never paused, so its rows were counted once, and are to be counted again after a pause. */
  counted?: true;
  /** Another doubt came since. */
  again?: boolean;
}

interface Taker {
  /** SHA-256 of the claim's id, base64url. The id has the Idempotency-Key, which may name a person. */
  readonly claim: string;
  readonly requestId: string;
  readonly at: Date;
}

export const usage: CollectionDefinition = {
  name: "usage",
  indexes: [
    { key: { organizationId: 1, month: 1 }, why: "commands list the usage of an organisation by month" },
    { key: { "doubt.at": 1 }, options: { sparse: true }, why: "instances look for counts in doubt every few seconds" },
  ],
};

export const usageCollection = (db: Db) => db.collection<UsageDocument>(usage.name);

/**
 * The month of receipt, from the request's id. The ids of its rows have the same time, so a recount by ids finds
 * exactly them.
 */
export const monthOfRequest = (requestId: string) => monthOf(timeOfId(requestId));

export type UsageOwner = Pick<UsageDocument, "organizationId" | "month">;

export interface QuotaRequest extends Readonly<UsageOwner> {
  /** At least 1. */
  readonly events: number;
  readonly quotaEvents: number;
  /** For a request with an Idempotency-Key: the ids of its claim and of the request. */
  readonly claimant?: { readonly claim: string; readonly requestId: string } | undefined;
}

/**
 * Charges quota and gives it back. The count is exact over any number of instances, because Ingest charges the month's
 * document before it stores an event. Requests of one organisation share one update.
 *
 * For a busy organisation with much quota left, an instance charges some events ahead (a reservation). It serves
 * requests from memory. It returns the rest within a second, before the remaining quota can run out. So near
 * the end there are no reservations, and Ingest accepts exactly the quota. `UsageKeeper` returns those of a dead
 * instance.
 */
export class UsageStore {
  /** Ids of documents whose charges may be wrong, for `UsageKeeper`. */
  readonly doubtful = new Set<string>();
  /** Ids of documents that were charged lately, and when, by `performance.now()`. The oldest come first. */
  readonly #recent = new Map<string, number>();
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

  /** Returns how many events fitted the quota; at once if enough is reserved. */
  take(request: QuotaRequest, wanted?: () => boolean): number | Promise<number> {
    const reservation = this.#reservationOf(request);
    // A new object for each request, because the outcomes are keyed by it.
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

  /** Whether `take` would return at once, far from the end of the quota. */
  isReserved(request: QuotaRequest): boolean {
    return (this.#reservationOf(request)?.left ?? 0) >= request.events;
  }

  /** Charges nothing. */
  async left(request: QuotaRequest): Promise<number> {
    const used = await retried(() => usageCollection(this.#db).findOne(usageKey(request)));
    return Math.max(0, request.quotaEvents - (used?.events ?? 0));
  }

  /**
   * Whether another request for the same claim recently took some of the last events. It will soon record its decision,
   * or it has died. False without an Idempotency-Key.
   */
  async isTakenBefore(owner: UsageOwner, claimant: QuotaRequest["claimant"]): Promise<boolean> {
    if (claimant === undefined) return false;
    const since = { $subtract: ["$$NOW", takerMs] };
    const isRecent = { $gte: ["$$taker.at", since] };
    const takers = { $filter: { input: "$takers", as: "taker", cond: isRecent } };
    const find = () => usageCollection(this.#db).findOne(usageKey(owner), { projection: { takers } });
    const recent = (await retried(find))?.takers ?? [];
    const own = takerClaim(claimant.claim);
    const first = recent.find(({ claim }) => claim === own);
    return first !== undefined && first.requestId !== claimant.requestId;
  }

  /**
   * The charge never falls below 0.
   * @param undone the request whose decision is undone, so that duplicates stop waiting for its claim.
   */
  async giveBack(owner: UsageOwner, events: number, undone?: QuotaRequest["claimant"]): Promise<void> {
    if (events === 0) return;
    const returned = { $min: [events, "$events"] };
    const others = { $filter: { input: "$takers", cond: { $ne: ["$$this.requestId", undone?.requestId] } } };
    const stage = {
      events: { $subtract: ["$events", returned] },
      returned: { $add: [{ $ifNull: ["$returned", 0] }, returned] },
      ...(undone === undefined ? {} : { takers: { $ifNull: [others, "$$REMOVE"] } }),
    };
    try {
      const update = usageCollection(this.#db).updateOne(usageKey(owner), [{ $set: stage }], {
        writeConcern: { w: 1 },
      });
      await bounded(update);
    } catch (error) {
      this.doubt(owner);
      this.#onError(error);
    }
  }

  /** Events may be unused, or may be given back twice, so `UsageKeeper` counts the rows. */
  doubt(owner: UsageOwner): void {
    this.doubtful.add(usageId(owner));
  }

  /**
   * Doubts what was charged lately whenever there is an election, and then calls `act`.
   * @returns a function that ends it.
   */
  watchElections(act: () => void): () => void {
    return onElection(this.#db.client, () => {
      for (const id of this.#recent.keys()) this.doubtful.add(id);
      act();
    });
  }

  async stop(): Promise<void> {
    clearInterval(this.#sweeper);
    this.#returnIf(() => true);
    await Promise.all(this.#returning);
  }

  /** Call it before the charge, because an election may come before its answer. */
  #remember(owner: UsageOwner): void {
    const [id, nowMs] = [usageId(owner), performance.now()];
    // Puts it at the end.
    this.#recent.delete(id);
    this.#recent.set(id, nowMs);
    for (const [oldest, atMs] of this.#recent) {
      if (nowMs - atMs < recentMs && this.#recent.size <= recentMax) break;
      this.#recent.delete(oldest);
    }
  }

  /** The server decides how many fit, so instances need not agree. */
  async #take(requests: readonly QuotaRequest[]): Promise<number> {
    const first = requests[0] as QuotaRequest;
    this.#remember(first);
    const wanted = requests.reduce((sum, { events }) => sum + events, 0);
    const known = this.#reservationOf(first);
    const own = Math.min(wanted, known?.left ?? 0);
    if (known !== undefined) use(known, own);
    const ask = sizeOf(known, wanted);
    const rest = ask === 0 ? lastEvents : reserveAboveEvents;
    const freeMost = known?.freeMost ?? Number.POSITIVE_INFINITY;
    try {
      if (freeMost >= lastEvents && (await this.#charge(first, wanted - own + ask, rest))) {
        this.#reserve(first, ask, freeMost);
        return wanted;
      }
      if (own === wanted) {
        this.#reserve(first, 0, reserveAboveEvents - 1);
        return wanted;
      }
      const free = await this.#takeRest(requests, wanted - own, own);
      const granted = Math.min(wanted - own, Math.max(0, free));
      this.#reserve(first, 0, free - granted);
      return own + granted;
    } catch (error) {
      // The whole batch fails, so nothing uses the events from the reservation.
      await this.giveBack(first, own);
      throw error;
    }
  }

  /** Fails for the first events of a month, which has no document yet. */
  async #charge(request: QuotaRequest, events: number, rest: number): Promise<boolean> {
    const { matchedCount } = await usageCollection(this.#db).updateOne(
      { ...usageKey(request), events: { $lte: request.quotaEvents - events - rest } },
      { $inc: { events }, $currentDate: { chargedAt: true } },
      { writeConcern: { w: 1 } },
    );
    return matchedCount === 1;
  }

  /** Charges up to `events` of the remaining quota, and notes who took the last of it. Returns what was left before. */
  async #takeRest(requests: readonly QuotaRequest[], events: number, own: number, triesMax = 3): Promise<number> {
    const first = requests[0] as QuotaRequest;
    const { month, quotaEvents } = first;
    const charged = { $ifNull: ["$events", 0] };
    const free = { $max: [0, { $subtract: [quotaEvents, charged] }] };
    const claimants = { $filter: { input: claimantsOf(requests, own), cond: { $gt: [free, "$$this.behind"] } } };
    const { claim, requestId } = { claim: "$$this.claim", requestId: "$$this.requestId" };
    const more = { $map: { input: claimants, in: { claim, requestId, at: "$$NOW" } } };
    const takers = { $slice: [{ $concatArrays: [{ $ifNull: ["$takers", []] }, more] }, -takersMax] };
    const stage = {
      ...{ month, chargedAt: "$$NOW" },
      events: { $add: [charged, { $min: [events, free] }] },
      takers: { $cond: [{ $lt: [{ $subtract: [free, events] }, lastEvents] }, takers, "$$REMOVE"] },
    };
    try {
      const before = await usageCollection(this.#db).findOneAndUpdate(usageKey(first), [{ $set: stage }], {
        ...{ upsert: true, returnDocument: "before", projection: { events: 1 }, writeConcern: { w: 1 } },
      });
      return quotaEvents - (before?.events ?? 0);
    } catch (error) {
      // Another instance has just made the month's document.
      if (triesMax > 1 && isDuplicateKey(error)) return this.#takeRest(requests, events, own, triesMax - 1);
      throw error;
    }
  }

  #reserve(owner: QuotaRequest, events: number, freeMost: number): void {
    const key = quotaKey(owner);
    const nowMs = performance.now();
    const known = this.#reservations.get(key);
    const left = (known?.left ?? 0) + events;
    const isAsking = known?.isAsking ?? false;
    const reservation = { owner, left, size: events, freeMost, sinceMs: nowMs, usedAtMs: nowMs, isAsking };
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

interface Reservation {
  readonly owner: QuotaRequest;
  left: number;
  size: number;
  /** The most that can be left of the quota, as last seen. */
  freeMost: number;
  /** When events were last added, and last used. */
  sinceMs: number;
  usedAtMs: number;
  isAsking: boolean;
}

/**
 * Instances reserve nothing below this. It is more than a replica set can store for one organisation during the life of
 * a reservation.
 */
const reserveAboveEvents = 100_000;
/** Below this, the document notes who takes how much. It is more than others take while one request is decided. */
const lastEvents = 10_000;
/** How many takers the document keeps, and how long a duplicate waits for one's decision, in milliseconds. */
const takersMax = 256;
const takerMs = 10_000;
/** A reservation lasts for about this many milliseconds, within these bounds. */
const reserveForMs = 100;
const reserveEventsMin = 16;
const reserveEventsMax = 10_000;
/** Milliseconds without use, or without an addition, after which a reservation is returned. */
const idleMs = 100;
const heldMs = 500;
/** How long charges are remembered, in milliseconds: as long as a reservation is used, and a request with it runs. */
const recentMs = 3 * 60_000;
const recentMax = 100_000;
/** The process was paused. Another instance may have counted the rows and returned this reservation. */
const isOld = ({ sinceMs }: Reservation) => performance.now() - sinceMs > 60_000;

function use(reservation: Reservation, events: number): void {
  reservation.left -= events;
  reservation.usedAtMs = performance.now();
}

/**
 * 0 if the organisation was idle. The size doubles while reservations run out quickly, and halves while they do not.
 */
function sizeOf(reservation: Reservation | undefined, wanted: number): number {
  if (reservation === undefined || reservation.freeMost < reserveAboveEvents) return 0;
  const lastedMs = performance.now() - reservation.sinceMs;
  const factor = lastedMs < reserveForMs ? 2 : lastedMs > 4 * reserveForMs ? 0.5 : 1;
  const least = Math.max(reserveEventsMin, 2 * wanted);
  return Math.min(reserveEventsMax, Math.max(least, Math.round(reservation.size * factor)));
}

/**
 * The requests with an Idempotency-Key, each with the number of events that go to others first, minus the reserved
 * ones.
 */
function claimantsOf(requests: readonly QuotaRequest[], own: number) {
  let behind = -own;
  return requests.flatMap(({ claimant, events }) => {
    const ahead = behind;
    behind += events;
    if (claimant === undefined || events === 0) return [];
    return [{ $literal: { claim: takerClaim(claimant.claim), requestId: claimant.requestId, behind: ahead } }];
  });
}

const takerClaim = (claimId: string) => hash("sha256", claimId, "base64url");

const usageId = ({ organizationId, month }: UsageOwner) => `${organizationId}/${month}`;

export function ownerOfUsage(id: string): UsageOwner {
  const [organizationId, month] = id.split("/") as [string, string];
  return { organizationId, month };
}

/** Matches one document, on one shard. */
export const usageKey = (owner: UsageOwner) => ({ _id: usageId(owner), organizationId: owner.organizationId });

const quotaKey = (request: QuotaRequest) => `${usageId(request)}/${request.quotaEvents}`;

function allot(requests: readonly QuotaRequest[], granted: number, outcomes: Map<QuotaRequest, Settled<number>>): void {
  let left = granted;
  for (const request of requests) {
    const events = Math.min(left, request.events);
    left -= events;
    outcomes.set(request, { value: events });
  }
}
