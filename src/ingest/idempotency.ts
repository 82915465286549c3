import { setTimeout as delay } from "node:timers/promises";
import { Fault, faultFrom, unavailable } from "../errors.ts";
import { Failure, type Outcome } from "../exchange.ts";
import { limits } from "../limits.ts";
import { type ClaimDocument, claimId } from "../store/idempotency.ts";
import { isNotBegun } from "../store/group-commit.ts";
import type { Call, Services } from "./services.ts";
import { invalidMember } from "./validate.ts";

/** The decision about a request. With the request, it determines what is stored and what is answered. */
export interface Decision<Verdict> {
  readonly requestId: string;
  readonly receivedAt: Date;
  readonly outcome: Verdict;
}

/** A request's Idempotency-Key and fingerprint. */
export interface IdempotentRequest {
  readonly key: string;
  readonly fingerprint: string;
}

/** The steps that decide and store one request. */
export interface Work<Verdict> {
  /**
   * Whether `decide` needs no database and cannot exhaust the quota. `doOnce` then skips the look-up of an earlier
   * claim: it meets that claim when it takes its own, and undoes the decision.
   */
  isAtHand(): boolean;
  /** Throws to refuse the whole request; no claim records that. */
  decide(): Verdict | Promise<Verdict>;
  /** What the claim stores of the decision: less than the decision, since it is read with the request. */
  keep(outcome: Verdict): unknown;
  /** The decision of which a claim for the same request has stored `kept`. */
  recall(kept: unknown): Verdict;
  /** Number of events in the decision, at least 1. */
  sizeOf(outcome: Verdict): number;
  /** Whether the quota did not suffice for all of the request. */
  isShort(outcome: Verdict): boolean;
  /** Whether a duplicate took some of the last quota before this request did. */
  isTakenBefore(): Promise<boolean>;
  /** Gives back the quota of an unused decision. Must not throw. */
  undo(outcome: Verdict): Promise<void>;
  /** Marks the quota that `decide` took as doubtful: the rows may or may not be stored. */
  doubt(): void;
  /** Stores the decision's rows; idempotent. Returns whether any of them was new. */
  store(decision: Decision<Verdict>): Promise<boolean>;
  /** Whether all accepted rows are stored already. */
  isStored(decision: Decision<Verdict>): Promise<boolean>;
}

/**
 * Time in milliseconds that the answer may take after its claim. The claim must hold for ten minutes after the answer,
 * so a slower answer costs another write to extend it.
 */
const answerWithinMs = 2_000;
/**
 * A claim that expires sooner than this, in milliseconds, is extended before the store. Otherwise a retry could decide
 * anew during the store, and the rows would be stored twice. It exceeds a write with its retries plus the clock skew.
 */
const storeWithinMs = 20_000;
const windowMs = limits.idempotencyWindowSeconds * 1000;

/**
 * Decides once and stores. With an Idempotency-Key, the first recorded decision counts for all requests with that key.
 * The decision is durable before the first row, so a retry can finish a request that died at any point.
 * @throws Fault invalid_body when the key was used for a different request.
 */
export function doOnce<Verdict>(
  services: Services,
  call: Call,
  request: IdempotentRequest | undefined,
  work: Work<Verdict>,
): Promise<Outcome<Decision<Verdict>>> {
  return request === undefined ? doUnclaimed(services, call, work) : doClaimed(services, call, request, work);
}

function doUnclaimed<Verdict>(
  { stage }: Services,
  { start }: Call,
  work: Work<Verdict>,
): Promise<Outcome<Decision<Verdict>>> {
  const store = (outcome: Verdict) => {
    const { requestId, receivedAt } = start;
    const decision = { requestId, receivedAt, outcome };
    return stage(start, "write", async () => work.store(decision)).then(
      () => ({ answer: decision, facts: storedFacts }),
      async (error: unknown) => {
        // No retry can finish it, so a write that never began must cost no quota.
        if (isNotBegun(error)) await work.undo(outcome);
        else work.doubt();
        throw error;
      },
    );
  };
  const decided = stage(start, "decide", () => work.decide());
  return decided instanceof Promise ? decided.then(store) : store(decided);
}

const storedFacts = { isStored: true } as const;

