import { setTimeout as delay } from "node:timers/promises";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ChangeStream, Db, Document } from "mongodb";
import { testOrganizationOf, timeOfId, ulidOf } from "../ids.ts";
import { timelineLimits } from "../limits.ts";
import { bounded } from "../store/database.ts";
import { erasedAmong } from "../store/erased-rows.ts";
import { type EventDocument, type EventRow, events, rowOf } from "../store/events.ts";
import {
  beginAt,
  feedError,
  type FeedPosition,
  type Placed,
  PositionLost,
  positionOf,
  resumePosition,
} from "../store/feed-position.ts";
import { following, StandsStill } from "../store/following.ts";
import { type RequestDocument, requests } from "../store/requests.ts";
import { positionOfToken, resumeTokenOf, tooOld } from "../timeline/watch.ts";
import { type AdminCall, notFound } from "./call.ts";
import type { Answer, Request, StreamHandler } from "./dispatch.ts";
import { shownMessage } from "./quotes.ts";

type Arrival = NonNullable<Answer<"watchRequests">["arrivals"]>[number];

/** Changes in one reply of the database, and in one message. A change has up to 33 KB. */
const changesMax = 32;
/** Between two looks at a stream that is silent. The look itself waits for nothing, so it holds no connection. */
const lookEveryMs = 250;
/** Silence on a stream, in milliseconds. A message that is due waits for the next look. */
const silentMs = timelineLimits.heartbeatSeconds * 1_000 - 2 * lookEveryMs;
const recheckEveryMs = 1_000;

interface Watched {
  /** Undefined: all of them. */
  readonly organizationId: string | undefined;
  readonly appId: string | undefined;
  readonly rejectedOnly: boolean;
  readonly withMetadata: boolean;
}

/**
 * Streams what the caller sees, each batch of the database as one message. It reads the next batch only when the caller has
 * taken the last one, so a slow reader fills no memory.
 */
export const watchRequests: StreamHandler<"watchRequests"> = async function* (request, call) {
  const watched = await watchedOf(request, call);
  const { pages, watches } = call.services;
  const scope = ["WatchRequests", watched.organizationId ?? "-"];
  let position = request.resumeToken ? positionOfToken(pages, scope, request.resumeToken) : undefined;
  const leave = watches?.enter(call.identity);
  try {
    const { recheck, signal } = call.facts;
    let [spokeAtMs, checkedAtMs] = [Number.NEGATIVE_INFINITY, performance.now()];
    for await (const batch of batchesOf(call.db, watched, position)) {
      if (signal.aborted) return;
      ({ position } = batch);
      watches?.check();
      if (performance.now() - checkedAtMs >= recheckEveryMs) {
        await recheck?.();
        checkedAtMs = performance.now();
      }
      const arrivals = await arrivalsOf(call, batch.changes);
      if (arrivals.length > 0 || performance.now() - spokeAtMs >= silentMs) {
        yield { arrivals, resumeToken: resumeTokenOf(pages, scope, position) };
        spokeAtMs = performance.now();
      }
      if (batch.changes.length === 0) await delay(lookEveryMs, undefined, { signal }).catch(() => {});
    }
  } catch (error) {
    throw error instanceof PositionLost ? tooOld(error) : error;
  } finally {
    leave?.();
  }
};

async function watchedOf(request: Request<"watchRequests">, call: AdminCall): Promise<Watched> {
  const { organizationId: wanted, appId, rejectedOnly } = request;
  if (wanted === "-") call.checkRole();
  else await call.organization(wanted);
  const organizationId = wanted === "-" ? call.identity.organizationId : wanted;
  if (appId !== undefined) {
    const app = await call.app(appId);
    if (organizationId !== undefined && app.organizationId !== organizationId) throw notFound("app", appId);
  }
  return { organizationId, appId, rejectedOnly, withMetadata: call.seesPersonalData };
}

interface Change extends Placed {
  readonly ns: { readonly coll: string };
  readonly fullDocument: Document;
}

interface Batch {
  readonly changes: readonly Change[];
  /** The place after them. */
  readonly position: FeedPosition;
}

/** The changes from the position on, or from now on. A batch without changes says that there are none yet. */
async function* batchesOf(db: Db, watched: Watched, from: FeedPosition | undefined): AsyncGenerator<Batch, void> {
  for (let position = from; ;) {
    const options = { batchSize: changesMax, maxAwaitTimeMS: 1, promoteBuffers: true };
    const begin = position === undefined ? {} : beginAt(position);
    const stream: ChangeStream = db.watch(pipelineOf(watched), { ...options, ...begin });
    const next = following<Change>(stream);
    try {
      for (;;) {
        const batch = await nextBatch(stream, next, position);
        ({ position } = batch);
        yield batch;
      }
    } catch (error) {
      // The stream's member is cut off from its replica set. A new stream resumes on another member.
      if (!(error instanceof StandsStill)) throw feedError(error);
    } finally {
      await bounded(stream.close()).catch(() => {});
    }
  }
}

