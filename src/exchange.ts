import type { ErrorCode, Fault } from "./errors.ts";
import type { RequestHeader } from "./headers.ts";

export type Protocol = "rest" | "connect" | "grpc" | "grpc-web";

/** State of the caller's token bucket after this request. */
export interface RateLimitState {
  /** Requests a second, and the size of the bucket. */
  readonly limit: number;
  /** Whole requests that may follow at once. */
  readonly remaining: number;
}

/** Who called, as far as it was recognised: for the log line, the metrics and the records of requests. */
export interface Caller {
  readonly organizationId: string;
  readonly appId: string;
  readonly keyId: string;
  /** The first characters of the key, safe to show. */
  readonly keyHint: string;
}

/** Who made a request, recognised or not. */
export interface Peer {
  /** IP address, behind trusted proxies the one that they saw; empty when it is not known. */
  readonly address: string;
  /** Cut. */
  readonly userAgent: string | undefined;
  /** The first characters of a well-formed key, known or not. */
  readonly keyHint: string | undefined;
}

/** An item of a batch that was not accepted, and why. */
export interface Rejection {
  readonly index: number;
  readonly code: ErrorCode;
  readonly message: string;
}

/**
 * One request and its answer, whatever the protocol: made by the adapter when the request arrives, filled in on the way
 * by whoever learns something, and read by the adapter when the answer leaves (headers, log line, metrics).
 */
export interface Exchange {
  /** `req_` and a ULID; a replay puts the id of the first request here. */
  requestId: string;
  readonly receivedAt: Date;
  readonly protocol: Protocol;
  /** The RPC's name (`Events`), also over REST; empty for other pages. */
  readonly rpc: string;
  /** Who made the request. */
  readonly peer: () => Peer;
  /** Time after which nobody waits for the answer, in milliseconds of the service's clock; undefined = no deadline. */
  readonly deadlineMs: number | undefined;
  /** A header that was sent with two values, of which none can be chosen; undefined when there is none. */
  readonly ambiguousHeader: RequestHeader | undefined;
  /** True once the caller has gone away. */
  abandoned: boolean;
  caller: Caller | undefined;
  rateLimit: RateLimitState | undefined;
  /** Which of the two buckets refused the request; undefined when none did. */
  limitedBy: "key" | "organization" | undefined;
  /** Why the request failed; undefined when it did not. */
  fault: Fault | undefined;
  /** What became of its Idempotency-Key; undefined without one, or when the request got no further. */
  claim: "taken" | "replayed" | "conflict" | undefined;
  /** Whether the caller asked for the verdict alone: nothing was stored, whatever was accepted. */
  dryRun: boolean;
  /** Of a dry run: the paths of members that are not ours, at most 20. */
  ignoredMembers: string[];
  /** Number of events accepted. */
  accepted: number;
  /** The events that were not, in request order; also when the request failed as a whole because of them. */
  rejections: readonly Rejection[];
  /** Trace that the request belongs to: of W3C's `traceparent`, or of the own tracing; 32 hex digits. */
  traceId: string | undefined;
}
