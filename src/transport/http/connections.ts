import type { ServerResponse } from "node:http";
import { constants, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import type { Socket } from "node:net";
import type { ServerBounds } from "./server-limits.ts";

/** Time between two looks at everything that is open, in milliseconds: how late a bound can act. */
export const sweepMs = 1_000;

/** Time between two looks at the sessions whose streams are refused, in milliseconds: they cost most while they last. */
const lookMs = 100;

/** From this part of a bound on its kind is let go sooner, so that a newcomer finds room. */
const fullFrom = 0.9;

/** While there are too many connections those are let go that have been idle for so long, in milliseconds. */
const idleMs = 2 * sweepMs;

/** A connection that speaks HTTP/1.1, or has not said yet what it speaks. */
interface Plain {
  silent: boolean;
  /** When the caller ended its side: it may still read, or may have gone away. */
  halfClosedAtMs: number | undefined;
  readonly openedAtMs: number;
  readonly unread: Amount;
  /** Bytes that have gone either way. */
  readonly traffic: Amount;
}

interface Session {
  /** Open streams. */
  streams: number;
  /** When it was opened or last had a stream. */
  activeAtMs: number;
  /** Streams that it has had. */
  begun: number;
  /** Of the streams that were refused, those that do not count any more. */
  forgiven: number;
  /** It was told to open no more streams, and ends after the last one. */
  isLeaving: boolean;
}

interface Stream {
  readonly openedAtMs: number;
  readonly unread: Amount;
}

/** How much of something there is, and since when that has not changed. */
interface Amount {
  bytes: number;
  sinceMs: number;
}

/** For how long things may stand still: less while there are too many of them. */
type Patience = Readonly<Record<"firstByteMs" | "keepAliveMs" | "sessionIdleMs" | "stallMs", number>>;

/**
 * Watches what callers hold open and takes it from those that do nothing with it: one sweep a second over all of it, and
 * no timer of its own for any. Node's own time limits cover HTTP/1.1's headers and requests; this one adds silent and idle
 * connections, handshakes that do not end, callers that do not read their answers, and all that HTTP/2 leaves without a
 * limit.
 */
export class Connections {
  readonly #bounds: ServerBounds;
  readonly #sockets = new Map<Socket, Plain>();
  readonly #sessions = new Map<ServerHttp2Session, Session>();
  readonly #streams = new Map<ServerHttp2Stream, Stream>();
  readonly #timer: NodeJS.Timeout;
  #nowMs = performance.now();
  #unreadBytes = 0;

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

  /** A new connection; `silent` while it is not known what it speaks, or its handshake is not finished. */
  add(socket: Socket, silent: boolean): void {
    const none = () => ({ bytes: 0, sinceMs: this.#nowMs });
    this.#sockets.set(socket, {
      silent,
      halfClosedAtMs: undefined,
      openedAtMs: this.#nowMs,
      unread: none(),
      traffic: none(),
    });
    socket.once("close", () => this.#sockets.delete(socket));
  }

  /** The connection is known to speak HTTP/1.1. */
  speaksHttp1(socket: Socket): void {
    const plain = this.#sockets.get(socket);
    if (plain !== undefined) plain.silent = false;
  }

  /**
   * The caller has ended its side. Its answers are sent, but who ends its side while it reads a stream has gone away: the
   * next write would tell, which may be long in coming.
   */
  endedByCaller(socket: Socket): void {
    const plain = this.#sockets.get(socket);
    if (plain !== undefined) plain.halfClosedAtMs = performance.now();
    const answer = answerOf(socket);
    if (answer?.headersSent === true && !answer.writableEnded) socket.destroy();
  }

  /** The connection goes on as another thing: a session, or the inside of TLS. */
  delete(socket: Socket): void {
    this.#sockets.delete(socket);
  }

  /** Answers under way over HTTP/1.1 say that they are the last of their connection. */
  endAfterAnswers(): void {
    for (const socket of this.#sockets.keys()) {
      const answer = answerOf(socket);
      if (answer != null && !answer.headersSent) answer.setHeader("connection", "close");
    }
  }

  /** Whether an answer over HTTP/1.1 is still to be read by its caller. */
  isSending(): boolean {
    return this.#sockets.keys().some(({ writableLength }) => writableLength > 0);
  }

  addSession(session: ServerHttp2Session): void {
    this.#sessions.set(session, { streams: 0, activeAtMs: this.#nowMs, begun: 0, forgiven: 0, isLeaving: false });
    session.once("close", () => this.#sessions.delete(session));
  }

  /** Whether the stream may be served; one too many is refused, which a caller may take for never sent. */
  addStream(stream: ServerHttp2Stream): boolean {
    const session = stream.session === undefined ? undefined : this.#sessions.get(stream.session as ServerHttp2Session);
    if (session !== undefined) session.begun++;
    if (this.#streams.size >= this.#bounds.streamsMax) {
      stream.on("error", () => {});
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
      return false;
    }
    this.#streams.set(stream, { openedAtMs: this.#nowMs, unread: { bytes: 0, sinceMs: this.#nowMs } });
    if (session !== undefined) session.streams++;
    stream.once("close", () => {
      this.#streams.delete(stream);
      if (session === undefined) return;
      session.streams--;
      session.activeAtMs = this.#nowMs;
    });
    return true;
  }

  #sweep(): void {
    this.#nowMs = performance.now();
    const patience = this.#patience();
    this.#unreadBytes = 0;
    for (const [socket, plain] of this.#sockets) this.#sweepSocket(socket, plain, patience);
    for (const [session, state] of this.#sessions) this.#sweepSession(session, state, patience);
    for (const [stream, state] of this.#streams) this.#sweepStream(stream, state, patience);
  }

  #patience(): Patience {
    const { firstByteMs, keepAliveMs, sessionIdleMs, stallMs, connectionsMax, streamsMax, unreadBytesMax } =
      this.#bounds;
    const isFull = this.#sockets.size + this.#sessions.size >= fullFrom * connectionsMax;
    const isUnread = this.#unreadBytes > unreadBytesMax || this.#streams.size >= fullFrom * streamsMax;
    const idle = (ms: number): number => (isFull ? Math.min(idleMs, ms) : ms);
    return {
      firstByteMs: idle(firstByteMs),
      keepAliveMs: idle(keepAliveMs),
      sessionIdleMs: idle(sessionIdleMs),
      stallMs: isUnread ? sweepMs / 2 : stallMs,
    };
  }

  #sweepSocket(socket: Socket, plain: Plain, patience: Patience): void {
    const { silent, openedAtMs, halfClosedAtMs, unread, traffic } = plain;
    if (silent) {
      if (this.#nowMs - openedAtMs > patience.firstByteMs) socket.destroy();
      return;
    }
    if (halfClosedAtMs !== undefined && this.#nowMs - halfClosedAtMs > sweepMs) probe(socket);
    const quietMs = this.#unchangedMs(traffic, socket.bytesRead + socket.bytesWritten);
    const isIdle = quietMs > patience.keepAliveMs && answerOf(socket) == null;
    if (this.#isStalled(unread, socket.writableLength, patience) || isIdle) socket.destroy();
  }

  #sweepSession(session: ServerHttp2Session, state: Session, patience: Patience): void {
    const { streams, activeAtMs, isLeaving } = state;
    this.#cutRefused(session, state);
    state.forgiven = Math.min(refusedBy(session, state), state.forgiven + this.#bounds.refusedStreamsPerSecond);
    if (streams > 0) return;
    if (isLeaving) session.destroy();
    else if (this.#nowMs - activeAtMs > patience.sessionIdleMs) leave(session, state);
  }

  /** Ends a session of which far too many streams were refused before they began. */
  #cutRefused(session: ServerHttp2Session, state: Session): void {
    const refused = refusedBy(session, state) - state.forgiven;
    if (refused <= this.#bounds.refusedStreamsMax) return;
    session.destroy(new Error(`${refused} streams were refused`), constants.NGHTTP2_ENHANCE_YOUR_CALM);
  }

  #sweepStream(stream: ServerHttp2Stream, { openedAtMs, unread }: Stream, patience: Patience): void {
    const isReceived = stream.endAfterHeaders || stream.readableEnded;
    const isSlow = !isReceived && this.#nowMs - openedAtMs > this.#bounds.requestMs;
    if (isSlow || this.#isStalled(unread, stream.writableLength, patience)) stream.close(constants.NGHTTP2_CANCEL);
  }

  /** Whether there was something to read, and not less of it, for too long. */
  #isStalled(unread: Amount, bytes: number, { stallMs }: Patience): boolean {
    this.#unreadBytes += bytes;
    return this.#unchangedMs(unread, bytes) > stallMs && bytes > 0;
  }

  /** For how long the amount has been what it is now. */
  #unchangedMs(amount: Amount, bytes: number): number {
    if (amount.bytes !== bytes) {
      amount.bytes = bytes;
      amount.sinceMs = this.#nowMs;
    }
    return this.#nowMs - amount.sinceMs;
  }
}

/** The answer under way over HTTP/1.1, until the system has taken the whole of it. */
const answerOf = (socket: Socket): ServerResponse | null | undefined =>
  (socket as Socket & { _httpMessage?: ServerResponse | null })._httpMessage;

/**
 * Finds out whether the caller still reads, while its answer takes long: a system whose process has gone answers with a
 * reset, and the request's work can be dropped. Every caller of HTTP/1.1 has to skip such an interim answer.
 */
function probe(socket: Socket): void {
  const answer = answerOf(socket);
  if (answer != null && !answer.headersSent && answer.req.httpVersion === "1.1") answer.writeProcessing();
}

/**
 * Asks the caller to go; the next sweep ends the session. Not `close()`: it ends our side alone, and a caller that does
 * not end its own would keep the connection.
 */
function leave(session: ServerHttp2Session, state: Session): void {
  if (state.isLeaving || session.destroyed) return;
  state.isLeaving = true;
  session.goaway();
}

/**
 * Streams that were refused before they began, for their headers or as too many. Of those nobody hears but the caller:
 * what is known is how far it has counted, in steps of two.
 */
const refusedBy = (session: ServerHttp2Session, { begun }: Session): number =>
  ((session.state.lastProcStreamID ?? -1) + 1) / 2 - begun;
