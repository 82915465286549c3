import type { Fault } from "./errors.ts";

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
  /** Time after which nobody waits for the answer, in milliseconds of `Date.now()`; undefined = no deadline. */
  readonly deadlineMs: number | undefined;
  /** True once the caller has gone away. */
  abandoned: boolean;
  caller: Caller | undefined;
  rateLimit: RateLimitState | undefined;
  /** Why the request failed; undefined when it did not. */
  fault: Fault | undefined;
  replayed: boolean;
  /** Number of events accepted and rejected. */
  accepted: number;
  rejected: number;
}
