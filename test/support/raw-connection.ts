import { connect, type Socket } from "node:net";

/** Bytes of an answer that are kept for checks. */
const keptBytesMax = 262_144;

/** A plain TCP connection that sends exactly what is written. Errors only end it. */
export class RawConnection {
  readonly #socket: Socket;
  #kept: Buffer[] = [];
  #keptBytes = 0;
  #isClosed = false;
  /** Resolves when the peer has ended it, by FIN or reset. */
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
    // When the peer ends its side, end both.
    socket.once("end", () => socket.destroy());
    socket.on("data", (chunk: Buffer) => {
      if (this.#keptBytes >= keptBytesMax) return;
      this.#kept.push(chunk);
      this.#keptBytes += chunk.length;
    });
  }

  /** @throws if the peer does not accept the connection. */
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

  /**
   * Sends. Resolves when the system has taken the bytes or the connection has ended, so that a flood waits for its
   * victim.
   */
  async write(bytes: Buffer | string): Promise<void> {
    if (this.#isClosed || this.#socket.write(bytes)) return;
    await Promise.race([new Promise<void>((resolve) => this.#socket.once("drain", resolve)), this.closed]);
  }

  /** Stops reading, so that the peer's answers pile up. */
  stopReading(): void {
    this.#socket.pause();
  }

  /** Resolves when the received bytes contain the text, when the connection ends, or after `withinMs`. */
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
