import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  type Actor,
  EventCategory,
  type EventsRequest,
  type EventsResponseSchema,
  Ingest,
  type Metric,
  MetricUnit,
  type SnapshotsRequest,
} from "../../gen/ingest/v1/ingest_pb.js";
import type { IngestCalls } from "../../ingest/call.ts";
import type { EventsAnswer } from "../../ingest/events.ts";
import { checkEventCount, eventCategories } from "../../ingest/schema.ts";
import { invalidMember } from "../../ingest/validate.ts";
import { limits, metricUnits } from "../../limits.ts";
import { type Rpc, type RpcContext, unary } from "../rpc/rpc.ts";
import { admit } from "./ingest-rest.ts";

/**
 * Ingest's RPCs for Connect, gRPC and gRPC-Web. They only translate.
 */
export function ingestRpcs(calls: IngestCalls): Rpc[] {
  const admitted = ({ request }: RpcContext) => admit(calls, request);
  return [
    unary(Ingest.method.ping, admitted, (_request, call) => calls.ping(call)),
    unary(
      Ingest.method.events,
      admitted,
      async (message, call, { request }) => {
        const outcome = await calls.events(call, jsonEvents(message));
        return eventsResponse(request.answerOf(outcome));
      },
      checkEventCount,
    ),
    unary(Ingest.method.snapshots, admitted, async (message, call, { request }) => {
      const outcome = await calls.snapshots(call, jsonSnapshot(message));
      return { ok: true, ...request.answerOf(outcome) };
    }),
  ];
}

function eventsResponse({
  requestId,
  accepted,
  rejected,
}: EventsAnswer): MessageInitShape<typeof EventsResponseSchema> {
  let last: Date | undefined;
  let time: Timestamp | undefined;
  const timeOf = (timestamp: Date): Timestamp => {
    // Events without a time share the time of receipt.
    if (time === undefined || timestamp !== last) time = timestampFromDate(timestamp);
    last = timestamp;
    return time;
  };
  return {
    requestId,
    accepted: accepted.length,
    rejected: rejected.length,
    batchLimit: limits.eventsMax,
    results: {
      accepted: accepted.map((event) => ({ ...event, timestamp: timeOf(event.timestamp) })),
      rejected: rejected.map(({ index, code, message }) => ({ index, code, message })),
    },
  };
}

/** The message as the reference's JSON. Values that this JSON cannot express stay visible, so that validation refuses them. */
function jsonEvents(request: EventsRequest): unknown {
  return {
    events: request.events.map((event, i) => ({
      eventType: event.eventType,
      category: jsonCategory(event.category),
      actor: jsonActor(event.actor, `events[${i}].actor`),
      timestamp: jsonTime(event.timestamp),
      duration: event.duration,
      metadata: event.metadata,
      eventId: event.eventId,
    })),
  };
}

function jsonSnapshot(request: SnapshotsRequest): unknown {
  const metrics: Record<string, unknown> = {};
  for (const name of Object.keys(request.metrics)) {
    const value = jsonMetric(request.metrics[name] as Metric);
    Object.defineProperty(metrics, name, { value, enumerable: true, configurable: true, writable: true });
  }
  return {
    snapshotType: request.snapshotType,
    actor: jsonActor(request.actor, "actor"),
    timestamp: jsonTime(request.timestamp),
    metrics,
    metadata: request.metadata,
  };
}

export function jsonCategory(category: EventCategory): string | undefined {
  if (category === EventCategory.UNSPECIFIED) return undefined;
  return eventCategories[category - 1] ?? `${category}`;
}

function jsonActor(actor: Actor | undefined, path: string): unknown {
  if (actor === undefined) return undefined;
  const json: Record<string, string | undefined> = { displayName: actor.displayName };
  for (const { id } of [actor, ...actor.otherIds]) {
    if (id.case === undefined) continue;
    if (json[id.case] !== undefined) {
      throw invalidMember(`${path}.${id.case}`, "is given twice");
    }
    json[id.case] = id.value;
  }
  return json;
}

export function jsonTime(time: Timestamp | undefined): string | undefined {
  if (time === undefined) return undefined;
  const date = new Date(Number(time.seconds) * 1000 + Math.floor(time.nanos / 1_000_000));
  const year = date.getUTCFullYear();
  return year >= 1 && year <= 9999 && time.nanos >= 0 && time.nanos < 1e9
    ? date.toISOString()
    : `${time.seconds} s ${time.nanos} ns`;
}

const jsonUnit = (unit: MetricUnit): string =>
  unit === MetricUnit.UNSPECIFIED ? "unspecified" : (metricUnits[unit - 1] ?? `${unit}`);

function jsonMetric({ kind }: Metric): unknown {
  if (kind.case !== "measure") return kind.value;
  const { value, unit, label } = kind.value;
  return { value, ...(unit === undefined ? {} : { unit: jsonUnit(unit) }), ...(label === undefined ? {} : { label }) };
}
