import { constants, type OutgoingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import type { Socket } from "node:net";
import { answerUnderWay } from "./node-internals.ts";
import type { ServerBounds } from "./server-limits.ts";

/** Time between two looks at everything that is open, in milliseconds: how late a bound can act. */
export const sweepMs = 1_000;

/** Time between two looks at the sessions whose streams are refused, in milliseconds: they cost most while they last. */
const lookMs = 100;

/** From this part of a bound on its kind is let go sooner, so that a newcomer finds room. */
const fullFrom = 0.9;

/** While there are too many connections those are let go that have been idle for so long, in milliseconds. */
const idleMs = 2 * sweepMs;

/** A GOAWAY with it excludes no stream: those on their way are served, and the caller opens no more. */
const streamIdMax = 2 ** 31 - 1;

/** From that GOAWAY to the last one, which excludes what has not arrived by then, in milliseconds: a long round trip. */
const goawayMs = 250;

/** A connection that speaks HTTP/1.1, or has not said yet what it speaks. */
interface Plain {
  silent: boolean;
  /** When the caller ended its side: it may still read, or may have gone away. */
  halfClosedAtMs: number | undefined;
  readonly openedAtMs: number;
  readonly unread: Amount;
  /** Bytes that have gone either way. */
  readonly traffic: Amount;
  /** Bytes of answers. */
  readonly answers: Amount;
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
  /** Open streams of calls that need no key. */
  keyless: number;
  /** How many more of them may begin in this second. */
  keylessLeft: number;
}

interface Stream {
  readonly openedAtMs: number;
  readonly unread: Amount;
  /** When its answer had left; undefined before. */
  answeredAtMs: number | undefined;
}

/** How much of something there is, and since when that has not changed. */
interface Amount {
  bytes: number;
  sinceMs: number;
}

/** For how long things may stand still: less while there are too many of them. */
interface Patience extends Readonly<Record<"firstByteMs" | "keepAliveMs" | "sessionIdleMs" | "stallMs", number>> {
  /** For how long a connection may be without an answer while no whole request waits for one. */
  readonly answerlessMs: number;
}

/** Why connections were closed that their callers would have kept. */
const dropReasons = ["full", "silent", "idle while full", "unread answer", "refused streams"] as const;
type DropReason = (typeof dropReasons)[number];

/** Why streams of HTTP/2 were refused or cut. */
const refusalReasons = ["full", "keyless", "unfinished", "slow", "unread answer"] as const;
type RefusalReason = (typeof refusalReasons)[number];

/** What is open, and what was refused since the start. */
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
 * Knows what callers hold open and takes it from those that do nothing with it: one sweep a second over all of it, and no
 * timer of its own for any. Node's own time limits cover HTTP/1.1's headers and requests; this one adds silent and idle
 * connections, handshakes that do not end, callers that do not read their answers, and all that HTTP/2 leaves without a
 * limit.
 */
export class Connections {
  readonly #bounds: ServerBounds;
  readonly #sockets = new Map<Socket, Plain>();
  readonly #sessions = new Map<ServerHttp2Session, Session>();
  readonly #streams = new Map<ServerHttp2Stream, Stream>();
  /** Streams on which nobody waits for an answer, but whose request has not ended; the oldest first. */
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
    for (const plain of this.#sockets.values()) if (plain.silent) silent++;
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

  /** The listener has closed a connection at once, since there were too many. */
  turnedAway(): void {
    this.#dropped.full++;
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
      answers: none(),
    });
    socket.once("close", () => this.#sockets.delete(socket));
  }

  /** The connection is known to speak HTTP/1.1. */
  speaksHttp1(socket: Socket): void {
    const plain = this.#sockets.get(socket);
    if (plain !== undefined) plain.silent = false;
    socket.once("end", () => this.#endedByCaller(socket));
  }

  /**
   * The caller has ended its side. Its answers are sent, but who ends its side while it reads a stream has gone away: the
   * next write would tell, which may be long in coming.
   */
  #endedByCaller(socket: Socket): void {
    const plain = this.#sockets.get(socket);
    if (plain !== undefined) plain.halfClosedAtMs = performance.now();
    const answer = answerUnderWay(socket);
    if (answer?.headersSent === true && !answer.writableEnded) socket.destroy();
  }

  /** The connection goes on as another thing: a session, or the inside of TLS. */
  delete(socket: Socket): void {
    this.#sockets.delete(socket);
  }

  /** Answers under way over HTTP/1.1 say that they are the last of their connection. */
  endAfterAnswers(): void {
    for (const socket of this.#sockets.keys()) {
      const answer = answerUnderWay(socket);
      if (answer?.headersSent === false) answer.setHeader("connection", "close");
    }
  }

  /** Whether an answer over HTTP/1.1 is still to be read by its caller. */
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

  /** Asks callers to open no more streams. A session that begins later is not asked: its first stream is on its way. */
  windDownSessions(): void {
    for (const session of this.#sessions.keys()) {
      // One that has just broken is listed until its connection has closed, and would throw.
      if (!session.destroyed) session.goaway(constants.NGHTTP2_NO_ERROR, streamIdMax);
    }
  }

  /** Ends every session once its streams have. */
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
   * Whether the stream may be served; one too many is refused, which a caller may take for never sent.
   * @param refusal for a call that needs no key, which takes no place of those that have one: how one too many is refused.
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
    stream.on("error", () => {}).respond(refusal, { endStream: true });
    return false;
  }

  #allowsKeyless(session: Session): boolean {
    if (session.keyless > this.#bounds.keylessStreamsPerSessionMax || session.keylessLeft === 0) return false;
    session.keylessLeft--;
    return true;
  }

  /** Streams whose callers wait for an answer. */
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
    // The whole answer has left: nothing went wrong, the rest is just not wanted.
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
    for (const [socket, plain] of this.#sockets) this.#sweepSocket(socket, plain, patience);
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

  #sweepSocket(socket: Socket, plain: Plain, patience: Patience): void {
    const { silent, openedAtMs, halfClosedAtMs, unread, traffic, answers } = plain;
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

  /** Ends a session of which far too many streams were refused before they began. */
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

/**
 * Finds out whether the caller still reads, while its answer takes long: a system whose process has gone answers with a
 * reset, and the request's work can be dropped. Every caller of HTTP/1.1 has to skip such an interim answer.
 */
function probe(socket: Socket): void {
  const answer = answerUnderWay(socket);
  if (answer?.headersSent === false && answer.req.httpVersion === "1.1") answer.writeProcessing();
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
