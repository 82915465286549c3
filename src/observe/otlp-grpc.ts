import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { create, createFileRegistry, type DescMethodUnary, fromBinary } from "@bufbuild/protobuf";
import { EmptySchema, file_google_protobuf_empty, FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { compressionGzip, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { type ExportResult, ExportResultCode, getStringFromEnv, parseKeyPairsIntoRecord } from "@opentelemetry/core";
import { ProtobufTraceSerializer } from "@opentelemetry/otlp-transformer";
import type { ReadableSpan, SpanExporter } from "@opentelemetry/sdk-trace-base";
import { ConfigError } from "../config.ts";

// docs/decisions/otlp-grpc.md says why this is not OpenTelemetry's exporter.

/**
 * The collector's method. OpenTelemetry's serialiser writes the messages, so our message types have only unknown
 * fields.
 */
const exportMethod = createFileRegistry(
  create(FileDescriptorProtoSchema, {
    name: "trace_service.proto",
    package: "opentelemetry.proto.collector.trace.v1",
    dependency: [file_google_protobuf_empty.proto.name],
    service: [
      {
        name: "TraceService",
        method: [{ name: "Export", inputType: ".google.protobuf.Empty", outputType: ".google.protobuf.Empty" }],
      },
    ],
    syntax: "proto3",
  }),
  () => file_google_protobuf_empty,
).getService("opentelemetry.proto.collector.trace.v1.TraceService")?.method.export as DescMethodUnary;

const { Canceled, DeadlineExceeded, Aborted, OutOfRange, Unavailable, DataLoss } = Code;
const passingCodes = new Set([Canceled, DeadlineExceeded, Aborted, OutOfRange, Unavailable, DataLoss]);
/** Milliseconds for all tries of one batch of spans. */
const timeoutMsDefault = 10_000;
const retry = { firstMs: 1_000, factor: 1.5, triesMax: 5 } as const;

/** The setting for traces, or else the one for all signals. */
const setting = (name: string) =>
  getStringFromEnv(`OTEL_EXPORTER_OTLP_TRACES_${name}`) ?? getStringFromEnv(`OTEL_EXPORTER_OTLP_${name}`);

export class GrpcSpanExporter implements SpanExporter {
  readonly #transport: Transport;
  readonly #session: Http2SessionManager;
  readonly #headers = parseKeyPairsIntoRecord(setting("HEADERS"));
  readonly #timeoutMs = Number(setting("TIMEOUT") ?? timeoutMsDefault) || timeoutMsDefault;
  readonly #sending = new Set<Promise<void>>();

  /** @throws ConfigError for an invalid endpoint or an unreadable certificate. */
  constructor() {
    const baseUrl = originOf(setting("ENDPOINT") ?? "http://localhost:4317");
    const [ca, key, cert] = ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"].map(contentOf);
    const files = Object.entries({ ca, key, cert }).filter(([, file]) => file !== undefined);
    this.#session = new Http2SessionManager(baseUrl, {}, Object.fromEntries(files));
    this.#transport = createGrpcTransport({
      baseUrl,
      sessionManager: this.#session,
      ...(setting("COMPRESSION") === "gzip" ? { sendCompression: compressionGzip } : {}),
    });
  }

  export(spans: ReadableSpan[], done: (result: ExportResult) => void): void {
    const sent = this.#send(ProtobufTraceSerializer.serializeRequest(spans) ?? new Uint8Array())
      .then(
        () => done({ code: ExportResultCode.SUCCESS }),
        (error: Error) => done({ code: ExportResultCode.FAILED, error }),
      )
      .finally(() => this.#sending.delete(sent));
    this.#sending.add(sent);
  }

  async forceFlush(): Promise<void> {
    await Promise.all(this.#sending);
  }

  async shutdown(): Promise<void> {
    await this.forceFlush();
    this.#session.abort();
  }

  async #send(request: Uint8Array): Promise<void> {
    const message = fromBinary(EmptySchema, request);
    const deadlineMs = performance.now() + this.#timeoutMs;
    let waitMs: number = retry.firstMs;
    for (let tries = 1; ; tries++) {
      const leftMs = deadlineMs - performance.now();
      try {
        await this.#transport.unary(exportMethod, undefined, leftMs, this.#headers, message);
        return;
      } catch (error) {
        const isLast = tries === retry.triesMax || performance.now() + waitMs > deadlineMs;
        if (isLast || !passingCodes.has(ConnectError.from(error).code)) throw error;
      }
      await delay(waitMs);
      waitMs *= retry.factor;
    }
  }
}

/**
 * Drops the path, which gRPC does not use. An address without a scheme means TLS, unless the INSECURE setting is true.
 */
function originOf(endpoint: string): string {
  const scheme = setting("INSECURE")?.toLowerCase() === "true" ? "http" : "https";
  const url = endpoint.includes("://") ? endpoint : `${scheme}://${endpoint}`;
  if (!URL.canParse(url) || !/^https?:/.test(url)) {
    throw new ConfigError(
      `OTEL_EXPORTER_OTLP_ENDPOINT is '${endpoint}'; it must be an address such as http://collector:4317.`,
    );
  }
  return new URL(url).origin;
}

function contentOf(name: string): Buffer | undefined {
  const path = setting(name);
  try {
    return path === undefined ? undefined : readFileSync(path);
  } catch (error) {
    throw new ConfigError(`OTEL_EXPORTER_OTLP_${name} cannot be read: ${(error as Error).message}`, { cause: error });
  }
}
