import type { Db } from "mongodb";
import type { CollectionDefinition } from "./database.ts";

export interface AppDocument {
  /** `app_` and a ULID. */
  _id: string;
  organizationId: string;
  slug: string;
  name: string;
  /** The whitelist: exact event types, or prefixes followed by `*`. */
  allow: string[];
  createdAt: Date;
  /** Its keys count as revoked from then on, and its slug is free: `slug` is then its id. */
  deletedAt?: Date;
  deletedSlug?: string;
}

export const apps: CollectionDefinition = {
  name: "apps",
  indexes: [
    { key: { organizationId: 1, slug: 1 }, options: { unique: true }, why: "a slug names one app of an organisation" },
    { key: { organizationId: 1, _id: 1 }, why: "administration lists the apps of an organisation, newest first" },
  ],
};

export const appCollection = (db: Db) => db.collection<AppDocument>(apps.name);
