import { setTimeout as delay } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import type { AnyBulkWriteOperation, Db, Document, Filter, MongoBulkWriteError } from "mongodb";
import { bounded, durable, isDuplicateKey } from "./database.ts";
import { type EventDocument, eventCollection, lateMs, rowKey, rowsBetween, rowsInOrder } from "./events.ts";
import { daysOfMonth, type UsageDay, usageDayCollection, type UsageDayDocument, usageTypesMax } from "./usage-days.ts";
import { type UsageDocument, usageCollection, usageKey, type UsageOwner } from "./usage.ts";
import { countedSince } from "./version-2.ts";
import { idOf } from "../ids.ts";
import { dayOf } from "../time.ts";

export interface RecountOptions {
  /**
   * How long counts and rows must stay unchanged before a correction, in milliseconds. Longer than counts stay in
   * memory.
   */
  readonly quietMs: number;
  /** How long to wait for that, in milliseconds. */
  readonly patienceMs: number;
  /** Ends the wait. */
  readonly signal?: AbortSignal;
  /** Called before each correction. If it fails, nothing is corrected. */
  readonly onCorrection?: (counts: Recounted) => Promise<void>;
}

export interface Recounted {
  /** The usage before, in events. */
  readonly before: number;
  readonly after: number;
  /** Number of corrected counts by day, app and type. */
  readonly corrected: number;
}

/**
 * Sets a month's usage, and the accepted events of each type and day, to the number of stored rows. It keeps the counts
 * of days from which rows were removed. While a request runs the numbers may differ: it takes quota before it stores
 * its rows, and counts afterwards. So only a lasting difference is corrected.
 * @returns undefined if the organisation stays too busy.
 * @throws the signal's reason.
 */
export async function recount(
  db: Db,
  organizationId: string,
  month: string,
  { quietMs, patienceMs, signal, onCorrection }: RecountOptions,
): Promise<Recounted | undefined> {
  const owner = { organizationId, month };
  let corrected = 0;
  let seen = await counted(db, owner, { signal });
  // Make at least one try, however long the count takes.
  const deadlineMs = performance.now() + patienceMs;
  const { events: before = 0 } = seen;
  while (isWrong(seen)) {
    if (performance.now() >= deadlineMs) return undefined;
    await delay(quietMs);
    const now = await counted(db, owner, { signal });
    if (isDeepStrictEqual(now, seen)) {
      await onCorrection?.({ before: now.events ?? 0, after: now.accepted, corrected: now.wrong.length });
      corrected += await setAccepted(db, now.wrong);
      if (now.accepted !== (now.events ?? 0)) await setEvents(db, owner, now);
      seen = await counted(db, owner, { signal });
    } else seen = now;
  }
  return { before, after: seen.accepted, corrected };
}

const isWrong = ({ accepted, events = 0, wrong }: Counted) => accepted !== events || wrong.length > 0;

/** Whether a recount would change nothing. Requests that run meanwhile make a difference. */
export const isExact = async (db: Db, organizationId: string, month: string): Promise<boolean> =>
  !isWrong(await counted(db, { organizationId, month }));

interface Counted {
  /** As charged; undefined if nothing was charged. */
  readonly events: number | undefined;
  readonly accepted: number;
  readonly wrong: readonly WrongCount[];
}

interface WrongCount extends UsageDay {
  /** Undefined if there is no count. */
  readonly accepted: number | undefined;
  readonly rows: number;
}

