import type { IncomingHttpHeaders } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import { create, isMessage } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import {
  compressedFlag,
  createMethodSerializationLookup,
  encodeEnvelope,
  type Serialization,
} from "@connectrpc/connect/protocol";
import { setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import type { Exchange } from "../../exchange.ts";
import type { RequestHeader } from "../../headers.ts";
import { tidyHeaders } from "../http/request-headers.ts";
import { type AdapterOptions, newExchange } from "../http/options.ts";
import type { BodyBudget, BodyLease } from "../http/body-budget.ts";
import { drainStream } from "../http/body.ts";
import { afterMs, deadlineOf } from "../http/deadline.ts";
import { dressedError, type FaultOf, rpcErrorFrom } from "./errors.ts";
import { answerHeaders } from "../http/answer-headers.ts";
import type { Init, UnaryContext, UnaryRpc } from "./unary.ts";

/**
 * gRPC unary calls straight from HTTP/2's streams: one envelope in, one out, trailers. Connect's own way to serve them, a
 * pipeline of async iterables with an AbortController a call over Node's compatibility layer, costs several times the
 * work of a call. What is answered is the same, which connectconformance checks; take the module out (and the `stream` of
 * the adapter) and everything still works, only slower.
 *
 * What needs more than that is declined: other methods, codecs, compressions, a malformed deadline.
 */

/** Serves a stream, or declines it by answering false. */
export type StreamHandler = (
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  rawHeaders: readonly string[],
) => boolean;

export interface GrpcUnaryOptions extends Pick<
  AdapterOptions,
  "unary" | "publicUrl" | "newRequestId" | "now" | "onBegin" | "onEnd"
> {
  readonly messageBytesMax: number;
  readonly faultOf: FaultOf;
  readonly budget: BodyBudget;
}

/** A row of the table, prepared. */
interface Method {
  readonly path: string;
  readonly rpc: UnaryRpc;
  readonly input: Serialization<any>;
  readonly output: Serialization<any>;
}

const contentTypes = new Set(["application/grpc", "application/grpc+proto"]);
const encodings = new Set([undefined, "identity", "gzip"]);
/** Smaller answers are not worth compressing: Connect's bound. */
const compressBytesMin = 1024;
const prefixBytes = 5;

export function createGrpcUnary(options: GrpcUnaryOptions): StreamHandler {
  const limits = { readMaxBytes: options.messageBytesMax, writeMaxBytes: 0xffffffff };
  const methods = new Map<string | undefined, Method>();
  for (const rpc of options.unary) {
    const path = `/${rpc.method.parent.typeName}/${rpc.method.name}`;
    const serialization = createMethodSerializationLookup(rpc.method, undefined, undefined, limits);
    methods.set(path, { path, rpc, input: serialization.getI(true), output: serialization.getO(true) });
  }
  return (stream, headers, rawHeaders) => {
    const ambiguous = tidyHeaders(headers, rawHeaders);
    const method = methods.get(headers[":path"] as string | undefined);
    if (
      method === undefined ||
      headers[":method"] !== "POST" ||
      !contentTypes.has(headers["content-type"] ?? "") ||
      !encodings.has(headers["grpc-encoding"] as string | undefined) ||
      headers.expect !== undefined
    ) {
      return false;
    }
    const deadlineMs = deadlineOf(headers, options.now());
    if (deadlineMs === undefined && headers["grpc-timeout"] !== undefined) return false;
    new GrpcUnaryCall(stream, headers, method, options, deadlineMs, ambiguous).start();
    return true;
  };
}

class GrpcUnaryCall implements UnaryContext {
  readonly exchange: Exchange;
  readonly headers: IncomingHttpHeaders;
  readonly #stream: ServerHttp2Stream;
  readonly #method: Method;
  readonly #options: GrpcUnaryOptions;
  readonly #startedMs = performance.now();
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  #admitted: unknown;
  #answered = false;
  #code: Code | undefined;
  #responseHeader: Headers | undefined;
  #responseTrailer: Headers | undefined;
  #stopTimer: (() => void) | undefined;
  #hold: BodyLease | undefined;

  constructor(
    stream: ServerHttp2Stream,
    headers: IncomingHttpHeaders,
    method: Method,
    options: GrpcUnaryOptions,
    deadlineMs: number | undefined,
    ambiguous: RequestHeader | undefined,
  ) {
    this.#stream = stream;
    this.headers = headers;
    this.#method = method;
    this.#options = options;
    this.exchange = newExchange(
      options,
      "grpc",
      method.rpc.method.name,
      headers,
      deadlineMs,
      ambiguous,
      stream.session?.socket.remoteAddress,
    );
  }

  get responseHeader(): Headers {
    return (this.#responseHeader ??= new Headers());
  }

  get responseTrailer(): Headers {
    return (this.#responseTrailer ??= new Headers());
  }

  /** Admits the caller, then reads its message. */
  start(): void {
    const { deadlineMs } = this.exchange;
    this.#stream.on("error", () => {});
    this.#stream.once("close", () => this.#closed());
    if (deadlineMs !== undefined) {
      const timedOut = () => this.#fail(new ConnectError("the operation timed out", Code.DeadlineExceeded));
      this.#stopTimer = afterMs(deadlineMs - this.#options.now(), timedOut);
    }
    this.#run(
      () => this.#method.rpc.admit(this),
      (admitted) => {
        this.#admitted = admitted;
        this.#stream.on("data", (chunk: Buffer) => this.#receive(chunk));
        this.#stream.once("end", () => this.#received());
      },
    );
  }

  /** Does one step and the next with its result, at once where it can; an error of either ends the call. */
  #run<T>(step: () => T | Promise<T>, next: (result: T) => void): void {
    const fail = (error: unknown) => this.#fail(error);
    try {
      const result = step();
      if (result instanceof Promise) result.then((value) => this.#answered || next(value)).catch(fail);
      else if (!this.#answered) next(result);
    } catch (error) {
      fail(error);
    }
  }

  #receive(chunk: Buffer): void {
    if (this.#answered) return;
    this.#bytes += chunk.length;
    this.#chunks.push(chunk);
    if (!this.#holds(chunk.length)) return;
    if (this.#bytes > prefixBytes + this.#options.messageBytesMax) this.#fail(this.#tooLarge());
    else if (this.#chunks.length === 1 && chunk.length >= prefixBytes && this.#isTooLarge(chunk.readUInt32BE(1))) {
      this.#fail(this.#tooLarge());
    }
  }

  /** Whether there is room for more of the message; without it the call has failed. */
  #holds(bytes: number): boolean {
    this.#hold ??= this.#options.budget.open(
      () => this.#stream.close(constants.NGHTTP2_CANCEL),
      () => this.exchange.caller?.organizationId ?? "",
    );
    const full = this.#hold.take(bytes);
    if (full !== undefined) this.#fail(full);
    return full === undefined;
  }

  #received(): void {
    if (this.#answered) return;
    this.#hold?.arrived();
    this.#run(
      () => this.#message(),
      (message) =>
        this.#holds(Math.max(0, message.length - this.#bytes)) &&
        this.#run(
          () => this.#hold?.turn(),
          (refusal) => (refusal === undefined ? this.#call(message) : this.#fail(refusal)),
        ),
    );
  }

  #call(message: Uint8Array): void {
    this.#run(
      () => this.#method.rpc.call(this.#method.input.parse(message), this.#admitted, this),
      (answer) => this.#succeed(answer),
    );
  }

  /** The one message of the request, decompressed. @throws ConnectError when there is not exactly one. */
  #message(): Uint8Array | Promise<Uint8Array> {
    const bytes = this.#chunks.length === 1 ? (this.#chunks[0] as Buffer) : Buffer.concat(this.#chunks, this.#bytes);
    if (bytes.length === 0) {
      throw new ConnectError("protocol error: missing input message for unary method", Code.Unimplemented);
    }
    const end = endOfEnvelope(bytes, 0);
    if (end === undefined) throw new ConnectError("protocol error: incomplete envelope", Code.InvalidArgument);
    if (this.#isTooLarge(end - prefixBytes)) throw this.#tooLarge();
    if (end < bytes.length) {
      throw endOfEnvelope(bytes, end) === undefined
        ? new ConnectError("protocol error: incomplete envelope", Code.InvalidArgument)
        : new ConnectError("protocol error: received extra input message for unary method", Code.Unimplemented);
    }
    const data = bytes.subarray(prefixBytes, end);
    if (((bytes[0] as number) & compressedFlag) === 0) return data;
    if (this.headers["grpc-encoding"] !== "gzip") {
      throw new ConnectError("received compressed envelope, but do not know how to decompress", Code.Internal);
    }
    return compressionGzip.decompress(new Uint8Array(data), this.#options.messageBytesMax);
  }

  #isTooLarge(bytes: number): boolean {
    return bytes > this.#options.messageBytesMax;
  }

  #tooLarge(): ConnectError {
    const { messageBytesMax } = this.#options;
    return new ConnectError(
      `message size is larger than configured readMaxBytes ${messageBytesMax}`,
      Code.ResourceExhausted,
    );
  }

  #succeed(answer: Init): void {
    const { rpc, output } = this.#method;
    const desc = rpc.method.output;
    const data = output.serialize(isMessage(answer, desc) ? answer : create(desc, answer));
    if (data.length >= compressBytesMin && this.#compresses()) {
      this.#run(
        () => compressionGzip.compress(data as Uint8Array<ArrayBuffer>),
        (compressed) => this.#answer(encodeEnvelope(compressedFlag, compressed)),
      );
    } else {
      this.#answer(encodeEnvelope(0, data));
    }
  }

  /** A caller that compresses gets compressed answers, if it takes them. */
  #compresses(): boolean {
    const accepted = this.headers["grpc-accept-encoding"] as string | undefined;
    if (accepted === undefined || accepted === "") return this.headers["grpc-encoding"] === "gzip";
    return accepted.split(",").some((name) => name.trim() === "gzip");
  }

  #fail(thrown: unknown): void {
    if (this.#answered) return;
    const { publicUrl, faultOf } = this.#options;
    let error = rpcErrorFrom(thrown, this.exchange, publicUrl);
    error = dressedError(error, this.exchange, publicUrl, faultOf) ?? error;
    this.#code = error.code;
    setTrailerStatus(this.responseTrailer, error);
    this.#answer(undefined);
  }

  #answer(body: Uint8Array | undefined): void {
    this.#answered = true;
    this.#hold?.done();
    this.#stopTimer?.();
    const stream = this.#stream;
    if (stream.destroyed || stream.closed) return;
    const headers = answerHeaders(this.exchange);
    headers["content-type"] = "application/grpc+proto";
    if (this.#compresses()) headers["grpc-encoding"] = "gzip";
    this.#responseHeader?.forEach((value, name) => (headers[name] = value));
    const trailers: Record<string, string> = { "grpc-status": "0" };
    this.#responseTrailer?.forEach((value, name) => (trailers[name] = value));
    stream.respond(headers, { waitForTrailers: true });
    stream.once("wantTrailers", () => stream.sendTrailers(trailers));
    stream.end(body);
    if (!stream.readableEnded) drainStream(stream);
  }

  #closed(): void {
    this.#stopTimer?.();
    this.#hold?.release();
    if (!this.#answered) this.exchange.abandoned = true;
    const status = this.#answered ? 200 : 0;
    this.#answered = true;
    this.#options.onEnd?.(this.exchange, {
      method: "POST",
      path: this.#method.path,
      status,
      code: this.#code,
      durationMs: performance.now() - this.#startedMs,
    });
  }
}

/** Where the envelope that begins at `offset` ends; undefined when that is past the end. */
function endOfEnvelope(bytes: Buffer, offset: number): number | undefined {
  if (bytes.length < offset + prefixBytes) return undefined;
  const end = offset + prefixBytes + bytes.readUInt32BE(offset + 1);
  return end <= bytes.length ? end : undefined;
}
