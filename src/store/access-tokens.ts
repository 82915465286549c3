import type { Db } from "mongodb";
import type { CollectionDefinition } from "./database.ts";

/** What a caller of the administration API may do, the most powerful first. */
export const roles = ["operator", "manager", "viewer"] as const;
export type Role = (typeof roles)[number];

export interface AccessTokenDocument {
  /** `tok_` and a ULID. */
  _id: string;
  /** SHA-256 of the token, base64url. Ingest never stores the token. */
  hash: string;
  /** The token's first characters, for display: `wp_adm_ab12…`. */
  hint: string;
  name: string;
  role: Role;
  /** Absent in a token for the whole installation. A manager always has one. */
  organizationId?: string;
  expiresAt: Date | null;
  revokedAt: Date | null;
  createdAt: Date;
}

export const accessTokens: CollectionDefinition = {
  name: "accessTokens",
  indexes: [
    { key: { hash: 1 }, options: { unique: true }, why: "authentication looks a token up by its hash" },
    { key: { organizationId: 1, _id: 1 }, why: "managers list the tokens of their organisation" },
  ],
};

export const accessTokenCollection = (db: Db) => db.collection<AccessTokenDocument>(accessTokens.name);

/** Longest wait for a majority to confirm a read, in milliseconds. */
const readWithinMs = 2_000;

/**
 * Reads the tokens with these hashes; the map leaves out unknown hashes. The read is linearizable, so a token that was
 * revoked before it is never read as valid, not even from a primary that lost its majority.
 */
export async function findAccessTokens(db: Db, hashes: readonly string[]): Promise<Map<string, AccessTokenDocument>> {
  // Only the first batch of a reply is linearizable.
  const options = { readConcern: "linearizable", maxTimeMS: readWithinMs, batchSize: hashes.length + 1 } as const;
  const found = await accessTokenCollection(db)
    .find({ hash: { $in: [...hashes] } }, options)
    .toArray();
  return new Map(found.map((token) => [token.hash, token]));
}
