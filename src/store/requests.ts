import { Binary, type Db } from "mongodb";
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

/** Requests that were accepted in full and differ in id, count and duration only: most of all, so they must take little. */
export interface PlainRequests extends Omit<
  RequestRecord,
  "id" | "receivedAt" | "accepted" | "durationMs" | "rejections"
> {
  /** Written and read by `PlainRows`. */
  rows: Binary;
}

const idBytes = 30;
const rowBytes = idBytes + 2 + 4;

/**
 * What plain requests differ in, a row of bytes each: the id, the number of events accepted, the duration in tenths of a
 * millisecond. Bytes, because as text or as arrays they would cost a ping more than its answer does.
 */
export class PlainRows {
  #bytes = Buffer.allocUnsafe(8 * rowBytes);
  #used = 0;

  get count(): number {
    return this.#used / rowBytes;
  }

  add(id: string, accepted: number, durationMs: number): void {
    if (this.#used === this.#bytes.length) {
      this.#bytes = Buffer.concat([this.#bytes], 2 * this.#used);
    }
    const at = this.#used;
    this.#bytes.write(id, at, idBytes, "latin1");
    this.#bytes.writeUInt16LE(accepted, at + idBytes);
    this.#bytes.writeUInt32LE(Math.min(Math.round(durationMs * 10), 2 ** 32 - 1), at + idBytes + 2);
    this.#used = at + rowBytes;
  }

  toBinary(): Binary {
    return new Binary(this.#bytes.subarray(0, this.#used));
  }

  static read(rows: Binary): Pick<RequestRecord, "id" | "accepted" | "durationMs">[] {
    const bytes = Buffer.from(rows.value());
    return Array.from({ length: bytes.length / rowBytes }, (_, row) => {
      const at = row * rowBytes;
      return {
        id: bytes.toString("latin1", at, at + idBytes),
        accepted: bytes.readUInt16LE(at + idBytes),
        durationMs: bytes.readUInt32LE(at + idBytes + 2) / 10,
      };
    });
  }
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
  for (const { rows, ...common } of plain) {
    for (const row of PlainRows.read(rows)) records.push({ receivedAt: timeOfId(row.id), ...common, ...row });
  }
  return records;
}
