import type { Principal } from "../access/principal.ts";
import { checkScope } from "../access/scopes.ts";
import { Fault, faultFrom } from "../errors.ts";
import { type Facts, Failure, type Outcome, recheckAfterMs, type RequestStart } from "../exchange.ts";
import { type RequestHeader, requestHeaderTable } from "../headers.ts";
import { dryServices, parseDryRun } from "./dry-run.ts";
import { uncharged } from "./quota.ts";
import { type EventsAnswer, ingestEvents } from "./events.ts";
import { type EventsRequest, parseEvents, parseIdempotencyKey, parseSnapshot, type SnapshotRequest } from "./schema.ts";
import type { Call, Services } from "./services.ts";
import { invalidMember, type ReadOptions } from "./validate.ts";
import { ingestSnapshot, type SnapshotAnswer } from "./snapshots.ts";

/** The headers that admission reads, not yet validated. Their names are in lower case. */
export type CallHeaders = {
  readonly [name in "authorization" | "idempotency-key" | "x-dry-run"]?: string | string[] | undefined;
};

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
  readonly #ofLiveKey: ServicesOfKey;
  readonly #ofTestKey: ServicesOfKey;

  constructor(services: Services) {
    this.#services = services;
    this.#ofLiveKey = servicesOfKey(services);
    this.#ofTestKey = servicesOfKey(uncharged(services));
  }

  /**
   * Admits a request before its body is read: checks authorization, key, plan, scope, rate limit and headers. At once for
   * a known key.
   * @throws Fault missing_authorization, invalid_key, key_revoked, key_expired, plan_disabled, forbidden_scope,
   * rate_limited; invalid_body for an invalid header, or one that was sent with two values.
   */
  admit(headers: CallHeaders, start: RequestStart): Outcome<Call> | Promise<Outcome<Call>> {
    return this.#services.stage(start, "admit", () => {
      // With two keys, the service cannot tell which one the caller means.
      if (start.ambiguousHeader === "authorization") throw sentTwice("authorization");
      const principal = this.#services.principals.find(headers.authorization as string | undefined);
      return principal instanceof Promise
        ? principal.then((found) => this.#admit(found, headers, start))
        : this.#admit(principal, headers, start);
    });
  }

  /**
   * Checks again that the caller of a running call may go on. It takes nothing from the rate limit.
   * @throws Fault as `admit`.
   */
  async readmit({ authorization, start }: Pick<Call, "authorization" | "start">): Promise<Principal> {
    const principal = await this.#services.principals.find(authorization);
    this.#check(principal, start);
    return principal;
  }

  ping({ principal }: Call): PingAnswer {
    return { ok: true, organizationId: principal.caller.organizationId, app: principal.app };
  }

  /** @throws Fault as the reference says. */
  events(call: Call, body: unknown): Promise<Outcome<EventsAnswer>> {
    return this.#run(call, body, parseEvents, typesOf, ingestEvents);
  }

  /** @throws Fault as the reference says. */
  snapshots(call: Call, body: unknown): Promise<Outcome<SnapshotAnswer>> {
    return this.#run(call, body, parseSnapshot, typeOf, ingestSnapshot);
  }

  async #run<Request, Answer>(
    admitted: Call,
    body: unknown,
    parse: (body: unknown, options: ReadOptions) => Request,
    typesOf: (request: Request) => readonly string[],
    ingest: (services: Services, call: Call, request: Request) => Promise<Outcome<Answer>>,
  ): Promise<Outcome<Answer>> {
    const { stage, inFlight, now } = this.#services;
    const { start, dryRun } = admitted;
    const { receivedAt } = start;
    const generation = inFlight.enter();
    let types: readonly string[] = none;
    /** Only of a dry run: its ignored members may be misspelt. */
    const ignored: string[] | undefined = dryRun ? [] : undefined;
    const known = () => ({ types, ignoredMembers: ignored ?? none });
    try {
      // The caller may have taken long to send the body, and its key may have been revoked meanwhile.
      const isLate = now() - receivedAt.getTime() > recheckAfterMs;
      const call = isLate ? { ...admitted, principal: await this.readmit(admitted) } : admitted;
      const request = stage(start, "validate", () => parse(body, { receivedAt, ignored }));
      types = typesOf(request);
      const { real, dry } = call.principal.caller.test === true ? this.#ofTestKey : this.#ofLiveKey;
      const { answer, facts } = await ingest(dryRun ? dry : real, call, request);
      return { answer, facts: { ...facts, ...known() } };
    } catch (error) {
      throw new Failure(faultFrom(error), known());
    } finally {
      inFlight.leave(generation);
    }
  }

  #admit(principal: Principal, headers: CallHeaders, start: RequestStart): Outcome<Call> {
    const { limiter, now, activity } = this.#services;
    const { caller, keyBucket, organizationBucket } = principal;
    try {
      this.#check(principal, start);
    } catch (error) {
      throw new Failure(faultFrom(error), { caller, rateLimit: limiter.peek(keyBucket) });
    }
    const verdict = limiter.take(keyBucket, organizationBucket);
    const facts = { caller, rateLimit: verdict.state };
    if (!verdict.allowed) {
      const { refusedBy, retryAfterSeconds } = verdict;
      const [limitedBy, whose] =
        refusedBy === keyBucket ? (["key", "key"] as const) : (["organization", "organisation"] as const);
      const message = `The ${whose} is limited to ${refusedBy.limit} requests a second; retry after ${retryAfterSeconds} s.`;
      throw new Failure(new Fault("rate_limited", message, { retryAfterSeconds }), { ...facts, limitedBy });
    }
    if (start.ambiguousHeader !== undefined) throw new Failure(sentTwice(start.ambiguousHeader), facts);
    const { dryRun, idempotencyKey } = storing.has(start.rpc) ? optionsOf(headers, facts) : noOptions;
    activity.note(caller.organizationId);
    const untilMs = Math.min(start.deadlineMs ?? Number.POSITIVE_INFINITY, start.receivedAt.getTime() + beginMs);
    const wanted = () => !start.isAbandoned() && now() < untilMs;
    const authorization = headers.authorization as string | undefined;
    return {
      answer: { principal, authorization, start, dryRun, idempotencyKey, wanted },
      facts: { ...facts, dryRun },
    };
  }

  /** Checks the key, the caller's address, the plan and the scope. */
  #check(principal: Principal, { rpc, peer }: RequestStart): void {
    if (principal.revoked) throw new Fault("key_revoked", `The API key ${principal.caller.keyHint} was revoked.`);
    if (principal.expiresAtMs <= this.#services.now()) {
      const at = new Date(principal.expiresAtMs).toISOString();
      throw new Fault("key_expired", `The API key ${principal.caller.keyHint} expired at ${at}.`);
    }
    if (principal.admits !== undefined) checkAddress(principal.admits, peer().address, principal.caller.keyHint);
    if (!principal.api) {
      throw new Fault("plan_disabled", "The plan of your organisation does not include the developer API.");
    }
    checkScope(rpc, principal.scopes, principal.caller.keyHint);
  }
}