async function counted(db: Db, owner: UsageOwner, options: SliceOptions = {}): Promise<Counted> {
  const [usage, counts] = await Promise.all([
    usageCollection(db).findOne(usageKey(owner)),
    usageDayCollection(db).find(daysOfMonth(owner.organizationId, owner.month)).toArray(),
  ]);
  const kept = keptCountsOf(counts);
  const stored = await countByType(db, owner, options);
  const unseen = new Map(counts.filter(({ day }) => !kept.has(day)).map((one) => [nameOf(one), one]));
  const wrong: WrongCount[] = [];
  for (const { count, ...day } of stored.filter(({ day }) => !kept.has(day))) {
    const accepted = unseen.get(nameOf(day))?.accepted;
    unseen.delete(nameOf(day));
    if (accepted !== count) wrong.push({ ...day, accepted, rows: count });
  }
  for (const { organizationId, day, appId, type, accepted } of unseen.values()) {
    if ((accepted ?? 0) !== 0) wrong.push({ organizationId, day, appId, type, accepted, rows: 0 });
  }
  const storedByDay = new Map<string, number>();
  for (const { day, count } of stored) storedByDay.set(day, (storedByDay.get(day) ?? 0) + count);
  let accepted = 0;
  for (const count of storedByDay.values()) accepted += count;
  for (const removed of removedOf(kept, storedByDay)) accepted += removed;
  return { events: usage?.events, accepted, wrong };
}

/** The accepted events of each day from which rows were removed. A count that was added later has no mark. */
function keptCountsOf(counts: readonly UsageDayDocument[]): Map<string, number> {
  const kept = new Map<string, number>();
  for (const { day, isTrimmed } of counts) if (isTrimmed) kept.set(day, 0);
  for (const { day, accepted = 0 } of counts) {
    const sum = kept.get(day);
    if (sum !== undefined) kept.set(day, sum + accepted);
  }
  return kept;
}

/**
 * How many rows were removed from each day, as far as the counts tell: a process that was killed may have lost some. So
 * no day has fewer accepted events than rows.
 */
const removedOf = (kept: ReadonlyMap<string, number>, stored: ReadonlyMap<string, number>): number[] =>
  [...kept].map(([day, accepted]) => Math.max(0, accepted - (stored.get(day) ?? 0)));

const nameOf = ({ day, appId, type }: UsageDay) => `${day}/${appId}/${type}`;

/** How to count in slices. */
export interface SliceOptions {
  /** Rows that one command counts, so that none takes too long. */
  readonly sliceRows?: number;
  /** Aborts the count between two commands. */
  readonly signal?: AbortSignal | undefined;
  /** Waits after a command that took so many milliseconds. */
  readonly rest?: (tookMs: number, signal?: AbortSignal) => Promise<void>;
}

export interface CountOptions extends SliceOptions {
  /** Rows received before it are counted separately. */
  readonly moment?: Date;
}

/**
 * Call this before you remove rows: from now on a recount keeps the counts of their days. Instances of schema version 2
 * did not count by day. So this first counts the rows of that time, the whole month at once.
 * @param rows at least one of each day.
 */
export async function keepCounts(
  db: Db,
  organizationId: string,
  rows: readonly UsageDay[],
  now: Date,
  options: SliceOptions = {},
): Promise<void> {
  const days = new Map(rows.map((row) => [row.day, row]));
  const collection = usageDayCollection(db);
  const isMarked = { organizationId, day: { $in: [...days.keys()] }, isTrimmed: true } as const;
  const marked = await bounded(collection.find(isMarked, { projection: { day: 1 } }).toArray());
  for (const { day } of marked) days.delete(day);
  if (days.size === 0) return;
  const since = await bounded(countedSince(db));
  const countedDay = since === undefined ? "" : dayOf(since);
  // More rows of a day may come until then.
  const lateDay = dayOf(new Date(now.getTime() - lateMs));
  const isUncounted = ({ day }: Pick<UsageDay, "day">) => day <= countedDay && day < lateDay;
  const mark = { $set: { isTrimmed: true as const } };
  const uncounted = [...days.values()].filter(isUncounted);
  for (const month of new Set(uncounted.map(({ day }) => day.slice(0, 7)))) {
    const { wrong } = await counted(db, { organizationId, month }, options);
    await setAccepted(db, wrong.filter(isUncounted));
    const day = { $gte: `${month}-01`, $lte: [`${month}-31`, countedDay].sort()[0] as string, $lt: lateDay };
    await bounded(collection.updateMany({ organizationId, day }, mark, { writeConcern: durable }));
  }
  const marks: AnyBulkWriteOperation<UsageDayDocument>[] = [];
  for (const { day, appId, type } of days.values()) {
    marks.push({ updateMany: { filter: { organizationId, day }, update: mark } });
    // A process may not have added its counts of the day yet.
    marks.push({ updateOne: { filter: { organizationId, day, appId, type }, update: mark, upsert: true } });
  }
  await bounded(collection.bulkWrite(marks, { writeConcern: durable }));
}

