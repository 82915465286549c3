import type { Db } from "mongodb";
import type { Protocol, Rejection } from "../exchange.ts";
import { bounded, type CollectionDefinition } from "./database.ts";

/**
 * The outcome of a request that was not simply accepted, or whose caller went away. Accepted requests need no record:
 * their rows tell the outcome. An absent member is unknown or does not apply.
 */
export interface RequestRecord {
  /** `req_` and a ULID; for a replay, the first request's id. */
  requestId: string;
  receivedAt: Date;
  rpc: string;
  protocol: Protocol;
  /** HTTP status; 0 if the caller went away before the answer. */
  status: number;
  /** For a request that failed: the API's code, the RPC code and the message. */
  code?: string;
  connectCode?: string;
  reason?: string;
  organizationId: string;
  appId: string;
  keyId: string;
  keyHint: string;
  /** Only of a test key. */
  test?: true;
  accepted: number;
  /** Of the accepted events, those that were stored before under the same event id. */
  duplicates?: number;
  rejected?: number;
  rejections?: readonly Rejection[];
  /**
   * The events whose type is not whitelisted, by type; "" for those of further types. Absent for replays, dry runs and test
   * keys, which would have stored nothing new.
   */
  forbiddenTypes?: readonly TypeCount[];
  limitedBy?: "key" | "organization";
  claim?: "taken" | "replayed" | "conflict";
  dryRun?: boolean;
  traceId?: string;
  durationMs: number;
}

export interface TypeCount {
  readonly type: string;
  readonly events: number;
}

export interface RequestDocument extends RequestRecord {
  /** `rec_` and a ULID, made when the request ended. */
  _id: string;
  expiresAt: Date;
}

export const requests: CollectionDefinition = {
  name: "requests",
  indexes: [
    { key: { expiresAt: 1 }, options: { expireAfterSeconds: 0 }, why: "the server removes expired records" },
    { key: { requestId: 1 }, why: "`request show` looks up a request and its replays by the first request's id" },
    { key: { organizationId: 1, _id: 1 }, why: "administration lists an organisation's records, newest first" },
    {
      key: { appId: 1, _id: 1 },
      options: { partialFilterExpression: { forbiddenTypes: { $exists: true } } },
      why: "administration counts what a whitelist has refused",
    },
  ],
};

export const requestCollection = (db: Db) => db.collection<RequestDocument>(requests.name);

/** The request's own record, and at most `replaysMax` of its replays in order of arrival. */
export async function findRequestRecords(
  db: Db,
  requestId: string,
  nowMs: number,
  replaysMax: number,
): Promise<{ readonly own: RequestRecord | undefined; readonly replays: readonly RequestRecord[] }> {
  const find = (claim: object, limit: number) =>
    requestCollection(db)
      .find({ requestId, ...claim, expiresAt: { $gt: new Date(nowMs) } })
      .project<RequestRecord>({ _id: 0, expiresAt: 0 })
      .sort({ receivedAt: 1 })
      .limit(limit)
      .toArray();
  const [[own], replays] = await Promise.all([
    find({ claim: { $ne: "replayed" } }, 1),
    find({ claim: "replayed" }, replaysMax),
  ]);
  return { own, replays };
}

/** The events of an app whose type was not whitelisted, by type, the most frequent first. */
export function forbiddenTypesOf(db: Db, appId: string, now: Date, maxTimeMS: number): AsyncIterable<TypeCount> {
  return requestCollection(db).aggregate<TypeCount>(
    [
      { $match: { appId, forbiddenTypes: { $exists: true }, expiresAt: { $gt: now } } },
      { $unwind: "$forbiddenTypes" },
      { $group: { _id: "$forbiddenTypes.type", events: { $sum: "$forbiddenTypes.events" } } },
      { $sort: { events: -1, _id: 1 } },
      { $project: { _id: 0, type: "$_id", events: 1 } },
    ],
    { allowDiskUse: true, maxTimeMS },
  );
}

/** A record that an earlier try stored stays. Records may be lost, so it does not wait for a majority. */
export async function insertRecords(db: Db, documents: readonly RequestDocument[]): Promise<void> {
  // The driver's own insert would throw for a duplicate.
  await bounded(db.command({ insert: requests.name, documents, ordered: false, writeConcern: { w: 1 } }));
}
