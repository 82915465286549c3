import { create } from "@bufbuild/protobuf";
import {
  type EventsRequest,
  EventsRequestSchema,
  type SnapshotsRequest,
  SnapshotsRequestSchema,
} from "../../src/gen/ingest/v1/ingest_pb.js";
import { eventCategories, metricUnits } from "../../src/limits.ts";

const time = (text: string | undefined) => {
  if (text === undefined) return {};
  const ms = Date.parse(text);
  return { timestamp: { seconds: BigInt(Math.floor(ms / 1000)), nanos: (ms - Math.floor(ms / 1000) * 1000) * 1e6 } };
};

/** The reference's actor as a message: the first id in the oneof, the others in other_ids. */
function actorMessage(actor: Record<string, string> | undefined): any {
  if (actor === undefined) return undefined;
  const ids = (["workerId", "externalId", "email"] as const)
    .filter((name) => actor[name] !== undefined)
    .map((name) => ({ id: { case: name, value: actor[name] as string } }));
  return {
    ...ids[0],
    otherIds: ids.slice(1),
    ...(actor.displayName === undefined ? {} : { displayName: actor.displayName }),
  };
}

/** The reference's JSON as a message. */
export function eventsMessage(body: any): EventsRequest {
  const events = body.events.map(({ eventType, category, actor, timestamp, duration, metadata, eventId }: any) => ({
    eventType,
    category: eventCategories.indexOf(category) + 1,
    actor: actorMessage(actor),
    ...time(timestamp),
    ...(duration === undefined ? {} : { duration }),
    ...(metadata === undefined ? {} : { metadata }),
    ...(eventId === undefined ? {} : { eventId }),
  }));
  return create(EventsRequestSchema, { events });
}

/** The reference's JSON as a message. */
export function snapshotMessage(body: any): SnapshotsRequest {
  const metrics: Record<string, any> = {};
  for (const name of Object.keys(body.metrics)) {
    const value = body.metrics[name];
    const kind = typeof value === "number" ? "number" : typeof value === "string" ? "label" : "measure";
    const measure = kind === "measure" && value.unit !== undefined ? { unit: metricUnits.indexOf(value.unit) + 1 } : {};
    const message = kind === "measure" ? { ...value, ...measure } : value;
    Object.defineProperty(metrics, name, { value: { kind: { case: kind, value: message } }, enumerable: true });
  }
  const { snapshotType, actor, timestamp, metadata } = body;
  return create(SnapshotsRequestSchema, {
    snapshotType,
    actor: actorMessage(actor),
    metrics,
    ...time(timestamp),
    ...(metadata === undefined ? {} : { metadata }),
  });
}
