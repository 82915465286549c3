import { setTimeout as delay } from "node:timers/promises";
import { timestampDate, timestampFromDate, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Filter } from "mongodb";
import { whitelist } from "../access/event-types.ts";
import { type ErrorCode, errorTable, Fault } from "../errors.ts";
import { RequestOutcome } from "../gen/ingest/admin/v1/admin_pb.js";
import { isRequestId, isTestOrganization, liveOrganizationOf, testOrganizationOf, timeOfId } from "../ids.ts";
import { object, oneOf, optional } from "../ingest/shapes.ts";
import { invalidMember, validate } from "../ingest/validate.ts";
import { timelineLimits } from "../limits.ts";
import { appCollection } from "../store/apps.ts";
import { type EventRow, findRowsOfRequest } from "../store/events.ts";
import {
  findRequestRecords,
  forbiddenTypesOf,
  requestCollection,
  type RequestDocument,
  type RequestRecord,
} from "../store/requests.ts";
import { lastMs } from "../time.ts";
import { type AdminCall, notFound } from "./call.ts";
import type { Answer, Handler } from "./dispatch.ts";
import { idsBetween, pageOf } from "./pages.ts";
import { shownMessage } from "./quotes.ts";
import { types } from "./shapes.ts";

type Shown = Answer<"getRequest">;

/** A record is written a moment after the answer, and a person may paste the id sooner. In milliseconds. */
const recordedWithinMs = 3_000;
const lookEveryMs = 100;
/** A caller may repeat a request at its full rate for ten minutes. */
const replaysMax = 100;

export const getRequest: Handler<"getRequest"> = async ({ requestId }, call) => {
  if (!isRequestId(requestId)) throw notFound("request", requestId);
  const { now } = call.services;
  const untilMs = Math.min(timeOfId(requestId).getTime(), now()) + recordedWithinMs;
  for (;;) {
    const isLast = now() >= untilMs;
    const records = await findRequestRecords(call.db, requestId, now(), replaysMax + 1);
    const { own, replays } = records;
    const record = own ?? replays[0];
    // What the caller does not see takes as long as what nobody has.
    if (isLast || (own !== undefined && call.sees(own.organizationId))) {
      const seen = record === undefined || call.sees(record.organizationId) ? record : undefined;
      const rows = await rowsOf(call, requestId, seen);
      const organizationId = seen?.organizationId ?? (rows[0] && liveOrganizationOf(rows[0].organizationId));
      call.visible("request", requestId, organizationId, organizationId);
      return shownOf(call, requestId, { own, replays, rows });
    }
    call.facts.signal.throwIfAborted();
    await delay(lookEveryMs);
  }
};

interface Found {
  readonly own: RequestRecord | undefined;
  readonly replays: readonly RequestRecord[];
  readonly rows: readonly EventRow[];
}

/** Searches of all organisations take turns: each one reads a row of every organisation. */
let searching: Promise<unknown> = Promise.resolve();

async function rowsOf({ db, identity }: AdminCall, id: string, record: RequestRecord | undefined): Promise<EventRow[]> {
  const { organizationId } = identity;
  if (record !== undefined) {
    const { organizationId: live, test } = record;
    return findRowsOfRequest(db, id, test === true ? testOrganizationOf(live) : live);
  }
  if (organizationId === undefined) {
    const search = searching.then(() => findRowsOfRequest(db, id));
    searching = search.catch(() => {});
    return search;
  }
  const live = await findRowsOfRequest(db, id, organizationId);
  return live.length > 0 ? live : findRowsOfRequest(db, id, testOrganizationOf(organizationId));
}

/** An accepted request has no record, only rows. */
function shownOf(call: AdminCall, requestId: string, { own, replays, rows }: Found): Shown {
  const further = {
    eventIds: rows.map(({ id }) => id),
    replays: replays.slice(0, replaysMax).map(({ receivedAt, protocol, status, keyHint, durationMs }) => ({
      receivedAt: timestampFromDate(receivedAt),
      ...{ protocol, status, keyHint, durationMs },
    })),
    moreReplays: replays.length > replaysMax,
  };
  if (own !== undefined) return { ...recorded(call, own), ...further };
  const [row] = rows;
  const { organizationId, appId } = row ?? (replays[0] as RequestRecord);
  return {
    requestId,
    receivedAt: timestampFromDate(timeOfId(requestId)),
    outcome: RequestOutcome.ACCEPTED,
    rpc: row === undefined ? (replays[0]?.rpc ?? "") : row.kind === "snapshot" ? "Snapshots" : "Events",
    organizationId: liveOrganizationOf(organizationId),
    appId,
    accepted: rows.length,
    test: isTestOrganization(organizationId) || replays[0]?.test === true,
    ...further,
  };
}

function recorded(call: AdminCall, record: RequestRecord) {
  const { receivedAt, claim, duplicates, rejected = 0, rejections = [], reason, code, dryRun, test, ...rest } = record;
  const { forbiddenTypes: _, ...facts } = rest;
  const shownReason = shownMessage(call, code, reason);
  return {
    ...facts,
    receivedAt: timestampFromDate(receivedAt),
    outcome: outcomeOf(record),
    ...(code === undefined ? {} : { code }),
    ...(shownReason === undefined ? {} : { reason: shownReason }),
    duplicates: duplicates ?? 0,
    rejected,
    rejections: rejections.map((one) => ({ ...one, message: shownMessage(call, one.code, one.message) })),
    ...(claim === undefined ? {} : { idempotencyKey: claim }),
    dryRun: dryRun === true,
    test: test === true,
  };
}

