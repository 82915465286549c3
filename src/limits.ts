/**
 * Every bound of the public contract, once, with its unit in its name. Validation, OpenAPI, the documentation pages and
 * the answers derive from here. Source: the API reference and the contract beside it.
 */
export const limits = {
  /** Events in one batch. */
  eventsMax: 500,
  /** A request body after decompression: 1 MB. */
  bodyBytesMax: 1_048_576,
  /** `metadata` as compact JSON in UTF-8. */
  metadataBytesMax: 16_384,
  /** Levels of nesting of `metadata`, itself counted as the first. */
  metadataDepthMax: 32,
  /** `metrics` as compact JSON in UTF-8. */
  metricsBytesMax: 16_384,
  /** A metric that is a label, and the unit and label of a measure. */
  labelCharactersMax: 200,
  /** `duration`, from 0. */
  durationSecondsMax: 86_400,
  externalIdCharactersMax: 200,
  displayNameCharactersMax: 200,
  emailCharactersMax: 254,
  idempotencyKeyCharactersMax: 200,
  /** How long an answer is replayed, from the first answer. */
  idempotencyWindowSeconds: 600,
  /** Issues listed in the message of one `invalid_body`. */
  issuesMax: 20,
  /** Requests a second of one key; the burst is one second's worth. An organisation may have its own. */
  keyRequestsPerSecond: 60,
  /** Requests a second of one organisation; the burst is one second's worth. An organisation may have its own. */
  organizationRequestsPerSecond: 600,
} as const;

/** What `eventType` and `snapshotType` look like: 3 to 64 characters. */
export const typePattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{1,62}[A-Za-z0-9]$/;

/** The API's version, in `X-API-Version` of every answer. */
export const apiVersion = "2026-04-01";

/** Bounds of the calls that read the timeline. */
export const timelineLimits = {
  /** Rows of one answer, and of one message of a stream. */
  rowsMax: 500,
  /** Rows of one answer that does not say how many it wants. */
  rowsDefault: 100,
  /** Rows of one answer, as the database keeps them; a single larger row still goes, alone. */
  pageBytesMax: 1_048_576,
  /** Rows that one answer may look at for filters that no index serves. */
  scannedRowsMax: 10_000,
  /** Characters of a page token or a resume token. */
  tokenCharactersMax: 1_000,
  /** A stream says at least this often that it lives. */
  heartbeatSeconds: 5,
  /** The longest that a stream runs. */
  watchSecondsMax: 3_600,
  /** Rows kept for a reader of a stream that is slower than they arrive. */
  bufferedRowsMax: 2_000,
  /** The same, in bytes. */
  bufferedBytesMax: 4_194_304,
  /** Streams of one organisation on one instance. */
  organizationWatchersMax: 20,
  /** Streams on one instance. */
  watchersMax: 500,
} as const;
