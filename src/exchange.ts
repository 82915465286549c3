import type { ErrorCode, Fault } from "./errors.ts";
import type { RequestHeader } from "./headers.ts";

export type Protocol = "rest" | "connect" | "grpc" | "grpc-web";

/** State of the caller's token bucket after this request. */
export interface RateLimitState {
  /** Requests per second; also the size of the bucket. */
  readonly limit: number;
  /** Whole requests left at this moment. */
  readonly remaining: number;
}

/** The recognised caller, for the log, the metrics and the records of requests. */
export interface Caller {
  readonly organizationId: string;
  readonly appId: string;
  readonly keyId: string;
  /** The first characters of the key, safe to show. */
  readonly keyHint: string;
}

/** The origin of a request, with or without a recognised key. */
export interface Peer {
  /** IP address; behind a trusted proxy, the one that the proxy saw. Empty if unknown. */
  readonly address: string;
  /** Truncated. */
  readonly userAgent: string | undefined;
  /** The first characters of a well-formed key, even if the key does not exist. */
  readonly keyHint: string | undefined;
}

/** A rejected item of a batch. */
export interface Rejection {
  readonly index: number;
  readonly code: ErrorCode;
  readonly message: string;
}

/**
 * One request and its answer, in any protocol. The adapter creates it when the request arrives, the layers fill it in,
 * and the adapter reads it when the answer leaves: for headers, log and metrics.
 */
export interface Exchange {
  /** `req_` and a ULID; a replay replaces it by the id of the first request. */
  requestId: string;
  readonly receivedAt: Date;
  readonly protocol: Protocol;
  /** The RPC's name (`Events`), also over REST; empty for other pages. */
  readonly rpc: string;
  /** Who made the request. */
  readonly peer: () => Peer;
  /** The caller's deadline, in milliseconds of the service's clock; undefined without one. */
  readonly deadlineMs: number | undefined;
  /** A header that the caller sent with two values, so that neither counts; undefined if there is none. */
  readonly ambiguousHeader: RequestHeader | undefined;
  /** True once the caller has gone away. */
  abandoned: boolean;
  caller: Caller | undefined;
  rateLimit: RateLimitState | undefined;
  /** The token bucket that refused the request; undefined if neither did. */
  limitedBy: "key" | "organization" | undefined;
  /** Why the request failed; undefined if it did not. */
  fault: Fault | undefined;
  /** The result of its Idempotency-Key; undefined without one, or if the request failed earlier. */
  claim: "taken" | "replayed" | "conflict" | undefined;
  /** Whether this is a dry run: then nothing was stored, even if `accepted` is not 0. */
  dryRun: boolean;
  /** Only in a dry run: the paths of unknown members, at most 20. */
  ignoredMembers: string[];
  /** Number of events accepted. */
  accepted: number;
  /** The rejected events, in request order; also set if the whole request failed because of them. */
  rejections: readonly Rejection[];
  /** Trace id from `traceparent` or from the service's own tracing; 32 hex digits. */
  traceId: string | undefined;
}
