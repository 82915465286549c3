import { apiVersion } from "./limits.ts";

/** A documented header. Over RPC, metadata has the same name in lower case. */
export interface HeaderDefinition {
  readonly name: string;
  /** When an answer has it. */
  readonly when: string;
  readonly meaning: string;
  readonly schema: { readonly type: "string" | "integer"; readonly minimum?: number; readonly const?: string };
  readonly example: string | number;
}

/** All headers of answers except those of the protocols, by name in lower case. */
export const answerHeaderTable = {
  "x-request-id": {
    name: "X-Request-Id",
    when: "always",
    meaning: "The request's id, also in the body. Quote it when you ask for help.",
    schema: { type: "string" },
    example: "req_01HP3K5V4J3M9NVT8XZKQ9YQ2E",
  },
  "x-api-version": {
    name: "X-API-Version",
    when: "always",
    meaning: "The version of the API.",
    schema: { type: "string", const: apiVersion },
    example: apiVersion,
  },
  "x-ratelimit-limit": {
    name: "X-RateLimit-Limit",
    when: "when the key or access token is known",
    meaning: "Requests that the key or access token may send in a second, even all at once.",
    schema: { type: "integer", minimum: 1 },
    example: 60,
  },
  "x-ratelimit-remaining": {
    name: "X-RateLimit-Remaining",
    when: "when the key or access token is known",
    meaning: "Requests left at this moment.",
    schema: { type: "integer", minimum: 0 },
    example: 59,
  },
  "ratelimit-policy": {
    name: "RateLimit-Policy",
    when: "when the key or access token is known",
    meaning: "The limit, in the form of the IETF draft. Its name is `key`, or `token` for an access token.",
    schema: { type: "string" },
    example: '"key";q=60;w=1',
  },
  ratelimit: {
    name: "RateLimit",
    when: "when the key or access token is known",
    meaning: "What is left of the limit, in the form of the IETF draft.",
    schema: { type: "string" },
    example: '"key";r=59;t=1',
  },
  "idempotency-replayed": {
    name: "Idempotency-Replayed",
    when: "on a replay",
    meaning: "`true`: this repeats the answer to an earlier request with the same Idempotency-Key.",
    schema: { type: "string", const: "true" },
    example: "true",
  },
  "x-dry-run": {
    name: "X-Dry-Run",
    when: "on a dry run",
    meaning: "`true`: nothing was stored.",
    schema: { type: "string", const: "true" },
    example: "true",
  },
  "x-ignored-members": {
    name: "X-Ignored-Members",
    when: "on a dry run that has such members",
    meaning:
      "The members of the body that Ingest does not know, at most 20, separated by commas. Characters other than printable ASCII are percent-encoded.",
    schema: { type: "string" },
    example: "events[0].metdata, events[0].time",
  },
  "retry-after": {
    name: "Retry-After",
    when: "on 429 and on a 500 that may be retried",
    meaning: "Whole seconds to wait before you send the same request again.",
    schema: { type: "integer", minimum: 1 },
    example: 1,
  },
  "www-authenticate": {
    name: "WWW-Authenticate",
    when: "on 401",
    meaning: "How to authenticate.",
    schema: { type: "string", const: "Bearer" },
    example: "Bearer",
  },
} as const satisfies Record<string, HeaderDefinition>;

export type AnswerHeader = keyof typeof answerHeaderTable;

/** Names in lower case. */
export const answerHeaderNames = Object.keys(answerHeaderTable) as AnswerHeader[];

/** How the service treats a header that a request sends more than once. */
type Twice =
  /** The values form one list. */
  | "joined"
  /** Equal values count once; different values are invalid_body. */
  | "refused"
  /** Even equal values are refused. */
  | "refused always"
  /** Two values count as none, as the header's specification requires. */
  | "dropped";

interface RequestHeaderDefinition {
  readonly name: string;
  readonly twice: Twice;
  /** Whether a page's script may set it; then a preflight must allow it. */
  readonly fromPages: boolean;
}

const once = (name: string, fromPages = true): RequestHeaderDefinition => ({ name, twice: "refused", fromPages });
const list = (name: string, fromPages = true): RequestHeaderDefinition => ({ name, twice: "joined", fromPages });

/**
 * All request headers that the service reads, by name in lower case. Code sees one trimmed value of each. A test fails
 * if code reads a header that is not listed here.
 */
export const requestHeaderTable = {
  authorization: once("Authorization"),
  "idempotency-key": once("Idempotency-Key"),
  "x-dry-run": once("X-Dry-Run"),
  "content-type": once("Content-Type"),
  "content-encoding": once("Content-Encoding"),
  accept: list("Accept"),
  "accept-encoding": list("Accept-Encoding", false),
  "if-none-match": list("If-None-Match"),
  "last-event-id": once("Last-Event-ID"),
  // W3C: a receiver ignores two different traces. The caller's tracing must not make its events fail.
  traceparent: { name: "traceparent", twice: "dropped", fromPages: true },
  tracestate: list("tracestate"),
  baggage: list("baggage"),
  "user-agent": list("User-Agent", false),
  // Each proxy appends to it.
  "x-forwarded-for": list("X-Forwarded-For", false),
  "connect-protocol-version": once("Connect-Protocol-Version"),
  "connect-timeout-ms": once("Connect-Timeout-Ms"),
  "connect-content-encoding": once("Connect-Content-Encoding"),
  "connect-accept-encoding": list("Connect-Accept-Encoding"),
  "grpc-timeout": once("Grpc-Timeout"),
  "grpc-encoding": once("Grpc-Encoding"),
  "grpc-accept-encoding": list("Grpc-Accept-Encoding"),
  "x-grpc-web": once("X-Grpc-Web"),
  "x-user-agent": once("X-User-Agent"),
  origin: once("Origin", false),
  "access-control-request-method": once("Access-Control-Request-Method", false),
  expect: once("Expect", false),
  host: { name: "Host", twice: "refused always", fromPages: false },
} as const satisfies Record<string, RequestHeaderDefinition>;

export type RequestHeader = keyof typeof requestHeaderTable;

/** Headers that a page's script may set, in their usual spelling. */
export const pageHeaderNames = Object.values(requestHeaderTable)
  .filter(({ fromPages }) => fromPages)
  .map(({ name }) => name);
