/** Limits on what callers hold open, and on the memory that they use. */
export const serverBounds = {
  /** Time to send the request's headers. */
  headersMs: 10_000,
  /** Time to send the whole request, over HTTP/1.1 and on an HTTP/2 stream. */
  requestMs: 30_000,
  /** How long an idle HTTP/1.1 connection stays open. */
  keepAliveMs: 65_000,
  /** Time until a new connection shows its protocol, or ends its TLS handshake. */
  firstByteMs: 10_000,
  /** How long a caller may leave an answer unread. */
  stallMs: 30_000,
  /** How long an HTTP/2 connection without streams stays open, even if it sends other frames. */
  sessionIdleMs: 65_000,
  headerBytesMax: 16_384,
  /**
   * Connections of one process, or fewer if the system allows fewer open files. Near the limit, idle ones are closed. Past
   * it, a new one is closed at once; callers treat that as a refused connection and try again.
   */
  connectionsMax: 20_000,
  /** Open files for the database and everything else. */
  filesReserved: 256,
  streamsPerSessionMax: 100,
  /**
   * Streams of one session that may be refused before they begin: their headers are too large, or they are too many. Of
   * these, `refusedStreamsPerSecond` are forgiven each second. Decoding such headers costs CPU, so past the limit the
   * session ends with ENHANCE_YOUR_CALM.
   */
  refusedStreamsMax: 100,
  refusedStreamsPerSecond: 10,
  /** Time to end the request after the answer. */
  lingerMs: 2_000,
  /**
   * HTTP/2 streams of one process whose request has not ended although no caller waits for an answer: those of keyless
   * calls, and those answered early. Past the limit the oldest one ends, so a newcomer always finds room.
   */
  unfinishedStreamsMax: 1_000,
  /**
   * Concurrent keyless calls on one HTTP/2 session, and how many may begin on it per second. Past the limit they are
   * refused before any other work, because each costs as much as a call with a key.
   */
  keylessStreamsPerSessionMax: 10,
  keylessCallsPerSecond: 20,
  /** HTTP/2 streams of one process. Near the limit unread answers are dropped; past it new streams are refused. */
  streamsMax: 10_000,
  /** Bytes of unread answers. Above the limit, answers without progress are dropped within two seconds. */
  unreadBytesMax: 67_108_864,
  /** Bytes of all request bodies, from their first byte until their answer has left; see `BodyBudget`. */
  bodiesBytesMax: 67_108_864,
  /** A body that takes longer to arrive is slow, and gives way to others if there is no room. */
  slowBodyMs: 1_000,
  /** Bytes of one organisation's decoded and unanswered bodies while others are active. */
  sharedBodiesBytesMax: 65_536,
  /** A body of this size or more is heavy: while others are active, one is decoded per turn of the event loop. */
  heavyBodyBytes: 16_384,
  /** A body of this size or more is large: it always waits for its turn to be decoded. */
  largeBodyBytes: 262_144,
  /** Number of decoded and unanswered large bodies. */
  largeBodiesMax: 2,
  /** Longest wait of a body for its turn; then the request is refused as unavailable. */
  largeBodyWaitMs: 10_000,
  /** Memory of one HTTP/2 session, in megabytes (Node's unit). */
  sessionMegabytesMax: 10,
} as const;

export type ServerBounds = { readonly [name in keyof typeof serverBounds]: number };
