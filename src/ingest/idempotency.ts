import { setTimeout as delay } from "node:timers/promises";
import { Fault, unavailable } from "../errors.ts";
import { limits } from "../limits.ts";
import { type ClaimDocument, claimId } from "../store/idempotency.ts";
import { isNotBegun } from "../store/group-commit.ts";
import type { Call, Services } from "./services.ts";

/** What was decided about a request: everything that is stored and answered follows from it and the request. */
export interface Decision<Outcome> {
  readonly requestId: string;
  readonly receivedAt: Date;
  readonly outcome: Outcome;
}

/** A request's Idempotency-Key in its scope, with the fingerprint of the request. */
export interface IdempotentRequest {
  readonly key: string;
  readonly fingerprint: string;
}

/** How one request is decided and done. */
export interface Work<Outcome> {
  /**
   * Whether `decide` reads nothing, makes nothing and cannot take the last of the quota. Then an earlier request's claim
   * need not be looked for first: it is found in taking the claim, and the decision is undone.
   */
  readonly isAtHand: boolean;
  /** May throw to refuse the request as a whole; that is not recorded. */
  decide(): Promise<Outcome>;
  /** Events that the decision tells of, at least 1. */
  sizeOf(outcome: Outcome): number;
  /** Whether the quota did not suffice: for some of the request, or for anything of it. */
  shortageOf(outcome: Outcome): "some" | "all" | undefined;
  /** Gives back what `decide` took, when the decision is not used. Must not throw. */
  undo(outcome: Outcome): Promise<void>;
  /** Some of what `decide` took may never be used: whether it was stored is not known. */
  doubt(): void;
  /** Does what was decided; doing it twice changes nothing. Answers whether anything was new. */
  store(decision: Decision<Outcome>): Promise<boolean>;
  /** Whether all that counts as accepted is stored already. */
  isStored(decision: Decision<Outcome>): Promise<boolean>;
}

/**
 * A claim is made before the answer, but holds for ten minutes after it: what the answer may take without another write,
 * in milliseconds. Slower answers move the end of their claim.
 */
const answerWithinMs = 2_000;
/**
 * A claim that ends sooner than this, in milliseconds, is prolonged before anything is stored for it: when it ends, a retry
 * decides anew, and what is still being stored then would be there twice. Longer than a write takes with its retries, and
 * than clocks differ.
 */
const storeWithinMs = 20_000;
const windowMs = limits.idempotencyWindowSeconds * 1000;

/**
 * Decides once and stores. Without a key the decision is `decide`'s. With one, the decision recorded first is everybody's:
 * it is recorded durably before anything is stored, so a request that dies at any point is finished by its retry, and
 * doing its writes twice changes nothing.
 * @throws Fault invalid_body when the key was used for a different request.
 */
export async function doOnce<Outcome>(
  services: Services,
  call: Call,
  request: IdempotentRequest | undefined,
  work: Work<Outcome>,
): Promise<Decision<Outcome>> {
  return request === undefined ? doUnclaimed(services, call, work) : doClaimed(services, call, request, work);
}

async function doUnclaimed<Outcome>({ stage }: Services, { exchange }: Call, work: Work<Outcome>) {
  const outcome = await stage(exchange, "decide", () => work.decide());
  const decision = { requestId: exchange.requestId, receivedAt: exchange.receivedAt, outcome };
  try {
    await stage(exchange, "write", () => work.store(decision));
  } catch (error) {
    // No retry can finish it, so what was never begun costs nothing.
    if (isNotBegun(error)) await work.undo(outcome);
    else work.doubt();
    throw error;
  }
  return decision;
}

async function doClaimed<Outcome>(
  services: Services,
  call: Call,
  request: IdempotentRequest,
  work: Work<Outcome>,
): Promise<Decision<Outcome>> {
  const { exchange } = call;
  const { requestId } = exchange;
  const claim = await services.stage(exchange, "decide", () => claimOf(services, call, request, work));
  if (claim.fingerprint !== request.fingerprint) {
    exchange.claim = "conflict";
    throw differentRequest(request.key);
  }
  const isOwn = claim.requestId === requestId;
  exchange.requestId = claim.requestId;
  exchange.claim = isOwn ? "taken" : "replayed";
  await services.stage(exchange, "write", async () => {
    await holdWhileStoring(services, claim, work);
    const stored = await work.store(claim).catch((error: unknown) => {
      // Its retry may never come.
      work.doubt();
      throw error;
    });
    // This is, or may be, the first answer.
    if (isOwn || stored) await holdFor(services, claim);
  });
  return claim;
}

