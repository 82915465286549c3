import type { ServerResponse } from "node:http";
import { constants, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import type { Socket } from "node:net";

/** Times and counts that callers are held to; each in `serverBounds`, with its meaning. */
export interface ConnectionBounds {
  readonly firstByteMs: number;
  readonly requestMs: number;
  readonly stallMs: number;
  readonly sessionIdleMs: number;
  readonly refusedStreamsMax: number;
  readonly refusedStreamsPerSecond: number;
  readonly connectionsMax: number;
  readonly streamsMax: number;
  readonly unreadBytesMax: number;
}

/** Time between two looks at everything that is open, in milliseconds: how late a bound can act. */
export const sweepMs = 1_000;

/** Time between two looks at the sessions whose streams are refused, in milliseconds: they cost most while they last. */
const lookMs = 100;

/** Connections are let go from this part of the bound on, so that a newcomer finds room. */
const fullFrom = 0.9;

/** A connection that speaks HTTP/1.1, or has not said yet what it speaks. */
interface Plain {
  silent: boolean;
  readonly openedAtMs: number;
  readonly progress: Progress;
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
  readonly progress: Progress;
}

/** How much is still to be read by the other side, and since when that has not changed. */
interface Progress {
  mark: number;
  sinceMs: number;
}

/**
 * Watches what callers hold open and takes it from those that do nothing with it: one sweep a second over all of it, and
 * no timer of its own for any. Node's own time limits cover HTTP/1.1's headers, requests and idle connections; this one
 * adds silent connections, callers that do not read their answers, and all that HTTP/2 leaves without a limit.
 */
export class Connections {
  readonly #bounds: ConnectionBounds;
  readonly #closeIdleHttp1: () => void;
  readonly #sockets = new Map<Socket, Plain>();
  readonly #sessions = new Map<ServerHttp2Session, Session>();
  readonly #streams = new Map<ServerHttp2Stream, Stream>();
  readonly #timer: NodeJS.Timeout;
  #nowMs = performance.now();
  #roomMadeAtMs = 0;
  #unreadBytes = 0;

  /** `closeIdleHttp1` closes the HTTP/1.1 connections that wait for their next request. */
  constructor(bounds: ConnectionBounds, closeIdleHttp1: () => void) {
    this.#bounds = bounds;
    this.#closeIdleHttp1 = closeIdleHttp1;
    this.#timer = setInterval(() => {
      if (performance.now() - this.#nowMs >= sweepMs) this.#sweep();
      else for (const [session, state] of this.#sessions) this.#cutRefused(session, state);
    }, lookMs);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** A new connection; `silent` while it is not known what it speaks. */
  add(socket: Socket, silent: boolean): void {
    this.#sockets.set(socket, { silent, openedAtMs: this.#nowMs, progress: { mark: 0, sinceMs: this.#nowMs } });
    socket.once("close", () => this.#sockets.delete(socket));
    if (this.#sockets.size + this.#sessions.size >= fullFrom * this.#bounds.connectionsMax) this.#makeRoom();
  }

  /** The connection is known to speak HTTP/1.1. */
  speaksHttp1(socket: Socket): void {
    const plain = this.#sockets.get(socket);
    if (plain !== undefined) plain.silent = false;
  }

  /** The connection is about to become a session. */
  speaksHttp2(socket: Socket): void {
    this.#sockets.delete(socket);
  }

  /** Answers under way over HTTP/1.1 say that they are the last of their connection. */
  endAfterAnswers(): void {
    for (const socket of this.#sockets.keys()) {
      const { _httpMessage: answer } = socket as Socket & { _httpMessage?: ServerResponse | null };
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
    this.#streams.set(stream, { openedAtMs: this.#nowMs, progress: { mark: 0, sinceMs: this.#nowMs } });
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
    const stallMs = this.#patienceMs();
    this.#unreadBytes = 0;
    for (const [socket, plain] of this.#sockets) this.#sweepSocket(socket, plain, stallMs);
    for (const [session, state] of this.#sessions) this.#sweepSession(session, state);
    for (const [stream, state] of this.#streams) this.#sweepStream(stream, state, stallMs);
  }

  /** How long an answer may be left unread: hardly at all while those that are take up too much. */
  #patienceMs(): number {
    const { unreadBytesMax, streamsMax, stallMs } = this.#bounds;
    const isShort = this.#unreadBytes > unreadBytesMax || this.#streams.size >= fullFrom * streamsMax;
    return isShort ? sweepMs / 2 : stallMs;
  }

  #sweepSocket(socket: Socket, { silent, openedAtMs, progress }: Plain, stallMs: number): void {
    if (silent) {
      if (this.#nowMs - openedAtMs > this.#bounds.firstByteMs) socket.destroy();
      return;
    }
    this.#unreadBytes += socket.writableLength;
    if (this.#stands(progress, socket.writableLength, stallMs)) socket.destroy();
  }

  #sweepSession(session: ServerHttp2Session, state: Session): void {
    const { streams, activeAtMs, isLeaving } = state;
    this.#cutRefused(session, state);
    state.forgiven = Math.min(refusedBy(session, state), state.forgiven + this.#bounds.refusedStreamsPerSecond);
    if (streams > 0) return;
    if (isLeaving) session.destroy();
    else if (this.#nowMs - activeAtMs > this.#bounds.sessionIdleMs) leave(session, state);
  }

  /** Ends a session of which far too many streams were refused before they began. */
  #cutRefused(session: ServerHttp2Session, state: Session): void {
    const refused = refusedBy(session, state) - state.forgiven;
    if (refused <= this.#bounds.refusedStreamsMax) return;
    session.destroy(new Error(`${refused} streams were refused`), constants.NGHTTP2_ENHANCE_YOUR_CALM);
  }

  #sweepStream(stream: ServerHttp2Stream, { openedAtMs, progress }: Stream, stallMs: number): void {
    this.#unreadBytes += stream.writableLength;
    const isReceived = stream.endAfterHeaders || stream.readableEnded;
    const isSlow = !isReceived && this.#nowMs - openedAtMs > this.#bounds.requestMs;
    if (isSlow || this.#stands(progress, stream.writableLength, stallMs)) stream.close(constants.NGHTTP2_CANCEL);
  }

  /** Whether there was something to read, and not less of it, for so long. */
  #stands(progress: Progress, mark: number, ms: number): boolean {
    if (mark !== 0 && mark === progress.mark) return this.#nowMs - progress.sinceMs > ms;
    progress.mark = mark;
    progress.sinceMs = this.#nowMs;
    return false;
  }

  /** Lets go of everybody who has been idle for a second, at most once a second. */
  #makeRoom(): void {
    const nowMs = performance.now();
    if (nowMs - this.#roomMadeAtMs < sweepMs) return;
    this.#roomMadeAtMs = nowMs;
    this.#closeIdleHttp1();
    for (const [socket, { silent, openedAtMs }] of this.#sockets) {
      if (silent && nowMs - openedAtMs > sweepMs) socket.destroy();
    }
    for (const [session, state] of this.#sessions) {
      if (state.streams === 0 && nowMs - state.activeAtMs > sweepMs) leave(session, state);
    }
  }
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
