import type { IncomingHttpHeaders } from "node:http";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Fault, faultFrom, unexpected } from "../../errors.ts";
import { Failure, type Outcome, type RequestEnd, type RequestStart, unknownEnd } from "../../exchange.ts";
import { invalidMember } from "../../ingest/validate.ts";
import type { Cors } from "../rest/cors.ts";
import { toRestError } from "../rpc/errors.ts";
import { answerHeaders, jsonType } from "./answer-headers.ts";
import { drained, encodingOf, endAnswer, readWhole } from "./body.ts";
import type { BodyBudget, BodyLease } from "./body-budget.ts";
import type { Channel, Rest } from "./channel.ts";
import type { AdapterOptions } from "./options.ts";
import type { Route, RouteReply, RouteRequest, StreamReply } from "./route.ts";

const ignore = () => {};
const gone = () => new ConnectError("the caller has gone away", Code.Canceled);

/** What serves a request. */
export interface Found extends Pick<RequestStart, "protocol" | "rpc" | "deadlineMs"> {
  readonly serve: (call: HttpCall) => Promise<void>;
}

export interface HttpCallOptions extends Pick<
  AdapterOptions,
  "publicUrl" | "now" | "onEnd" | "onError" | "refusalPage"
> {
  readonly cors: Cors | undefined;
  readonly budget: BodyBudget;
  /** Value of the Keep-Alive header. Node sets it only for its own time limit, which we do not use. */
  readonly keepAlive: string;
}

/** An answer with its whole body. */
export interface Reply extends RouteReply {
  /** Sent after the body. */
  readonly trailers?: Record<string, string>;
}

/**
 * One request and its answer, over any protocol. It bounds the body, sets the headers of every answer, and knows when the
 * call begins and ends. REST's routes and RPCs read the request and make the answer.
 */
export class HttpCall implements RouteRequest {
  readonly channel: Channel;
  readonly query: string;
  readonly start: RequestStart;
  readonly options: HttpCallOptions;
  readonly #startedMs = performance.now();
  readonly #known: { -readonly [name in keyof RequestEnd]: RequestEnd[name] };
  #lease: BodyLease | undefined;
  #status = 0;
  #hasAnswered = false;
  #hasEnded = false;
  #isServed = false;
  #abort: AbortController | undefined;
  #cors: Cors | undefined;

