import type { IncomingHttpHeaders } from "node:http";
import type { HttpRule } from "../../http-rule.ts";
import type { Outcome, RequestStart } from "../../exchange.ts";

/** A request over any protocol. */
export interface Incoming {
  readonly start: RequestStart;
  /** Names in lower case. */
  readonly headers: IncomingHttpHeaders;
  /** The HTTP/2 session of the request, or else its socket. */
  readonly connection: object | undefined;
  /** Writes the facts of an outcome down and returns its answer. */
  answerOf<Answer>(outcome: Outcome<Answer>): Answer;
}

export interface RouteRequest extends Incoming {
  readonly query: string;
  /**
   * Reads the whole body, decompressed.
   * @throws Fault batch_too_large as soon as it exceeds `bytesMax`; invalid_body for an encoding other than gzip.
   */
  readBody(bytesMax: number): Promise<Buffer>;
  /** Aborted when the answer has ended, the caller has gone away, or its deadline has passed. */
  readonly signal: AbortSignal;
  /** Writes down why the request failed and returns the error in the reference's shape. */
  errorReply(error: unknown): RouteReply;
}

export interface RouteReply {
  readonly status: number;
  /** A reply without a content type is JSON. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array;
}

/** A streamed answer. The generator runs to its end, or `return` ends it. */
export interface StreamReply extends Omit<RouteReply, "body"> {
  readonly body: AsyncGenerator<string, void>;
}

/** A path with its handler, for REST and pages. */
export interface Route {
  readonly method: HttpRule["method"];
  /** May have variables, such as `{app_id}`; each one stands for a segment, or its beginning before a `:`. */
  readonly path: string;
  /** The name of its RPC; empty for pages. */
  readonly rpc: string;
  /** Whether only pages of the service's own address may read it. Default: also those of CORS_ORIGINS. */
  readonly isSameOrigin?: true;
  /** @param variables of the path, by name. */
  handle(
    request: RouteRequest,
    variables: Readonly<Record<string, string>>,
  ): RouteReply | Promise<RouteReply | StreamReply>;
}
