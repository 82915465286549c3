/** Bounds on what a caller may hold open or make the server keep. */
export const serverBounds = {
  /** To send the request's headers. */
  headersMs: 10_000,
  /** To send the whole request, over HTTP/1.1 and on an HTTP/2 stream. */
  requestMs: 30_000,
  /** An idle HTTP/1.1 connection is kept. */
  keepAliveMs: 65_000,
  /** A new connection may take until it has said which protocol it speaks, a TLS one to finish its handshake. */
  firstByteMs: 10_000,
  /** A caller may leave an answer unread. */
  stallMs: 30_000,
  /** An HTTP/2 connection without streams is kept, whatever other frames it sends. */
  sessionIdleMs: 65_000,
  headerBytesMax: 16_384,
  /**
   * Connections of one process, less where the system allows it fewer open files. Near the bound those that are idle are
   * closed; past it a new one is closed at once, which callers take for a refused connection and try again.
   */
  connectionsMax: 20_000,
  /** Open files that are left for the database and everything else. */
  filesReserved: 256,
  streamsPerSessionMax: 100,
  /**
   * Streams of one session that may be refused before they begin, for headers above the bound or as too many at once, and
   * how many of them are forgiven in a second. Such headers cost the decoder as much as is sent: past the bound the
   * session is ended with ENHANCE_YOUR_CALM.
   */
  refusedStreamsMax: 100,
  refusedStreamsPerSecond: 10,
  /** A caller may take to end its request once it has its answer. */
  lingerMs: 2_000,
  /**
   * HTTP/2 streams of one process on which nobody waits for an answer but the request has not ended: those of calls that
   * need no key, and those that were answered early. Past it the oldest is ended, so a newcomer always finds room.
   */
  unfinishedStreamsMax: 1_000,
  /**
   * Calls that need no key, at once on one HTTP/2 session, and how many may begin on it in a second. Past it they are refused
   * before anything else is done with them: each costs as much as a request of a caller.
   */
  keylessStreamsPerSessionMax: 10,
  keylessCallsPerSecond: 20,
  /** HTTP/2 streams of one process; near the bound unread answers are dropped, past it new streams are refused. */
  streamsMax: 10_000,
  /** Answers that their callers have not read; above it those that do not get on are dropped within two seconds. */
  unreadBytesMax: 67_108_864,
  /** Request bodies in memory, from their first byte until their answer has left; see `BodyBudget`. */
  bodiesBytesMax: 67_108_864,
  /** A body that has been arriving for longer is slow, and gives way to others when there is no room. */
  slowBodyMs: 1_000,
  /** Bodies of one organisation that are decoded and not yet answered, while others are active. */
  sharedBodiesBytesMax: 65_536,
  /** A body from this size on is heavy: one is decoded in a turn of the event loop, while others are active. */
  heavyBodyBytes: 16_384,
  /** A body from this size on is large: it waits for its turn to be decoded, whoever is active. */
  largeBodyBytes: 262_144,
  /** Large bodies at once that are decoded and not yet answered. */
  largeBodiesMax: 2,
  /** A body waits for its turn; past it the request is refused as unavailable. */
  largeBodyWaitMs: 10_000,
  /** Memory of one HTTP/2 session, in megabytes (Node's unit). */
  sessionMegabytesMax: 10,
} as const;

export type ServerBounds = { readonly [name in keyof typeof serverBounds]: number };
