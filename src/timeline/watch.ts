import type { Db } from "mongodb";
import { z } from "zod";
import type { FairTurnsOptions } from "../access/fair-turns.ts";
import { Fault, unavailable } from "../errors.ts";
import type { IngestCalls } from "../ingest/call.ts";
import type { Call } from "../ingest/services.ts";
import { invalidMember, validate } from "../ingest/validate.ts";
import { timelineLimits } from "../limits.ts";
import { catchUpBytes, type EventFeed, type FeedReader } from "../store/event-feed.ts";
import { erasedAmong } from "../store/erased-rows.ts";
import { type FeedPosition, PositionLost } from "../store/feed-position.ts";
import type { EventRow } from "../store/events.ts";
import { resolveWorker } from "./calls.ts";
import { watchEventsSchema } from "./schema.ts";
import type { Tokens } from "./tokens.ts";

export const watchEndReasons = ["slow_reader", "shutdown", "duration"] as const;
export type WatchEndReason = (typeof watchEndReasons)[number];

export interface WatchMessage {
  /** In the order of storage. */
  readonly events: readonly EventRow[];
  /** The caller has received everything up to here. */
  readonly resumeToken: string;
  /** Only in the last message, when the server ends the stream. */
  readonly endReason?: WatchEndReason;
}

/**
 * How many bytes streams may hold while they catch up: those of one organisation, and all together. A reader that stalls
 * keeps its part until its connection is cut. So while others read, an organisation never holds all of the bytes.
 */
export const catchUpTurns: FairTurnsOptions = {
  sharedCostMax: 8 * catchUpBytes,
  aloneCostMax: 8 * catchUpBytes,
  heavyCost: Number.POSITIVE_INFINITY,
  restTimes: 0,
  largeCost: catchUpBytes,
  largeMax: 32,
  // Longer than a stalled reader keeps its connection.
  waitMs: 60_000,
};

export interface WatchServices {
  readonly db: Db;
  readonly feed: EventFeed;
  readonly tokens: Tokens;
  readonly erasedNameSecret: Buffer;
  readonly calls: Pick<IngestCalls, "readmit">;
  readonly now: () => number;
}

/** How often a stream checks its key and whether the server stops, in milliseconds. */
const lookEveryMs = 500;

/** What a resume token seals. */
const place = z.union([
  z.tuple([z.string()]).transform(([data]): FeedPosition => ({ data })),
  z.tuple([z.string(), z.number(), z.number()]).transform(([data, t, i]): FeedPosition => ({ data, time: { t, i } })),
]);

/** All open streams of this process. */
export class Watches {
  readonly #services: WatchServices;
  readonly #ofOrganization = new Map<string, number>();
  #count = 0;
  #stopping = false;

  constructor(services: WatchServices) {
    this.#services = services;
  }

  /**
   * Begins a stream. The caller must run the generator to its end; `signal` ends it at once.
   * @throws Fault invalid_body; worker_not_found; rate_limited when the organisation has too many streams; unavailable.
   */
  async open(call: Call, query: unknown, signal: AbortSignal): Promise<AsyncGenerator<WatchMessage>> {
    const { organizationId, caller } = call.principal;
    const { resumeToken, ...filter } = validate(watchEventsSchema, query);
    const from = resumeToken === undefined ? undefined : this.#placeOf(organizationId, resumeToken);
    const { db, erasedNameSecret } = this.#services;
    const workerId = await resolveWorker(db, erasedNameSecret, organizationId, filter.workerId);
    this.#enter(caller.organizationId);
    try {
      const reader = await this.#services.feed.open(organizationId, { ...filter, workerId }, from, signal);
      return this.#run(reader, call, signal);
    } catch (error) {
      this.#leave(caller.organizationId);
      throw error instanceof PositionLost ? tooOld(error) : error;
    }
  }

  /** Ends all streams with `shutdown` and refuses new ones. */
  stop(): void {
    this.#stopping = true;
  }

