import type { Principals, Principal } from "../access/principal.ts";
import { keyOfAuthorization } from "../access/principal.ts";
import type { RateLimiter } from "../access/rate-limit.ts";
import { checkScope } from "../access/scopes.ts";
import { Fault } from "../errors.ts";
import type { IdSource } from "../ids.ts";
import type { CardStore } from "../store/cards.ts";
import type { ClaimStore } from "../store/claims.ts";
import type { EventStore } from "../store/events.ts";
import type { UsageStore } from "../store/usage.ts";
import type { WorkerStore } from "../store/workers.ts";
import type { Exchange } from "../exchange.ts";
import type { Stage } from "../tracing.ts";
import { type EventsAnswer, ingestEvents } from "./events.ts";
import { parseEvents, parseIdempotencyKey, parseSnapshot } from "./schema.ts";
import { ingestSnapshot, type SnapshotAnswer } from "./snapshots.ts";

/** What the use cases work with. */
export interface Services {
  readonly principals: Principals;
  readonly limiter: RateLimiter;
  readonly workers: WorkerStore;
  readonly events: EventStore;
  readonly cards: CardStore;
  readonly claims: ClaimStore;
  readonly usage: UsageStore;
  readonly ids: IdSource;
  readonly now: () => number;
  /** For failures that change no answer, such as quota that could not be given back. */
  readonly onError: (error: unknown) => void;
  readonly stage: Stage;
}

/** An admitted call: the key is good, the plan includes the API and the rate limit has let it through. */
export interface Call {
  readonly principal: Principal;
  readonly exchange: Exchange;
  /** Whether somebody still waits for the answer. */
  readonly wanted: () => boolean;
}

export interface PingAnswer {
  readonly ok: true;
  readonly organizationId: string;
  readonly app: { readonly id: string; readonly slug: string; readonly name: string };
}

/** The three calls, whatever the protocol, and the order of their checks, written once. */
export class IngestCalls {
  readonly #services: Services;

  constructor(services: Services) {
    this.#services = services;
  }

  /**
   * Admits a request before its body is looked at: authorization, key, plan, rate limit. At once for a known key.
   * @throws Fault missing_authorization, invalid_key, key_revoked, key_expired, plan_disabled, forbidden_scope,
   * rate_limited.
   */
  admit(authorization: string | undefined, exchange: Exchange): Call | Promise<Call> {
    return this.#services.stage(exchange, "admit", () => {
      const principal = this.#services.principals.find(keyOfAuthorization(authorization));
      return principal instanceof Promise
        ? principal.then((found) => this.#admit(found, exchange))
        : this.#admit(principal, exchange);
    });
  }

  ping({ principal }: Call): PingAnswer {
    return { ok: true, organizationId: principal.organizationId, app: principal.app };
  }

  /** @throws Fault as the reference says; the exchange carries counts and replay. */
  events(call: Call, idempotencyKey: string | undefined, body: unknown): Promise<EventsAnswer> {
    const key = parseIdempotencyKey(idempotencyKey);
    const request = this.#services.stage(call.exchange, "validate", () => parseEvents(body));
    return ingestEvents(this.#services, call, key, request);
  }

  /** @throws Fault as the reference says; the exchange carries counts and replay. */
  snapshots(call: Call, idempotencyKey: string | undefined, body: unknown): Promise<SnapshotAnswer> {
    const key = parseIdempotencyKey(idempotencyKey);
    const request = this.#services.stage(call.exchange, "validate", () => parseSnapshot(body));
    return ingestSnapshot(this.#services, call, key, request);
  }

  #admit(principal: Principal, exchange: Exchange): Call {
    const { limiter, now } = this.#services;
    exchange.caller = {
      organizationId: principal.organizationId,
      appId: principal.app.id,
      keyId: principal.keyId,
      keyHint: principal.keyHint,
    };
    const keyBucket = { id: principal.keyId, limit: principal.keyRequestsPerSecond };
    const organizationBucket = { id: principal.organizationId, limit: principal.organizationRequestsPerSecond };
    exchange.rateLimit = limiter.peek(keyBucket);
    if (principal.revoked) throw new Fault("key_revoked", `The API key ${principal.keyHint} was revoked.`);
    if (principal.expiresAtMs <= now()) {
      const at = new Date(principal.expiresAtMs).toISOString();
      throw new Fault("key_expired", `The API key ${principal.keyHint} expired at ${at}.`);
    }
    if (!principal.api) {
      throw new Fault("plan_disabled", "The plan of your organisation does not include the developer API.");
    }
    checkScope(exchange.rpc, principal.scope, principal.keyHint);
    const verdict = limiter.take(keyBucket, organizationBucket);
    exchange.rateLimit = verdict.state;
    if (!verdict.allowed) {
      exchange.limitedBy = verdict.refusedBy === keyBucket ? "key" : "organization";
      const whose = exchange.limitedBy === "key" ? "key" : "organisation";
      throw new Fault(
        "rate_limited",
        `The ${whose} is limited to ${verdict.refusedBy.limit} requests a second; retry after ${verdict.retryAfterSeconds} s.`,
        { retryAfterSeconds: verdict.retryAfterSeconds },
      );
    }
    const wanted = () => !exchange.abandoned && (exchange.deadlineMs === undefined || now() < exchange.deadlineMs);
    return { principal, exchange, wanted };
  }
}
