import type { Db } from "mongodb";
import type { Protocol, Rejection } from "../exchange.ts";
import { bounded, type CollectionDefinition } from "./database.ts";

/**
 * What became of a request that was not simply accepted: it failed, had rejected events, was a replay or a dry run, or its
 * caller went away. Accepted requests are known by their rows. Absent members: not known, or not so.
 */
export interface RequestRecord {
  /** `req_` and a ULID; of a replay, the first request's. */
  requestId: string;
  receivedAt: Date;
  rpc: string;
  protocol: Protocol;
  /** HTTP status; 0 when the caller went away before the answer. */
  status: number;
  /** Of a request that failed: the API's code, the RPC protocols' code, the message. */
  code?: string;
  connectCode?: string;
  reason?: string;
  organizationId: string;
  appId: string;
  keyId: string;
  keyHint: string;
  accepted: number;
  /** Number of events rejected. */
  rejected?: number;
  /** The first of the rejections. */
  rejections?: readonly Rejection[];
  limitedBy?: "key" | "organization";
  claim?: "taken" | "replayed" | "conflict";
  dryRun?: boolean;
  traceId?: string;
  durationMs: number;
}

export interface RequestDocument extends RequestRecord {
  /** `rec_` and a ULID of the time of the request's end. */
  _id: string;
  expiresAt: Date;
}

export const requests: CollectionDefinition = {
  name: "requests",
  indexes: [
    { key: { expiresAt: 1 }, options: { expireAfterSeconds: 0 }, why: "the server removes expired records" },
    { key: { requestId: 1 }, why: "a request and its replays are found by the first request's id" },
  ],
};

export const requestCollection = (db: Db) => db.collection<RequestDocument>(requests.name);

/** Every record of a request in the order of arrival: its own and those of its replays. */
export const findRequestRecords = (db: Db, requestId: string, nowMs: number): Promise<RequestRecord[]> =>
  requestCollection(db)
    .find({ requestId, expiresAt: { $gt: new Date(nowMs) } })
    .project<RequestRecord>({ _id: 0, expiresAt: 0 })
    .sort({ receivedAt: 1 })
    .toArray();

/** Stores records; one that is there already, by a try whose answer was lost, stays. Not worth a majority's wait. */
export async function insertRecords(db: Db, documents: readonly RequestDocument[]): Promise<void> {
  // Sent directly: the driver's own insert throws for a duplicate.
  await bounded(db.command({ insert: requests.name, documents, ordered: false, writeConcern: { w: 1 } }));
}
