import type { Db } from "mongodb";
import { eventIds, isRequestId, timeOfId } from "../ids.ts";
import { limits } from "../limits.ts";
import { eventCollection } from "../store/events.ts";
import { findRequestRecords, type RequestRecord } from "../store/requests.ts";
import { AdminError } from "./admin.ts";

/** What became of a request, in one word. */
export type Outcome = "accepted" | "partly accepted" | "refused" | "abandoned";

/** What became of a request as a whole. */
export function outcomeOf({ status, code, connectCode, rejections = [] }: RequestRecord): Outcome {
  if (status === 0) return "abandoned";
  if (code !== undefined || connectCode !== undefined) return "refused";
  return rejections.length > 0 ? "partly accepted" : "accepted";
}

/**
 * Everything that is known of a request: its record, the rows stored for it and its replays. A request whose record is
 * not there (expired, or lost with the instance that served it) is still known by its rows.
 * @throws AdminError when nothing is known of it.
 */
export async function showRequest(db: Db, id: string, nowMs: number) {
  if (!isRequestId(id)) throw new AdminError(`'${id}' is not a request's id such as req_01HP3K5V4J3M9NVT8XZKQ9YQ2E.`);
  const [records, rows] = await Promise.all([findRequestRecords(db, id, nowMs), rowsOf(db, id)]);
  const replays = records.filter(({ claim }) => claim === "replayed");
  const own = records.find(({ claim }) => claim !== "replayed");
  const [row] = rows;
  if (own === undefined && row === undefined && replays.length === 0) {
    throw new AdminError(`Nothing is known of ${id}: it stored nothing, and there is no record of it (any more).`);
  }
  const eventIdsStored = rows.map(({ _id }) => _id);
  const replayed = replays.map(({ receivedAt, protocol, status, keyHint, durationMs }) => ({
    receivedAt,
    protocol,
    status,
    keyHint,
    durationMs,
  }));
  if (own === undefined) {
    const { organizationId, appId } = row ?? replays[0] ?? {};
    const known = { requestId: id, receivedAt: timeOfId(id), outcome: "accepted" as Outcome, organizationId, appId };
    return { ...known, record: "missing", eventIds: eventIdsStored, rejections: [], replays: replayed };
  }
  const { id: requestId, receivedAt, claim, rejections = [], ...rest } = own;
  return {
    requestId,
    receivedAt,
    outcome: outcomeOf(own),
    ...(claim === undefined ? {} : { idempotencyKey: claim }),
    ...rest,
    rejected: rejections.length,
    eventIds: eventIdsStored,
    rejections,
    replays: replayed,
  };
}

/** The rows of a request follow from its id, so no index of their own is needed to find them. */
const rowsOf = (db: Db, requestId: string) => {
  const idOf = eventIds(requestId);
  return eventCollection(db)
    .find({ _id: { $gte: idOf(0), $lte: idOf(limits.eventsMax - 1) }, requestId })
    .project<{ _id: string; organizationId: string; appId: string }>({ organizationId: 1, appId: 1 })
    .sort({ _id: 1 })
    .toArray();
};
