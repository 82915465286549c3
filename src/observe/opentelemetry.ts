import { AsyncLocalStorage } from "node:async_hooks";
import type { IncomingHttpHeaders } from "node:http";
import { Code } from "@connectrpc/connect";
import {
  type Attributes,
  defaultTextMapGetter,
  diag,
  DiagLogLevel,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
  type Tracer,
} from "@opentelemetry/api";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { detectResources, envDetector, resourceFromAttributes } from "@opentelemetry/resources";
import {
  BasicTracerProvider,
  BatchSpanProcessor,
  ConsoleSpanExporter,
  ParentBasedSampler,
  type Sampler,
  SamplingDecision,
  type SpanExporter,
} from "@opentelemetry/sdk-trace-base";
import type { CommandStartedEvent, MongoClient } from "mongodb";
import type { Logger } from "pino";
import { ConfigError } from "../config.ts";
import type { RequestEnd, RequestStart } from "../exchange.ts";
import type { Stage } from "../tracing.ts";
import type { BatchHooks } from "../store/group-commit.ts";

/*
 * Tracing with OpenTelemetry. The service loads this file only if the environment turns tracing on, because it loads the
 * SDK. It registers nothing globally: its own AsyncLocalStorage carries the spans.
 */

const flushMs = 3_000;
const linksMax = 100;

export class Tracing {
  readonly #provider: BasicTracerProvider;
  readonly #tracer: Tracer;
  readonly #active = new AsyncLocalStorage<Span | undefined>();
  /** By request id. */
  readonly #requests = new Map<string, Span>();
  readonly #commands = new Map<number, Span>();
  readonly #propagator = new W3CTraceContextPropagator();

  constructor(provider: BasicTracerProvider) {
    this.#provider = provider;
    this.#tracer = provider.getTracer("ingest");
  }

  /** Begins the request's span, in the caller's trace if it sent one, and returns the trace's id. Pages get no span. */
  begun(
    { requestId, rpc, protocol }: Pick<RequestStart, "requestId" | "rpc" | "protocol">,
    headers: IncomingHttpHeaders,
  ): string | undefined {
    if (rpc === "") return undefined;
    const caller = this.#propagator.extract(ROOT_CONTEXT, headers, defaultTextMapGetter);
    const attributes = { "rpc.system": protocol, "rpc.method": rpc };
    const span = this.#tracer.startSpan(rpc, { kind: SpanKind.SERVER, attributes }, caller);
    if (!span.isRecording()) return undefined;
    this.#requests.set(requestId, span);
    return span.spanContext().traceId;
  }

  ended({ requestId }: Pick<RequestStart, "requestId">, end: RequestEnd): void {
    const span = this.#requests.get(requestId);
    if (span === undefined) return;
    this.#requests.delete(requestId);
    span.setAttributes(attributesOf(end));
    if (end.fault?.code === "internal_error") {
      const { cause, message } = end.fault;
      if (cause instanceof Error) span.recordException(cause);
      span.setStatus({ code: SpanStatusCode.ERROR, message });
    }
    span.end();
  }

  readonly stage: Stage = ({ requestId }, name, work) => {
    const request = this.#requests.get(requestId);
    return request === undefined ? work() : this.#within(this.#child(name, request), work);
  };

  /**
   * Several requests share a batch. Its span is a child of the first request's stage, and has links to and from the
   * others.
   */
  readonly batchHooks: Pick<BatchHooks, "onSubmit" | "around"> = {
    onSubmit: () => this.#active.getStore(),
    around: (name, submitted, run) => {
      const [first, ...others] = new Set(submitted.filter((span) => span !== undefined) as Span[]);
      // The active span here belongs to the request that happened to start the batch.
      if (first === undefined) return this.#active.run(undefined, run);
      const linked = others.slice(0, linksMax);
      const links = linked.map((span) => ({ context: span.spanContext() }));
      const attributes = { "ingest.batch.items": submitted.length };
      const options = { attributes, links };
      const batch = this.#tracer.startSpan(`batch ${name}`, options, trace.setSpan(ROOT_CONTEXT, first));
      for (const span of linked) span.addLink({ context: batch.spanContext() });
      return this.#within(batch, run);
    },
  };

  /** The client needs `monitorCommands`. */
  watchCommands(client: MongoClient): void {
    const end = (requestId: number, failure?: Error): void => {
      const span = this.#commands.get(requestId);
      if (span === undefined) return;
      this.#commands.delete(requestId);
      if (failure !== undefined) {
        span.recordException(failure);
        span.setStatus({ code: SpanStatusCode.ERROR, message: failure.name });
      }
      span.end();
    };
    client
      .on("commandStarted", (event) => {
        const parent = this.#active.getStore();
        if (parent === undefined) return;
        const { name, attributes } = describe(event);
        this.#commands.set(event.requestId, this.#child(name, parent, SpanKind.CLIENT, attributes));
      })
      .on("commandSucceeded", ({ requestId }) => end(requestId))
      .on("commandFailed", ({ requestId, failure }) => end(requestId, failure));
  }

  /** Sends the remaining spans, for a limited time. */
  async close(): Promise<void> {
    const flushed = this.#provider.shutdown().catch(() => {});
    await Promise.race([flushed, new Promise((resolve) => setTimeout(resolve, flushMs).unref())]);
  }

