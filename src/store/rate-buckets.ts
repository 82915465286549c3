import type { AnyBulkWriteOperation, Db } from "mongodb";
import type { CollectionDefinition } from "./database.ts";

export interface RateBucketDocument {
  /** Key id or organisation id. */
  _id: string;
  /** May be negative: instances that did not know of each other let too much through, and the bucket pays it back. */
  tokens: number;
  /** The server's time at which the bucket had `tokens`. */
  at: Date;
}

export const rateBuckets: CollectionDefinition = {
  name: "rate_buckets",
  indexes: [
    {
      key: { at: 1 },
      options: { expireAfterSeconds: 3600 },
      why: "a bucket without traffic is full, so the server may remove it",
    },
  ],
};

export const rateBucketCollection = (db: Db) => db.collection<RateBucketDocument>(rateBuckets.name);

/**
 * The largest debt of a bucket, in seconds of its rate. Each instance can add one second's burst before it knows of the
 * others. A larger debt would lock a key out for longer; a smaller one would let it keep its excess.
 */
export const debtSecondsMax = 10;

export interface Spending {
  readonly id: string;
  /** Tokens a second, and also the bucket's size. */
  readonly limit: number;
  readonly tokens: number;
}

/** Reports spent tokens, and returns what is left in each bucket, refilled by the server's clock. */
export async function spend(db: Db, spendings: readonly Spending[]): Promise<Map<string, number>> {
  const collection = rateBucketCollection(db);
  const operations: AnyBulkWriteOperation<RateBucketDocument>[] = spendings.map(({ id, limit, tokens }) => ({
    updateOne: {
      filter: { _id: id },
      update: [
        {
          $set: {
            tokens: {
              $max: [
                -debtSecondsMax * limit,
                { $subtract: [{ $min: [limit, { $add: [{ $ifNull: ["$tokens", limit] }, refill(limit)] }] }, tokens] },
              ],
            },
            at: "$$NOW",
          },
        },
      ],
      upsert: true,
    },
  }));
  await collection.bulkWrite(operations, { ordered: false, writeConcern: { w: 1 } });
  const buckets = await collection.find({ _id: { $in: spendings.map(({ id }) => id) } }).toArray();
  return new Map(buckets.map(({ _id, tokens }) => [_id, tokens]));
}

/** Never negative: after a failover, the clock of the new primary may be behind. */
const refill = (limit: number) => ({
  $multiply: [limit, { $max: [0, { $divide: [{ $subtract: ["$$NOW", { $ifNull: ["$at", "$$NOW"] }] }, 1000] }] }],
});
