/**
 * Every bound of the public contract, once. Validation, OpenAPI, the documentation pages and the answers derive from
 * here. Source: the API reference and the contract beside it.
 */

/** A bound, in the words of its documentation: "500 events in one batch". */
export interface Limit {
  readonly value: number;
  readonly unit: string;
  /** What it bounds, as it follows the unit. */
  readonly of: string;
}

/** Bounds of the calls that store something. A name ends with its unit, and with `Max` where it is the largest allowed. */
export const limitTable = {
  eventsMax: { value: 500, unit: "events", of: "in one batch" },
  bodyBytesMax: { value: 1_048_576, unit: "bytes", of: "of a request body, after decompression (1 MB)" },
  metadataBytesMax: { value: 16_384, unit: "bytes", of: "of `metadata`, as compact JSON in UTF-8" },
  metadataDepthMax: { value: 32, unit: "levels", of: "of nesting of `metadata`, itself counted as the first" },
  metricsBytesMax: { value: 16_384, unit: "bytes", of: "of `metrics`, as compact JSON in UTF-8" },
  labelCharactersMax: {
    value: 200,
    unit: "characters",
    of: "of a metric that is a label, and of the label of a measure",
  },
  durationSecondsMax: { value: 86_400, unit: "seconds", of: "of `duration`, whole, from 0" },
  externalIdCharactersMax: { value: 200, unit: "characters", of: "of `externalId`" },
  displayNameCharactersMax: { value: 200, unit: "characters", of: "of `displayName`" },
  emailCharactersMax: { value: 254, unit: "characters", of: "of `email`" },
  idempotencyKeyCharactersMax: { value: 200, unit: "characters", of: "of an `Idempotency-Key`, printable ASCII" },
  idempotencyWindowSeconds: {
    value: 600,
    unit: "seconds",
    of: "that an answer is replayed for its `Idempotency-Key`, from the first answer",
  },
  issuesMax: { value: 20, unit: "issues", of: "listed in the message of one `invalid_body`" },
  keyRequestsPerSecond: {
    value: 60,
    unit: "requests a second",
    of: "of one key; the burst is one second's worth, and an organisation may have its own rate",
  },
  organizationRequestsPerSecond: {
    value: 600,
    unit: "requests a second",
    of: "of one organisation; the burst is one second's worth, and it may have its own rate",
  },
} as const satisfies Record<string, Limit>;

/** Bounds of the calls that read the timeline. */
export const timelineLimitTable = {
  rowsMax: { value: 500, unit: "rows", of: "of one answer, and of one message of a stream" },
  rowsDefault: { value: 100, unit: "rows", of: "of an answer that was not asked for a number of them" },
  pageBytesMax: {
    value: 1_048_576,
    unit: "bytes",
    of: "of the rows of one answer, as the database keeps them; a single larger row still goes, alone",
  },
  scannedRowsMax: { value: 10_000, unit: "rows", of: "that one answer may look at for filters that no index serves" },
  tokenCharactersMax: { value: 1_000, unit: "characters", of: "of a page token or a resume token" },
  heartbeatSeconds: { value: 5, unit: "seconds", of: "at most between two signs of life of a stream" },
  watchSecondsMax: { value: 3_600, unit: "seconds", of: "that a stream runs" },
  bufferedRowsMax: { value: 2_000, unit: "rows", of: "kept for a reader of a stream that is slower than they arrive" },
  bufferedBytesMax: {
    value: 1_048_576,
    unit: "bytes",
    of: "kept for a reader of a stream that is slower than they arrive",
  },
  organizationWatchersMax: { value: 20, unit: "streams", of: "of one organisation on one instance" },
  watchersMax: { value: 200, unit: "streams", of: "on one instance" },
} as const satisfies Record<string, Limit>;

type Values<Table extends Record<string, Limit>> = { readonly [Name in keyof Table]: Table[Name]["value"] };

const valuesOf = <Table extends Record<string, Limit>>(table: Table): Values<Table> =>
  Object.fromEntries(Object.entries(table).map(([name, { value }]) => [name, value])) as Values<Table>;

/** The values of `limitTable`, by name. */
export const limits = valuesOf(limitTable);

/** The values of `timelineLimitTable`, by name. */
export const timelineLimits = valuesOf(timelineLimitTable);

/** What `eventType` and `snapshotType` look like: 3 to 64 characters. */
export const typePattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{1,62}[A-Za-z0-9]$/;

/** What `email` looks like: a local part and a domain, each without white space and NUL. */
// A NUL as every dialect of JSON Schema's readers writes it.
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

/** What a measure's number counts. */
export const metricUnits = ["count", "minutes", "ratio", "percentage", "score"] as const;

/** The API's version, in `X-API-Version` of every answer. */
export const apiVersion = "2026-04-01";
