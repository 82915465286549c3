import { Timeline } from "../gen/ingest/v1/timeline_pb.js";
import { eventCategory, metadataSchema, metricSchema } from "../ingest/schema.ts";
import { described, type Members, named, type ObjectShape, optional } from "../ingest/shapes.ts";
import type { Shape } from "../ingest/validate.ts";
import { timelineLimits } from "../limits.ts";
import { listEventsSchema, listSnapshotsSchema, timelineKind, watchEventsSchema } from "../timeline/schema.ts";
import { watchEndReasons } from "../timeline/watch.ts";
import {
  answer,
  exampleId,
  list,
  operation,
  pathOf,
  said,
  streamOf,
  streamTypes,
  type Success,
  text,
  time,
  unticked,
  worker,
} from "./parts.ts";

/** Describes the calls that read the timeline. */

export const timelineTag = {
  name: "timeline",
  description: "Read the reported events and snapshots, with a key that has the scope `read`.",
};

const metadata = said({ type: "object", additionalProperties: true, description: "As sent." }, metadataSchema);
const metrics = (description: string) =>
  said({ type: "object", additionalProperties: metricSchema.schema, description }, metricSchema);

const reported = {
  appId: text("The app whose key sent it."),
  requestId: text("The request that it came in."),
  timestamp: time("When it happened."),
  receivedAt: time("When Ingest received it."),
};

const timelineEvent = answer("TimelineEvent", "A row of the timeline.", {
  id: text("evt_ and a ULID."),
  kind: timelineKind,
  type: text("The eventType or snapshotType."),
  category: described("Only for events.", optional(eventCategory)),
  workerId: text("The worker that the actor names."),
  ...reported,
  duration: optional(said({ type: "integer", description: "In whole seconds; only for events." })),
  metrics: optional(metrics("Only for snapshots.")),
  metadata: optional(metadata),
});

const snapshotCard = answer("SnapshotCard", "The current figures of a worker, for one app and one type.", {
  snapshotType: text("As sent."),
  worker,
  ...reported,
  metrics: metrics("The figures by name."),
  metadata: optional(metadata),
});

const nextPageToken = text("Send it as pageToken, with the same filters, to get the next page. Empty on the last page.");
const fewer = `A page may have fewer rows than pageSize, even none, although a next page exists: the bytes of a page are bounded, and it scans at most ${timelineLimits.scannedRowsMax} rows.`;

const eventsPage = answer("ListEventsResponse", "A page of the timeline.", {
  events: list(`Newest first. ${fewer}`, timelineEvent),
  nextPageToken,
});

const snapshotsPage = answer("ListSnapshotsResponse", "A page of cards.", {
  snapshots: list(
    `Newest first. A new snapshot moves its card to the front, so begin again to see changed cards. ${fewer}`,
    snapshotCard,
  ),
  nextPageToken,
});

const watchMessage = answer("WatchEventsMessage", "One message of the stream of WatchEvents.", {
  events: list("In the order of storage. Empty: a heartbeat.", timelineEvent),
  resumeToken: text("Send it as resumeToken to continue after this message."),
  endReason: optional(
    named(
      "WatchEndReason",
      "Why the server ended the stream, in its last message. Call again with the resumeToken.",
      said({ type: "string", enum: watchEndReasons }),
    ),
  ),
});

/** Example values of parameters. */
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
  "Follow new events and snapshots in the order of storage. The answer is a stream without an end: one message at once,",
  `then one when rows arrive, and at least one every ${timelineLimits.heartbeatSeconds} seconds. A client that waits for`,
  "the whole body waits for ever. Read it piece by piece: with `parseAs: \"stream\"` of openapi-fetch, with `httpx.stream`",
  "in Python, or call the RPC `ingest.v1.Timeline/WatchEvents`. As `application/x-ndjson`, the default, each line is one",
  "`WatchEventsMessage` as JSON. As `text/event-stream`, if Accept asks for it, the data of each event is one",
  "`WatchEventsMessage` and its id is the resumeToken. EventSource sends `Last-Event-ID` when it reconnects; that id is",
  "newer than the resumeToken in the address, so it wins. When the server ends a stream, the last message has an",
  "`endReason`. When a stream fails, the last message is an `Error`; as a server-sent event it is named `stream-error`.",
  "Call again with the last resumeToken.",
].join(" ");

export const timelinePaths = (): { paths: Readonly<Record<string, object>>; shapes: readonly Shape<unknown>[] } => ({
  shapes: [listEventsSchema, listSnapshotsSchema, watchEventsSchema, eventsPage, snapshotsPage, watchMessage],
  paths: {
    [pathOf(Timeline.method.listEvents)]: read({
      operationId: "listEvents",
      summary: "List events",
      description: "List events and snapshots, newest first.",
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
        description: "An endless stream of `WatchEventsMessage`; see the description of the call.",
        shape: streamOf(streamTypes[0], watchMessage),
        contentTypes: streamTypes,
      },
    }),
  },
});
