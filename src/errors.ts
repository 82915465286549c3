import { Code } from "@connectrpc/connect";

/** The meaning of an error code: over HTTP, over RPC, on its page and in the log. */
export interface ErrorDefinition {
  readonly http: number;
  readonly connect: Code;
  /** The RPC code while the service is temporarily unavailable. Default: `connect`. */
  readonly connectWhenUnavailable?: Code;
  readonly when: string;
  /** The caller's next step. */
  readonly remedy: string;
  /** How long until the same request may succeed; absent if waiting does not help. */
  readonly wait?: string;
  /** An example message for the documentation. A test checks that the service answers with it. */
  readonly example: string;
  /** Whether the same request may succeed later, unchanged. */
  readonly retryable: boolean;
  readonly logLevel: "info" | "warn" | "error";
  /** Set for a code that only the administration API answers. */
  readonly isOfAdmin?: true;
}

/** The codes of the API reference, in its order. Those from `forbidden_scope` on are not in the reference. */
export const errorTable = {
  missing_authorization: {
    http: 401,
    connect: Code.Unauthenticated,
    when: "No Authorization header present.",
    remedy:
      "Send `Authorization: Bearer wp_live_…` with every request. Administration takes an access token instead: `wp_adm_…`.",
    example: "No Authorization header; send 'Authorization: Bearer wp_live_…'.",
    retryable: false,
    logLevel: "info",
  },
  invalid_key: {
    http: 401,
    connect: Code.Unauthenticated,
    when: "Key does not exist or is malformed.",
    remedy:
      "Check that you copied the whole key: `wp_live_` or `wp_test_`, and 32 hexadecimal digits. If the key is lost, create a new one.",
    example: "The API key does not exist.",
    retryable: false,
    logLevel: "info",
  },
  key_revoked: {
    http: 401,
    connect: Code.Unauthenticated,
    when: "The key was revoked.",
    remedy: "Create a new key for the app, or for administration a new access token, and use it from now on.",
    example: "The API key wp_live_ab12… was revoked.",
    retryable: false,
    logLevel: "info",
  },
  key_expired: {
    http: 401,
    connect: Code.Unauthenticated,
    when: "Key is past its expiresAt.",
    remedy: "Create a new key for the app, or for administration a new access token, and use it from now on.",
    example: "The API key wp_live_ab12… expired at 2026-04-19T12:05:00.000Z.",
    retryable: false,
    logLevel: "info",
  },
  plan_disabled: {
    http: 402,
    connect: Code.PermissionDenied,
    when: "Your plan does not include the developer API.",
    remedy: "Change to a plan that includes the developer API. Then the same request works.",
    wait: "Until the plan changes; a change takes effect within a second.",
    example: "The plan of your organisation does not include the developer API.",
    retryable: false,
    logLevel: "info",
  },
  quota_exceeded: {
    http: 402,
    connect: Code.ResourceExhausted,
    when: "Monthly event quota exhausted for the org.",
    remedy: "Wait for the next calendar month (UTC) or raise the quota.",
    wait: "Until the next calendar month begins (UTC), or the operator raises the quota; a change takes effect within a second.",
    example: "The monthly quota of 1000 events is exhausted; it resets when the next calendar month begins (UTC).",
    retryable: false,
    logLevel: "info",
  },
  rate_limited: {
    http: 429,
    connect: Code.ResourceExhausted,
    when: "Per-key or per-org burst exceeded.",
    remedy: "Wait as many seconds as `Retry-After` says, then send the same request again. Fewer, larger batches help.",
    wait: "As many seconds as `Retry-After` says (`RetryInfo` over RPC); seldom more than one.",
    example: "The key is limited to 60 requests a second; retry after 1 s.",
    retryable: true,
    logLevel: "info",
  },
  forbidden_event_type: {
    http: 403,
    connect: Code.PermissionDenied,
    when: "eventType is not in the app's whitelist.",
    remedy:
      "Add the event type to the app's whitelist, or send one that is on it. If the message names the API key, the key's own list of event types is narrower: extend it, or use another key.",
    wait: "Until the list changes; a change takes effect within a second.",
    example: "eventType 'deploy.shipped' is not whitelisted.",
    retryable: false,
    logLevel: "info",
  },
  invalid_body: {
    http: 400,
    connect: Code.InvalidArgument,
    when: "The request is not valid; the message lists what is wrong.",
    remedy: "Fix what the message lists; each issue begins with its path. Nothing was stored.",
    example: "events[3].duration: must be at most 86400; it is 86401",
    retryable: false,
    logLevel: "info",
  },
  batch_too_large: {
    http: 413,
    connect: Code.ResourceExhausted,
    when: "Body > 1 MB or batch > 500 events.",
    remedy: "Split the batch and send the parts one after the other, each with its own `Idempotency-Key`.",
    example: "events has 501 entries; at most 500 are allowed.",
    retryable: false,
    logLevel: "info",
  },
  missing_actor: {
    http: 400,
    connect: Code.InvalidArgument,
    when: "actor lacks workerId, externalId, and email.",
    remedy: "Give the actor at least one of `workerId`, `externalId` and `email`.",
    example: "actor needs at least one of workerId, externalId and email.",
    retryable: false,
    logLevel: "info",
  },
  worker_not_found: {
    http: 404,
    connect: Code.NotFound,
    when: "workerId did not resolve for this org.",
    remedy: "Use the id of a worker of this organisation, or send an `externalId` or an `email` instead.",
    example: "workerId 'wrk_01HP3K5V4J3M9NVT8XZKQ9YQ2E' is not a worker of this organisation.",
    retryable: false,
    logLevel: "info",
  },
  internal_error: {
    http: 500,
    connect: Code.Internal,
    connectWhenUnavailable: Code.Unavailable,
    when: "Unexpected failure; retry with backoff.",
    remedy: "Send the same request again with the same `Idempotency-Key`.",
    wait: "As many seconds as `Retry-After` says (`RetryInfo` over RPC), then twice as long each time, with some randomness.",
    example: "The service is temporarily unavailable; retry after the time in Retry-After.",
    retryable: true,
    logLevel: "error",
  },
  forbidden_scope: {
    http: 403,
    connect: Code.PermissionDenied,
    when: "Key has another scope than this call needs, or must not be used from the caller's address.",
    remedy:
      "Use a key with the scope that the message names: `ingest` to send events and snapshots, `read` for the timeline. If you have no such key, create one. If the message names a role, use a credential with that role. If the message names an address, call from one that is in the key's CIDR list, or add it to the list.",
    example: "The API key wp_live_ab12… has the scope 'ingest'; ListEvents needs a key with the scope 'read'.",
    retryable: false,
    logLevel: "info",
  },
  not_found: {
    http: 404,
    connect: Code.NotFound,
    when: "No such path, or, in administration, no such object within the credential's organisation.",
    remedy: "Check the path against the reference; `/openapi/v1.yaml` lists them all. In administration, check the id.",
    example: "There is nothing at '/api/v1/ingest/pong'.",
    retryable: false,
    logLevel: "info",
  },
  method_not_allowed: {
    http: 405,
    connect: Code.Unimplemented,
    when: "The path exists, but not with this method.",
    remedy: "Use a method that the `Allow` header names.",
    example: "/api/v1/ingest/ping does not take POST; allowed: GET.",
    retryable: false,
    logLevel: "info",
  },
  already_exists: {
    http: 409,
    connect: Code.AlreadyExists,
    when: "A slug or an id that must be unique is taken.",
    remedy: "Choose another one, or use the object that the message names.",
    example: "The app 'app_01HP3K5V4J3M9NVT8XZKQ9YQ2E' has the slug 'crm' already.",
    retryable: false,
    logLevel: "info",
    isOfAdmin: true,
  },
  conflict: {
    http: 409,
    connect: Code.Aborted,
    when: "The etag is stale: somebody changed the object since you read it.",
    remedy: "Read the object again, look at what changed, and send your change with its new etag.",
    example: "The app 'app_01HP3K5V4J3M9NVT8XZKQ9YQ2E' has changed since you read it: name, allow.",
    retryable: false,
    logLevel: "info",
    isOfAdmin: true,
  },
  failed_precondition: {
    http: 409,
    connect: Code.FailedPrecondition,
    when: "The object's state does not allow the call, such as rotating a revoked key.",
    remedy: "The message says what stands in the way.",
    example: "The key 'key_01HP3K5V4J3M9NVT8XZKQ9YQ2E' was revoked. Create a new one instead.",
    retryable: false,
    logLevel: "info",
    isOfAdmin: true,
  },
} as const satisfies Record<string, ErrorDefinition>;