  async *#run(reader: FeedReader, call: Call, signal: AbortSignal): AsyncGenerator<WatchMessage> {
    const { organizationId, caller } = call.principal;
    const { calls, db, now } = this.#services;
    const { rowsMax, pageBytesMax, heartbeatSeconds, watchSecondsMax } = timelineLimits;
    const endsAtMs = now() + watchSecondsMax * 1000;
    let spokeAtMs = Number.NEGATIVE_INFINITY;
    try {
      for (;;) {
        const isFirst = spokeAtMs === Number.NEGATIVE_INFINITY;
        const batch = await reader.next(rowsMax, pageBytesMax, isFirst ? 0 : lookEveryMs);
        if (signal.aborted) return;
        await calls.readmit(call);
        const isErased = await erasedAmong(db, batch.rows, call.start.receivedAt);
        const events = batch.rows.filter((row) => !isErased(row));
        const endReason = this.#endReason(batch.overflowed, endsAtMs);
        const isDue = now() - spokeAtMs >= heartbeatSeconds * 1000;
        if (events.length > 0 || isDue || endReason !== undefined) {
          const resumeToken = this.#tokenOf(organizationId, batch.position);
          yield { events, resumeToken, ...(endReason === undefined ? {} : { endReason }) };
          spokeAtMs = now();
        }
        if (endReason !== undefined) return;
      }
    } catch (error) {
      throw error instanceof PositionLost ? tooOld(error) : error;
    } finally {
      reader.close();
      this.#leave(caller.organizationId);
    }
  }

  #endReason(overflowed: boolean, endsAtMs: number): WatchEndReason | undefined {
    if (overflowed) return "slow_reader";
    if (this.#stopping) return "shutdown";
    return this.#services.now() >= endsAtMs ? "duration" : undefined;
  }

  #enter(organizationId: string): void {
    const { organizationWatchersMax, watchersMax } = timelineLimits;
    const own = this.#ofOrganization.get(organizationId) ?? 0;
    if (this.#stopping) throw unavailable(new Error("the server is stopping"));
    if (own >= organizationWatchersMax) {
      const message = `The organisation already has ${own} streams on this instance; at most ${organizationWatchersMax} are allowed.`;
      throw new Fault("rate_limited", message, { retryAfterSeconds: timelineLimits.heartbeatSeconds });
    }
    if (this.#count >= watchersMax) {
      throw unavailable(new Error(`${this.#count} streams on this instance`), timelineLimits.heartbeatSeconds);
    }
    this.#ofOrganization.set(organizationId, own + 1);
    this.#count++;
  }

  #leave(organizationId: string): void {
    this.#count--;
    const own = (this.#ofOrganization.get(organizationId) ?? 1) - 1;
    if (own === 0) this.#ofOrganization.delete(organizationId);
    else this.#ofOrganization.set(organizationId, own);
  }

  #tokenOf(organizationId: string, position: FeedPosition): string {
    return resumeTokenOf(this.#services.tokens, scopeOf(organizationId), position);
  }

  #placeOf(organizationId: string, token: string): FeedPosition {
    return positionOfToken(this.#services.tokens, scopeOf(organizationId), token);
  }
}

export const resumeTokenOf = (tokens: Tokens, scope: readonly string[], { data, time }: FeedPosition): string =>
  tokens.seal(scope, time === undefined ? [data] : [data, time.t, time.i]);

/** @throws Fault invalid_body. */
export function positionOfToken(tokens: Tokens, scope: readonly string[], token: string): FeedPosition {
  const opened = place.safeParse(tokens.open(scope, token));
  if (opened.success) return opened.data;
  const message = "must be an unchanged resumeToken of a stream of this organisation";
  throw invalidMember("resumeToken", message);
}

/** A resume token is valid for other filters too. */
const scopeOf = (organizationId: string) => ["WatchEvents", organizationId];

export function tooOld(cause: PositionLost): Fault {
  const message =
    "is too old: MongoDB no longer has the changes after it; begin without a token and list the events that you missed";
  return invalidMember("resumeToken", message, cause);
}
