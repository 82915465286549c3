import { type DescMethod, getOption } from "@bufbuild/protobuf";
import { z } from "zod";
import type { ZodOpenApiOperationObject, ZodOpenApiPathsObject } from "zod-openapi";
import { http } from "../gen/google/api/annotations_pb.js";
import { Timeline } from "../gen/ingest/v1/timeline_pb.js";
import { eventCategories, metricSchema } from "../ingest/schema.ts";
import { timelineLimits } from "../limits.ts";
import { listEventsSchema, listSnapshotsSchema, timelineKinds } from "../timeline/schema.ts";
import { accessCodes, errorResponses, success, time } from "./parts.ts";

/** The part of the description about reading what was sent. */

export const timelineTag = {
  name: "timeline",
  description: "What services have reported, read with a key of the scope `read`. Not part of the published reference.",
};

const metadata = z.record(z.string(), z.unknown()).meta({ override: { type: "object", additionalProperties: true } });
const metrics = z.record(z.string(), metricSchema);

const reported = {
  appId: z.string().meta({ description: "The app whose key sent it." }),
  requestId: z.string().meta({ description: "The request that it came with." }),
  timestamp: time,
  receivedAt: time,
};

const timelineEvent = z
  .object({
    id: z.string().meta({ description: "evt_ and a ULID." }),
    kind: z.enum(timelineKinds),
    type: z.string().meta({ description: "The eventType or snapshotType." }),
    category: z.enum(eventCategories).optional().meta({ description: "Of events only." }),
    workerId: z.string(),
    ...reported,
    duration: z.int().optional().meta({ description: "In whole seconds; of events only." }),
    metrics: metrics.optional().meta({ description: "Of snapshots only." }),
    metadata: metadata.optional(),
  })
  .meta({ id: "TimelineEvent" });

const snapshotCard = z
  .object({
    snapshotType: z.string(),
    worker: z.object({ id: z.string(), displayName: z.string() }),
    ...reported,
    metrics,
    metadata: metadata.optional(),
  })
  .meta({ id: "SnapshotCard" });

const nextPageToken = z.string().meta({
  description: "Leads to the rows behind these, with the same filters; empty when there are none.",
});
const fewer = `May be fewer than pageSize, even none, while there is a next page: an answer is bounded in bytes, and may look at ${timelineLimits.scannedRowsMax} rows.`;

const eventsPage = z
  .object({ events: z.array(timelineEvent).meta({ description: `Newest first. ${fewer}` }), nextPageToken })
  .meta({ id: "ListEventsResponse" });

const snapshotsPage = z
  .object({
    snapshots: z.array(snapshotCard).meta({ description: `In the order of worker, app and type. ${fewer}` }),
    nextPageToken,
  })
  .meta({ id: "ListSnapshotsResponse" });

const codes = [...accessCodes, "forbidden_scope", "invalid_body"] as const;

const pathOf = (method: DescMethod) => getOption(method, http).pattern.value as string;

const operation = (
  operationId: string,
  summary: string,
  query: z.ZodObject,
  answer: ReturnType<typeof success>,
): { get: ZodOpenApiOperationObject } => ({
  get: {
    operationId,
    summary,
    tags: [timelineTag.name],
    security: [{ bearer: [] }],
    requestParams: { query },
    responses: { "200": answer, ...errorResponses(codes) },
  },
});

export const timelinePaths = (): ZodOpenApiPathsObject => ({
  [pathOf(Timeline.method.listEvents)]: operation(
    "listEvents",
    "List events and snapshots as they arrived, newest first.",
    listEventsSchema,
    success("A page of the timeline.", eventsPage),
  ),
  [pathOf(Timeline.method.listSnapshots)]: operation(
    "listSnapshots",
    "List the current snapshot cards.",
    listSnapshotsSchema,
    success("A page of cards.", snapshotsPage),
  ),
});
