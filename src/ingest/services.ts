import type { Activity } from "../access/fair-turns.ts";
import type { InFlight } from "../access/in-flight.ts";
import type { Principal, Principals } from "../access/principal.ts";
import type { RateLimiter } from "../access/rate-limit.ts";
import type { RequestStart } from "../exchange.ts";
import type { IdSource } from "../ids.ts";
import type { CardStore } from "../store/snapshots.ts";
import type { ClaimStore } from "../store/idempotency.ts";
import type { EventStore, RowOwner } from "../store/events.ts";
import type { UsageStore } from "../store/usage.ts";
import type { WorkerStore } from "../store/workers.ts";
import type { Stage } from "../tracing.ts";

/** The stores and helpers that the use cases call. */
export interface Services {
  readonly principals: Principals;
  readonly limiter: RateLimiter;
  readonly activity: Pick<Activity, "note">;
  readonly inFlight: Pick<InFlight, "enter" | "leave">;
  readonly workers: Pick<WorkerStore, "cached" | "find" | "provision">;
  readonly events: Pick<EventStore, "insert" | "has" | "preview" | "findByEventId">;
  readonly cards: Pick<CardStore, "put">;
  readonly claims: Pick<ClaimStore, "find" | "take" | "extend">;
  readonly usage: Pick<UsageStore, "left" | "isReserved" | "take" | "giveBack" | "doubt" | "isTakenBefore">;
  readonly ids: IdSource;
  readonly now: () => number;
  /** Reports failures that change no answer, such as quota that could not be given back. */
  readonly onError: (error: unknown) => void;
  readonly stage: Stage;
}

/** An admitted call: key, plan, scope and rate limit allow it. */
export interface Call {
  readonly principal: Principal;
  /** By which the principal can be found again. */
  readonly authorization: string | undefined;
  /** Whether the caller wants the usual answer, but nothing stored. */
  readonly dryRun: boolean;
  readonly idempotencyKey: string | undefined;
  readonly start: RequestStart;
  /** Whether the caller still waits for the answer. */
  readonly wanted: () => boolean;
}

/** The owner of the rows that a decision stores. */
export const ownerOf = ({ principal }: Call, { requestId }: Pick<RowOwner, "requestId">): RowOwner => ({
  organizationId: principal.organizationId,
  appId: principal.app.id,
  requestId,
});
