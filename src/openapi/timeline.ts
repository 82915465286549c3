import { z } from "zod";
import type { ZodOpenApiPathItemObject, ZodOpenApiPathsObject } from "zod-openapi";
import { Timeline } from "../gen/ingest/v1/timeline_pb.js";
import { eventCategories, metricSchema } from "../ingest/schema.ts";
import { timelineLimits } from "../limits.ts";
import { listEventsSchema, listSnapshotsSchema, timelineKinds, watchEventsSchema } from "../timeline/schema.ts";
import { watchEndReasons } from "../timeline/watch.ts";
import { operation, pathOf, type Success, time } from "./parts.ts";

/** The part of the description about reading what was sent. */

export const timelineTag = {
  name: "timeline",
  description: "Read back what services have reported, with a key that has the scope `read`.",
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
    snapshots: z.array(snapshotCard).meta({ description: `Newest first. A card that is renewed moves to the front: begin again to see those renewed since. ${fewer}` }),
    nextPageToken,
  })
  .meta({ id: "ListSnapshotsResponse" });

const watchMessage = z
  .object({
    events: z
      .array(timelineEvent)
      .meta({ description: "In the order in which they were stored; empty = a sign of life." }),
    resumeToken: z.string().meta({ description: "Everything up to here has been sent." }),
    endReason: z
      .enum(watchEndReasons)
      .optional()
      .meta({ description: "In the last message when the server ends the stream: call again with the resumeToken." }),
  })
  .meta({ id: "WatchEventsMessage" });

const read = (operationId: string, summary: string, query: z.ZodObject, success: Success): ZodOpenApiPathItemObject => ({
  get: operation({
    operationId,
    summary,
    tag: timelineTag.name,
    parameters: { requestParams: { query } },
    successes: { "200": success },
    codes: ["forbidden_scope", "invalid_body", "worker_not_found"],
  }),
});

export const timelinePaths = (): ZodOpenApiPathsObject => ({
  [pathOf(Timeline.method.listEvents)]: read(
    "listEvents",
    "List events and snapshots as they arrived, newest first.",
    listEventsSchema,
    { description: "A page of the timeline.", schema: eventsPage },
  ),
  [pathOf(Timeline.method.listSnapshots)]: read(
    "listSnapshots",
    "List the current snapshot cards, newest first.",
    listSnapshotsSchema,
    { description: "A page of cards.", schema: snapshotsPage },
  ),
  [pathOf(Timeline.method.watchEvents)]: read(
    "watchEvents",
    "Follow what arrives, in the order in which it is stored.",
    watchEventsSchema,
    {
      description: `A stream: one message at once, then one whenever rows arrive, and at least every ${timelineLimits.heartbeatSeconds} seconds. One JSON text a line, or server-sent events when Accept asks for text/event-stream (whose id is the resumeToken). Last-Event-ID, which EventSource sends when it reconnects, is newer than the resumeToken in its address and wins. An error on the way is the last message, in the usual shape; as a server-sent event it is named stream-error.`,
      schema: watchMessage,
      contentTypes: ["application/x-ndjson", "text/event-stream"],
    },
  ),
});
