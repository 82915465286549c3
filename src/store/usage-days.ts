import type { AnyBulkWriteOperation, Db } from "mongodb";
import { type ErrorCode, errorTable } from "../errors.ts";
import { bounded, type CollectionDefinition, isAnswering } from "./database.ts";

export interface UsageDay {
  readonly organizationId: string;
  /** `YYYY-MM-DD` in UTC, by time of receipt. */
  readonly day: string;
  readonly appId: string;
  /** eventType or snapshotType; empty for types without their own counts, see `DailyUsage`. */
  readonly type: string;
}

/** In events. */
export interface UsageCounts {
  accepted: number;
  /** Events of replays. */
  replayed: number;
  /** Accepted events that were stored before under the same event id. */
  duplicates: number;
  /** A request that failed counts as one event. */
  rejected: Partial<Record<ErrorCode, number>>;
}

export interface DayCounts extends UsageDay, UsageCounts {}

export interface UsageDayDocument extends UsageDay, Partial<UsageCounts> {
  /** Rows of the organisation and day were removed, so a recount keeps the counts. See `keepCounts` in recount.ts. */
  isTrimmed?: boolean;
}

export const usageDays: CollectionDefinition = {
  name: "usageDays",
  indexes: [
    {
      key: { organizationId: 1, day: 1, appId: 1, type: 1 },
      options: { unique: true },
      why: "instances add to one document; commands sum an organisation's days",
    },
  ],
};

export const usageDayCollection = (db: Db) => db.collection<UsageDayDocument>(usageDays.name);

/** Matches the documents of a month. */
export const daysOfMonth = (organizationId: string, month: string) => ({
  organizationId,
  day: { $gte: `${month}-01`, $lte: `${month}-31` },
});

/** Types of an app with their own document on one day, for each instance; the others share "". */
export const usageTypesMax = 200;

/** Operations in one command. */
const batchMax = 1_000;

/**
 * Adds counts. A write that fails may have been done, so a retry could count twice.
 * @returns the counts to add later, because the database does not answer, and the first failure that leaves others in doubt.
 */
export async function addToDays(
  db: Db,
  counts: readonly DayCounts[],
): Promise<{ undone: readonly DayCounts[]; failure: unknown }> {
  let failure: unknown;
  for (let at = 0; at < counts.length; at += batchMax) {
    if (!(await isAnswering(db))) return { undone: counts.slice(at), failure };
    const batch = counts.slice(at, at + batchMax);
    try {
      await bounded(usageDayCollection(db).bulkWrite(batch.map(addition), { ordered: false }));
    } catch (error) {
      failure ??= error;
    }
  }
  return { undone: [], failure };
}

function addition({ organizationId, day, appId, type, rejected, ...counts }: DayCounts) {
  const codes = Object.entries(rejected).map(([code, count]) => [`rejected.${code}`, count] as const);
  const $inc = Object.fromEntries([...Object.entries(counts), ...codes].filter(([, count]) => count !== 0));
  const filter = { organizationId, day, appId, type };
  return { updateOne: { filter, update: { $inc }, upsert: true } } as AnyBulkWriteOperation<UsageDayDocument>;
}

const fieldOf = { day: "day", app: "appId", type: "type" } as const satisfies Record<string, keyof UsageDay>;
export type UsageGroup = keyof typeof fieldOf;

export type UsageSum = Partial<Pick<UsageDay, "day" | "appId" | "type">> & Readonly<UsageCounts>;

export async function sumOfDays(db: Db, organizationId: string, month: string, by: UsageGroup): Promise<UsageSum[]> {
  const codes = Object.keys(errorTable) as ErrorCode[];
  const sumOf = (path: string) => ({ $sum: `$${path}` });
  const counts = { accepted: sumOf("accepted"), replayed: sumOf("replayed"), duplicates: sumOf("duplicates") };
  const byCode = Object.fromEntries(codes.map((code) => [code, sumOf(`rejected.${code}`)]));
  const found = await usageDayCollection(db)
    .aggregate<Omit<UsageCounts, "rejected"> & Record<ErrorCode, number> & { _id: string }>([
      { $match: daysOfMonth(organizationId, month) },
      { $group: { _id: `$${fieldOf[by]}`, ...counts, ...byCode } },
      { $sort: { _id: 1 } },
    ])
    .toArray();
  return found.map(({ _id, accepted, replayed, duplicates, ...sums }) => {
    const rejected = Object.fromEntries(codes.filter((code) => sums[code] > 0).map((code) => [code, sums[code]]));
    return { [fieldOf[by]]: _id, accepted, rejected, replayed, duplicates };
  });
}
