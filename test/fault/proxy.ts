import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { revisions } from "../../src/store/revisions.ts";

/** The place of the cut: the command does not reach the server, or its reply does not reach the client. */
export type Moment = "before" | "after";

export interface Cut {
  /** The command's name in the protocol, and its collection. */
  readonly command: string;
  readonly collection: string;
  readonly moment: Moment;
  /** Whether everything is cut from then on, as if the client had been killed. */
  readonly forever: boolean;
}

/**
 * A proxy to mongod that can cut the connection at a chosen command. The server's fail points cannot do that after the
 * command.
 */
export class MongoProxy {
  readonly #server: Server;
  readonly #target: { host: string; port: number };
  readonly #sockets = new Set<Socket>();
  #cut: Cut | undefined;
  #fired: (() => void) | undefined;
  #down = false;
  #isBlocking = false;
  #blocked = 0;

  private constructor(target: { host: string; port: number }) {
    this.#target = target;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  static async start(target: { host: string; port: number }): Promise<MongoProxy> {
    const proxy = new MongoProxy(target);
    proxy.#server.listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    return proxy;
  }

  /** For the service's client, which must search for its server again at once. */
  get uri(): string {
    const { port } = this.#server.address() as AddressInfo;
    return `mongodb://127.0.0.1:${port}/?directConnection=true&minHeartbeatFrequencyMS=10`;
  }

  /** Cuts at the next matching command; resolves when that has happened. */
  cut(cut: Cut): Promise<void> {
    this.#cut = cut;
    return new Promise((resolve) => (this.#fired = resolve));
  }

  /** Cuts everything, and accepts no connection until it comes back. */
  goDown(): void {
    this.#down = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  comeBack(): void {
    this.#down = false;
  }

  /** From now on cuts every connection that reads the news of changes. */
  blockNews(): void {
    this.#isBlocking = true;
  }

  /** The number of cut connections. */
  get blocked(): number {
    return this.#blocked;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve(client: Socket): void {
    if (this.#down) {
      client.destroy();
      return;
    }
    const server = connect(this.#target);
    let lost: number | undefined;
    const end = () => {
      client.destroy();
      server.destroy();
    };
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.setNoDelay(true);
      socket.on("error", end);
      socket.on("close", () => {
        this.#sockets.delete(socket);
        end();
      });
    }
    client.on(
      "data",
      messages((message) => {
        if (this.#isBlocking && isNews(message)) {
          this.#blocked++;
          return end();
        }
        if (!this.#fits(message)) return server.write(message);
        if (this.#cut?.moment === "before") return this.#fire(end);
        lost = message.readInt32LE(4);
        this.#cut = { ...(this.#cut as Cut), command: "" };
        return server.write(message);
      }),
    );
    server.on(
      "data",
      messages((message) => (message.readInt32LE(8) === lost ? this.#fire(end) : client.write(message))),
    );
  }

  #fire(end: () => void): void {
    const forever = this.#cut?.forever === true;
    this.#cut = undefined;
    if (forever) this.goDown();
    else end();
    this.#fired?.();
  }

  #fits(message: Buffer): boolean {
    if (this.#cut === undefined || this.#cut.command === "") return false;
    const { name, value } = commandOf(message);
    return name === this.#cut.command && value === this.#cut.collection;
  }
}

/**
 * Command and collection of an OP_MSG, which its body names first. There is no collection if the value is not a string.
 */
function commandOf(message: Buffer): { name: string; value: string | undefined } {
  if (message.readInt32LE(12) !== 2013) return { name: "", value: undefined };
  // Header, flags, kind of section, length of the document.
  const typeAt = 16 + 4 + 1 + 4;
  const nameEnd = message.indexOf(0, typeAt + 1);
  const name = message.toString("latin1", typeAt + 1, nameEnd);
  if (message[typeAt] !== 2) return { name, value: undefined };
  const valueAt = nameEnd + 1 + 4;
  return { name, value: message.toString("latin1", valueAt, message.indexOf(0, valueAt)) };
}

function isNews(message: Buffer): boolean {
  const { name, value } = commandOf(message);
  return name === "find" && value === revisions.name;
}

/** Joins chunks into complete messages, which begin with their length. */
function messages(each: (message: Buffer) => unknown): (chunk: Buffer) => void {
  let buffered = Buffer.alloc(0);
  return (chunk) => {
    buffered = buffered.length === 0 ? Buffer.from(chunk) : Buffer.concat([buffered, chunk]);
    while (buffered.length >= 4 && buffered.length >= buffered.readInt32LE(0)) {
      const length = buffered.readInt32LE(0);
      each(buffered.subarray(0, length));
      buffered = buffered.subarray(length);
    }
  };
}