/** @throws Fault unavailable when the claim has ended: a retry may have stored the request under a claim of its own. */
async function holdWhileStoring<Outcome>(
  { claims, now }: Services,
  claim: ClaimDocument<Outcome>,
  work: Work<Outcome>,
): Promise<void> {
  const untilMs = now() + storeWithinMs;
  // Of a request that was done before nothing can be stored twice, and its window stays what it is.
  if (claim.expiresAt.getTime() > untilMs || (await work.isStored(claim))) return;
  const isHeld = await claims.extend(claim, new Date(untilMs));
  if (!isHeld) throw unavailable(new Error("the claim has expired meanwhile"));
}

async function holdFor({ claims, now }: Services, claim: ClaimDocument): Promise<void> {
  if (claim.expiresAt.getTime() >= now() + windowMs) return;
  await claims.extend(claim, new Date(now() + windowMs + answerWithinMs));
}

/** The claim that decides about the request: one that is in force, or else a new one of its own. */
async function claimOf<Outcome>(
  { claims, now }: Services,
  { principal, exchange, wanted }: Call,
  request: IdempotentRequest,
  { isAtHand, decide, sizeOf, shortageOf, undo, doubt }: Work<Outcome>,
): Promise<ClaimDocument<Outcome>> {
  const _id = claimId(principal.caller.keyId, request.key);
  const { organizationId } = principal;
  const find = () => claims.find(organizationId, _id);
  const known = isAtHand ? undefined : await claims.find(organizationId, _id, wanted);
  if (known !== undefined) return known as ClaimDocument<Outcome>;

  let outcome: Outcome;
  try {
    outcome = await decide();
  } catch (error) {
    const isQuota = error instanceof Fault && error.code === "quota_exceeded";
    const winner = isQuota ? await laterClaim(find, "all") : isAtHand ? await find() : undefined;
    if (winner === undefined) throw error;
    return winner as ClaimDocument<Outcome>;
  }
  const { fingerprint } = request;
  const { requestId, receivedAt } = exchange;
  let holder: ClaimDocument | undefined;
  const shortage = shortageOf(outcome);
  if (shortage !== undefined) {
    try {
      holder = await laterClaim(find, shortage);
    } catch (error) {
      await undo(outcome);
      throw error;
    }
  }
  try {
    const expiresAt = new Date(now() + windowMs + answerWithinMs);
    const size = { organizationId, events: sizeOf(outcome) };
    holder ??= await claims.take({ _id, fingerprint, requestId, receivedAt, outcome, expiresAt }, size);
  } catch (error) {
    // Otherwise the claim may stand, and a retry will find it; or not.
    if (isNotBegun(error)) await undo(outcome);
    else doubt();
    throw error;
  }
  if (holder.requestId !== requestId) await undo(outcome);
  return holder as ClaimDocument<Outcome>;
}

/**
 * Times between two looks for a claim about to be made, in milliseconds; together well above a write's. Who got a part of
 * the quota looks for a shorter time, and then claims it before those who got nothing have given up.
 */
const looksAfterMs = { some: [0, 10, 20, 40, 80], all: [0, 10, 20, 40, 80, 150, 300] };

/**
 * The claim of a duplicate on another instance, which may just have taken the last of the quota and be about to claim:
 * then its answer is this request's too.
 */
async function laterClaim(
  find: () => Promise<ClaimDocument | undefined>,
  shortage: keyof typeof looksAfterMs,
): Promise<ClaimDocument | undefined> {
  for (const afterMs of looksAfterMs[shortage]) {
    await delay(afterMs);
    const claim = await find();
    if (claim !== undefined) return claim;
  }
  return undefined;
}

function differentRequest(key: string): Fault {
  const path = "Idempotency-Key";
  const minutes = limits.idempotencyWindowSeconds / 60;
  const message = `'${key}' was used for a different request within the last ${minutes} minutes; use a new key for a new request`;
  return new Fault("invalid_body", `${path}: ${message}`, { issues: [{ path, message }] });
}
