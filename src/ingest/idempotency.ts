import { Fault } from "../errors.ts";
import { limits } from "../limits.ts";
import { type ClaimDocument, claimId } from "../store/claims.ts";
import type { Call, Services } from "./call.ts";

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

/**
 * Decides once. Without a key the decision is `decide`'s. With one, the decision recorded first is everybody's: it is
 * recorded durably before anything is stored, so a request that dies at any point is finished by its retry, and doing
 * its writes twice changes nothing. `decide` may throw to refuse the request as a whole; that is not recorded.
 * `undo` is called with the decision that lost, so that what it took can be given back.
 * @throws Fault invalid_body when the key was used for a different request.
 */
export async function decideOnce<Outcome>(
  { claims, now }: Services,
  { principal, exchange, wanted }: Call,
  request: IdempotentRequest | undefined,
  decide: () => Promise<Outcome>,
  undo: (outcome: Outcome) => void,
): Promise<Decision<Outcome>> {
  const own = { requestId: exchange.requestId, receivedAt: exchange.receivedAt };
  if (request === undefined) return { ...own, outcome: await decide() };

  const id = claimId(principal.keyId, request.key);
  const known = await claims.find(id, wanted);
  if (known !== undefined) return replayOf<Outcome>(known, request, exchange);

  let outcome: Outcome;
  try {
    outcome = await decide();
  } catch (error) {
    // A duplicate of this request may have taken the last of the quota meanwhile: then its answer is this one's too.
    const winner = error instanceof Fault && error.code === "quota_exceeded" ? await claims.find(id) : undefined;
    if (winner === undefined) throw error;
    return replayOf<Outcome>(winner, request, exchange);
  }
  const claim: ClaimDocument<Outcome> = {
    _id: id,
    fingerprint: request.fingerprint,
    ...own,
    outcome,
    expiresAt: new Date(now() + limits.idempotencyWindowSeconds * 1000),
  };
  const holder = await claims.take(claim);
  if (holder.requestId === claim.requestId) {
    exchange.claim = "taken";
    return claim;
  }
  undo(outcome);
  return replayOf<Outcome>(holder, request, exchange);
}

function replayOf<Outcome>(
  claim: ClaimDocument,
  request: IdempotentRequest,
  exchange: Call["exchange"],
): Decision<Outcome> {
  if (claim.fingerprint !== request.fingerprint) {
    exchange.claim = "conflict";
    const path = "Idempotency-Key";
    const message = `'${request.key}' was used for a different request within the last ${limits.idempotencyWindowSeconds / 60} minutes; use a new key for a new request`;
    throw new Fault("invalid_body", `${path}: ${message}`, { issues: [{ path, message }] });
  }
  exchange.requestId = claim.requestId;
  exchange.claim = "replayed";
  return claim as ClaimDocument<Outcome>;
}
