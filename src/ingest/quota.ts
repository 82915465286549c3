import { claimId } from "../store/idempotency.ts";
import { monthOfRequest, type QuotaRequest } from "../store/usage.ts";
import type { Call, Services } from "./services.ts";

/** What a call asks of the quota of its organisation. */
export function quotaOf({ principal, start, idempotencyKey }: Call, events: number): QuotaRequest {
  const { organizationId, quotaEvents, caller } = principal;
  const { requestId } = start;
  const claimant =
    idempotencyKey === undefined ? undefined : { claim: claimId(caller.keyId, idempotencyKey), requestId };
  return { organizationId, month: monthOfRequest(requestId), events, quotaEvents, claimant };
}

/** The same services for test keys, which are charged nothing: no quota of theirs can run out. */
export const uncharged = (services: Services): Services => ({
  ...services,
  usage: {
    left: async () => Number.POSITIVE_INFINITY,
    isReserved: () => true,
    take: ({ events }) => events,
    giveBack: async () => {},
    doubt: () => {},
    isTakenBefore: async () => false,
  },
});
