import { setTimeout as delay } from "node:timers/promises";
import type { Db, Filter } from "mongodb";
import { durable, isDuplicateKey } from "./database.ts";
import { type EventDocument, eventCollection, timelineOfOrganization } from "./events.ts";
import { type UsageDocument, usageCollection, usageKey, type UsageOwner } from "./usage.ts";
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
  const owner = { organizationId, month };
  const deadlineMs = performance.now() + patienceMs;
  let seen = await counted(db, owner);
  while (seen.rows !== (seen.events ?? 0)) {
    if (performance.now() >= deadlineMs) return undefined;
    await delay(quietMs);
    const now = await counted(db, owner);
    const isAtRest = now.rows === seen.rows && now.events === seen.events;
    if (isAtRest && (await setEvents(db, owner, now))) return { before: now.events ?? 0, after: now.rows };
    seen = now;
  }
  return { before: seen.rows, after: seen.rows };
}

interface Counted {
  /** As charged; undefined when nothing ever was. */
  readonly events: number | undefined;
  readonly rows: number;
}

async function counted(db: Db, owner: UsageOwner): Promise<Counted> {
  const usage = await usageCollection(db).findOne(usageKey(owner));
  const { all } = await countRows(db, owner);
  return { events: usage?.events, rows: all };
}

export interface CountOptions {
  /** Rows with ids of before it are counted apart. */
  readonly moment?: Date;
  /** About how many rows one command counts, so that none takes longer than an operation may. */
  readonly sliceRows?: number;
  /** Aborts the count between two commands. */
  readonly signal?: AbortSignal;
}

/** Counts the rows of a month, by the index alone: all, and those of before the moment. @throws the signal's reason. */
export async function countRows(
  db: Db,
  { organizationId, month }: UsageOwner,
  { moment = new Date(0), sliceRows = 500_000, signal }: CountOptions = {},
): Promise<{ all: number; before: number }> {
  const start = new Date(`${month}-01T00:00:00Z`);
  const end = new Date(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + 1, 1));
  const _id = { $gte: `evt_${firstUlidAt(start)}`, $lt: `evt_${firstUlidAt(end)}` };
  const isBefore = { $cond: [{ $lt: ["$_id", `evt_${firstUlidAt(moment)}`] }, 1, 0] };
  const options = { hint: timelineOfOrganization, readConcern: "majority" } as const;
  const rows = eventCollection(db);
  const sum = { all: 0, before: 0 };
  let timestamp: { $lt?: Date } = {};
  for (;;) {
    signal?.throwIfAborted();
    const slice: Filter<EventDocument> = { organizationId, ...("$lt" in timestamp ? { timestamp } : {}) };
    const projection = { _id: 0, timestamp: 1 };
    const next = await rows.findOne(slice, { ...options, projection, sort: timelineOfOrganization, skip: sliceRows });
    if (next !== null) slice.timestamp = { ...timestamp, $gte: next.timestamp };
    const group = { _id: null, all: { $sum: 1 }, before: { $sum: isBefore } };
    const stages = [{ $match: { ...slice, _id } }, { $group: group }];
    const [count] = await rows.aggregate<typeof sum>(stages, options).toArray();
    sum.all += count?.all ?? 0;
    sum.before += count?.before ?? 0;
    if (next === null) return sum;
    timestamp = { $lt: next.timestamp };
  }
}

/** Only if nothing was taken meanwhile: what is under way must not be lost from the count. */
async function setEvents(db: Db, owner: UsageOwner, { events, rows }: Counted): Promise<boolean> {
  try {
    const result = await usageCollection(db).updateOne(
      { ...usageKey(owner), events: events ?? { $exists: false } } as Filter<UsageDocument>,
      // What a doubt knows of charges does not hold any more.
      { $set: { month: owner.month, events: rows }, $unset: { returned: "", doubt: "" } },
      { upsert: events === undefined, writeConcern: durable },
    );
    return result.matchedCount + result.upsertedCount === 1;
  } catch (error) {
    if (isDuplicateKey(error)) return false;
    throw error;
  }
}
