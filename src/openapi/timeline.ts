import { Timeline } from "../gen/ingest/v1/timeline_pb.js";
import { eventCategory, metadataSchema, metricSchema } from "../ingest/schema.ts";
import { described, type Members, named, type ObjectShape, optional } from "../ingest/shapes.ts";
import type { Shape } from "../ingest/validate.ts";
import { timelineLimits } from "../limits.ts";
import { listEventsSchema, listSnapshotsSchema, timelineKind, watchEventsSchema } from "../timeline/schema.ts";
import { watchEndReasons } from "../timeline/watch.ts";
import { answer, exampleId, list, operation, pathOf, said, type Success, text, time, unticked, worker } from "./parts.ts";

/** The part of the description about reading what was sent. */

export const timelineTag = {
  name: "timeline",
  description: "Read back what services have reported, with a key that has the scope `read`.",
};

const metadata = said({ type: "object", additionalProperties: true, description: "As sent." }, metadataSchema);
const metrics = (description: string) =>
  said({ type: "object", additionalProperties: metricSchema.schema, description }, metricSchema);

const reported = {
  appId: text("The app whose key sent it."),
  requestId: text("The request that it came with."),
  timestamp: time("When it happened."),
  receivedAt: time("When it was received."),
};

const timelineEvent = answer("TimelineEvent", "A row of the timeline.", {
  id: text("evt_ and a ULID."),
  kind: timelineKind,
  type: text("The eventType or snapshotType."),
  category: described("Of events only.", optional(eventCategory)),
  workerId: text("The worker that the actor resolved to."),
  ...reported,
  duration: optional(said({ type: "integer", description: "In whole seconds; of events only." })),
  metrics: optional(metrics("Of snapshots only.")),
  metadata: optional(metadata),
});

const snapshotCard = answer("SnapshotCard", "The current figures of a worker, of one app and type.", {
  snapshotType: text("As sent."),
  worker,
  ...reported,
  metrics: metrics("The figures by name."),
  metadata: optional(metadata),
});

const nextPageToken = text("Leads to the rows behind these, with the same filters; empty when there are none.");
const fewer = `May be fewer than pageSize, even none, while there is a next page: an answer is bounded in bytes, and may look at ${timelineLimits.scannedRowsMax} rows.`;

const eventsPage = answer("ListEventsResponse", "A page of the timeline.", {
  events: list(`Newest first. ${fewer}`, timelineEvent),
  nextPageToken,
});

const snapshotsPage = answer("ListSnapshotsResponse", "A page of cards.", {
  snapshots: list(
    `Newest first. A card that is renewed moves to the front: begin again to see those renewed since. ${fewer}`,
    snapshotCard,
  ),
  nextPageToken,
});

const watchMessage = answer("WatchEventsMessage", "One message of the stream of WatchEvents.", {
  events: list("In the order in which they were stored; empty = a sign of life.", timelineEvent),
  resumeToken: text("Everything up to here has been sent."),
  endReason: optional(
    named(
      "WatchEndReason",
      "Why the server ends a stream. It stands in the last message: call again with the resumeToken.",
      said({ type: "string", enum: watchEndReasons }),
    ),
  ),
});

/** As generators see it: text, of which they must not wait for the end. */
const stream = (contentMediaType: string) => said({ type: "string", contentMediaType, contentSchema: watchMessage.schema }, watchMessage);

/** Of parameters, what may stand in them. */
const examples: Readonly<Record<string, unknown>> = {
  workerId: exampleId("wrk"),
  type: "ticket.resolved",
  snapshotType: "tickets_open",
  category: "project_management",
  kind: "event",
  startTime: "2026-04-19T00:00:00Z",
  endTime: "2026-04-20T00:00:00Z",
  pageSize: timelineLimits.rowsDefault,
};

const parametersOf = (query: ObjectShape<Members>) =>
  Object.entries(query.members).map(([name, { schema }]) => {
    const { description, ...rest } = schema;
    const example = name in examples ? { examples: unticked(examples[name]) } : {};
    return { name, in: "query", required: false, description, schema: rest, ...example };
  });

interface Read {
  readonly operationId: string;
  readonly summary: string;
  readonly description: string;
  readonly query: ObjectShape<any>;
  readonly success: Success;
}

const read = ({ query, success, ...call }: Read) => ({
  get: operation({
    ...call,
    tag: timelineTag.name,
    parameters: parametersOf(query),
    successes: { "200": success },
    codes: ["forbidden_scope", "invalid_body", "worker_not_found"],
  }),
});

const watchDescription = [
  "Follow what arrives, in the order in which it is stored. The answer is a stream that does not end by itself: one",
  `message at once, then one whenever rows arrive, and at least every ${timelineLimits.heartbeatSeconds} seconds. A client`,
  "that waits for the whole body waits for ever, so read it as it comes: with `parseAs: \"stream\"` of openapi-fetch, with",
  "`httpx.stream` in Python, or call the RPC `ingest.v1.Timeline/WatchEvents`. As `application/x-ndjson`, the default, each",
  "line is one `WatchEventsMessage` as JSON. As `text/event-stream`, when Accept asks for it, the data of each event is one",
  "`WatchEventsMessage` and its id is the resumeToken; `Last-Event-ID`, which EventSource sends when it reconnects, is newer",
  "than the resumeToken in its address and wins. The server ends a stream with an `endReason` in its last message. An error",
  "on the way is the last message, in the shape `Error`; as a server-sent event it is named `stream-error`. Call again with",
  "the last resumeToken.",
].join(" ");

/** The paths, and the shapes that they refer to. */
export const timelinePaths = (): { paths: Readonly<Record<string, object>>; shapes: readonly Shape<unknown>[] } => ({
  shapes: [listEventsSchema, listSnapshotsSchema, watchEventsSchema, eventsPage, snapshotsPage, watchMessage],
  paths: {
    [pathOf(Timeline.method.listEvents)]: read({
      operationId: "listEvents",
      summary: "List events",
      description: "List events and snapshots as they arrived, newest first.",
      query: listEventsSchema,
      success: { description: "A page of the timeline.", shape: eventsPage },
    }),
    [pathOf(Timeline.method.listSnapshots)]: read({
      operationId: "listSnapshots",
      summary: "List snapshot cards",
      description: "List the current snapshot cards, newest first.",
      query: listSnapshotsSchema,
      success: { description: "A page of cards.", shape: snapshotsPage },
    }),
    [pathOf(Timeline.method.watchEvents)]: read({
      operationId: "watchEvents",
      summary: "Watch events (a stream)",
      description: watchDescription,
      query: watchEventsSchema,
      success: {
        description: "A stream of `WatchEventsMessage` without an end; see the description of the call.",
        shape: stream("application/x-ndjson"),
        contentTypes: ["application/x-ndjson", "text/event-stream"],
      },
    }),
  },
});
