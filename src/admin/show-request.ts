import type { Db } from "mongodb";
import { isRequestId, isTestOrganization, liveOrganizationOf, testOrganizationOf, timeOfId } from "../ids.ts";
import { findRowsOfRequest } from "../store/events.ts";
import { findRequestRecords, type RequestRecord } from "../store/requests.ts";
import { AdminError } from "./admin.ts";

export type Outcome = "accepted" | "partly accepted" | "refused" | "abandoned";

export function outcomeOf({ status, code, connectCode, rejections = [] }: RequestRecord): Outcome {
  if (status === 0) return "abandoned";
  if (code !== undefined || connectCode !== undefined) return "refused";
  return rejections.length > 0 ? "partly accepted" : "accepted";
}

const ownerOf = (record: RequestRecord | undefined) =>
  record?.test === true ? testOrganizationOf(record.organizationId) : record?.organizationId;

/** The most replays that `request show` lists: a caller may repeat a request at its full rate for ten minutes. */
const replaysMax = 100;

/**
 * Finds a request: its record, its rows and its first replays. An accepted request has no record, only rows.
 * @throws AdminError if the database has nothing about it.
 */
export async function showRequest(db: Db, id: string, nowMs: number) {
  if (!isRequestId(id)) throw new AdminError(`'${id}' is not a request's id such as req_01HP3K5V4J3M9NVT8XZKQ9YQ2E.`);
  const records = await findRequestRecords(db, id, nowMs, replaysMax + 1);
  const { own } = records;
  const rows = await findRowsOfRequest(db, id, ownerOf(own ?? records.replays[0]));
  const moreReplays = records.replays.length > replaysMax;
  const replays = records.replays.slice(0, replaysMax).map(({ receivedAt, protocol, status, keyHint, durationMs }) => ({
    receivedAt,
    protocol,
    status,
    keyHint,
    durationMs,
  }));
  const eventIds = rows.map((row) => row.id);
  if (own !== undefined) {
    const { requestId, receivedAt, claim, rejected = 0, rejections = [], ...rest } = own;
    const outcome = outcomeOf(own);
    const idempotencyKey = claim === undefined ? {} : { idempotencyKey: claim };
    const lists = { eventIds, rejections, replays, moreReplays };
    return { requestId, receivedAt, outcome, ...idempotencyKey, ...rest, rejected, ...lists };
  }
  const { organizationId: owner, appId, kind } = rows[0] ?? { ...records.replays[0], kind: undefined };
  if (owner === undefined) {
    throw new AdminError(
      `There is nothing about ${id}: it has no events and no record. Records expire, and requests without a valid key have none. Look in the log.`,
    );
  }
  const rpc = kind === "snapshot" ? "Snapshots" : "Events";
  const outcome: Outcome = "accepted";
  const organizationId = liveOrganizationOf(owner);
  const test = isTestOrganization(owner) || records.replays[0]?.test === true ? { test: true as const } : {};
  const known = { requestId: id, receivedAt: timeOfId(id), outcome, rpc, organizationId, appId, ...test };
  return { ...known, accepted: rows.length, rejected: 0, eventIds, rejections: [], replays, moreReplays };
}