/** The services for the requests of a key, and for its dry runs. */
interface ServicesOfKey {
  readonly real: Services;
  readonly dry: Services;
}

const servicesOfKey = (real: Services): ServicesOfKey => ({ real, dry: dryServices(real) });

/** Does not say which addresses may use the key, because the caller may have stolen it. */
function checkAddress(admits: (address: string) => boolean, address: string, keyHint: string): void {
  if (admits(address)) return;
  const seen = address === "" ? "an unknown address" : address;
  const message = `The API key ${keyHint} must not be used from ${seen}: the address is not in the key's CIDR list.`;
  throw new Fault("forbidden_scope", message);
}

/** The RPCs that store something. */
const storing: ReadonlySet<string> = new Set(["Events", "Snapshots"]);
const noOptions = { dryRun: false, idempotencyKey: undefined };

/** @throws Failure invalid_body with the facts, and that it was a dry run. */
function optionsOf(headers: CallHeaders, facts: Partial<Facts>): Pick<Call, "dryRun" | "idempotencyKey"> {
  let dryRun = false;
  try {
    dryRun = parseDryRun(headers["x-dry-run"] as string | undefined);
    return { dryRun, idempotencyKey: parseIdempotencyKey(headers["idempotency-key"] as string | undefined) };
  } catch (error) {
    throw new Failure(faultFrom(error), { ...facts, dryRun });
  }
}

const none: readonly never[] = [];

const typesOf = ({ events }: EventsRequest) => events.map(({ eventType }) => eventType);
const typeOf = ({ snapshotType }: SnapshotRequest) => [snapshotType];

/** The fault for a header that was sent twice, so that neither value counts. */
export const sentTwice = (header: RequestHeader): Fault =>
  invalidMember(requestHeaderTable[header].name, "was sent twice with different values");
