import { type AnyBulkWriteOperation, type Db, MongoServerSelectionError } from "mongodb";
import { type ErrorCode, errorTable } from "../errors.ts";
import { bounded, type CollectionDefinition } from "./database.ts";

/** Which counts belong together. */
export interface UsageDay {
  readonly organizationId: string;
  /** `YYYY-MM-DD` in UTC, by time of receipt. */
  readonly day: string;
  readonly appId: string;
  /** eventType or snapshotType. Empty for events without one of their own here, see `DailyUsage`. */
  readonly type: string;
}

/** In events. */
export interface UsageCounts {
  accepted: number;
  /** Of requests that an earlier one with the same Idempotency-Key had decided. */
  replayed: number;
  /** Accepted, but stored before under the same event id. */
  duplicates: number;
  /** A request refused as a whole counts as one event. */
  rejected: Partial<Record<ErrorCode, number>>;
}

export interface DayCounts extends UsageDay, UsageCounts {}

export interface UsageDayDocument extends UsageDay, Partial<UsageCounts> {
  /**
   * Set before rows that were received on this day are removed. From then on the count tells what was accepted, and a
   * recount leaves it alone. So recount first, and set it on all documents of the organisation and day.
   */
  isTrimmed?: boolean;
}

export const usageDays: CollectionDefinition = {
  name: "usageDays",
  indexes: [
    {
      key: { organizationId: 1, day: 1, appId: 1, type: 1 },
      options: { unique: true },
      why: "instances add to one document; an organisation's days are summed",
    },
  ],
};

export const usageDayCollection = (db: Db) => db.collection<UsageDayDocument>(usageDays.name);

/** `YYYY-MM-DD` in UTC. */
export const dayOf = (date: Date) => date.toISOString().slice(0, 10);

/** Matches the documents of a month. */
export const daysOfMonth = (organizationId: string, month: string) => ({
  organizationId,
  day: { $gte: `${month}-01`, $lte: `${month}-31` },
});

/** Types of an app that have documents of their own on one day, as far as one instance knows; the others share "". */
export const usageTypesMax = 200;

/** Operations in one command. */
const batchMax = 1_000;

/**
 * Adds counts. After most failures it is not known whether they were added: to add them again might count them twice.
 * @returns the counts that were certainly not added, and the first failure that leaves others in doubt.
 */
export async function addToDays(
  db: Db,
  counts: readonly DayCounts[],
): Promise<{ undone: readonly DayCounts[]; failure: unknown }> {
  const undone: DayCounts[] = [];
  let failure: unknown;
  for (let at = 0; at < counts.length; at += batchMax) {
    const batch = counts.slice(at, at + batchMax);
    try {
      await bounded(usageDayCollection(db).bulkWrite(batch.map(addition), { ordered: false }));
    } catch (error) {
      if (error instanceof MongoServerSelectionError) undone.push(...batch);
      else failure ??= error;
    }
  }
  return { undone, failure };
}

function addition({ organizationId, day, appId, type, rejected, ...counts }: DayCounts) {
  const codes = Object.entries(rejected).map(([code, count]) => [`rejected.${code}`, count] as const);
  const $inc = Object.fromEntries([...Object.entries(counts), ...codes].filter(([, count]) => count !== 0));
  const filter = { organizationId, day, appId, type };
  return { updateOne: { filter, update: { $inc }, upsert: true } } as AnyBulkWriteOperation<UsageDayDocument>;
}

const fieldOf = { day: "day", app: "appId", type: "type" } as const satisfies Record<string, keyof UsageDay>;
export type UsageGroup = keyof typeof fieldOf;
export const usageGroups = Object.keys(fieldOf) as UsageGroup[];

/** Named by one of day, appId and type. */
export type UsageSum = Partial<Pick<UsageDay, "day" | "appId" | "type">> & Readonly<UsageCounts>;

/** The counts of a month by day, app or type. */
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
