import { constants, type ServerHttp2Session } from "node:http2";

/** A GOAWAY with it excludes no stream: those on their way are served, and the caller opens no more. */
const streamIdMax = 2 ** 31 - 1;
/** From that GOAWAY to the last one, which excludes what has not arrived by then, in milliseconds: a long round trip. */
const goawayMs = 250;

/** The open HTTP/2 sessions. */
export class Sessions extends Set<ServerHttp2Session> {
  #closing = false;

  override add(session: ServerHttp2Session): this {
    if (this.#closing) session.close();
    return super.add(session);
  }

  /** Asks callers to open no more streams. A session that begins later is not asked: its first stream is on its way. */
  windDown(): void {
    for (const session of this) {
      // One that has just broken is listed until its connection has closed, and would throw.
      if (!session.destroyed) session.goaway(constants.NGHTTP2_NO_ERROR, streamIdMax);
    }
  }

  /** Ends every session once its streams have. */
  close(): void {
    this.windDown();
    setTimeout(() => {
      this.#closing = true;
      for (const session of this) session.close();
    }, goawayMs);
  }
}