export type ErrorCode = keyof typeof errorTable;

/** Codes that reject one event of a valid batch, or a valid snapshot. */
export const rejectionCodes = ["missing_actor", "forbidden_event_type", "worker_not_found", "quota_exceeded"] as const;

/** A code that only the administration API answers. */
export type AdminErrorCode = {
  [Code in ErrorCode]: (typeof errorTable)[Code] extends { isOfAdmin: true } ? Code : never;
}[ErrorCode];

/** One problem of a request. `path` says where, such as `events[3].duration`. */
export interface Issue {
  readonly path: string;
  readonly message: string;
}

export interface FaultOptions {
  /** The request's first problems; over RPC they become google.rpc.BadRequest. */
  readonly issues?: readonly Issue[];
  /** The number of all problems. Default: that of `issues`. */
  readonly issuesTotal?: number;
  /** How long to wait before a retry; at least 1. */
  readonly retryAfterSeconds?: number | undefined;
  /** Whether the service is temporarily unavailable: over RPC, `unavailable` instead of `internal`. */
  readonly unavailable?: boolean;
  /** For the log only; the caller never sees it. */
  readonly cause?: unknown;
}

/**
 * A refusal. Every layer below the transport throws it, and the transport formats it. `message` tells the caller what
 * was given and what is allowed.
 */
