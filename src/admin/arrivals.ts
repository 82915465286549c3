import type { ChangeStream, Db, Document, ResumeToken } from "mongodb";
import type { Protocol, Rejection } from "../exchange.ts";
import { isTestOrganization, liveOrganizationOf, testOrganizationOf, ulidOf } from "../ids.ts";
import { type EventRow, events, rowOf } from "../store/events.ts";
import { following, StandsStill } from "../store/following.ts";
import { type RequestDocument, type RequestRecord, requests } from "../store/requests.ts";

/** A stored row, a rejected event, or a request that failed. */
export type Arrival =
  | (Omit<EventRow, "id"> & { readonly eventId: string; readonly test?: true })
  | ({
      readonly kind: "rejected";
      /** Further rejections of the request, which its record only counts. */
      readonly more?: number;
    } & RequestSummary &
      Rejection)
  | ({ readonly kind: "refused"; readonly code: string; readonly reason?: string } & RequestSummary);

interface RequestSummary {
  readonly requestId: string;
  readonly receivedAt: Date;
  readonly rpc: string;
  readonly protocol: Protocol;
  readonly organizationId: string;
  readonly appId: string;
  readonly keyHint: string;
  /** Only of a test key. */
  readonly test?: true;
}

export interface FollowOptions {
  readonly organizationId?: string | undefined;
  readonly appId?: string | undefined;
  /** Leaves stored rows out. Default: false. */
  readonly rejectedOnly?: boolean | undefined;
  /** Ends the stream. */
  readonly signal: AbortSignal;
  /** Called when the stream begins; from then on it misses nothing. Called again when the database is back. */
  readonly onOpen?: (() => void) | undefined;
  /** Called when the database cannot be read; the stream retries. `missed`: some arrivals may be lost. */
  readonly onTrouble?: ((error: unknown, missed: boolean) => void) | undefined;
}

const heartbeatMs = 500;
const reopenAfterMs = 500;
/** Server codes: the oplog no longer has the place to resume from. */
const lostCodes = new Set([136, 280, 286]);

/**
 * Yields the arrivals at all instances from now on, in the database's order. After an outage of the database it continues
 * where it stopped. If the oplog no longer reaches back that far, it continues from now and calls `onTrouble`.
 */
export async function* followArrivals(db: Db, options: FollowOptions): AsyncGenerator<Arrival> {
  const { signal, onOpen, onTrouble } = options;
  let resumeAfter: ResumeToken;
  let isTold = false;
  while (!signal.aborted) {
    const stream = db.watch(pipelineOf(options), {
      maxAwaitTimeMS: heartbeatMs,
      promoteBuffers: true,
      ...(resumeAfter === undefined ? {} : { resumeAfter }),
    });
    const close = () => void stream.close().catch(() => {});
    signal.addEventListener("abort", close);
    try {
      const onFirst = () => {
        if (!isTold) onOpen?.();
        isTold = true;
      };
      for await (const change of changesOf(stream, signal, onFirst)) {
        yield* arrivalsOf(change);
        resumeAfter = change._id;
      }
    } catch (error) {
      if (signal.aborted) return;
      resumeAfter = stream.resumeToken ?? resumeAfter;
      // The stream's member is cut off from its replica set. A new stream resumes on another member.
      if (error instanceof StandsStill) continue;
      isTold = false;
      const missed = lostCodes.has(Number((error as { code?: unknown }).code));
      if (missed) resumeAfter = undefined;
      onTrouble?.(error, missed);
      await new Promise((resolve) => setTimeout(resolve, reopenAfterMs));
    } finally {
      signal.removeEventListener("abort", close);
      close();
    }
  }
}

async function* changesOf(stream: ChangeStream, signal: AbortSignal, onFirst: () => void): AsyncGenerator<Document> {
  const next = following<Document>(stream);
  while (!signal.aborted) {
    const change = await next();
    onFirst();
    if (change !== null) yield change;
  }
}

function pipelineOf({ organizationId, appId, rejectedOnly }: FollowOptions): Document[] {
  const watched = rejectedOnly === true ? [requests.name] : [requests.name, events.name];
  const match: Document = { operationType: "insert", "ns.coll": { $in: watched } };
  // Rows hold ids as bytes, and records hold them as text.
  if (organizationId !== undefined) {
    const owners = [organizationId, testOrganizationOf(organizationId)].map(ulidOf);
    match.$or = [{ "fullDocument.org": { $in: owners } }, { "fullDocument.organizationId": organizationId }];
  }
  if (appId !== undefined) {
    match.$and = [{ $or: [{ "fullDocument.app": ulidOf(appId) }, { "fullDocument.appId": appId }] }];
  }
  return [{ $match: match }];
}

function arrivalsOf(change: Document): Arrival[] {
  if (change.ns.coll !== events.name) return rejectionsOf(change.fullDocument as RequestDocument);
  const { id, organizationId: owner, ...row } = rowOf(change.fullDocument);
  const organizationId = liveOrganizationOf(owner);
  return [{ eventId: id, organizationId, ...row, ...(isTestOrganization(owner) ? { test: true } : {}) }];
}

function rejectionsOf(record: RequestRecord): Arrival[] {
  const { requestId, receivedAt, rpc, protocol, organizationId, appId, keyHint, test, rejections = [] } = record;
  const summary: RequestSummary = {
    ...{ requestId, receivedAt, rpc, protocol, organizationId, appId, keyHint },
    ...(test === undefined ? {} : { test }),
  };
  // A replay repeats the rejections of the first request.
  if (record.claim === "replayed") return [];
  const code = record.code ?? record.connectCode;
  if (code !== undefined) return [{ kind: "refused", code, ...summary, ...reasonOf(record) }];
  const more = (record.rejected ?? 0) - rejections.length;
  return rejections.map((rejection, i) => ({
    kind: "rejected",
    ...summary,
    ...rejection,
    ...(more > 0 && i === rejections.length - 1 ? { more } : {}),
  }));
}

const reasonOf = ({ reason }: RequestRecord) => (reason === undefined ? {} : { reason });
