/**
 * All limits of the public contract. Validation, OpenAPI, the documentation pages and the answers derive from them.
 * Source: the API reference and the contract.
 */

/** A limit as documented: `of` says what is limited, `beyond` what happens past it. */
export interface Limit {
  readonly value: number;
  readonly unit: string;
  readonly of: string;
  readonly beyond: string;
}

/** Limits of the calls that store something. Names contain the unit; `Max` marks the largest allowed value. */
export const limitTable = {
  eventsMax: { value: 500, unit: "events", of: "Events in one batch", beyond: "`batch_too_large`" },
  bodyBytesMax: {
    value: 1_048_576,
    unit: "bytes (1 MB)",
    of: "Request body, after decompression",
    beyond: "`batch_too_large`",
  },
  metadataBytesMax: {
    value: 16_384,
    unit: "bytes",
    of: "`metadata`, as compact JSON in UTF-8",
    beyond: "`invalid_body`",
  },
  metadataDepthMax: {
    value: 32,
    unit: "levels",
    of: "Nesting of `metadata`, which is itself the first level",
    beyond: "`invalid_body`",
  },
  metricsBytesMax: {
    value: 16_384,
    unit: "bytes",
    of: "`metrics`, as compact JSON in UTF-8",
    beyond: "`invalid_body`",
  },
  labelCharactersMax: {
    value: 200,
    unit: "characters",
    of: "A metric that is a label, and the `label` of a measure",
    beyond: "`invalid_body`",
  },
  durationSecondsMax: {
    value: 86_400,
    unit: "seconds",
    of: "`duration`, a whole number from 0",
    beyond: "`invalid_body`",
  },
  timestampAheadSecondsMax: {
    value: 86_400,
    unit: "seconds (24 hours)",
    of: "A `timestamp` after the time of receipt",
    beyond: "`invalid_body`",
  },
  externalIdCharactersMax: { value: 200, unit: "characters", of: "`externalId`", beyond: "`invalid_body`" },
  externalIdsMax: {
    value: 100,
    unit: "ids",
    of: "`externalId`s that Ingest keeps for one worker and finds it by",
    beyond: "Send `email` or `workerId`, too: the id alone makes another worker",
  },
  displayNameCharactersMax: { value: 200, unit: "characters", of: "`displayName`", beyond: "`invalid_body`" },
  emailCharactersMax: { value: 254, unit: "characters", of: "`email`", beyond: "`invalid_body`" },
  eventIdCharactersMax: {
    value: 200,
    unit: "characters",
    of: "`eventId`, printable ASCII",
    beyond: "`invalid_body`",
  },
  idempotencyKeyCharactersMax: {
    value: 200,
    unit: "characters",
    of: "`Idempotency-Key`, printable ASCII",
    beyond: "`invalid_body`",
  },
  idempotencyWindowSeconds: {
    value: 600,
    unit: "seconds",
    of: "Replay of an answer for its `Idempotency-Key`, from the first answer",
    beyond: "The key counts as new: Ingest stores the request again",
  },
  issuesMax: {
    value: 20,
    unit: "issues",
    of: "Issues that one `invalid_body` lists",
    beyond: "The message says how many more issues there are",
  },
  keyRequestsPerSecond: {
    value: 60,
    unit: "requests a second",
    of: "Each key, unless its organisation has its own rate; bursts of one second's worth",
    beyond: "`rate_limited`, with `Retry-After`",
  },
  organizationRequestsPerSecond: {
    value: 600,
    unit: "requests a second",
    of: "Each organisation, unless it has its own rate; bursts of one second's worth",
    beyond: "`rate_limited`, with `Retry-After`",
  },
} as const satisfies Record<string, Limit>;

/** Limits of the calls that read the timeline. */
export const timelineLimitTable = {
  rowsMax: {
    value: 500,
    unit: "rows",
    of: "`pageSize`, and one message of a stream",
    beyond: "`invalid_body`; a stream sends another message",
  },
  rowsDefault: { value: 100, unit: "rows", of: "A page without `pageSize`", beyond: "`nextPageToken` leads on" },
  pageBytesMax: {
    value: 1_048_576,
    unit: "bytes (1 MB)",
    of: "The rows of one page, as stored in MongoDB",
    beyond: "`nextPageToken` leads on; a single larger row is returned on its own",
  },
  scannedRowsMax: {
    value: 10_000,
    unit: "rows",
    of: "Rows that one page scans, for filters without an index",
    beyond: "`nextPageToken` leads on, even from an empty page",
  },
  tokenCharactersMax: {
    value: 1_000,
    unit: "characters",
    of: "A page token or a resume token",
    beyond: "`invalid_body`",
  },
  heartbeatSeconds: {
    value: 5,
    unit: "seconds",
    of: "Silence on a stream",
    beyond: "The stream sends a message without events (a heartbeat)",
  },
  watchSecondsMax: {
    value: 3_600,
    unit: "seconds",
    of: "Duration of a stream",
    beyond: "It ends with `duration`; its `resumeToken` goes on",
  },
  bufferedRowsMax: {
    value: 2_000,
    unit: "rows",
    of: "Rows that wait for a slow reader of a stream",
    beyond: "It ends with `slow_reader`; its `resumeToken` goes on",
  },
  bufferedBytesMax: {
    value: 1_048_576,
    unit: "bytes (1 MB)",
    of: "Bytes that wait for a slow reader of a stream",
    beyond: "It ends with `slow_reader`; its `resumeToken` goes on",
  },
  organizationWatchersMax: {
    value: 20,
    unit: "streams",
    of: "Streams of one organisation on one instance",
    beyond: "`rate_limited`, with `Retry-After`",
  },
  watchersMax: {
    value: 200,
    unit: "streams",
    of: "Streams on one instance",
    beyond: "`internal_error`, with `Retry-After`",
  },
} as const satisfies Record<string, Limit>;

type Values<Table extends Record<string, Limit>> = { readonly [Name in keyof Table]: Table[Name]["value"] };

const valuesOf = <Table extends Record<string, Limit>>(table: Table): Values<Table> =>
  Object.fromEntries(Object.entries(table).map(([name, { value }]) => [name, value])) as Values<Table>;

export const limits = valuesOf(limitTable);

export const timelineLimits = valuesOf(timelineLimitTable);

/** The form of `eventType` and `snapshotType`. */
export const typePattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{1,62}[A-Za-z0-9]$/;

/** The form of `email`: a local part and a domain, each without white space and NUL. */
// All JSON Schema validators understand this notation of NUL.
// oxlint-disable-next-line no-control-regex
export const emailPattern = /^[^\s@"\x00]{1,64}@[^\s@\x00]{1,255}$/u;

export const eventCategories = [
  "communication",
  "project_management",
  "code",
  "calendar",
  "design",
  "ai_tools",
  "other",
] as const;

export const metricUnits = ["count", "minutes", "ratio", "percentage", "score"] as const;

/** The API's version; every answer has it in `X-API-Version`. */
export const apiVersion = "2026-04-01";