async function doClaimed<Verdict>(
  services: Services,
  call: Call,
  request: IdempotentRequest,
  work: Work<Verdict>,
): Promise<Outcome<Decision<Verdict>>> {
  const { start } = call;
  const { stage } = services;
  const kept = await stage(start, "decide", () => claimOf(services, call, request, work));
  if (kept.fingerprint !== request.fingerprint) throw new Failure(differentRequest(request.key), { claim: "conflict" });
  const claim = { ...kept, outcome: work.recall(kept.outcome) };
  const { requestId } = claim;
  const isOwn = requestId === start.requestId;
  const known = { requestId, claim: isOwn ? "taken" : "replayed" } as const;
  try {
    const isStored = await stage(start, "write", () => storeClaimed(services, claim, work, isOwn));
    return { answer: claim, facts: { ...known, isStored } };
  } catch (error) {
    throw new Failure(faultFrom(error), known);
  }
}

/**
 * Stores the decision while its claim is in force.
 * @returns whether any row was new.
 * @throws Fault unavailable when the claim has expired: a retry may have stored the request under its own claim.
 */
async function storeClaimed<Verdict>(
  { claims, now }: Services,
  claim: ClaimDocument<Verdict>,
  work: Work<Verdict>,
  isOwn: boolean,
): Promise<boolean> {
  const expiresMs = claim.expiresAt.getTime();
  const untilMs = now() + storeWithinMs;
  // If all rows are stored, a second store adds none, and the claim's window must not grow.
  if (expiresMs <= untilMs && !(await work.isStored(claim))) {
    const isHeld = await claims.extend(claim, new Date(untilMs));
    if (!isHeld) throw unavailable(new Error("the claim expired before its rows were stored"));
  }
  let isStored: boolean;
  try {
    isStored = await work.store(claim);
  } catch (error) {
    // The caller may never retry.
    work.doubt();
    throw error;
  }
  // This may be the first answer, so the ten minutes begin now.
  if ((isOwn || isStored) && expiresMs < now() + windowMs) {
    await claims.extend(claim, new Date(now() + windowMs + answerWithinMs));
  }
  return isStored;
}

/** Finds the claim in force, or decides and takes a new one. */
async function claimOf<Verdict>(
  { claims, now }: Services,
  { principal, start, wanted }: Call,
  request: IdempotentRequest,
  work: Work<Verdict>,
): Promise<ClaimDocument> {
  const _id = claimId(principal.caller.keyId, request.key);
  const { organizationId } = principal;
  const find = () => claims.find(organizationId, _id);
  const isAtHand = work.isAtHand();
  const known = isAtHand ? undefined : await claims.find(organizationId, _id, wanted);
  if (known !== undefined) return known;

  let outcome: Verdict;
  try {
    outcome = await work.decide();
  } catch (error) {
    const isQuota = error instanceof Fault && error.code === "quota_exceeded";
    const winner = isQuota ? await duplicateClaim(find, work) : isAtHand ? await find() : undefined;
    if (winner === undefined) throw error;
    return winner;
  }
  const { fingerprint } = request;
  const { requestId, receivedAt } = start;
  let holder: ClaimDocument | undefined;
  if (work.isShort(outcome)) {
    try {
      holder = await duplicateClaim(find, work);
    } catch (error) {
      await work.undo(outcome);
      throw error;
    }
  }
  try {
    const expiresAt = new Date(now() + windowMs + answerWithinMs);
    const claim = { _id, organizationId, fingerprint, requestId, receivedAt, outcome: work.keep(outcome), expiresAt };
    holder ??= await claims.take(claim, work.sizeOf(outcome));
  } catch (error) {
    // Otherwise the claim may be stored, and a retry would use it.
    if (isNotBegun(error)) await work.undo(outcome);
    else work.doubt();
    throw error;
  }
  if (holder.requestId !== requestId) await work.undo(outcome);
  return holder;
}

/** Pause between two look-ups of a claim that a duplicate is about to take, in milliseconds. */
const lookEveryMs = 20;

/**
 * Finds the claim of a duplicate, which may have taken the last of the quota on another instance; its decision then counts
 * for this request too. Waits only while such a duplicate is known and may still take its claim.
 */
async function duplicateClaim(
  find: () => Promise<ClaimDocument | undefined>,
  work: Pick<Work<unknown>, "isTakenBefore">,
): Promise<ClaimDocument | undefined> {
  for (;;) {
    // Asks in this order: a duplicate that takes its claim in between is found.
    const isAwaited = await work.isTakenBefore();
    const claim = await find();
    if (claim !== undefined || !isAwaited) return claim;
    await delay(lookEveryMs);
  }
}

function differentRequest(key: string): Fault {
  const minutes = limits.idempotencyWindowSeconds / 60;
  const message = `'${key}' was used for a different request within the last ${minutes} minutes; use a new key for a new request`;
  return invalidMember("Idempotency-Key", message);
}
