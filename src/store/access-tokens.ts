import type { Db, Timestamp } from "mongodb";
import { type CollectionDefinition, readSince } from "./database.ts";

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
  /** Of an operator's token: the one that was revoked last because this one was left. */
  leftBy?: string;
}

export const accessTokens: CollectionDefinition = {
  name: "accessTokens",
  indexes: [
    { key: { hash: 1 }, options: { unique: true }, why: "authentication looks a token up by its hash" },
    { key: { organizationId: 1, _id: 1 }, why: "managers list the tokens of their organisation" },
  ],
};

export const accessTokenCollection = (db: Db) => db.collection<AccessTokenDocument>(accessTokens.name);

/** Reads the tokens with these hashes, as `readSince` does; the map leaves out unknown hashes. */
export async function findAccessTokens(
  db: Db,
  hashes: readonly string[],
  since: Timestamp | undefined,
): Promise<Map<string, AccessTokenDocument>> {
  const read = { hash: { $in: [...hashes] } };
  const found = await readSince(db, since, (options) => accessTokenCollection(db).find(read, options).toArray());
  return new Map(found.map((token) => [token.hash, token]));
}
