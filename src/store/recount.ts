import { setTimeout as delay } from "node:timers/promises";
import type { Db, Filter } from "mongodb";
import { durable, isDuplicateKey } from "./database.ts";
import { eventCollection, timelineOfOrganization } from "./events.ts";
import { type UsageDocument, usageCollection } from "./usage.ts";
import { firstUlidAt } from "../ids.ts";

export interface RecountOptions {
  /** How long count and rows must stand still before the count is changed, in milliseconds. */
  readonly quietMs: number;
  /** How long to wait for that, in milliseconds. */
  readonly patienceMs: number;
}

/**
 * Sets the usage of a month to the number of rows stored in it; answers both numbers, or undefined when the organisation
 * did not come to rest. A request takes its quota before it stores its rows, so the two may differ while it is under way;
 * only a difference that outlasts every request is mended.
 */
export async function recount(
  db: Db,
  organizationId: string,
  month: string,
  { quietMs, patienceMs }: RecountOptions,
): Promise<{ before: number; after: number } | undefined> {
  const deadlineMs = performance.now() + patienceMs;
  let seen = await counted(db, organizationId, month);
  while (seen.rows !== (seen.events ?? 0) || seen.reserved !== 0) {
    if (performance.now() >= deadlineMs) return undefined;
    await delay(quietMs);
    const now = await counted(db, organizationId, month);
    const isAtRest = now.rows === seen.rows && now.events === seen.events && now.reserved === seen.reserved;
    if (isAtRest && (await setEvents(db, organizationId, month, now))) {
      return { before: now.events ?? 0, after: now.rows };
    }
    seen = now;
  }
  return { before: seen.rows, after: seen.rows };
}

interface Counted {
  /** As counted when quota was taken; undefined when it never was. */
  readonly events: number | undefined;
  /** Charged ahead; left behind when it stands still, for instances return what they do not use. */
  readonly reserved: number;
  readonly rows: number;
}

async function counted(db: Db, organizationId: string, month: string): Promise<Counted> {
  const start = new Date(`${month}-01T00:00:00Z`);
  const end = new Date(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + 1, 1));
  const usage = await usageCollection(db).findOne({ _id: `${organizationId}/${month}` });
  const range = { $gte: `evt_${firstUlidAt(start)}`, $lt: `evt_${firstUlidAt(end)}` };
  // The index holds both, so no row is read.
  const options = { hint: timelineOfOrganization, readConcern: "majority" } as const;
  const rows = await eventCollection(db).countDocuments({ organizationId, _id: range }, options);
  return { events: usage?.events, reserved: usage?.reserved ?? 0, rows };
}

/** Only if nothing was taken meanwhile: what is under way must not be lost from the count. */
async function setEvents(db: Db, organizationId: string, month: string, seen: Counted): Promise<boolean> {
  const { events, reserved, rows } = seen;
  try {
    const result = await usageCollection(db).updateOne(
      {
        _id: `${organizationId}/${month}`,
        events: events ?? { $exists: false },
        reserved: reserved === 0 ? { $in: [0, null] } : reserved,
      } as Filter<UsageDocument>,
      { $set: { organizationId, month, events: rows, reserved: 0 } },
      { upsert: events === undefined, writeConcern: durable },
    );
    return result.matchedCount + result.upsertedCount === 1;
  } catch (error) {
    if (isDuplicateKey(error)) return false;
    throw error;
  }
}