async function nextBatch(
  stream: ChangeStream,
  next: () => Promise<Change | null>,
  from: FeedPosition | undefined,
): Promise<Batch> {
  const changes: Change[] = [];
  let position: FeedPosition | undefined;
  do {
    const change = await next();
    if (change === null) break;
    position = positionOf(change);
    // A stream that begins at a time repeats changes from before the position.
    if (from === undefined || position.data > from.data) changes.push(change);
  } while (stream.bufferedCount() > 0);
  return { changes, position: position ?? resumePosition(stream) };
}

/** What test keys have stored lies from here on. */
const firstTestOrganization = ulidOf(testOrganizationOf(`org_${"0".repeat(26)}`));

function pipelineOf({ organizationId, appId, rejectedOnly, withMetadata }: Watched): Document[] {
  // Rows hold ids as bytes, and records hold them as text.
  const ofRow = {
    "ns.coll": events.name,
    "fullDocument.org": organizationId === undefined ? { $lt: firstTestOrganization } : ulidOf(organizationId),
    ...(appId === undefined ? {} : { "fullDocument.app": ulidOf(appId) }),
  };
  const ofRecord = {
    "ns.coll": requests.name,
    ...(organizationId === undefined ? {} : { "fullDocument.organizationId": organizationId }),
    ...(appId === undefined ? {} : { "fullDocument.appId": appId }),
    "fullDocument.test": { $exists: false },
    // A replay repeats the rejections of the first request.
    "fullDocument.claim": { $ne: "replayed" },
  };
  return [
    { $match: { operationType: "insert", $or: rejectedOnly ? [ofRecord] : [ofRow, ofRecord] } },
    { $project: { ns: 1, clusterTime: 1, fullDocument: 1 } },
    ...(withMetadata ? [] : [{ $unset: "fullDocument.metadata" }]),
  ];
}

async function arrivalsOf(call: AdminCall, changes: readonly Change[]): Promise<Arrival[]> {
  const ofRows = changes.filter(({ ns }) => ns.coll === events.name);
  const rows = new Map(ofRows.map((change) => [change, rowOf(change.fullDocument as EventDocument)]));
  const isErased = await erasedAmong(call.db, [...rows.values()], timeOfId(call.facts.requestId));
  return changes.flatMap((change) => {
    const row = rows.get(change);
    if (row === undefined) return rejectionsOf(call, change.fullDocument as RequestDocument);
    return isErased(row) ? [] : [arrivalOfRow(row)];
  });
}

function arrivalOfRow({ requestId, receivedAt, organizationId, appId, timestamp, ...row }: EventRow): Arrival {
  const { id, kind, type, category, workerId, durationSeconds: duration, metrics, metadata } = row;
  const value = {
    ...{ id, kind, type, workerId },
    timestamp: timestampFromDate(timestamp),
    ...(category === undefined ? {} : { category }),
    ...(duration === undefined ? {} : { duration }),
    ...(metrics === undefined ? {} : { metrics: metrics as never }),
    ...(metadata === undefined ? {} : { metadata: metadata as never }),
  };
  const of = { requestId, receivedAt: timestampFromDate(receivedAt), organizationId, appId };
  return { ...of, kind: { case: "row", value } };
}

function rejectionsOf(call: AdminCall, record: RequestDocument): Arrival[] {
  const { requestId, receivedAt, rpc, protocol, organizationId, appId, keyHint, rejections = [] } = record;
  const of = { requestId, receivedAt: timestampFromDate(receivedAt), organizationId, appId };
  const caller = { rpc, protocol, keyHint };
  const code = record.code ?? record.connectCode;
  if (code !== undefined) {
    const reason = shownMessage(call, record.code, record.reason);
    const value = { ...caller, code, ...(reason === undefined ? {} : { reason }) };
    return [{ ...of, kind: { case: "refused", value } }];
  }
  const more = (record.rejected ?? 0) - rejections.length;
  return rejections.map((rejection, i) => {
    const message = shownMessage(call, rejection.code, rejection.message);
    const isLast = i === rejections.length - 1;
    const value = { ...caller, ...rejection, message, more: isLast ? more : 0 };
    return { ...of, kind: { case: "rejected", value } };
  });
}
