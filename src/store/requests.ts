import type { Db } from "mongodb";
import type { Protocol, Rejection } from "../exchange.ts";
import { timeOfId, ulidRange } from "../ids.ts";
import type { CollectionDefinition } from "./database.ts";

/** What became of one request. Absent members: not known, or not so. */
export interface RequestRecord {
  /** `req_` and a ULID; of a replay, the first request's. */
  id: string;
  receivedAt: Date;
  rpc: string;
  protocol: Protocol;
  /** HTTP status; 0 when the caller went away before the answer. */
  status: number;
  /** Of a request that failed: the API's code, the RPC protocols' code, the message. */
  code?: string;
  connectCode?: string;
  reason?: string;
  organizationId?: string;
  appId?: string;
  keyId?: string;
  keyHint?: string;
  accepted: number;
  rejections?: readonly Rejection[];
  limitedBy?: "key" | "organization";
  claim?: "taken" | "replayed" | "conflict";
  dryRun?: boolean;
  traceId?: string;
  durationMs: number;
}

/** Requests that were accepted in full and differ in nothing but these columns: most of all, so they must take little. */
export interface PlainRequests extends Omit<
  RequestRecord,
  "id" | "receivedAt" | "accepted" | "durationMs" | "rejections"
> {
  /** An entry a request, separated by commas: an array's entries would take twice the room and the time. */
  ids: string;
  accepted: string;
  durationsMs: string;
}

/**
 * The requests of one instance that ended within a fraction of a second. One document for all of them, because a document
 * a request would cost as much as its event does.
 */
export interface RequestRecordsDocument {
  /** `rec_` and a ULID of the time of writing: a request is found by the time in its own id. */
  _id: string;
  plain: PlainRequests[];
  other: RequestRecord[];
  /** Ids among `other` whose time says nothing of where they are: replays, and requests that took long. */
  late?: string[];
  expiresAt: Date;
}

/** A request that ended longer than this after its id was made is listed in `late`, in milliseconds. */
export const lateAfterMs = 5_000;

export const requests: CollectionDefinition = {
  name: "requests",
  indexes: [
    { key: { expiresAt: 1 }, options: { expireAfterSeconds: 0 }, why: "the server removes expired records" },
    {
      key: { late: 1 },
      options: { partialFilterExpression: { late: { $exists: true } } },
      why: "replays are found by the first request's id",
    },
  ],
};

export const requestCollection = (db: Db) => db.collection<RequestRecordsDocument>(requests.name);

/** Every record of a request in the order of arrival: its own and those of its replays. */
export async function findRequestRecords(db: Db, id: string, nowMs: number): Promise<RequestRecord[]> {
  const atMs = timeOfId(id).getTime();
  const documents = await requestCollection(db)
    .find({
      $or: [{ _id: ulidRange("rec_", new Date(atMs), new Date(atMs + lateAfterMs)) }, { late: id }],
      expiresAt: { $gt: new Date(nowMs) },
    })
    .toArray();
  return documents
    .flatMap(recordsOf)
    .filter((record) => record.id === id)
    .sort((a, b) => a.receivedAt.getTime() - b.receivedAt.getTime());
}

/** The records of a document, one a request. */
export function recordsOf({ plain, other }: RequestRecordsDocument): RequestRecord[] {
  const records = [...other];
  for (const { ids, accepted, durationsMs, ...common } of plain) {
    const acceptedOf = accepted.split(",");
    const durationsMsOf = durationsMs.split(",");
    ids.split(",").forEach((id, i) =>
      records.push({
        id,
        receivedAt: timeOfId(id),
        ...common,
        accepted: Number(acceptedOf[i]),
        durationMs: Number(durationsMsOf[i]),
      }),
    );
  }
  return records;
}