/** A record's outcome follows from its members. */
function outcomeOf({ status, code, connectCode, rejections = [] }: RequestRecord): RequestOutcome {
  if (status === 0) return RequestOutcome.ABANDONED;
  if (code !== undefined || connectCode !== undefined) return RequestOutcome.REFUSED;
  return rejections.length > 0 ? RequestOutcome.PARTLY_ACCEPTED : RequestOutcome.ACCEPTED;
}

const isAnswered = { status: { $ne: 0 } };
const isNoFailure = { ...isAnswered, code: { $exists: false }, connectCode: { $exists: false } };

/** The same as filters. */
const filterOf: Readonly<Record<RequestOutcome, Filter<RequestDocument> | undefined>> = {
  [RequestOutcome.UNSPECIFIED]: undefined,
  [RequestOutcome.ABANDONED]: { status: 0 },
  [RequestOutcome.REFUSED]: {
    ...isAnswered,
    $or: [{ code: { $exists: true } }, { connectCode: { $exists: true } }],
  },
  [RequestOutcome.PARTLY_ACCEPTED]: { ...isNoFailure, "rejections.0": { $exists: true } },
  [RequestOutcome.ACCEPTED]: { ...isNoFailure, "rejections.0": { $exists: false } },
};

const codes = Object.keys(errorTable) as ErrorCode[];
const listSchema = object({ code: optional(oneOf(codes)) });

/** A record is written when the request ends, and a stream is the longest one. */
const longestMs = timelineLimits.watchSecondsMax * 1_000 + 60_000;

export const listRequests: Handler<"listRequests"> = async (request, call) => {
  const { _id: organizationId } = await call.organization(request.organizationId);
  const { code } = validate(listSchema, { code: request.code });
  const { appId, outcome, startTime, endTime } = request;
  if (appId !== undefined) await checkApp(call, appId, organizationId);
  // Refuses an empty range.
  idsBetween("rec", ["startTime", startTime], ["endTime", endTime]);
  const [start, end] = [startTime, endTime].map((time) => (time === undefined ? undefined : timestampDate(time)));
  const endOfRecords = end && timestampFromMs(Math.min(end.getTime() + longestMs, lastMs));
  const looked = [
    ...(appId === undefined ? [] : [{ appId }]),
    ...(code === undefined ? [] : [{ $or: [{ code }, { "rejections.code": code }] }]),
    ...(outcome === undefined ? [] : [filterOfOutcome(outcome)]),
    ...(start === undefined ? [] : [{ receivedAt: { $gte: start } }]),
    ...(end === undefined ? [] : [{ receivedAt: { $lt: end } }]),
  ] as Filter<RequestDocument>[];
  const page = await pageOf(
    call,
    requestCollection(call.db),
    { organizationId, ...idsBetween("rec", ["startTime", startTime], ["endTime", endOfRecords]) },
    request,
    { looked, also: { expiresAt: { $gt: call.nowDate } } },
  );
  return { requests: page.documents.map((one) => recorded(call, one)), nextPageToken: page.nextPageToken };
};

function filterOfOutcome(outcome: RequestOutcome): Filter<RequestDocument> {
  const filter = filterOf[outcome];
  if (filter !== undefined) return filter;
  const message = `must be one of accepted, partly_accepted, refused, abandoned; it is ${String(outcome)}`;
  throw invalidMember("outcome", message);
}

/** Records of a deleted app stay. @throws Fault not_found: an empty list would hide the caller's mistake. */
async function checkApp({ db }: AdminCall, appId: string, organizationId: string): Promise<void> {
  const app = await appCollection(db).findOne({ _id: appId, organizationId }, { readConcern: "majority" });
  if (app === null) throw notFound("app", appId);
}

const previewSchema = object({ allow: types });
/** Types that an answer lists; it counts the others, too. */
const previewedTypesMax = 500;
/** How long the database may take, in milliseconds. */
const previewMs = 10_000;
/** The apps of which a preview runs in this process: it may read all records of the app. */
const previewed = new Set<string>();

export const previewAllow: Handler<"previewAllow"> = async (request, call) => {
  const { _id: appId } = await call.app(request.appId);
  const allows = whitelist(validate(previewSchema, request).allow);
  if (previewed.has(appId)) {
    const message = `A preview of the app '${appId}' runs already. Try again when it is done.`;
    throw new Fault("rate_limited", message, { retryAfterSeconds: 1 });
  }
  previewed.add(appId);
  try {
    const byType = [];
    let [accepted, refused] = [0, 0];
    const counts = forbiddenTypesOf(call.db, appId, call.nowDate, previewMs);
    for await (const { type, events } of counts) {
      const isAccepted = type !== "" && allows(type);
      if (isAccepted) accepted += events;
      else refused += events;
      if (byType.length < previewedTypesMax) {
        byType.push({ type, accepted: isAccepted ? events : 0, refused: isAccepted ? 0 : events });
      }
    }
    return { accepted, refused, byType };
  } finally {
    previewed.delete(appId);
  }
};
