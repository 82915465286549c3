import type { AggregateOptions, ClientSession, Db, Timestamp } from "mongodb";
import type { AppDocument } from "./apps.ts";
import { apps } from "./apps.ts";
import type { CollectionDefinition } from "./database.ts";
import type { OrganizationDocument } from "./organizations.ts";
import { organizations } from "./organizations.ts";

export interface KeyDocument {
  /** `key_` and a ULID. */
  _id: string;
  organizationId: string;
  appId: string;
  /** SHA-256 of the key, base64url. The key itself is stored nowhere. */
  hash: string;
  /** The key's first characters, for people: `wp_live_ab12…`. */
  hint: string;
  /** What the key is for; absent in the keys of old, which are for sending. */
  scope?: "ingest" | "read";
  expiresAt: Date | null;
  revokedAt: Date | null;
  /** The key that was created by its rotation; absent while there was none. */
  replacedBy?: string;
  createdAt: Date;
}

export const keys: CollectionDefinition = {
  name: "keys",
  indexes: [
    { key: { hash: 1 }, options: { unique: true }, why: "authentication looks a key up by its hash" },
    { key: { appId: 1 }, why: "the keys of an app are listed" },
  ],
};

export const keyCollection = (db: Db) => db.collection<KeyDocument>(keys.name);

/** A key with the app and the organisation it belongs to. */
export interface KeyRecord {
  key: KeyDocument;
  app: AppDocument;
  organization: OrganizationDocument;
}

/** Longest that a read of keys waits for a member to follow, or for a majority to confirm, in milliseconds. */
const readWithinMs = 2_000;
/** More than are looked up at once, so that one reply has them all: only the first one is linearizable. */
const batchSize = 1_000;

/**
 * The records of the keys with these hashes, one round trip for all of them; a hash without a key is not in the map.
 *
 * A primary that the rest of its set has left still answers, with what it knows. So the read tells what is at least as new
 * as `since`, a place in the database's history. Without one it is linearizable: a majority confirms it, at the price of a
 * write.
 */
export async function findKeyRecords(
  db: Db,
  hashes: readonly string[],
  since: Timestamp | undefined,
): Promise<Map<string, KeyRecord>> {
  const options = { batchSize, maxTimeMS: readWithinMs };
  if (since === undefined) return readKeyRecords(db, hashes, { ...options, readConcern: "linearizable" });
  return db.client.withSession({ causalConsistency: true }, (session: ClientSession) => {
    session.advanceOperationTime(since);
    return readKeyRecords(db, hashes, { ...options, readConcern: "majority", session });
  });
}

async function readKeyRecords(
  db: Db,
  hashes: readonly string[],
  options: AggregateOptions,
): Promise<Map<string, KeyRecord>> {
  const records = await keyCollection(db)
    .aggregate<{ key: KeyDocument; app: AppDocument[]; organization: OrganizationDocument[] }>(
      [
        { $match: { hash: { $in: hashes } } },
        { $project: { key: "$$ROOT" } },
        { $lookup: { from: apps.name, localField: "key.appId", foreignField: "_id", as: "app" } },
        {
          $lookup: {
            from: organizations.name,
            localField: "key.organizationId",
            foreignField: "_id",
            as: "organization",
          },
        },
      ],
      options,
    )
    .toArray();
  const found = new Map<string, KeyRecord>();
  for (const { key, app, organization } of records) {
    if (app[0] !== undefined && organization[0] !== undefined) {
      found.set(key.hash, { key, app: app[0], organization: organization[0] });
    }
  }
  return found;
}
