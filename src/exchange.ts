import type { Code } from "@connectrpc/connect";
import { type ErrorCode, Fault } from "./errors.ts";
import type { RequestHeader } from "./headers.ts";

export type Protocol = "rest" | "connect" | "grpc" | "grpc-web";

/** State of the caller's token bucket after this request. */
export interface RateLimitState {
  /** Requests per second; also the size of the bucket. */
  readonly limit: number;
  /** Whole requests left at this moment. */
  readonly remaining: number;
  /** Whose rate it is. Default: a key's. */
  readonly of?: "token";
}

/** Age in milliseconds of a request from which its caller is checked again before the work begins. */
export const recheckAfterMs = 250;

/** The recognised caller, for the log, the metrics and the records of requests. */
export interface Caller {
  readonly organizationId: string;
  readonly appId: string;
  readonly keyId: string;
  readonly keyHint: string;
  /** Only of a test key. */
  readonly test?: true;
}

/** The origin of a request, with or without a recognised key. */
export interface Peer {
  /** IP address; behind a trusted proxy, the one that the proxy saw. Empty if unknown. */
  readonly address: string;
  /** Truncated. */
  readonly userAgent: string | undefined;
  /** The first characters of a well-formed key or access token, even if it does not exist. */
  readonly keyHint: string | undefined;
}

export interface Rejection {
  readonly index: number;
  readonly code: ErrorCode;
  readonly message: string;
}

/** The facts about a request when it begins. */
export interface RequestStart {
  /** `req_` and a ULID. */
  readonly requestId: string;
  readonly receivedAt: Date;
  readonly protocol: Protocol;
  /** The RPC's name (`Events`), also over REST; empty for other pages. */
  readonly rpc: string;
  /** HTTP's method and path; empty for a request that is not HTTP. */
  readonly method: string;
  readonly path: string;
  readonly peer: () => Peer;
  /** The caller's deadline, in milliseconds of the service's clock; undefined without one. */
  readonly deadlineMs: number | undefined;
  /** A header that the caller sent with two values, so that neither counts; undefined if there is none. */
  readonly ambiguousHeader: RequestHeader | undefined;
  /** Trace id from `traceparent` or from the service's own tracing; 32 hex digits. */
  readonly traceId: string | undefined;
  /** Whether the caller has gone away, or has its answer. */
  readonly isAbandoned: () => boolean;
}

/** The facts that the use cases find out about a request. */
export interface Facts {
  /** The id to answer with: the request's own, or the first request's if this one is a replay. */
  readonly requestId: string;
  readonly caller: Caller | undefined;
  readonly rateLimit: RateLimitState | undefined;
  /** The token bucket that refused the request. */
  readonly limitedBy: "key" | "organization" | undefined;
  /** The result of its Idempotency-Key; undefined without one, or if the request failed earlier. */
  readonly claim: "taken" | "replayed" | "conflict" | undefined;
  /** Whether this is a dry run: then nothing was stored, even if `accepted` is not 0. */
  readonly dryRun: boolean;
  /** Only in a dry run: the paths of unknown members, at most 20. */
  readonly ignoredMembers: readonly string[];
  /** The type of each event, in request order; of a snapshot its own. Empty until the request is read. */
  readonly types: readonly string[];
  readonly accepted: number;
  /** Whether this request stored them, and not another one with the same Idempotency-Key. */
  readonly isStored: boolean;
  /** The indices of accepted events that were stored before under the same event id. */
  readonly duplicates: readonly number[];
  /** The rejected events, in request order; also set if the whole request failed because of them. */
  readonly rejections: readonly Rejection[];
}

/** The outcome of a request. The observers read it when the answer has ended. */
export interface RequestEnd extends Facts {
  /** Why the request failed; undefined if it did not. */
  readonly fault: Fault | undefined;
  /** HTTP status; 0 if the caller went away first. */
  readonly status: number;
  readonly code: Code | undefined;
  readonly durationMs: number;
}

const none: readonly never[] = [];

/** The end of a request without any facts yet. */
export const unknownEnd = (requestId: string): RequestEnd => ({
  requestId,
  caller: undefined,
  rateLimit: undefined,
  limitedBy: undefined,
  claim: undefined,
  dryRun: false,
  ignoredMembers: none,
  types: none,
  accepted: 0,
  duplicates: none,
  isStored: false,
  rejections: none,
  fault: undefined,
  status: 0,
  code: undefined,
  durationMs: 0,
});

/** The result of a use case: the answer for the caller, and the facts for the headers and the observers. */
export interface Outcome<Answer> {
  readonly answer: Answer;
  readonly facts: Partial<Facts>;
}

/** Why a use case failed, with the facts that it had by then. */
export class Failure extends Fault {
  readonly facts: Partial<Facts>;

  /** Copies the fault, because a database fault is shared by every request of a batch. */
  constructor(fault: Fault, facts: Partial<Facts>) {
    super(fault.code, fault.message, fault);
    this.facts = fault instanceof Failure ? { ...facts, ...fault.facts } : facts;
  }
}
