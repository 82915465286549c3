import type { Db } from "mongodb";
import type { CollectionDefinition } from "./database.ts";

export interface OrganizationDocument {
  /** `org_` and a ULID. */
  _id: string;
  name: string;
  api: boolean;
  /** Events a calendar month (UTC). */
  quotaEventsPerMonth: number;
  keyRequestsPerSecond: number;
  organizationRequestsPerSecond: number;
  /** Days after which events and snapshot history go; 0 keeps them for ever. Default: RETAIN_DAYS. */
  retainDays?: number;
  createdAt: Date;
}

export const organizations: CollectionDefinition = { name: "organizations", indexes: [] };

export const organizationCollection = (db: Db) => db.collection<OrganizationDocument>(organizations.name);
