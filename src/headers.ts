import { apiVersion } from "./limits.ts";

/** A header of the contract, as it is documented. Over RPC the same name in lower case is metadata. */
export interface HeaderDefinition {
  readonly name: string;
  /** When it is there. */
  readonly when: string;
  readonly meaning: string;
  /** What its value is, as JSON Schema. */
  readonly schema: { readonly type: "string" | "integer"; readonly minimum?: number; readonly const?: string };
  readonly example: string | number;
}

/** Every header that an answer may carry beside those of its protocol, by its name in lower case. */
export const answerHeaderTable = {
  "x-request-id": {
    name: "X-Request-Id",
    when: "always",
    meaning: "The request's id, also in the body. Give it when you ask for help.",
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
    when: "when the key is known",
    meaning: "Requests that the key may send in a second, also all at once.",
    schema: { type: "integer", minimum: 1 },
    example: 60,
  },
  "x-ratelimit-remaining": {
    name: "X-RateLimit-Remaining",
    when: "when the key is known",
    meaning: "Requests left at this moment.",
    schema: { type: "integer", minimum: 0 },
    example: 59,
  },
  "ratelimit-policy": {
    name: "RateLimit-Policy",
    when: "when the key is known",
    meaning: "The limit, in the form of the IETF draft.",
    schema: { type: "string" },
    example: '"key";q=60;w=1',
  },
  ratelimit: {
    name: "RateLimit",
    when: "when the key is known",
    meaning: "What is left of it, in the form of the IETF draft.",
    schema: { type: "string" },
    example: '"key";r=59;t=1',
  },
  "idempotency-replayed": {
    name: "Idempotency-Replayed",
    when: "on a replay",
    meaning: "`true`: this is the answer to an earlier request with the same Idempotency-Key.",
    schema: { type: "string", const: "true" },
    example: "true",
  },
  "x-dry-run": {
    name: "X-Dry-Run",
    when: "when asked for",
    meaning: "`true`: nothing was stored.",
    schema: { type: "string", const: "true" },
    example: "true",
  },
  "x-ignored-members": {
    name: "X-Ignored-Members",
    when: "on a dry run that has such members",
    meaning:
      "The members of the body that are not ours, at most 20, separated by commas; percent-encoded where a name has other characters than printable ASCII.",
    schema: { type: "string" },
    example: "events[0].metdata, events[0].time",
  },
  "retry-after": {
    name: "Retry-After",
    when: "on 429 and on a 500 that may be retried",
    meaning: "Seconds to wait, a whole number, before you send the same request again.",
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

/** In lower case. */
export const answerHeaderNames = Object.keys(answerHeaderTable) as AnswerHeader[];

/** What becomes of a header that a request sends more than once. */
type Twice =
  /** A list: its lines are one list. */
  | "joined"
  /** One value: equal ones count once, two values are invalid_body. */
  | "refused"
  /** Not even equal ones are taken. */
  | "refused always"
  /** Two values count as none, as its own specification asks for. */
  | "dropped";

interface RequestHeaderDefinition {
  readonly name: string;
  readonly twice: Twice;
  /** A page's script may set it, so a preflight must allow it. */
  readonly fromPages: boolean;
}

const once = (name: string, fromPages = true): RequestHeaderDefinition => ({ name, twice: "refused", fromPages });
const list = (name: string, fromPages = true): RequestHeaderDefinition => ({ name, twice: "joined", fromPages });

/**
 * Every header of a request that is read, by its name in lower case. Readers of a request's headers see one value without
 * spaces at its ends; a preflight allows those that pages may set. A test finds a header that is read and not listed here.
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
  // W3C: a receiver of two traces follows neither. A caller's monitoring must not fail its events.
  traceparent: { name: "traceparent", twice: "dropped", fromPages: true },
  tracestate: list("tracestate"),
  baggage: list("baggage"),
  "user-agent": list("User-Agent", false),
  // Each proxy adds to it.
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

/** Those that a page's script may set, as they are written. */
export const pageHeaderNames = Object.values(requestHeaderTable)
  .filter(({ fromPages }) => fromPages)
  .map(({ name }) => name);
