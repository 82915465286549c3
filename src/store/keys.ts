import type { AggregateOptions, Db, Timestamp } from "mongodb";
import type { AppDocument } from "./apps.ts";
import { apps } from "./apps.ts";
import { type CollectionDefinition, readSince } from "./database.ts";
import type { OrganizationDocument } from "./organizations.ts";
import { organizations } from "./organizations.ts";

export interface KeyDocument {
  /** `key_` and a ULID. */
  _id: string;
  organizationId: string;
  appId: string;
  /** SHA-256 of the key, base64url. Ingest never stores the key. */
  hash: string;
  /** The key's first characters, for display: `wp_live_ab12…` or `wp_test_ab12…`. */
  hint: string;
  /** What a test key writes and reads lies apart from live data, see `testOrganizationOf`. */
  test?: true;
  /** For people; need not be unique. */
  name?: string;
  /** What the key may do. Older keys have `scope`, or neither and may send: read it with `scopesOf`. */
  scopes?: KeyScope[];
  scope?: KeyScope;
  /**
   * Event types and prefixes followed by `*`. The key may send those of them that the app's whitelist allows too.
   * Absent or empty: all that the whitelist allows.
   */
  eventTypes?: string[];
  /** Addresses and CIDR blocks, IPv4 or IPv6, that may use the key. Absent or empty: every address. */
  cidrs?: string[];
  expiresAt: Date | null;
  revokedAt: Date | null;
  /** The successor's id after a rotation. */
  replacedBy?: string;
  createdAt: Date;
}

/** What a key may do: send events, or read them back. */
export type KeyScope = "ingest" | "read";

export const scopesOf = ({ scopes, scope = "ingest" }: Pick<KeyDocument, "scopes" | "scope">): readonly KeyScope[] =>
  scopes ?? [scope];

export const keys: CollectionDefinition = {
  name: "keys",
  indexes: [
    { key: { hash: 1 }, options: { unique: true }, why: "authentication looks a key up by its hash" },
    { key: { appId: 1, _id: 1 }, why: "administration lists the keys of an app, newest first" },
  ],
};

export const keyCollection = (db: Db) => db.collection<KeyDocument>(keys.name);

export interface KeyRecord {
  key: KeyDocument;
  app: AppDocument;
  organization: OrganizationDocument;
}

/** Reads the keys with these hashes in one round trip, as `readSince` does; the map leaves out unknown hashes. */
export function findKeyRecords(
  db: Db,
  hashes: readonly string[],
  since: Timestamp | undefined,
): Promise<Map<string, KeyRecord>> {
  return readSince(db, since, (options) => readKeyRecords(db, hashes, options));
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
