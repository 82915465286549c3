import type { AnyBulkWriteOperation, Db } from "mongodb";
import { bounded, type CollectionDefinition } from "./database.ts";

/** The answered requests of one organisation in one minute. */
export interface TrafficCounts {
  /** Requests that were answered with an error. */
  refused: number;
  /** All requests, by the bucket of their latency. */
  readonly latencies: Uint32Array;
}

export interface MinuteCounts extends TrafficCounts {
  readonly organizationId: string;
  /** Minutes since 1970. */
  readonly minute: number;
}

interface TrafficDocument {
  readonly organizationId: string;
  /** When the minute began. */
  readonly minute: Date;
  refused?: number;
  /** Requests by bucket; empty buckets are absent. */
  latencies?: Readonly<Record<string, number>>;
}

export const traffic: CollectionDefinition = {
  name: "traffic",
  indexes: [
    {
      key: { organizationId: 1, minute: 1 },
      options: { unique: true },
      why: "instances add to one document; GetTraffic reads an organisation's last hour",
    },
    {
      key: { minute: 1 },
      options: { expireAfterSeconds: 7_200 },
      why: "the server removes minutes that no call reads",
    },
  ],
};

export const trafficCollection = (db: Db) => db.collection<TrafficDocument>(traffic.name);

export const minuteMs = 60_000;

/** Buckets on a logarithmic scale: each ends 9 % above its beginning. The last one ends at 105 s. */
const bucketsPerDoubling = 8;
const leastMs = 0.1;
const buckets = 160;

export const noTraffic = (): TrafficCounts => ({ refused: 0, latencies: new Uint32Array(buckets) });

/** Counts a request. A latency outside the scale counts in the first or last bucket. */
export function countRequest({ latencies }: TrafficCounts, ms: number): void {
  const bucket = Math.floor(Math.log2(ms / leastMs) * bucketsPerDoubling);
  (latencies[Math.max(0, Math.min(buckets - 1, bucket))] as number)++;
}

/** The middle of a bucket, which is at most 4.5 % from any latency in it. */
const middleOf = (bucket: number): number => leastMs * 2 ** ((bucket + 0.5) / bucketsPerDoubling);

export const requestsOf = ({ latencies }: TrafficCounts): number => latencies.reduce((sum, count) => sum + count, 0);

/** The latency in milliseconds that this share of the requests did not exceed; undefined without requests. */
export function percentileOf(counts: TrafficCounts, share: number): number | undefined {
  let left = Math.ceil(share * requestsOf(counts));
  if (left === 0) return undefined;
  const bucket = counts.latencies.findIndex((count) => (left -= count) <= 0);
  return Number(middleOf(bucket).toPrecision(3));
}

export function addCounts(sum: TrafficCounts, { refused, latencies }: TrafficCounts): void {
  sum.refused += refused;
  latencies.forEach((count, bucket) => (sum.latencies[bucket] = (sum.latencies[bucket] ?? 0) + count));
}

/** Operations in one command. */
const batchMax = 1_000;

/** Adds counts. If a write fails, some of them may be missing: a repeated write could count twice. */
export async function addToMinutes(db: Db, counts: readonly MinuteCounts[]): Promise<void> {
  for (let at = 0; at < counts.length; at += batchMax) {
    const batch = counts.slice(at, at + batchMax).map(addition);
    await bounded(trafficCollection(db).bulkWrite(batch, { ordered: false, writeConcern: { w: 1 } }));
  }
}

function addition({ organizationId, minute, refused, latencies }: MinuteCounts) {
  const $inc: Record<string, number> = refused === 0 ? {} : { refused };
  latencies.forEach((count, bucket) => {
    if (count > 0) $inc[`latencies.${bucket}`] = count;
  });
  const filter = { organizationId, minute: new Date(minute * minuteMs) };
  return { updateOne: { filter, update: { $inc }, upsert: true } } as AnyBulkWriteOperation<TrafficDocument>;
}

/** The counts of all instances from this minute on. Minutes without requests are absent. */
export async function readMinutes(db: Db, organizationId: string, since: number): Promise<MinuteCounts[]> {
  const filter = { organizationId, minute: { $gte: new Date(since * minuteMs) } };
  const found = await bounded(trafficCollection(db).find(filter).toArray());
  return found.map(({ minute, refused = 0, latencies: stored = {} }) => {
    const { latencies } = noTraffic();
    for (const [bucket, count] of Object.entries(stored)) latencies[Number(bucket)] = count;
    return { organizationId, minute: minute.getTime() / minuteMs, refused, latencies };
  });
}
