import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import type { Readable, Writable } from "node:stream";
import { beginAnswer, endWith } from "./node-internals.ts";

/** One request and the way back to its caller. It hides the differences between HTTP/1.1 and HTTP/2. */
export interface Channel {
  readonly httpVersion: "1.0" | "1.1" | "2";
  readonly method: string;
  /** The request's target, as the caller sent it. */
  readonly target: string;
  /** Names in lower case. */
  readonly headers: IncomingHttpHeaders;
  /** Names and values in turn, as the caller sent them. */
  readonly rawHeaders: readonly string[];
  readonly remoteAddress: string | undefined;
  /** The HTTP/2 session of the request, or else its socket. */
  readonly connection: object | undefined;
  readonly source: Readable;
  readonly sink: Writable;
  /** Whether the whole request has arrived. */
  readonly isRead: boolean;
  /** Whether the whole body waits in memory to be read. */
  readonly hasArrived: boolean;
  /** Whether the request was reset or cut off, so that no answer can leave. Its `close` event may follow later. */
  readonly isGone: boolean;
  /** Whether the connection takes another HTTP/1.1 request. */
  readonly keepsAlive: boolean;
  /** Begins the answer. The channel may change `headers`. `rest` says what follows them. */
  begin(status: number, headers: Record<string, string>, rest: Rest): void;
  /** Ends the answer with its last bytes. */
  end(body: string | Uint8Array | undefined, trailers: Record<string, string> | undefined): void;
  /** Closes the connection after this answer. */
  close(): void;
  /** Cuts off the request and its answer. */
  cut(): void;
}

/** What follows the headers of an answer. */
export type Rest = "nothing" | "body" | "body and trailers";

export class Http1Channel implements Channel {
  readonly httpVersion: "1.0" | "1.1";
  readonly method: string;
  readonly target: string;
  readonly headers: IncomingHttpHeaders;
  readonly rawHeaders: readonly string[];
  readonly remoteAddress: string | undefined;
  readonly connection: object;
  readonly source: IncomingMessage;
  readonly sink: ServerResponse;

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.httpVersion = request.httpVersionMinor === 0 ? "1.0" : "1.1";
    this.method = request.method ?? "";
    this.target = request.url ?? "";
    this.headers = request.headers;
    this.rawHeaders = request.rawHeaders;
    this.remoteAddress = request.socket.remoteAddress;
    this.connection = request.socket;
    this.source = request;
    this.sink = response;
  }

  get isRead(): boolean {
    if (this.source.complete) return true;
    // Node marks a request without a body as complete only after its handler has returned.
    const { "transfer-encoding": chunked, "content-length": length } = this.headers;
    return chunked === undefined && Number(length ?? 0) === 0;
  }

  get hasArrived(): boolean {
    // Node hands on the end of a request later than its bytes.
    return this.source.readableLength === Number(this.headers["content-length"]);
  }

  get isGone(): boolean {
    return this.sink.destroyed;
  }

  get keepsAlive(): boolean {
    return this.sink.shouldKeepAlive && this.sink.getHeader("connection") !== "close";
  }

  begin(status: number, headers: Record<string, string>): void {
    beginAnswer(this.sink, status, headers);
  }

  end(body: string | Uint8Array | undefined, trailers: Record<string, string> | undefined): void {
    if (trailers !== undefined) this.sink.addTrailers(trailers);
    if (this.method === "HEAD" || body === undefined) this.sink.end();
    else endWith(this.sink, body);
  }

  close(): void {
    this.sink.setHeader("connection", "close");
  }

  cut(): void {
    // Destroying the request would leave the connection of one that has arrived whole open.
    this.source.socket.destroy();
  }
}

export class Http2Channel implements Channel {
  readonly httpVersion = "2";
  readonly keepsAlive = false;
  readonly method: string;
  readonly target: string;
  readonly headers: IncomingHttpHeaders;
  readonly rawHeaders: readonly string[];
  readonly remoteAddress: string | undefined;
  readonly connection: object | undefined;
  readonly source: ServerHttp2Stream;
  readonly sink: ServerHttp2Stream;

  constructor(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, rawHeaders: readonly string[]) {
    const { session } = stream;
    this.method = String(headers[":method"] ?? "");
    this.target = String(headers[":path"] ?? "");
    this.headers = headers;
    this.rawHeaders = rawHeaders;
    // Node throws if the session has lost its socket.
    this.remoteAddress = session === undefined || session.destroyed ? undefined : session.socket.remoteAddress;
    this.connection = session;
    this.source = stream;
    this.sink = stream;
    if (headers.expect === "100-continue" && !this.isGone) {
      stream.additionalHeaders({ ":status": constants.HTTP_STATUS_CONTINUE });
    }
  }

  get hasArrived(): boolean {
    return false;
  }

  get isGone(): boolean {
    return this.sink.destroyed || this.sink.closed;
  }

  get isRead(): boolean {
    return this.source.endAfterHeaders || this.source.readableEnded;
  }

  begin(status: number, headers: Record<string, string>, rest: Rest): void {
    headers[":status"] = String(status);
    this.sink.respond(headers, { endStream: rest === "nothing", waitForTrailers: rest === "body and trailers" });
  }

  end(body: string | Uint8Array | undefined, trailers: Record<string, string> | undefined): void {
    // Node itself ends a stream whose status or method allows no body.
    if (this.sink.writableEnded) return;
    if (trailers !== undefined) this.sink.on("wantTrailers", () => this.isGone || this.sink.sendTrailers(trailers));
    this.sink.end(body);
  }

  close(): void {
    this.source.session?.close();
  }

  cut(): void {
    this.source.close(constants.NGHTTP2_CANCEL);
  }
}
