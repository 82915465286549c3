import type { ActorIds, WorkerDocument } from "../store/workers.ts";
import { invalidMember, shown } from "./validate.ts";
import type { Services } from "./services.ts";

/** Whether `X-Dry-Run` asks for a dry run. @throws Fault invalid_body for anything but true and false. */
export function parseDryRun(value: string | undefined): boolean {
  if (value === undefined || /^false$/i.test(value)) return false;
  if (/^true$/i.test(value)) return true;
  // A misspelt value must not store what the caller only wanted to try.
  throw invalidMember("X-Dry-Run", `must be true or false; it is ${shown(value)}`);
}

/**
 * The same services without their writes. The use cases run unchanged, so a dry run cannot drift from a real one.
 * - Quota is read but not taken.
 * - An Idempotency-Key is looked up but not claimed: the answer shows replays and conflicts.
 * - A new actor gets an invented worker with an empty id.
 */
export function dryServices(services: Services): Services {
  const { workers, usage, claims, events } = services;
  return {
    ...services,
    workers: {
      cached: (actor) => workers.cached(actor),
      find: (actor, wanted) => workers.find(actor, wanted),
      provision: async (actor, _newId, now, known) => imagined(actor, known, now),
    },
    usage: {
      left: (request) => usage.left(request),
      isReserved: () => false,
      take: async (request) => Math.min(request.events, await usage.left(request)),
      giveBack: async () => {},
      doubt: () => {},
      isTakenBefore: (owner, claimant) => usage.isTakenBefore(owner, claimant),
    },
    claims: {
      find: (organizationId, id, wanted) => claims.find(organizationId, id, wanted),
      take: async (claim) => claim,
      extend: async () => true,
    },
    events: {
      insert: (owner, rows) => events.preview(owner, rows),
      preview: (owner, rows) => events.preview(owner, rows),
      has: async () => true,
      findByEventId: (owner, ids) => events.findByEventId(owner, ids),
    },
    cards: { put: async () => {} },
  };
}

/** The worker as a real request of the actor would leave it. */
function imagined(actor: ActorIds, known: WorkerDocument | undefined, now: Date): WorkerDocument {
  const { organizationId, app, externalId, email, displayName } = actor;
  if (known !== undefined) return displayName === undefined ? known : { displayName, ...known };
  const link = { connection: "", key: "", appId: app.id };
  return {
    _id: "",
    organizationId,
    ...(displayName === undefined ? {} : { displayName }),
    ...(email === undefined ? {} : { email }),
    links: externalId === undefined ? [] : [{ ...link, externalId }],
    createdAt: now,
  };
}
