import { z } from "zod";
import { eventCategories } from "../ingest/schema.ts";
import { limits, timelineLimits, typePattern } from "../limits.ts";
import { parseTime, timeDescription } from "../time.ts";

/** What the calls that read the timeline may ask, whatever the protocol: the parameters of the REST paths. */

export const timelineKinds = ["event", "snapshot"] as const;

const id = (description: string) =>
  z.string().min(1, "must not be empty").max(limits.externalIdCharactersMax).optional().meta({ description });
const reportedType = (description: string) =>
  z
    .string()
    .regex(typePattern, "must have 3 to 64 characters of A-Z a-z 0-9 _ . -, the first and the last a letter or digit")
    .optional()
    .meta({ description });
const time = (description: string) =>
  z
    .string("must be a time")
    .transform((text, context) => {
      const time = parseTime(text);
      if (typeof time !== "string") return time;
      context.addIssue({ code: "custom", message: time, input: text });
      return z.NEVER;
    })
    .optional()
    .meta({ description: `${description} ${timeDescription}`, override: { type: "string", format: "date-time" } });
const token = (description: string) =>
  z.string().min(1).max(timelineLimits.tokenCharactersMax).optional().meta({ description });

const filters = {
  workerId: id("Only rows about this worker."),
  type: reportedType("Only rows of this eventType or snapshotType."),
  category: z
    .enum(eventCategories, `must be one of ${eventCategories.join(", ")}`)
    .optional()
    .meta({ description: "Only events of this category; snapshots have none." }),
  kind: z
    .enum(timelineKinds, `must be one of ${timelineKinds.join(", ")}`)
    .optional()
    .meta({ description: "Only rows of this kind." }),
};

const times = {
  startTime: time("Only rows whose timestamp is this or later."),
  endTime: time("Only rows whose timestamp is earlier than this."),
};

const page = {
  pageSize: z
    .int(`must be a whole number, 1 to ${timelineLimits.rowsMax}`)
    .min(1)
    .max(timelineLimits.rowsMax)
    .default(timelineLimits.rowsDefault)
    .meta({ description: "The most rows that the answer may hold." }),
  pageToken: token("nextPageToken of the answer before, with the same filters."),
};

/** A range that can hold no row is a mistake of the caller's, which an empty list would hide. */
const inOrder = ({ startTime, endTime }: { startTime?: Date | undefined; endTime?: Date | undefined }) =>
  startTime === undefined || endTime === undefined || startTime < endTime;
const mustBeInOrder = { path: ["endTime"], error: "must be later than startTime", abort: true };

export const listEventsSchema = z
  .strictObject({
    ...filters,
    ...times,
    ...page,
  })
  .refine(inOrder, mustBeInOrder);

export const listSnapshotsSchema = z
  .strictObject({
    workerId: id("Only cards of this worker."),
    snapshotType: reportedType("Only cards of this snapshotType."),
    ...times,
    ...page,
  })
  .refine(inOrder, mustBeInOrder);

export const watchEventsSchema = z.strictObject({
  ...filters,
  resumeToken: token("resumeToken of an earlier message: begin behind what came with it. Default: begin now."),
});
