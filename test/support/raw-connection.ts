import { connect, type Socket } from "node:net";

/** Bytes of an answer that are kept to be looked at. */
const keptBytesMax = 262_144;

/** A TCP connection with nothing on it: what is written is what is sent. Errors only end it. */
export class RawConnection {
  readonly #socket: Socket;
  #kept: Buffer[] = [];
  #keptBytes = 0;
  #isClosed = false;
  /** When the peer has ended it, in either way. */
  readonly closed: Promise<void>;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.closed = new Promise((resolve) => {
      socket.once("close", () => {
        this.#isClosed = true;
        resolve();
      });
    });
    socket.on("error", () => {});
    // The peer's end of the connection is the end of both.
    socket.once("end", () => socket.destroy());
    socket.on("data", (chunk: Buffer) => {
      if (this.#keptBytes >= keptBytesMax) return;
      this.#kept.push(chunk);
      this.#keptBytes += chunk.length;
    });
  }

  /** @throws when the peer does not take the connection. */
  static open(port: number): Promise<RawConnection> {
    return new Promise((resolve, reject) => {
      const socket = connect({ port, host: "127.0.0.1", noDelay: true });
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.off("error", reject);
        resolve(new RawConnection(socket));
      });
    });
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** The first bytes received. */
  get received(): Buffer {
    return Buffer.concat(this.#kept);
  }

  /** Sends; resolves when the system has taken the bytes or the connection has ended: a flood waits for its victim. */
  async write(bytes: Buffer | string): Promise<void> {
    if (this.#isClosed || this.#socket.write(bytes)) return;
    await Promise.race([new Promise<void>((resolve) => this.#socket.once("drain", resolve)), this.closed]);
  }

  /** Reads no more, so that the peer's answers pile up. */
  stopReading(): void {
    this.#socket.pause();
  }

  /** Resolves when what was received has the text, or the connection has ended, or `withinMs` has passed. */
  async sees(text: string, withinMs = 5_000): Promise<boolean> {
    const deadline = Date.now() + withinMs;
    while (!this.received.includes(text, 0, "latin1")) {
      if (this.#isClosed || Date.now() > deadline) return false;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return true;
  }

  destroy(): void {
    this.#socket.destroy();
  }
}