  constructor(channel: Channel, query: string, start: RequestStart, options: HttpCallOptions) {
    this.channel = channel;
    this.query = query;
    this.start = start;
    this.options = options;
    this.#cors = options.cors;
    this.#known = unknownEnd(start.requestId);
    channel.sink.on("close", () => this.#ended());
    channel.sink.on("error", ignore);
    // Over HTTP/2, one stream is both.
    if ((channel.source as object) !== channel.sink) channel.source.on("error", ignore);
  }

  get headers(): IncomingHttpHeaders {
    return this.channel.headers;
  }

  get connection(): object | undefined {
    return this.channel.connection;
  }

  /** What is known of the request's end so far. */
  get known(): RequestEnd {
    return this.#known;
  }

  /** Writes down what has become known. */
  note(facts: Partial<RequestEnd>): void {
    Object.assign(this.#known, facts);
  }

  answerOf<Answer>({ answer, facts }: Outcome<Answer>): Answer {
    this.note(facts);
    return answer;
  }

  /** Writes down why the request failed. The first reason counts. */
  failed(error: unknown): Fault {
    const fault = faultFrom(error);
    if (fault instanceof Failure) this.note(fault.facts);
    this.note({ fault: this.#known.fault ?? fault });
    return fault;
  }

  /** Ends the request after a defect of ours: with an error if no answer has begun, or else by cutting it off. */
  crash(defect: unknown, answer: (fault: Fault) => void = (fault) => this.send(this.errorReply(fault))): void {
    const fault = unexpected(defect);
    this.note({ fault });
    try {
      if (!this.hasBegun) answer(fault);
    } catch {
      // There is no answer, so the caller sees the request cut off.
    }
    if (this.#hasEnded && this.#isServed) this.options.onError(defect);
    if (!this.isOver) this.channel.cut();
  }

  /** Whether an answer has begun; `send` then drops any other. */
  get hasBegun(): boolean {
    return this.#status !== 0;
  }

  /** Whether the whole answer is with Node, or the caller has gone away. */
  get isOver(): boolean {
    return this.#hasAnswered || this.#hasEnded || this.channel.isGone;
  }

  /** The body's part of the budget. */
  get lease(): BodyLease {
    this.#lease ??= this.options.budget.open(
      () => this.channel.cut(),
      () => this.#known.caller?.organizationId ?? "",
    );
    // Nothing else would give the bytes back, because the request has ended.
    if (this.#hasEnded) this.#lease.release();
    return this.#lease;
  }

  readBody(bytesMax: number): Promise<Buffer> {
    const { "content-encoding": given } = this.headers;
    const encoding = encodingOf(given);
    if (encoding !== undefined) return readWhole(this.channel, { bytesMax, encoding, lease: this.lease });
    const message = `must be gzip or absent; it is '${given}'`;
    return Promise.reject(invalidMember("Content-Encoding", message));
  }

  get signal(): AbortSignal {
    if (this.#abort === undefined) {
      this.#abort = new AbortController();
      if (this.#hasEnded) this.cancel(gone());
    }
    return this.#abort.signal;
  }

  /** Aborts the work, if it listens. */
  cancel(reason: ConnectError): void {
    this.#abort?.abort(reason);
  }

  async serve(route: Route, variables: Readonly<Record<string, string>> = {}): Promise<void> {
    if (route.isSameOrigin) this.#cors = undefined;
    try {
      const reply = route.handle(this, variables);
      this.send(reply instanceof Promise ? await reply : reply);
    } catch (error) {
      this.fail(error);
    }
  }

  /** Answers with an error in the reference's shape. `status` replaces its usual status. */
  fail(error: unknown, status?: number): void {
    if (this.hasBegun) return;
    if (this.#hasEnded) {
      // Nobody gets the answer, and the work may have failed just because its caller has gone away.
      if (error instanceof Failure) this.note(error.facts);
      return;
    }
    const fault = this.failed(error);
    const reply = this.errorReply(fault);
    this.send(this.options.refusalPage?.(this, fault) ?? (status === undefined ? reply : { ...reply, status }));
  }

  errorReply(error: unknown): RouteReply {
    return toRestError(this.failed(error), this.#known.requestId, this.options.publicUrl);
  }

  /** Answers, unless an answer has begun or the caller has gone away. */
  send({ status, headers, body, trailers }: Reply | (StreamReply & { trailers?: undefined })): void {
    const isWhole = typeof body === "string" || body instanceof Uint8Array;
    if (this.hasBegun || this.isOver) return isWhole ? undefined : void discard(body).catch(() => {});
    const all = this.#headers(headers);
    if (isWhole && status !== 204 && status !== 304) {
      all["content-type"] ??= jsonType;
      if (trailers === undefined) all["content-length"] = String(Buffer.byteLength(body));
    }
    this.#begin(status, all, trailers === undefined ? "body" : "body and trailers");
    if (isWhole) return this.end(body, trailers);
    this.#stream(body).catch((error: unknown) => {
      this.failed(error);
      this.channel.cut();
    });
  }

  /** Begins an answer, which `write` and `end` continue. */
  begin(status: number, headers: Readonly<Record<string, string>>, rest: Rest = "body"): void {
    this.#begin(status, this.#headers(headers), rest);
  }

  #begin(status: number, headers: Record<string, string>, rest: Rest): void {
    // Node throws for a request that has been reset.
    if (this.channel.isGone) return;
    this.#lease?.done();
    this.channel.begin(status, headers, rest);
    this.#status = status;
  }

  /** The headers that every answer has, with those of this one. */
  #headers(own: Readonly<Record<string, string>> | undefined): Record<string, string> {
    const all = answerHeaders(this.#known);
    // Answers quote their callers, so no browser may show one as a page. Browsers cannot read gRPC.
    if (this.start.protocol !== "grpc") all["x-content-type-options"] = "nosniff";
    this.#cors?.allow(this.headers.origin, all);
    if (this.channel.keepsAlive) all["keep-alive"] = this.options.keepAlive;
    return own === undefined ? all : Object.assign(all, own);
  }

  /** Settles when the next chunk may be written. */
  async write(chunk: string | Uint8Array): Promise<void> {
    if (!this.channel.sink.write(chunk)) await drained(this.channel.sink);
  }

  end(body?: string | Uint8Array, trailers?: Record<string, string>): void {
    if (this.isOver) return;
    this.#hasAnswered = true;
    endAnswer(this.channel, body, trailers);
  }

  async #stream(body: AsyncGenerator<string, void>): Promise<void> {
    if (this.start.method === "HEAD") await discard(body);
    for await (const chunk of body) {
      if (this.isOver) return;
      await this.write(chunk);
    }
    this.end();
  }

  /** The work is over. It may outlast the answer: events are stored although their caller has gone away. */
  served(): void {
    this.#isServed = true;
    if (this.#hasEnded) this.options.onEnd?.(this.start, this.#known);
  }

  #ended(): void {
    this.#hasEnded = true;
    this.#lease?.release();
    if (this.#abort !== undefined) this.cancel(gone());
    this.#known.status = this.#hasAnswered ? this.#status : 0;
    this.#known.durationMs = performance.now() - this.#startedMs;
    if (this.#isServed) this.options.onEnd?.(this.start, this.#known);
  }
}

/** Ends an unread generator. It must begin first, or else its `finally` would not run. */
const discard = (body: AsyncGenerator<string, void>) => body.next().then(() => body.return());