export class Fault extends Error {
  readonly code: ErrorCode;
  readonly issues: readonly Issue[];
  readonly issuesTotal: number;
  readonly retryAfterSeconds: number | undefined;
  readonly unavailable: boolean;

  constructor(code: ErrorCode, message: string, options: FaultOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "Fault";
    this.code = code;
    this.issues = options.issues ?? [];
    this.issuesTotal = options.issuesTotal ?? this.issues.length;
    this.retryAfterSeconds = options.retryAfterSeconds;
    this.unavailable = options.unavailable ?? false;
  }

  get definition(): ErrorDefinition {
    return errorTable[this.code];
  }

  /** The RPC code, which also depends on `unavailable`. */
  get connectCode(): Code {
    const { connect, connectWhenUnavailable = connect } = this.definition;
    return this.unavailable ? connectWhenUnavailable : connect;
  }
}

/** The service is temporarily unavailable and stored nothing. The caller may retry after `retryAfterSeconds`. */
export function unavailable(cause: unknown, retryAfterSeconds = 1): Fault {
  return new Fault("internal_error", errorTable.internal_error.example, {
    unavailable: true,
    retryAfterSeconds,
    cause,
  });
}

/** A defect of the service. Only the log gets its text. */
export const unexpected = (cause: unknown): Fault =>
  new Fault("internal_error", "Unexpected failure; retry with backoff.", { cause, retryAfterSeconds: 1 });

/** Turns any thrown value into a Fault. An unknown error is a defect. */
export const faultFrom = (thrown: unknown): Fault => (thrown instanceof Fault ? thrown : unexpected(thrown));

/** The address of a code's page. @param publicUrl absolute, without a slash at its end */
export function docsUrl(publicUrl: string, code: ErrorCode): string {
  return `${publicUrl}/docs/errors/${code}`;
}

/** All RPC codes of an error code, the usual one first. */
export function connectCodesOf(code: ErrorCode): Code[] {
  const { connect, connectWhenUnavailable }: ErrorDefinition = errorTable[code];
  return connectWhenUnavailable === undefined ? [connect] : [connect, connectWhenUnavailable];
}
