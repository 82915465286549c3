import { promisify } from "node:util";
import { createGunzip, gzip } from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import { compressedFlag, encodeEnvelope } from "@connectrpc/connect/protocol";
import { Fault } from "../../errors.ts";
import { Failure } from "../../exchange.ts";
import { invalidMember } from "../../ingest/validate.ts";
import { streamHeaders } from "../http/answer-headers.ts";
import { type Encoding, encodingOf, readWhole, tooLarge } from "../http/body.ts";
import type { HttpCall } from "../http/http-call.ts";
import type { AdapterOptions } from "../http/options.ts";
import { afterMs } from "./deadline.ts";
import { RpcFault } from "./errors.ts";
import { MessageCodec } from "./message-codec.ts";
import { bytesOfQuery } from "./query.ts";
import type { Rpc, RpcContext } from "./rpc.ts";
import { connectErrorReply, type Form } from "./wires.ts";

const compress = promisify(gzip);

/** Connect does not compress smaller answers either. */
const compressBytesMin = 1024;
const prefixBytes = 5;

export type RpcCallOptions = Pick<AdapterOptions, "jsonOptions"> &
  Required<Pick<AdapterOptions, "publicUrl" | "now" | "messageBytesMax" | "errorOf">>;

const timedOut = () => new ConnectError("the operation timed out", Code.DeadlineExceeded);

/**
 * One RPC whose request is one message, over Connect, gRPC or gRPC-Web. It admits the caller, reads the message, does the
 * work and answers. The form holds what differs between the protocols.
 */
export class RpcCall implements RpcContext {
  readonly request: HttpCall;
  readonly #form: Form;
  readonly #options: RpcCallOptions;
  #responseHeader: Headers | undefined;
  #responseTrailer: Headers | undefined;
  #isStream = false;

  constructor(request: HttpCall, form: Form, options: RpcCallOptions) {
    this.request = request;
    this.#form = form;
    this.#options = options;
  }

