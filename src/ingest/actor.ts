import type { Principal } from "../access/principal.ts";
import type { ActorIds } from "../store/workers.ts";
import type { Actor } from "./schema.ts";
import { workerIdPattern } from "../ids.ts";
import { shown } from "./validate.ts";

/** The actor with whose ids they are, or undefined when it has none. */
export function actorIdsOf(actor: Actor, { organizationId, app }: Principal): ActorIds | undefined {
  const { workerId, externalId, email, displayName } = actor;
  if (workerId === undefined && externalId === undefined && email === undefined) return undefined;
  const ids: { -readonly [Name in keyof ActorIds]: ActorIds[Name] } = { organizationId, app };
  if (workerId !== undefined) ids.workerId = workerId;
  if (externalId !== undefined) ids.externalId = externalId;
  if (email !== undefined) ids.email = email;
  if (displayName !== undefined) ids.displayName = displayName;
  return ids;
}

export const missingActor = "actor needs at least one of workerId, externalId and email.";

/** An id of the caller's own is often sent for a worker's: then the message says what those look like. */
export const workerNotFound = (workerId: string) =>
  `workerId ${shown(workerId)} is not a worker of this organisation${workerIdPattern.test(workerId) ? "" : "; a worker's id is wrk_ and a ULID"}.`;

export const quotaExceeded = (quotaEvents: number) =>
  `The monthly quota of ${quotaEvents} events is exhausted; it starts anew with the next calendar month (UTC).`;
