import type { Principal } from "../access/principal.ts";
import { checkScope } from "../access/scopes.ts";
import { Fault } from "../errors.ts";
import type { Exchange } from "../exchange.ts";
import { type RequestHeader, requestHeaderTable } from "../headers.ts";
import { dryServices, parseDryRun } from "./dry-run.ts";
import { type EventsAnswer, ingestEvents } from "./events.ts";
import { parseEvents, parseIdempotencyKey, parseSnapshot } from "./schema.ts";
import type { Call, Services } from "./services.ts";
import { invalidBody, type ReadOptions } from "./validate.ts";
import { ingestSnapshot, type SnapshotAnswer } from "./snapshots.ts";

/** The headers of Events and Snapshots, not yet validated. */
export interface CallHeaders {
  readonly idempotencyKey: string | undefined;
  /** `true` asks for the usual answer but stores nothing. */
  readonly dryRun: string | undefined;
}

/** Picks them from a request's headers, whose names are in lower case. */
export const callHeaders = (headers: Readonly<Record<string, string | string[] | undefined>>): CallHeaders => ({
  idempotencyKey: headers["idempotency-key"] as string | undefined,
  dryRun: headers["x-dry-run"] as string | undefined,
});

export interface PingAnswer {
  readonly ok: true;
  readonly organizationId: string;
  readonly app: { readonly id: string; readonly slug: string; readonly name: string };
}

/**
 * Age in milliseconds at which a request that still waits to begin is refused as unavailable. It must exceed the time
 * that a caller may take to send its body.
 */
export const beginMs = 45_000;

/** Ping, Events and Snapshots for every protocol. It alone defines the order of the checks. */
export class IngestCalls {
  readonly #services: Services;
  readonly #dryServices: Services;

  constructor(services: Services) {
    this.#services = services;
    this.#dryServices = dryServices(services);
  }

  /**
   * Admits a request before its body is read: checks authorization, key, plan, scope and rate limit. It answers
   * synchronously for a cached key.
   * @throws Fault missing_authorization, invalid_key, key_revoked, key_expired, plan_disabled, forbidden_scope,
   * rate_limited; invalid_body for a header that was sent with two values.
   */
  admit(authorization: string | undefined, exchange: Exchange): Call | Promise<Call> {
    return this.#services.stage(exchange, "admit", () => {
      // With two keys, the service cannot tell which one the caller means.
      if (exchange.ambiguousHeader === "authorization") throw sentTwice("authorization");
      const principal = this.#services.principals.find(authorization);
      return principal instanceof Promise
        ? principal.then((found) => this.#admit(found, exchange))
        : this.#admit(principal, exchange);
    });
  }

  /**
   * Checks again that the caller of a running call may go on. It takes nothing from the rate limit.
   * @throws Fault as `admit`.
   */
  async readmit(authorization: string | undefined, exchange: Exchange): Promise<void> {
    this.#check(await this.#services.principals.find(authorization), exchange);
  }

  ping({ principal }: Call): PingAnswer {
    return { ok: true, organizationId: principal.organizationId, app: principal.app };
  }

  /** @throws Fault as the reference says; the exchange carries counts and replay. */
  events(call: Call, { idempotencyKey, dryRun }: CallHeaders, body: unknown): Promise<EventsAnswer> {
    const services = this.#servicesFor(call, dryRun);
    const key = parseIdempotencyKey(idempotencyKey);
    const request = services.stage(call.exchange, "validate", () => parseEvents(body, optionsOf(call)));
    return ingestEvents(services, call, key, request);
  }

  /** @throws Fault as the reference says; the exchange carries counts and replay. */
  snapshots(call: Call, { idempotencyKey, dryRun }: CallHeaders, body: unknown): Promise<SnapshotAnswer> {
    const services = this.#servicesFor(call, dryRun);
    const key = parseIdempotencyKey(idempotencyKey);
    const request = services.stage(call.exchange, "validate", () => parseSnapshot(body, optionsOf(call)));
    return ingestSnapshot(services, call, key, request);
  }

  #servicesFor({ exchange }: Call, dryRun: string | undefined): Services {
    exchange.dryRun = parseDryRun(dryRun);
    return exchange.dryRun ? this.#dryServices : this.#services;
  }

  #admit(principal: Principal, exchange: Exchange): Call {
    const { limiter, now } = this.#services;
    exchange.caller = principal.caller;
    const { keyBucket, organizationBucket } = principal;
    try {
      this.#check(principal, exchange);
    } catch (error) {
      exchange.rateLimit = limiter.peek(keyBucket);
      throw error;
    }
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
    if (exchange.ambiguousHeader !== undefined) throw sentTwice(exchange.ambiguousHeader);
    this.#services.activity.note(principal.organizationId);
    const untilMs = Math.min(exchange.deadlineMs ?? Number.POSITIVE_INFINITY, exchange.receivedAt.getTime() + beginMs);
    const wanted = () => !exchange.abandoned && now() < untilMs;
    return { principal, exchange, wanted };
  }

  /** Checks the key, the plan and the scope. */
  #check(principal: Principal, exchange: Exchange): void {
    if (principal.revoked) throw new Fault("key_revoked", `The API key ${principal.caller.keyHint} was revoked.`);
    if (principal.expiresAtMs <= this.#services.now()) {
      const at = new Date(principal.expiresAtMs).toISOString();
      throw new Fault("key_expired", `The API key ${principal.caller.keyHint} expired at ${at}.`);
    }
    if (!principal.api) {
      throw new Fault("plan_disabled", "The plan of your organisation does not include the developer API.");
    }
    checkScope(exchange.rpc, principal.scope, principal.caller.keyHint);
  }
}

const sentTwice = (header: RequestHeader): Fault =>
  invalidBody([{ path: requestHeaderTable[header].name, message: "was sent twice with different values" }]);

/** A dry run reports ignored members, because they may be misspelt. */
const optionsOf = ({ exchange: { receivedAt, dryRun, ignoredMembers } }: Call): ReadOptions =>
  dryRun ? { receivedAt, ignored: ignoredMembers } : { receivedAt };
