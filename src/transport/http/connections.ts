import { constants, type OutgoingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import type { Socket } from "node:net";
import { answerUnderWay } from "./node-internals.ts";
import type { ServerBounds } from "./server-limits.ts";

/** Interval between two sweeps over all connections, in milliseconds. A bound acts at most this late. */
export const sweepMs = 1_000;

/** Interval between two checks for sessions with refused streams, in milliseconds. They cost the most while they last. */
const lookMs = 100;

/** From this part of a bound on, the sweep is less patient, so that a newcomer finds room. */
const fullFrom = 0.9;

/** While there are too many connections, the sweep closes those that are idle for longer, in milliseconds. */
const idleMs = 2 * sweepMs;

/** A GOAWAY with this id excludes no stream: we serve those on their way, and the caller opens no more. */
const streamIdMax = 2 ** 31 - 1;

/** Time between that GOAWAY and the last one, which excludes later streams, in milliseconds: a long round trip. */
const goawayMs = 250;

/** A connection that speaks HTTP/1.1, or has not spoken yet. */
interface Connection {
  silent: boolean;
  /** When the caller ended its side. It may still read, or may have gone away. */
  halfClosedAtMs: number | undefined;
  readonly openedAtMs: number;
  readonly unread: Amount;
  /** Bytes in both directions. */
  readonly traffic: Amount;
  /** Bytes of answers. */
  readonly answers: Amount;
}

interface Session {
  /** Open streams. */
  streams: number;
  /** When it began or last had a stream. */
  activeAtMs: number;
  /** Streams since its beginning. */
  begun: number;
  /** Refused streams that no longer count. */
  forgiven: number;
  /** Whether its caller was told to open no more streams. The session ends after the last one. */
  isLeaving: boolean;
  /** Open streams of keyless calls. */
  keyless: number;
  /** How many more keyless calls may begin in this second. */
  keylessLeft: number;
}

interface Stream {
  readonly openedAtMs: number;
  readonly unread: Amount;
  /** When its answer left; undefined before. */
  answeredAtMs: number | undefined;
}

/** A number of bytes, and since when it has not changed. */
interface Amount {
  bytes: number;
  sinceMs: number;
}

/** How long things may stand still. It is shorter while there are too many of them. */
interface Patience extends Readonly<Record<"firstByteMs" | "keepAliveMs" | "sessionIdleMs" | "stallMs", number>> {
  /** How long a connection may go without an answer while it has no whole request. */
  readonly answerlessMs: number;
}

/** Why we closed connections. */
const dropReasons = ["full", "silent", "idle while full", "unread answer", "refused streams"] as const;
type DropReason = (typeof dropReasons)[number];

/** Why we refused or cut HTTP/2 streams. */
const refusalReasons = ["full", "keyless", "unfinished", "slow", "unread answer"] as const;
type RefusalReason = (typeof refusalReasons)[number];

/** Open connections and streams, and refusals since the start. */
export interface ConnectionCounts {
  readonly connections: Readonly<Record<"new" | "http1" | "http2", number>>;
  readonly connectionsMax: number;
  readonly streams: Readonly<Record<"open" | "unfinished", number>>;
  readonly streamsMax: number;
  readonly dropped: Readonly<Record<DropReason, number>>;
  readonly refused: Readonly<Record<RefusalReason, number>>;
}

const zeros = <Name extends string>(names: readonly Name[]) =>
  Object.fromEntries(names.map((name) => [name, 0])) as Record<Name, number>;

/**
 * Closes connections and streams that callers hold open but do not use. One sweep per second over all of them replaces a
 * timer for each. Node's time limits cover headers and requests of HTTP/1.1. This class adds silent and idle connections,
 * endless handshakes, unread answers, and everything that HTTP/2 leaves without a limit.
 */
export class Connections {
  readonly #bounds: ServerBounds;
  readonly #sockets = new Map<Socket, Connection>();
  readonly #sessions = new Map<ServerHttp2Session, Session>();
  readonly #streams = new Map<ServerHttp2Stream, Stream>();
  /** Streams whose caller waits for no answer, but whose request has not ended; the oldest first. */
  readonly #unfinished = new Set<ServerHttp2Stream>();
  readonly #dropped = zeros(dropReasons);
  readonly #refused = zeros(refusalReasons);
  readonly #timer: NodeJS.Timeout;
  #nowMs = performance.now();
  #unreadBytes = 0;
  #isClosing = false;

  constructor(bounds: ServerBounds) {
    this.#bounds = bounds;
    this.#timer = setInterval(() => {
      if (performance.now() - this.#nowMs >= sweepMs) this.#sweep();
      else for (const [session, state] of this.#sessions) this.#cutRefused(session, state);
    }, lookMs);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  counts(): ConnectionCounts {
    let silent = 0;
    for (const connection of this.#sockets.values()) if (connection.silent) silent++;
    const unfinished = this.#unfinished.size;
    return {
      connections: { new: silent, http1: this.#sockets.size - silent, http2: this.#sessions.size },
      connectionsMax: this.#bounds.connectionsMax,
      streams: { open: this.#waiting, unfinished },
      streamsMax: this.#bounds.streamsMax,
      dropped: this.#dropped,
      refused: this.#refused,
    };
  }

  /** Counts a connection that the listener closed at once because there were too many. */
  turnedAway(): void {
    this.#dropped.full++;
  }

  /** Adds a connection. It is `silent` until it speaks or its handshake ends. */
  add(socket: Socket, silent: boolean): void {
    const none = () => ({ bytes: 0, sinceMs: this.#nowMs });
    this.#sockets.set(socket, {
      silent,
      halfClosedAtMs: undefined,
      openedAtMs: this.#nowMs,
      unread: none(),
      traffic: none(),
      answers: none(),
    });
    socket.once("close", () => this.#sockets.delete(socket));
  }

  /** Notes that the connection speaks HTTP/1.1. */
  speaksHttp1(socket: Socket): void {
    const connection = this.#sockets.get(socket);
    if (connection !== undefined) connection.silent = false;
    socket.once("end", () => this.#endedByCaller(socket));
  }

  /**
   * Handles a caller that has ended its side. It still gets its answers. But if it reads a stream, it has gone away. The
   * next write would show that, perhaps much later.
   */
  #endedByCaller(socket: Socket): void {
    const connection = this.#sockets.get(socket);
    if (connection !== undefined) connection.halfClosedAtMs = performance.now();
    const answer = answerUnderWay(socket);
    if (answer?.headersSent === true && !answer.writableEnded) socket.destroy();
  }

  /** Removes a connection that continues as a session or inside TLS. */
  delete(socket: Socket): void {
    this.#sockets.delete(socket);
  }

  /** Marks the current HTTP/1.1 answers as the last ones of their connections. */
  endAfterAnswers(): void {
    for (const socket of this.#sockets.keys()) {
      const answer = answerUnderWay(socket);
      if (answer?.headersSent === false) answer.setHeader("connection", "close");
    }
  }

  /** Whether a caller still has to read an answer over HTTP/1.1. */
  isSending(): boolean {
    return this.#sockets.keys().some(({ writableLength }) => writableLength > 0);
  }

  addSession(session: ServerHttp2Session): void {
    if (this.#isClosing) session.close();
    this.#sessions.set(session, {
      streams: 0,
      activeAtMs: this.#nowMs,
      begun: 0,
      forgiven: 0,
      isLeaving: false,
      keyless: 0,
      keylessLeft: this.#bounds.keylessCallsPerSecond,
    });
    session.once("close", () => this.#sessions.delete(session));
  }

  /** Asks callers to open no more streams. It does not ask later sessions, whose first stream is on its way. */
  windDownSessions(): void {
    for (const session of this.#sessions.keys()) {
      // A broken session stays listed until its connection has closed, and would throw.
      if (!session.destroyed) session.goaway(constants.NGHTTP2_NO_ERROR, streamIdMax);
    }
  }

  /** Ends every session after its streams. */
  closeSessions(): void {
    this.windDownSessions();
    setTimeout(() => {
      this.#isClosing = true;
      for (const session of this.#sessions.keys()) session.close();
    }, goawayMs);
  }

  destroySessions(): void {
    for (const session of this.#sessions.keys()) session.destroy();
  }

  /**
   * Returns whether to serve the stream. It refuses streams past the bound in the way that lets callers send again.
   * @param refusal of a keyless call. Keyless calls have a bound of their own, so they take no place from calls with keys.
   */
  addStream(stream: ServerHttp2Stream, refusal: OutgoingHttpHeaders | undefined): boolean {
    const session = stream.session === undefined ? undefined : this.#sessions.get(stream.session as ServerHttp2Session);
    if (session !== undefined) session.begun++;
    if (refusal === undefined && this.#waiting >= this.#bounds.streamsMax) {
      this.#refused.full++;
      stream.on("error", () => {});
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
      return false;
    }
    const state: Stream = {
      openedAtMs: this.#nowMs,
      unread: { bytes: 0, sinceMs: this.#nowMs },
      answeredAtMs: undefined,
    };
    this.#streams.set(stream, state);
    const keyless = refusal === undefined ? 0 : 1;
    if (session !== undefined) {
      session.streams++;
      session.keyless += keyless;
    }
    stream.once("close", () => {
      this.#streams.delete(stream);
      this.#unfinished.delete(stream);
      if (session === undefined) return;
      session.streams--;
      session.keyless -= keyless;
      session.activeAtMs = this.#nowMs;
    });
    if (!stream.endAfterHeaders) {
      if (refusal !== undefined) this.#addUnfinished(stream);
      stream.once("end", () => this.#unfinished.delete(stream));
      stream.once("finish", () => {
        state.answeredAtMs = performance.now();
        if (!stream.readableEnded && !stream.closed) this.#addUnfinished(stream);
      });
    }
    if (refusal === undefined || session === undefined || this.#allowsKeyless(session)) return true;
    this.#refused.keyless++;
    stream.on("error", () => {});
    // A stream may be reset in the packet that opens it. Node would throw, and a listener's exception ends the process.
    if (!stream.closed && !stream.destroyed) stream.respond(refusal, { endStream: true });
    return false;
  }

  #allowsKeyless(session: Session): boolean {
    if (session.keyless > this.#bounds.keylessStreamsPerSessionMax || session.keylessLeft === 0) return false;
    session.keylessLeft--;
    return true;
  }

  /** How many streams wait for an answer. */
  get #waiting(): number {
    return this.#streams.size - this.#unfinished.size;
  }

  #addUnfinished(stream: ServerHttp2Stream): void {
    this.#unfinished.add(stream);
    if (this.#unfinished.size <= this.#bounds.unfinishedStreamsMax) return;
    const [oldest] = this.#unfinished;
    if (oldest !== undefined) this.#refuse(oldest, "unfinished");
  }

  #refuse(stream: ServerHttp2Stream, reason: RefusalReason): void {
    this.#unfinished.delete(stream);
    this.#refused[reason]++;
    // After the whole answer, the close is no error: the rest of the request is unwanted.
    const isAnswered = this.#streams.get(stream)?.answeredAtMs !== undefined;
    stream.close(isAnswered ? constants.NGHTTP2_NO_ERROR : constants.NGHTTP2_CANCEL);
  }

  #drop(socket: Socket, reason: DropReason): void {
    this.#dropped[reason]++;
    socket.destroy();
  }

  #sweep(): void {
    this.#nowMs = performance.now();
    const patience = this.#patience();
    this.#unreadBytes = 0;
    for (const [socket, connection] of this.#sockets) this.#sweepSocket(socket, connection, patience);
    for (const [session, state] of this.#sessions) this.#sweepSession(session, state, patience);
    for (const [stream, state] of this.#streams) this.#sweepStream(stream, state, patience);
  }

  #patience(): Patience {
    const { firstByteMs, keepAliveMs, sessionIdleMs, stallMs, connectionsMax, streamsMax, unreadBytesMax } =
      this.#bounds;
    const isFull = this.#sockets.size + this.#sessions.size >= fullFrom * connectionsMax;
    const isUnread = this.#unreadBytes > unreadBytesMax || this.#waiting >= fullFrom * streamsMax;
    const idle = (ms: number): number => (isFull ? Math.min(idleMs, ms) : ms);
    return {
      firstByteMs: idle(firstByteMs),
      keepAliveMs,
      answerlessMs: isFull ? idleMs : Number.POSITIVE_INFINITY,
      sessionIdleMs: idle(sessionIdleMs),
      stallMs: isUnread ? sweepMs / 2 : stallMs,
    };
  }

  #sweepSocket(socket: Socket, connection: Connection, patience: Patience): void {
    const { silent, openedAtMs, halfClosedAtMs, unread, traffic, answers } = connection;
    if (silent) {
      if (this.#nowMs - openedAtMs > patience.firstByteMs) this.#drop(socket, "silent");
      return;
    }
    const answer = answerUnderWay(socket);
    if (halfClosedAtMs !== undefined && this.#nowMs - halfClosedAtMs > sweepMs) probe(socket);
    const quietMs = this.#unchangedMs(traffic, socket.bytesRead + socket.bytesWritten);
    const answerlessMs = this.#unchangedMs(answers, socket.bytesWritten);
    if (this.#isStalled(unread, socket.writableLength, patience)) this.#drop(socket, "unread answer");
    else if (quietMs > patience.keepAliveMs && answer === undefined) socket.destroy();
    else if (answerlessMs > patience.answerlessMs && answer?.req.complete !== true) {
      this.#drop(socket, "idle while full");
    }
  }

  #sweepSession(session: ServerHttp2Session, state: Session, patience: Patience): void {
    const { streams, activeAtMs, isLeaving } = state;
    state.keylessLeft = this.#bounds.keylessCallsPerSecond;
    this.#cutRefused(session, state);
    state.forgiven = Math.min(refusedBy(session, state), state.forgiven + this.#bounds.refusedStreamsPerSecond);
    if (streams > 0) return;
    if (isLeaving) session.destroy();
    else if (this.#nowMs - activeAtMs > patience.sessionIdleMs) leave(session, state);
  }

  /** Ends a session that had too many streams refused before they began. */
  #cutRefused(session: ServerHttp2Session, state: Session): void {
    const refused = refusedBy(session, state) - state.forgiven;
    if (refused <= this.#bounds.refusedStreamsMax) return;
    this.#dropped["refused streams"]++;
    session.destroy(new Error(`${refused} streams were refused`), constants.NGHTTP2_ENHANCE_YOUR_CALM);
  }

  #sweepStream(stream: ServerHttp2Stream, { openedAtMs, unread, answeredAtMs }: Stream, patience: Patience): void {
    const isReceived = stream.endAfterHeaders || stream.readableEnded;
    const { requestMs, lingerMs } = this.#bounds;
    if (!isReceived && answeredAtMs !== undefined && this.#nowMs - answeredAtMs > lingerMs) {
      this.#refuse(stream, "unfinished");
    } else if (!isReceived && this.#nowMs - openedAtMs > requestMs) this.#refuse(stream, "slow");
    else if (this.#isStalled(unread, stream.writableLength, patience)) this.#refuse(stream, "unread answer");
  }

  /** Whether the caller left the same number of bytes unread for too long. */
  #isStalled(unread: Amount, bytes: number, { stallMs }: Patience): boolean {
    this.#unreadBytes += bytes;
    return this.#unchangedMs(unread, bytes) > stallMs && bytes > 0;
  }

  /** For how long the amount has not changed, in milliseconds. */
  #unchangedMs(amount: Amount, bytes: number): number {
    if (amount.bytes !== bytes) {
      amount.bytes = bytes;
      amount.sinceMs = this.#nowMs;
    }
    return this.#nowMs - amount.sinceMs;
  }
}

/**
 * Finds out whether a half-closed caller still reads. If its process has ended, its system answers with a reset, and the
 * work can stop. HTTP/1.1 requires every caller to skip this interim answer.
 */
function probe(socket: Socket): void {
  const answer = answerUnderWay(socket);
  if (answer?.headersSent === false && answer.req.httpVersion === "1.1") answer.writeProcessing();
}

/**
 * Asks the caller to leave; the next sweep ends the session. `close()` would end only our side, and a caller that does not
 * end its own would keep the connection.
 */
function leave(session: ServerHttp2Session, state: Session): void {
  if (state.isLeaving || session.destroyed) return;
  state.isLeaving = true;
  session.goaway();
}

/**
 * Streams that were refused before they began, for their headers or their number. Node does not report them, so count
 * them: callers number their streams in steps of two, and `begun` of them began.
 */
const refusedBy = (session: ServerHttp2Session, { begun }: Session): number =>
  ((session.state.lastProcStreamID ?? -1) + 1) / 2 - begun;
