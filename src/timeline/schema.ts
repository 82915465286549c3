import { eventCategory, reportedType } from "../ingest/schema.ts";
import { defaulting, described, named, object, oneOf, optional, text, time, wholeNumber } from "../ingest/shapes.ts";
import { invalidMember, type Shape, validate } from "../ingest/validate.ts";
import { limits, timelineLimits } from "../limits.ts";

/** The parameters of the calls that read the timeline, for every protocol. */

export const timelineKinds = ["event", "snapshot"] as const;
export const timelineKind = named("TimelineKind", "What a row of the timeline is.", oneOf(timelineKinds));

const workerId = (description: string) => described(description, optional(text(limits.externalIdCharactersMax)));
const token = (description: string) => described(description, optional(text(timelineLimits.tokenCharactersMax)));

const filters = {
  workerId: workerId("Only rows about this worker."),
  type: described("Only rows of this eventType or snapshotType.", optional(reportedType)),
  category: described("Only events of this category; snapshots have none.", optional(eventCategory)),
  kind: described("Only rows of this kind.", optional(timelineKind)),
};

const times = {
  startTime: described("Only rows with this timestamp or a later one.", optional(time())),
  endTime: described("Only rows with an earlier timestamp. Must be later than startTime.", optional(time())),
};

const page = {
  pageSize: described(
    "The most rows that an answer may have.",
    defaulting(wholeNumber(1, timelineLimits.rowsMax), timelineLimits.rowsDefault),
  ),
  pageToken: token("The nextPageToken of the previous page; send the same filters."),
};

const refused = "is not a parameter of this call";

export const listEventsSchema = object({ ...filters, ...times, ...page }, refused);

export const listSnapshotsSchema = object(
  {
    workerId: workerId("Only cards of this worker."),
    snapshotType: described("Only cards of this snapshotType.", optional(reportedType)),
    ...times,
    ...page,
  },
  refused,
);

export const watchEventsSchema = object(
  {
    ...filters,
    resumeToken: token(
      "The resumeToken of an earlier message: the stream continues after that message. Default: it begins now.",
    ),
  },
  refused,
);

/**
 * Validates a query. It refuses an empty range of time, because an empty list would hide the caller's mistake.
 * @throws Fault invalid_body.
 */
export function parseQuery<T extends { readonly startTime?: Date | undefined; readonly endTime?: Date | undefined }>(
  shape: Shape<T>,
  query: unknown,
): T {
  const valid = validate(shape, query);
  const { startTime, endTime } = valid;
  if (startTime === undefined || endTime === undefined || startTime < endTime) return valid;
  throw invalidMember("endTime", "must be later than startTime");
}