/**
 * Counts the events accepted in a month: all, and those received before the moment. Removed rows count as before it. It
 * reads all rows of the organisation, because a row's timestamp may be of any age.
 * @returns undefined if meanwhile the first row of a day was removed.
 * @throws the signal's reason.
 */
export async function countRows(
  db: Db,
  owner: UsageOwner,
  { moment = new Date(0), ...options }: CountOptions = {},
): Promise<{ all: number; before: number } | undefined> {
  const { organizationId, month } = owner;
  const keptNow = async () =>
    keptCountsOf(await usageDayCollection(db).find(daysOfMonth(organizationId, month)).toArray());
  const keptBefore = await keptNow();
  const isBefore = { $cond: [isReceivedBefore(organizationId, moment), 1, 0] };
  const day = keptBefore.size === 0 ? "" : dayOfReceipt(owner);
  const group = { _id: day, all: { $sum: 1 }, before: { $sum: isBefore } };
  const match = receivedBetween(organizationId, ...boundsOfMonth(owner));
  const sum = { all: 0, before: 0 };
  const stored = new Map<string, number>();
  type Part = typeof sum & { readonly _id: string };
  for await (const { _id, all, before } of sumsOf<Part>(db, organizationId, { match, group }, options)) {
    sum.all += all;
    sum.before += before;
    stored.set(_id, (stored.get(_id) ?? 0) + all);
  }
  // Only now: a count that lags behind the rows would hide removed ones.
  const kept = await keptNow();
  if (kept.size !== keptBefore.size) return undefined;
  for (const removed of removedOf(kept, stored)) {
    sum.all += removed;
    sum.before += removed;
  }
  return sum;
}

async function countByType(
  db: Db,
  owner: UsageOwner,
  options: SliceOptions,
): Promise<(UsageDay & { readonly count: number })[]> {
  const { organizationId } = owner;
  const group = { _id: { day: dayOfReceipt(owner), app: "$app", type: "$type" }, count: { $sum: 1 } };
  const counts = new Map<string, UsageDay & { count: number }>();
  const match = receivedBetween(organizationId, ...boundsOfMonth(owner));
  type Part = { _id: { day: string; app: Buffer; type: string }; count: number };
  const parts = sumsOf<Part>(db, organizationId, { match, group }, options);
  for await (const { _id, count } of parts) {
    const one = { organizationId, day: _id.day, appId: idOf("app", _id.app), type: _id.type };
    const known = counts.get(nameOf(one));
    if (known === undefined) counts.set(nameOf(one), { ...one, count });
    else known.count += count;
  }
  return withoutRareTypes([...counts.values()]);
}

/** If an app has too many types on a day, the rarest share the count of "". */
function withoutRareTypes<T extends UsageDay & { readonly count: number }>(counts: readonly T[]): T[] {
  const appDays = Map.groupBy(counts, ({ day, appId }) => `${day}/${appId}`);
  return [...appDays.values()].flatMap((types) => {
    const sorted = types.toSorted((a, b) => b.count - a.count || (a.type < b.type ? -1 : 1));
    const [rarest, ...others] = sorted.slice(usageTypesMax);
    if (rarest === undefined) return sorted;
    const count = others.reduce((sum, one) => sum + one.count, rarest.count);
    return [...sorted.slice(0, usageTypesMax), { ...rarest, type: "", count }];
  });
}

type Bounds = readonly [start: Date, end: Date];

function boundsOfMonth({ month }: UsageOwner): Bounds {
  const start = new Date(`${month}-01T00:00:00Z`);
  return [start, new Date(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + 1, 1))];
}

