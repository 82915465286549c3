import { type MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type ConnectRouter, Code, ConnectError, createContextKey, type HandlerContext } from "@connectrpc/connect";
import { faultFrom } from "../errors.ts";
import {
  type Actor,
  EventCategory,
  type EventsRequest,
  type EventsResponseSchema,
  Ingest,
  type Metric,
  type SnapshotsRequest,
} from "../gen/ingest/v1/ingest_pb.js";
import type { Call, IngestCalls } from "../ingest/call.ts";
import type { EventsAnswer } from "../ingest/events.ts";
import { eventCategories, invalidBody } from "../ingest/schema.ts";
import { limits } from "../limits.ts";
import { toConnectError } from "./errors.ts";
import type { Exchange } from "../exchange.ts";
import { exchangeKey } from "./context.ts";

const callKey = createContextKey<Call | undefined>(undefined, { description: "call" });

export interface ConnectOptions {
  readonly calls: IngestCalls;
  /** Base of the documentation's addresses, without a slash at its end. */
  readonly publicUrl: string;
}

/** The service for Connect, gRPC and gRPC-Web. It only translates; callers are admitted before their message is read. */
export function ingestService({ calls, publicUrl }: ConnectOptions): (router: ConnectRouter) => void {
  /** Runs `work` in the context's time; whatever it throws leaves as the API's error. */
  async function answer<T>(context: HandlerContext, work: (exchange: Exchange) => T | Promise<T>): Promise<T> {
    const exchange = context.values.get(exchangeKey);
    if (exchange === undefined) throw new ConnectError("no exchange in the context", Code.Internal);
    try {
      const result = work(exchange);
      if (!(result instanceof Promise) || context.timeoutMs() === undefined) return await result;
      return await Promise.race([result, rejectedOnAbort(context.signal)]);
    } catch (error) {
      if (error instanceof ConnectError) throw error;
      exchange.fault = faultFrom(error);
      throw toConnectError(exchange.fault, exchange, publicUrl);
    }
  }

  const admitted = (context: HandlerContext): Call => {
    const call = context.values.get(callKey);
    if (call === undefined) throw new Error("a call was not admitted before its message was read");
    return call;
  };
  const idempotencyKey = (context: HandlerContext) => context.requestHeader.get("idempotency-key") ?? undefined;

  return (router) =>
    router.service(
      Ingest,
      {
        ping: (_request, context) => answer(context, () => calls.ping(admitted(context))),
        events: (request, context) =>
          answer(context, async () =>
            eventsResponse(await calls.events(admitted(context), idempotencyKey(context), plainEvents(request))),
          ),
        snapshots: (request, context) =>
          answer(context, async () => ({
            ok: true,
            ...(await calls.snapshots(admitted(context), idempotencyKey(context), plainSnapshot(request))),
          })),
      },
      {
        requestGate: (context) =>
          answer(context, async (exchange) => {
            const authorization = context.requestHeader.get("authorization") ?? undefined;
            context.values.set(callKey, await calls.admit(authorization, exchange));
          }),
      },
    );
}

function rejectedOnAbort(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    const stop = () =>
      reject(ConnectError.from(signal.reason ?? new ConnectError("the deadline has passed", Code.DeadlineExceeded)));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}

function eventsResponse({
  requestId,
  accepted,
  rejected,
}: EventsAnswer): MessageInitShape<typeof EventsResponseSchema> {
  return {
    requestId,
    accepted: accepted.length,
    rejected: rejected.length,
    batchLimit: limits.eventsMax,
    results: {
      accepted: accepted.map(({ eventType, timestamp }) => ({ eventType, timestamp: timestampFromDate(timestamp) })),
      rejected: rejected.map(({ index, code, message }) => ({ index, code, message })),
    },
  };
}

/** The message as the reference's JSON; what that cannot say stays visible, so that validation refuses it. */
function plainEvents(request: EventsRequest): unknown {
  return {
    events: request.events.map((event, i) => ({
      eventType: event.eventType,
      category: plainCategory(event.category),
      actor: plainActor(event.actor, `events[${i}].actor`),
      timestamp: plainTime(event.timestamp),
      duration: event.duration,
      metadata: event.metadata,
    })),
  };
}

function plainSnapshot(request: SnapshotsRequest): unknown {
  const metrics: Record<string, unknown> = {};
  for (const name of Object.keys(request.metrics)) {
    const value = plainMetric(request.metrics[name] as Metric);
    Object.defineProperty(metrics, name, { value, enumerable: true, configurable: true, writable: true });
  }
  return {
    snapshotType: request.snapshotType,
    actor: plainActor(request.actor, "actor"),
    timestamp: plainTime(request.timestamp),
    metrics,
    metadata: request.metadata,
  };
}

function plainCategory(category: EventCategory): string | undefined {
  if (category === EventCategory.UNSPECIFIED) return undefined;
  return eventCategories[category - 1] ?? `EventCategory ${category}`;
}

function plainActor(actor: Actor | undefined, path: string): unknown {
  if (actor === undefined) return undefined;
  const plain: Record<string, string | undefined> = { displayName: actor.displayName };
  for (const { id } of [actor, ...actor.otherIds]) {
    if (id.case === undefined) continue;
    if (plain[id.case] !== undefined) {
      throw invalidBody([{ path: `${path}.${id.case}`, message: "is given twice" }]);
    }
    plain[id.case] = id.value;
  }
  return plain;
}

function plainTime(time: Timestamp | undefined): string | undefined {
  if (time === undefined) return undefined;
  const date = new Date(Number(time.seconds) * 1000 + Math.floor(time.nanos / 1_000_000));
  const year = date.getUTCFullYear();
  return year >= 1 && year <= 9999 && time.nanos >= 0 && time.nanos < 1e9
    ? date.toISOString()
    : `${time.seconds} s ${time.nanos} ns`;
}

function plainMetric({ kind }: Metric): unknown {
  if (kind.case !== "measure") return kind.value;
  const { value, unit, label } = kind.value;
  return { value, ...(unit === undefined ? {} : { unit }), ...(label === undefined ? {} : { label }) };
}