  #child(name: string, parent: Span, kind = SpanKind.INTERNAL, attributes: Attributes = {}): Span {
    return this.#tracer.startSpan(name, { kind, attributes }, trace.setSpan(ROOT_CONTEXT, parent));
  }

  #within<T>(span: Span, work: () => T): T {
    try {
      const result = this.#active.run(span, work);
      if (result instanceof Promise) result.finally(() => span.end()).catch(() => {});
      else span.end();
      return result;
    } catch (error) {
      span.end();
      throw error;
    }
  }
}

function attributesOf(end: RequestEnd): Attributes {
  const { requestId, fault, caller, accepted, rejections, claim, status, code } = end;
  return {
    "ingest.request_id": requestId,
    "http.response.status_code": status,
    ...(code === undefined ? {} : { "rpc.response.status_code": Code[code] as string }),
    ...(fault === undefined ? {} : { "error.type": fault.code }),
    ...(caller === undefined ? {} : { "ingest.organization_id": caller.organizationId, "ingest.app_id": caller.appId }),
    ...(claim === undefined ? {} : { "ingest.idempotency": claim }),
    "ingest.accepted": accepted,
    "ingest.rejected": rejections.length,
  };
}

function describe({ commandName, command, databaseName, address }: CommandStartedEvent) {
  const target = command[commandName];
  const collection = typeof target === "string" ? target : undefined;
  return {
    name: collection === undefined ? commandName : `${commandName} ${collection}`,
    attributes: {
      "db.system.name": "mongodb",
      "db.namespace": databaseName,
      "db.operation.name": commandName,
      ...(collection === undefined ? {} : { "db.collection.name": collection }),
      "server.address": address,
    },
  };
}

/**
 * Starts tracing. The OTEL_* variables set exporter, endpoint, headers, protocol, sampler, batching and resource.
 * @param trustsCallers whether a caller's `traceparent` may decide if its request is sampled.
 * @throws ConfigError for an unsupported exporter, protocol or sampler.
 */
export async function startTracing(logger: Logger, trustsCallers: boolean): Promise<Tracing> {
  const log = (message: string, ...rest: unknown[]) => logger.warn({ detail: rest.map(String) }, `tracing: ${message}`);
  const ignored = () => {};
  diag.setLogger(
    { error: log, warn: log, info: ignored, debug: ignored, verbose: ignored },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
  const resource = resourceFromAttributes({ "service.name": "ingest" }).merge(
    detectResources({ detectors: [envDetector] }),
  );
  const spanProcessors = [new BatchSpanProcessor(await exporterOf(process.env))];
  const sampler = ownSampler(process.env);
  // Without a sampler the SDK makes the one that the environment names.
  return new Tracing(new BasicTracerProvider({ resource, spanProcessors, ...(trustsCallers ? {} : { sampler }) }));
}

/**
 * The sampler of the environment without its trust in callers. Otherwise a stranger would choose which
 * traces Ingest stores, by the flag or by the trace id.
 */
function ownSampler(env: NodeJS.ProcessEnv): Sampler {
  const share = shareOf(env);
  const sampled = () => Math.random() < share;
  const root: Sampler = {
    shouldSample: () => ({ decision: sampled() ? SamplingDecision.RECORD_AND_SAMPLED : SamplingDecision.NOT_RECORD }),
    toString: () => `Share{${share}}`,
  };
  return new ParentBasedSampler({ root, remoteParentSampled: root, remoteParentNotSampled: root });
}

/** The share of requests to sample, from 0 to 1. */
function shareOf({ OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG }: NodeJS.ProcessEnv): number {
  const name = OTEL_TRACES_SAMPLER || "always_on";
  switch (name.replace(/^parentbased_/, "")) {
    case "always_on":
      return 1;
    case "always_off":
      return 0;
    case "traceidratio": {
      const share = Number(OTEL_TRACES_SAMPLER_ARG || 1);
      if (share >= 0 && share <= 1) return share;
      throw new ConfigError(`OTEL_TRACES_SAMPLER_ARG is '${OTEL_TRACES_SAMPLER_ARG}'; it must be from 0 to 1.`);
    }
    default:
      throw new ConfigError(
        `OTEL_TRACES_SAMPLER is '${name}'; it must be always_on, always_off or traceidratio, or one of them after parentbased_.`,
      );
  }
}

async function exporterOf(env: NodeJS.ProcessEnv): Promise<SpanExporter> {
  const exporter = env.OTEL_TRACES_EXPORTER || "otlp";
  if (exporter === "console") return new ConsoleSpanExporter();
  if (exporter !== "otlp") {
    throw new ConfigError(`OTEL_TRACES_EXPORTER is '${exporter}'; it must be otlp, console or none.`);
  }
  const protocol = env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL || env.OTEL_EXPORTER_OTLP_PROTOCOL || "http/protobuf";
  switch (protocol) {
    case "http/protobuf":
      return new (await import("@opentelemetry/exporter-trace-otlp-proto")).OTLPTraceExporter();
    case "http/json":
      return new (await import("@opentelemetry/exporter-trace-otlp-http")).OTLPTraceExporter();
    case "grpc":
      return new (await import("./otlp-grpc.ts")).GrpcSpanExporter();
    default:
      throw new ConfigError(
        `OTEL_EXPORTER_OTLP_PROTOCOL is '${protocol}'; it must be http/protobuf, http/json or grpc.`,
      );
  }
}