  get responseHeader(): Headers {
    return (this.#responseHeader ??= new Headers());
  }

  get responseTrailer(): Headers {
    return (this.#responseTrailer ??= new Headers());
  }

  get signal(): AbortSignal {
    return this.request.signal;
  }

  /** @param badTimeout what is wrong with the caller's time limit. */
  async run({ admit, method }: Rpc, badTimeout: Fault | undefined): Promise<void> {
    this.#isStream = method.methodKind === "server_streaming";
    const stopTimer = this.#startTimer();
    try {
      // A timer would race with the work.
      if (this.#leftMs() <= 0) throw timedOut();
      const work = await admit(this);
      if (badTimeout !== undefined) throw badTimeout;
      const encoding = this.#checkedEncoding();
      const codec = new MessageCodec(await this.#readMessage(encoding), this.#form.format, this.#options.jsonOptions);
      try {
        const answer = work(codec);
        if (answer instanceof Promise) {
          const data = await answer;
          this.#noteIgnored(codec);
          await this.#answer(data);
        } else await this.#stream(answer);
      } catch (error) {
        if (error instanceof Failure) this.request.note(error.facts);
        this.#noteIgnored(codec);
        throw codec.spelled(error);
      }
    } catch (error) {
      this.fail(error);
    } finally {
      stopTimer?.();
    }
  }

  /** Answers with an error, also in the middle of a stream, unless the answer is over. */
  fail(thrown: unknown): void {
    try {
      this.#fail(thrown);
    } catch (defect) {
      this.crash(defect);
    }
  }

  /** Ends the call after a defect of ours. */
  crash(defect: unknown): void {
    this.request.crash(defect, ({ message, connectCode }) => this.#fail(new ConnectError(message, connectCode)));
  }

  #fail(thrown: unknown): void {
    const call = this.request;
    if (call.isOver || (call.hasBegun && !this.#isStream)) return;
    const { jsonOptions } = this.#options;
    const { wire } = this.#form;
    const error = this.#errorFrom(thrown);
    if (wire.end === undefined) {
      const { status, headers, body } = connectErrorReply(error, jsonOptions);
      return call.send({ status, headers: { ...this.#headers(), ...headers }, body });
    }
    const { data, trailers } = wire.end(error, this.#responseTrailer, jsonOptions);
    if (!call.hasBegun) call.begin(200, this.#headers(), trailers === undefined ? "body" : "body and trailers");
    call.end(data, trailers);
  }

  /**
   * Answers that there is no such RPC. Over gRPC the headers have the status ("trailers-only"), because balancers look for
   * it there when they check a server's health.
   */
  failUnknown(path: string): void {
    const fault = new RpcFault(Code.Unimplemented, new Fault("not_found", `There is no RPC at '${path}'.`));
    const { wire } = this.#form;
    if (wire.protocol !== "grpc") return this.fail(fault);
    const status = wire.end?.(this.#errorFrom(fault), undefined, this.#options.jsonOptions).trailers;
    this.request.begin(200, { ...this.#headers(), ...status }, "nothing");
    this.request.end();
  }

  /** The error as it leaves, written down for the observers. */
  #errorFrom(thrown: unknown): ConnectError {
    const { publicUrl, errorOf } = this.#options;
    const call = this.request;
    const error = thrown instanceof ConnectError ? thrown : errorOf(call.failed(thrown), call, publicUrl);
    call.note({ code: error.code });
    return error;
  }

  /** Notes the members that the parser ignored, because validation never saw them. */
  #noteIgnored(codec: MessageCodec): void {
    const call = this.request;
    if (call.known.dryRun && !call.hasBegun) call.note({ ignoredMembers: codec.ignored() });
  }

  /** Milliseconds until the caller's deadline; infinite without one. */
  #leftMs(): number {
    const { deadlineMs = Number.POSITIVE_INFINITY } = this.request.start;
    return deadlineMs - this.#options.now();
  }

  /** Ends the call at its deadline. Returns a function that cancels this. */
  #startTimer(): (() => void) | undefined {
    const leftMs = this.#leftMs();
    if (leftMs === Number.POSITIVE_INFINITY) return undefined;
    return afterMs(leftMs, () => {
      const error = timedOut();
      this.fail(error);
      this.request.cancel(error);
    });
  }

  /** @throws Fault for a compression that we do not have. */
  #checkedEncoding(): Encoding {
    const { wire } = this.#form;
    const isGet = this.request.start.method === "GET";
    const given = isGet
      ? (new URLSearchParams(this.request.query).get("compression") ?? undefined)
      : this.request.headers[wire.encodingHeader];
    const encoding = encodingOf(given);
    if (encoding !== undefined) return encoding;
    // The code tells clients to send it uncompressed, and the header which compression we take.
    this.responseHeader.set(wire.acceptHeader, "gzip");
    const path = isGet ? "compression" : wire.encodingHeader;
    const message = `must be gzip or absent; it is '${String(given)}'`;
    throw new RpcFault(Code.Unimplemented, invalidMember(path, message));
  }

  #readMessage(encoding: Encoding): Promise<Uint8Array> {
    const { channel, lease, start, query } = this.request;
    const { messageBytesMax: bytesMax } = this.#options;
    if (start.method === "GET") return this.#decompressed(bytesOfQuery(query), encoding);
    if (this.#form.wire.end === undefined) return readWhole(channel, { bytesMax, encoding, lease });
    return readWhole(channel, { bytesMax, prefixBytes, encoding: "identity", lease }).then((body) => {
      const { data, isCompressed } = onlyEnvelope(body, bytesMax);
      if (!isCompressed) return data;
      if (encoding === "identity")
        throw protocolFault("has a compressed message, and no header says how", Code.Internal);
      return this.#decompressed(data, encoding);
    });
  }

  async #decompressed(data: Uint8Array, encoding: Encoding): Promise<Uint8Array> {
    if (encoding === "identity" || data.length === 0) return data;
    const { messageBytesMax } = this.#options;
    const { lease } = this.request;
    const gunzip = createGunzip();
    gunzip.end(data);
    const chunks: Buffer[] = [];
    let bytes = 0;
    try {
      // Piece by piece, so that many small messages which expand at once do not pass the budget.
      for await (const chunk of gunzip as AsyncIterable<Buffer>) {
        bytes += chunk.length;
        const refusal = bytes > messageBytesMax ? tooLarge(messageBytesMax) : lease.take(chunk.length);
        if (refusal !== undefined) throw refusal;
        chunks.push(chunk);
      }
    } catch (error) {
      throw error instanceof Fault ? error : protocolFault("is not valid gzip");
    }
    const refusal = await lease.turn();
    if (refusal !== undefined) throw refusal;
    return Buffer.concat(chunks, bytes);
  }

  #answer(data: Uint8Array): void | Promise<void> {
    const isCompressed = data.length >= compressBytesMin && this.#takesGzip;
    if (isCompressed) return compress(data).then((compressed) => this.#send(compressed, true));
    this.#send(data, false);
  }

  #send(sent: Uint8Array, isCompressed: boolean): void {
    const { wire } = this.#form;
    const headers = this.#headers();
    if (wire.end === undefined) {
      if (isCompressed) headers["content-encoding"] = "gzip";
      return this.request.send({ status: 200, headers, body: sent });
    }
    const envelope = encodeEnvelope(isCompressed ? compressedFlag : 0, sent);
    const { data: last, trailers } = wire.end(undefined, this.#responseTrailer, this.#options.jsonOptions);
    const body = last === undefined ? envelope : Buffer.concat([envelope, last]);
    this.request.send({ status: 200, headers, body, ...(trailers === undefined ? {} : { trailers }) });
  }

  async #stream(messages: AsyncGenerator<Uint8Array, void>): Promise<void> {
    const call = this.request;
    const { wire } = this.#form;
    try {
      for (let next = await messages.next(); !call.isOver; next = await messages.next()) {
        // Only now: an error before the first message is an answer of its own.
        if (!call.hasBegun) call.begin(200, this.#headers(), wire.protocol === "grpc" ? "body and trailers" : "body");
        if (next.done === true) break;
        const isCompressed = next.value.length >= compressBytesMin && this.#takesGzip;
        const data = isCompressed ? await compress(next.value) : next.value;
        if (!call.isOver) await call.write(encodeEnvelope(isCompressed ? compressedFlag : 0, data));
      }
    } finally {
      await messages.return();
    }
    const end = wire.end?.(undefined, this.#responseTrailer, this.#options.jsonOptions);
    call.end(end?.data, end?.trailers);
  }

  /** Whether the caller takes gzip. One that says nothing takes it if it sends gzip. */
  get #takesGzip(): boolean {
    const { wire } = this.#form;
    const accepted = this.request.headers[wire.acceptHeader];
    if (accepted === undefined || accepted === "")
      return encodingOf(this.request.headers[wire.encodingHeader]) === "gzip";
    return String(accepted)
      .split(",")
      .some((name) => name.trim() === "gzip");
  }

  /** The protocol's headers of an answer. */
  #headers(): Record<string, string> {
    const { wire, format } = this.#form;
    const headers: Record<string, string> = { "content-type": wire.contentTypes[format] };
    if (wire.end !== undefined && this.#takesGzip) headers[wire.encodingHeader] = "gzip";
    if (this.#isStream) Object.assign(headers, streamHeaders);
    this.#responseHeader?.forEach((value, name) => (headers[name] = value));
    if (wire.end === undefined) {
      this.#responseTrailer?.forEach((value, name) => (headers[`trailer-${name}`] = value));
    }
    return headers;
  }
}

/** The only envelope of a body. @throws Fault if there is not exactly one, or its message is too large. */
function onlyEnvelope(body: Buffer, bytesMax: number): { data: Uint8Array; isCompressed: boolean } {
  if (body.length === 0) throw protocolFault("holds no message; this call takes one", Code.Unimplemented);
  if (body.length < prefixBytes) throw protocolFault("ends within a message");
  const messageBytes = body.readUInt32BE(1);
  if (messageBytes > bytesMax) throw tooLarge(bytesMax);
  const end = prefixBytes + messageBytes;
  if (end > body.length) throw protocolFault("ends within a message");
  if (end < body.length) {
    const rest = body.subarray(end);
    const isWhole = rest.length >= prefixBytes && prefixBytes + rest.readUInt32BE(1) <= rest.length;
    if (isWhole) throw protocolFault("holds several messages; this call takes one", Code.Unimplemented);
    throw protocolFault("ends within a message");
  }
  return { data: body.subarray(prefixBytes, end), isCompressed: (body.readUInt8(0) & compressedFlag) !== 0 };
}

/** The fault of a body that the protocol forbids, with the protocol's code. */
const protocolFault = (message: string, code = Code.InvalidArgument): Fault =>
  new RpcFault(code, invalidMember("body", message));
