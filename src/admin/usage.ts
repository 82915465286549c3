import { Fault } from "../errors.ts";
import { UsageGroup } from "../gen/ingest/admin/v1/admin_pb.js";
import { object, optional } from "../ingest/shapes.ts";
import { invalidMember, validate } from "../ingest/validate.ts";
import { recount, type Recounted } from "../store/recount.ts";
import { sumOfDays, type UsageCounts, type UsageGroup as UsageColumn } from "../store/usage-days.ts";
import { usageCollection, usageKey } from "../store/usage.ts";
import { hasOldRows } from "../store/version-2.ts";
import { monthOf } from "../time.ts";
import type { AdminCall } from "./call.ts";
import { change } from "./change.ts";
import type { Answer, Handler } from "./dispatch.ts";
import { month } from "./shapes.ts";

const monthSchema = object({ month: optional(month) });

/** @throws Fault invalid_body. */
const monthFor = (call: AdminCall, sent: string | undefined): string =>
  validate(monthSchema, { month: sent }).month ?? monthOf(call.nowDate);

export const getUsage: Handler<"getUsage"> = async (request, call) => {
  const { _id: organizationId, quotaEventsPerMonth } = await call.organization(request.organizationId);
  const month = monthFor(call, request.month);
  const group = groupOf(request.by);
  const [charged, sums] = await Promise.all([
    usageCollection(call.db).findOne(usageKey({ organizationId, month })),
    sumOfDays(call.db, organizationId, month, group === "code" ? "day" : group),
  ]);
  const rows =
    group === "code"
      ? rowsByCode(sums)
      : sums.map(({ day, appId, type, ...counts }) => ({
          ...{ day, app: appId, type },
          ...acceptedOf([counts]),
          rejected: sumOf(Object.values(counts.rejected)),
        }));
  return { organizationId, month, events: charged?.events ?? 0, quotaEventsPerMonth, rows };
};

/** @throws Fault invalid_body for a group that this version does not know. */
function groupOf(by: UsageGroup = UsageGroup.DAY): UsageColumn | "code" {
  switch (by) {
    case UsageGroup.UNSPECIFIED:
    case UsageGroup.DAY:
      return "day";
    case UsageGroup.APP:
      return "app";
    case UsageGroup.TYPE:
      return "type";
    case UsageGroup.CODE:
      return "code";
    default:
      throw invalidMember("by", `must be one of day, app, type, code; it is ${String(by)}`);
  }
}

type Rows = NonNullable<Answer<"getUsage">["rows"]>;

/** One row without a code, and one for each code. */
function rowsByCode(sums: readonly UsageCounts[]): Rows {
  const rejected = new Map<string, number>();
  for (const one of sums) {
    for (const [code, count] of Object.entries(one.rejected)) rejected.set(code, (rejected.get(code) ?? 0) + count);
  }
  const without = { code: "", ...acceptedOf(sums), rejected: 0 };
  const hasSome = without.accepted + without.replayed > 0;
  const ofCodes = [...rejected].map(([code, count]) => ({ code, rejected: count }));
  return [...(hasSome ? [without] : []), ...ofCodes.sort((a, b) => (a.code < b.code ? -1 : 1))];
}

/** The database counts duplicates apart from accepted events; the API counts them in both. */
function acceptedOf(sums: readonly UsageCounts[]) {
  const duplicates = sumOf(sums.map((one) => one.duplicates));
  const accepted = sumOf(sums.map((one) => one.accepted)) + duplicates;
  return { accepted, replayed: sumOf(sums.map((one) => one.replayed)), duplicates };
}

const sumOf = (counts: readonly number[]) => counts.reduce((sum, one) => sum + one, 0);

const patience = { quietMs: 3_000, patienceMs: 60_000 };

export const recountUsage: Handler<"recountUsage"> = async (request, call) => {
  const { _id: organizationId } = await call.organization(request.organizationId);
  const month = monthFor(call, request.month);
  if (await hasOldRows(call.db)) {
    throw new Fault(
      "failed_precondition",
      "Rows of an older version are not copied yet, so a count would miss them. Run `ingest migrate` first.",
    );
  }
  // Callers wait for these counts, so no transaction may hold them. Each correction is in the audit before it begins.
  const onCorrection = async ({ before, after, corrected }: Recounted) => {
    const audit = {
      ...{ organizationId, target: organizationId },
      before: { month, events: before },
      after: { month, events: after, correctedCounts: corrected },
    };
    await change(call, { ...request, idempotencyKey: undefined }, async () => ({ answer: {}, audit }));
  };
  const options = { ...patience, signal: call.facts.signal, onCorrection };
  const counts = await recount(call.db, organizationId, month, options);
  if (counts !== undefined) {
    const { before, after } = counts;
    return change(call, request, async () => ({ answer: { organizationId, month, before, after }, audit: undefined }));
  }
  const message = `The organisation '${organizationId}' is too busy for a count. Try again when it is quiet.`;
  throw new Fault("failed_precondition", message);
};
