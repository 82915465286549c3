import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { EventCategory, type MetricSchema } from "../gen/ingest/v1/ingest_pb.js";
import {
  type ListEventsRequest,
  type ListSnapshotsRequest,
  type SnapshotCardSchema,
  Timeline,
  type TimelineEventSchema,
  TimelineKind,
} from "../gen/ingest/v1/timeline_pb.js";
import type { IngestCalls } from "../ingest/call.ts";
import { eventCategories, invalidBody } from "../ingest/schema.ts";
import type { EventDocument } from "../store/events.ts";
import type { Card, TimelineCalls } from "../timeline/calls.ts";
import { timelineKinds } from "../timeline/schema.ts";
import type { Route } from "./route.ts";
import { plainCategory, plainTime } from "./connect.ts";
import { isoTime, reply, route } from "./rest.ts";
import { unary, type UnaryContext, type UnaryRpc } from "./unary.ts";

export interface TimelineOptions {
  /** Admits callers, as for Ingest. */
  readonly calls: IngestCalls;
  readonly timeline: TimelineCalls;
}

/** Timeline's unary calls for Connect, gRPC and gRPC-Web. They only translate. */
export function timelineRpcs({ calls, timeline }: TimelineOptions): UnaryRpc[] {
  const admit = ({ headers, exchange }: UnaryContext) => calls.admit(headers.authorization, exchange);
  return [
    unary(Timeline.method.listEvents, admit, async (request, call) => {
      const { events, nextPageToken } = await timeline.listEvents(call, plainListEvents(request));
      return { events: events.map(eventMessage), nextPageToken };
    }),
    unary(Timeline.method.listSnapshots, admit, async (request, call) => {
      const { snapshots, nextPageToken } = await timeline.listSnapshots(call, plainListSnapshots(request));
      return { snapshots: snapshots.map(cardMessage), nextPageToken };
    }),
  ];
}

/** Timeline's REST paths: those that the schema declares on its RPCs. They only translate. */
export function timelineRoutes({ calls, timeline }: TimelineOptions): Route[] {
  return [
    route(Timeline.method.listEvents, calls, async (call, { query }) => {
      const { events, nextPageToken } = await timeline.listEvents(call, plainQuery(query));
      return reply(200, { events: events.map(eventJson), nextPageToken });
    }),
    route(Timeline.method.listSnapshots, calls, async (call, { query }) => {
      const { snapshots, nextPageToken } = await timeline.listSnapshots(call, plainQuery(query));
      return reply(200, { snapshots: snapshots.map(cardJson), nextPageToken });
    }),
  ];
}

/** Query parameters as the calls take them: what is a number becomes one. @throws Fault invalid_body for one given twice. */
function plainQuery(query: string): Record<string, unknown> {
  const plain: Record<string, unknown> = Object.create(null);
  for (const [name, value] of new URLSearchParams(query)) {
    if (name in plain) throw invalidBody([{ path: name, message: "is given twice" }]);
    plain[name] = name === "pageSize" && /^-?\d{1,9}$/.test(value) ? Number(value) : value;
  }
  return plain;
}

function plainListEvents(request: ListEventsRequest): unknown {
  const { startTime, endTime, pageSize, pageToken } = request;
  return {
    ...plainFilters(request),
    ...given({ startTime: plainTime(startTime), endTime: plainTime(endTime), pageSize, pageToken }),
  };
}

const plainListSnapshots = ({ workerId, snapshotType, pageSize, pageToken }: ListSnapshotsRequest) =>
  given({ workerId, snapshotType, pageSize, pageToken });

type FilterFields = Pick<ListEventsRequest, "workerId" | "type" | "category" | "kind">;

const plainFilters = ({ workerId, type, category, kind }: FilterFields) =>
  given({
    workerId,
    type,
    // A value that is given but names nothing stays visible, so that validation refuses it.
    category: category === undefined ? undefined : (plainCategory(category) ?? "unspecified"),
    kind: kind === undefined ? undefined : (timelineKinds[kind - 1] ?? `TimelineKind ${kind}`),
  });

const given = (members: Readonly<Record<string, unknown>>) =>
  Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));

function eventMessage(row: EventDocument): MessageInitShape<typeof TimelineEventSchema> {
  const { _id: id, type, workerId, appId, requestId, durationSeconds, metadata } = row;
  return {
    id,
    kind: TimelineKind[row.kind.toUpperCase() as "EVENT" | "SNAPSHOT"],
    type,
    category:
      row.category === undefined ? EventCategory.UNSPECIFIED : eventCategories.indexOf(row.category as never) + 1,
    workerId,
    appId,
    requestId,
    timestamp: timestampFromDate(row.timestamp),
    receivedAt: timestampFromDate(row.receivedAt),
    ...(durationSeconds === undefined ? {} : { duration: durationSeconds }),
    ...(row.metrics === undefined ? {} : { metrics: metricMessages(row.metrics) }),
    ...(metadata === undefined ? {} : { metadata: metadata as never }),
  };
}

function cardMessage(card: Card): MessageInitShape<typeof SnapshotCardSchema> {
  const { snapshotType, workerId, displayName, appId, requestId, timestamp, receivedAt, metrics, metadata } = card;
  return {
    snapshotType,
    worker: { id: workerId, displayName },
    appId,
    requestId,
    timestamp: timestampFromDate(timestamp),
    receivedAt: timestampFromDate(receivedAt),
    metrics: metricMessages(metrics),
    ...(metadata === undefined ? {} : { metadata: metadata as never }),
  };
}

type MetricMessage = MessageInitShape<typeof MetricSchema>;

function metricMessages(metrics: Readonly<Record<string, unknown>>): Record<string, MetricMessage> {
  const messages: Record<string, MetricMessage> = {};
  for (const name of Object.keys(metrics)) {
    const value = metricMessage(metrics[name]);
    Object.defineProperty(messages, name, { value, enumerable: true, configurable: true, writable: true });
  }
  return messages;
}

function metricMessage(metric: unknown): MetricMessage {
  if (typeof metric === "number") return { kind: { case: "number", value: metric } };
  if (typeof metric === "string") return { kind: { case: "label", value: metric } };
  return { kind: { case: "measure", value: metric as { value: number } } };
}

/** What a row is in REST JSON; members that it does not have are left out. */
function eventJson(row: EventDocument) {
  const { _id: id, kind, type, category, workerId, appId, requestId, durationSeconds, metrics, metadata } = row;
  return {
    id,
    kind,
    type,
    category,
    workerId,
    appId,
    requestId,
    timestamp: isoTime(row.timestamp),
    receivedAt: isoTime(row.receivedAt),
    duration: durationSeconds,
    metrics,
    metadata,
  };
}

function cardJson(card: Card) {
  const { snapshotType, workerId, displayName, appId, requestId, metrics, metadata } = card;
  return {
    snapshotType,
    worker: { id: workerId, displayName },
    appId,
    requestId,
    timestamp: isoTime(card.timestamp),
    receivedAt: isoTime(card.receivedAt),
    metrics,
    metadata,
  };
}
