import type { Principal } from "../access/principal.ts";
import type { ActorIds } from "../store/workers.ts";
import type { Actor } from "./schema.ts";
import { workerIdPattern } from "../ids.ts";
import { shown } from "./validate.ts";

/** The actor's ids within its organisation and app, or undefined when the actor has none. */
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

/** Callers often send an id of their own as `workerId`. The message then shows the form of a worker's id. */
export const workerNotFound = (workerId: string) =>
  `workerId ${shown(workerId)} is not a worker of this organisation${workerIdPattern.test(workerId) ? "" : "; a worker's id is wrk_ and a ULID"}.`;

/** It names nobody: request records keep it. */
export const workerErased =
  "This worker was erased, so nothing about it is stored. An operator can allow it again with `ingest worker erase --allow-again`.";

export const quotaExceeded = (quotaEvents: number) =>
  `The monthly quota of ${quotaEvents} events is exhausted; it resets when the next calendar month begins (UTC).`;
