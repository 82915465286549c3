import type { IncomingHttpHeaders } from "node:http";
import type { Code } from "@connectrpc/connect";
import type { Exchange } from "../../exchange.ts";

export interface RouteRequest {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly headers: IncomingHttpHeaders;
  /**
   * The whole body, decompressed.
   * @throws Fault batch_too_large as soon as it exceeds `bytesMax`; invalid_body for an encoding other than gzip.
   */
  readBody(bytesMax: number): Promise<Buffer>;
  /** Does `work` when the answer has ended, or the caller has gone away. */
  onClose(work: () => void): void;
}

export interface RouteReply {
  readonly status: number;
  /** A reply without a content type is JSON. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array;
}

/** An answer that is sent bit by bit. The stream is run to its end, or ended by `return`. */
export interface StreamReply extends Omit<RouteReply, "body"> {
  readonly body: AsyncGenerator<string, void>;
}

/** A path with its handler: REST and pages. Light on purpose: no Headers, URL, AbortController or async iterable. */
export interface Route {
  readonly method: "GET" | "POST";
  /** Exact, or a beginning followed by `*`. */
  readonly path: string;
  /** The RPC that it stands for; empty for pages. */
  readonly rpc: string;
  handle(request: RouteRequest, exchange: Exchange): RouteReply | Promise<RouteReply | StreamReply>;
}

/** What the adapter tells of a finished exchange. */
export interface ExchangeEnd {
  readonly method: string;
  readonly path: string;
  /** HTTP status; 0 when the caller went away first. */
  readonly status: number;
  /** Of the RPC protocols; undefined for success. */
  readonly code: Code | undefined;
  readonly durationMs: number;
}
