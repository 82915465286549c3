import type { Db } from "mongodb";
import type { CollectionDefinition } from "./database.ts";
import type { Role } from "./access-tokens.ts";

/** A change, written in the transaction that makes it. */
export interface AuditDocument {
  /** `aud_` and a ULID. */
  _id: string;
  at: Date;
  actor: { kind: "token" | "oidc" | "cli"; id: string; name: string; role: Role };
  /** The caller's address; empty for a command on the database. */
  peer: string;
  requestId: string;
  /** The RPC, such as `RevokeKey`. */
  action: string;
  organizationId?: string;
  /** The id of the object. */
  target: string;
  /** The members that changed, as JSON text: their names are not the database's. */
  before?: string;
  after?: string;
  /** Absent: it is kept for ever. */
  expiresAt?: Date;
}

export const auditEntries: CollectionDefinition = {
  name: "auditEntries",
  indexes: [
    { key: { expiresAt: 1 }, options: { expireAfterSeconds: 0 }, why: "the server removes expired entries" },
    { key: { organizationId: 1, _id: 1 }, why: "managers list the changes of their organisation" },
    { key: { organizationId: 1, "actor.id": 1, _id: 1 }, why: "managers list what one credential changed" },
    { key: { "actor.id": 1, _id: 1 }, why: "operators list the changes that one credential made" },
    { key: { target: 1, _id: 1 }, why: "an erasure removes names from the entries of its worker" },
  ],
};

export const auditCollection = (db: Db) => db.collection<AuditDocument>(auditEntries.name);
