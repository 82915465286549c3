import { connect, type Socket } from "node:net";
import { once } from "node:events";

/** An answer read from a socket. */
export interface RawAnswer {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: ReadonlyMap<string, string>;
  readonly body: string;
}

/** A connection on which a test sends exactly what it wants, HTTP or not. */
export class RawConnection {
  readonly socket: Socket;
  #received: Buffer = Buffer.alloc(0);
  #ended = false;
  #wake: () => void = () => {};

  private constructor(socket: Socket) {
    this.socket = socket;
    const changed = () => this.#wake();
    socket.on("data", (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      changed();
    });
    socket.on("error", changed);
    for (const event of ["end", "close"]) {
      socket.on(event, () => {
        this.#ended = true;
        changed();
      });
    }
  }

  static async open(port: number): Promise<RawConnection> {
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    await once(socket, "connect");
    return new RawConnection(socket);
  }

  /** Sends the lines of a head, and a body. */
  send(lines: readonly string[], body: string | Uint8Array = ""): void {
    this.socket.write(`${lines.join("\r\n")}\r\n\r\n`);
    if (body.length > 0) this.socket.write(body);
  }

  /** The next answer. @throws if the connection ends before it is complete. */
  async answer(): Promise<RawAnswer> {
    for (;;) {
      const found = takeAnswer(this.#received);
      if (found !== undefined) {
        this.#received = found.rest;
        return found.answer;
      }
      if (this.#ended) throw new Error(`the connection ended after: ${this.#received.toString()}`);
      await this.#change();
    }
  }

  /** Resolves when the other side has ended the connection. */
  async ended(): Promise<void> {
    while (!this.#ended) await this.#change();
  }

  close(): void {
    this.socket.destroy();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

/**
 * The first complete answer in `bytes`, with a body by content-length, in chunks or none; undefined if more must come.
 */
function takeAnswer(bytes: Buffer): { answer: RawAnswer; rest: Buffer } | undefined {
  const headEnd = bytes.indexOf("\r\n\r\n");
  if (headEnd < 0) return undefined;
  const [statusLine = "", ...lines] = bytes.toString("latin1", 0, headEnd).split("\r\n");
  const status = Number(statusLine.split(" ")[1]);
  const headers = new Map(
    lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
  );
  const start = headEnd + 4;
  const take = (end: number, body: string) => ({ answer: { status, headers, body }, rest: bytes.subarray(end) });
  if (status < 200 || status === 204) return take(start, "");
  if (headers.get("transfer-encoding") === "chunked") {
    const end = bytes.indexOf("0\r\n\r\n", start);
    if (end < 0) return undefined;
    return take(end + 5, bytes.toString("utf8", bytes.indexOf("\r\n", start) + 2, end));
  }
  const end = start + Number(headers.get("content-length") ?? 0);
  return end > bytes.length ? undefined : take(end, bytes.toString("utf8", start, end));
}
