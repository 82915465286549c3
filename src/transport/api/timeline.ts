import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { EventCategory, type MetricSchema } from "../../gen/ingest/v1/ingest_pb.js";
import {
  type ListEventsRequest,
  type ListSnapshotsRequest,
  type SnapshotCardSchema,
  Timeline,
  type TimelineEventSchema,
  TimelineKind,
  WatchEndReason as EndReason,
  type WatchEventsRequest,
} from "../../gen/ingest/v1/timeline_pb.js";
import type { IngestCalls } from "../../ingest/call.ts";
import { eventCategories } from "../../ingest/schema.ts";
import { invalidMember } from "../../ingest/validate.ts";
import { metricUnits } from "../../limits.ts";
import type { EventRow } from "../../store/events.ts";
import type { NamedCard, TimelineCalls } from "../../timeline/calls.ts";
import { isoTime } from "../../time.ts";
import { timelineKinds } from "../../timeline/schema.ts";
import type { Route } from "../http/route.ts";
import type { WatchEndReason, Watches, WatchMessage } from "../../timeline/watch.ts";
import { jsonCategory, jsonTime } from "./ingest-rpc.ts";
import { admit, reply, route } from "./ingest-rest.ts";
import { lastEventIdOf, streamReply } from "../rest/stream-reply.ts";
import { type Rpc, type RpcContext, serverStream, unary } from "../rpc/rpc.ts";

export interface TimelineOptions {
  /** Admits callers, as for Ingest. */
  readonly calls: IngestCalls;
  readonly timeline: TimelineCalls;
  readonly watches: Watches;
}

/** Timeline's RPCs for Connect, gRPC and gRPC-Web. They only translate. */
export function timelineRpcs({ calls, timeline, watches }: TimelineOptions): Rpc[] {
  const admitted = ({ request }: RpcContext) => admit(calls, request);
  return [
    unary(Timeline.method.listEvents, admitted, async (request, call) => {
      const { events, nextPageToken } = await timeline.listEvents(call, jsonListEvents(request));
      return { events: events.map(eventMessage), nextPageToken };
    }),
    unary(Timeline.method.listSnapshots, admitted, async (request, call) => {
      const { snapshots, nextPageToken } = await timeline.listSnapshots(call, jsonListSnapshots(request));
      return { snapshots: snapshots.map(cardMessage), nextPageToken };
    }),
    serverStream(Timeline.method.watchEvents, admitted, async function* (message, call, { signal }) {
      const messages = await watches.open(call, jsonWatch(message), signal);
      for await (const message of messages) yield watchMessage(message);
    }),
  ];
}

/** Timeline's REST paths, which the schema declares on its RPCs. They only translate. */
export function timelineRoutes({ calls, timeline, watches }: TimelineOptions): Route[] {
  return [
    route(Timeline.method.listEvents, calls, async (call, { query }) => {
      const { events, nextPageToken } = await timeline.listEvents(call, jsonQuery(query));
      return reply(200, { events: events.map(eventJson), nextPageToken });
    }),
    route(Timeline.method.listSnapshots, calls, async (call, { query }) => {
      const { snapshots, nextPageToken } = await timeline.listSnapshots(call, jsonQuery(query));
      return reply(200, { snapshots: snapshots.map(cardJson), nextPageToken });
    }),
    route(Timeline.method.watchEvents, calls, async (call, request) => {
      const query = { ...jsonQuery(request.query), ...given({ resumeToken: lastEventIdOf(request) }) };
      const messages = await watches.open(call, query, request.signal);
      return streamReply(request, messages, ({ events, resumeToken, endReason }) => ({
        events: events.map(eventJson),
        resumeToken,
        endReason,
      }));
    }),
  ];
}

/** The query's parameters, with pageSize as a number. @throws Fault invalid_body for a parameter given twice. */
function jsonQuery(query: string): Record<string, unknown> {
  const json: Record<string, unknown> = Object.create(null);
  for (const [name, value] of new URLSearchParams(query)) {
    if (name in json) throw invalidMember(name, "is given twice");
    json[name] = name === "pageSize" && /^-?\d{1,9}$/.test(value) ? Number(value) : value;
  }
  return json;
}

const jsonListEvents = (request: ListEventsRequest) => ({ ...jsonFilters(request), ...jsonPage(request) });

const jsonListSnapshots = (request: ListSnapshotsRequest) => ({
  ...given({ workerId: request.workerId, snapshotType: request.snapshotType }),
  ...jsonPage(request),
});

type PageFields = Pick<ListEventsRequest, "startTime" | "endTime" | "pageSize" | "pageToken">;

const jsonPage = ({ startTime, endTime, pageSize, pageToken }: PageFields) =>
  given({ startTime: jsonTime(startTime), endTime: jsonTime(endTime), pageSize, pageToken });

const jsonWatch = (request: WatchEventsRequest) => ({
  ...jsonFilters(request),
  ...given({ resumeToken: request.resumeToken }),
});

type FilterFields = Pick<ListEventsRequest, "workerId" | "type" | "category" | "kind">;

const jsonFilters = ({ workerId, type, category, kind }: FilterFields) =>
  given({
    workerId,
    type,
    // A value without a name stays visible, so that validation refuses it.
    category: category === undefined ? undefined : (jsonCategory(category) ?? "unspecified"),
    kind: kind === undefined ? undefined : (timelineKinds[kind - 1] ?? `${kind}`),
  });

const given = (members: Readonly<Record<string, unknown>>) =>
  Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));

function eventMessage(row: EventRow): MessageInitShape<typeof TimelineEventSchema> {
  const { id, type, workerId, appId, requestId, durationSeconds, metadata } = row;
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

const endReasons: Readonly<Record<WatchEndReason, EndReason>> = {
  slow_reader: EndReason.SLOW_READER,
  shutdown: EndReason.SHUTDOWN,
  duration: EndReason.DURATION,
};

const watchMessage = ({ events, resumeToken, endReason }: WatchMessage) => ({
  events: events.map(eventMessage),
  resumeToken,
  ...(endReason === undefined ? {} : { endReason: endReasons[endReason] }),
});

function cardMessage(card: NamedCard): MessageInitShape<typeof SnapshotCardSchema> {
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
  const { unit, ...measure } = metric as { value: number; unit?: (typeof metricUnits)[number]; label?: string };
  const unitValue = unit === undefined ? {} : { unit: metricUnits.indexOf(unit) + 1 };
  return { kind: { case: "measure", value: { ...measure, ...unitValue } } };
}

/** A row in REST's JSON, without absent members. */
function eventJson(row: EventRow) {
  const { id, kind, type, category, workerId, appId, requestId, durationSeconds, metrics, metadata } = row;
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

function cardJson(card: NamedCard) {
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