/** Selects the rows received from `start` on and before `end`. */
const receivedBetween = (organizationId: string, start: Date, end: Date): Filter<EventDocument> => ({
  $or: [
    { received: { $gte: start, $lt: end } },
    // Rows whose timestamp is the time of receipt.
    { received: { $exists: false }, _id: { $gte: rowKey(organizationId, start), $lt: rowKey(organizationId, end) } },
  ],
});

/** The same as an expression. */
const isReceivedBefore = (organizationId: string, time: Date): Document => {
  const isEarlier = { $lt: ["$_id", rowKey(organizationId, time)] };
  return { $cond: [{ $gt: ["$received", null] }, { $lt: ["$received", time] }, isEarlier] };
};

/** The day on which a row of the month was received, as an expression. */
function dayOfReceipt({ organizationId, month }: UsageOwner): unknown {
  const [start] = boundsOfMonth({ organizationId, month });
  const days = Array.from({ length: 31 }, (_, i) => new Date(start.getTime() + i * 86_400_000));
  return days.reduceRight<unknown>((later, day) => {
    const next = new Date(day.getTime() + 86_400_000);
    return { $cond: [isReceivedBefore(organizationId, next), dayOf(day), later] };
  }, null);
}

/** Groups the organisation's rows in slices, so that no command takes too long. */
async function* sumsOf<T extends Document>(
  db: Db,
  organizationId: string,
  { match, group }: { readonly match: Filter<EventDocument>; readonly group: Document },
  { sliceRows = 50_000, signal, rest: pause }: SliceOptions = {},
): AsyncGenerator<T> {
  const options = { hint: rowsInOrder, readConcern: "majority" } as const;
  const rows = eventCollection(db);
  const { org, _id } = rowsBetween(organizationId);
  for (let first = _id.$gte; ;) {
    signal?.throwIfAborted();
    const startedMs = performance.now();
    const rest = { org, _id: { $gte: first, $lt: _id.$lt } };
    const next = await rows.findOne(rest, { ...options, projection: { _id: 1 }, sort: { _id: 1 }, skip: sliceRows });
    const slice = { org, _id: { $gte: first, $lt: next?._id ?? _id.$lt } };
    yield* await rows.aggregate<T>([{ $match: slice }, { $match: match }, { $group: group }], options).toArray();
    if (next === null) return;
    first = next._id;
    await pause?.(performance.now() - startedMs, signal);
  }
}

/** Sets counts that are unchanged since they were read, and from whose days no row was removed. @returns how many. */
async function setAccepted(db: Db, wrong: readonly WrongCount[]): Promise<number> {
  if (wrong.length === 0) return 0;
  const operations = wrong.map(({ accepted, rows, ...day }) => ({
    updateOne: {
      filter: {
        ...day,
        accepted: accepted ?? { $exists: false },
        isTrimmed: { $exists: false },
      } as Filter<UsageDayDocument>,
      update: { $set: { accepted: rows } },
      upsert: accepted === undefined,
    },
  }));
  try {
    const done = await usageDayCollection(db).bulkWrite(operations, { ordered: false, writeConcern: durable });
    return done.matchedCount + done.upsertedCount;
  } catch (error) {
    // An instance has just made one of them.
    if (!isDuplicateKey(error)) throw error;
    return (error as MongoBulkWriteError).matchedCount + (error as MongoBulkWriteError).upsertedCount;
  }
}

/** Changes nothing if quota was taken in the meantime, so that running requests stay counted. */
async function setEvents(db: Db, owner: UsageOwner, { events, accepted }: Counted): Promise<void> {
  try {
    await usageCollection(db).updateOne(
      { ...usageKey(owner), events: events ?? { $exists: false } } as Filter<UsageDocument>,
      // A doubt records older charges.
      { $set: { month: owner.month, events: accepted }, $unset: { returned: "", doubt: "" } },
      { upsert: events === undefined, writeConcern: durable },
    );
  } catch (error) {
    if (!isDuplicateKey(error)) throw error;
  }
}
