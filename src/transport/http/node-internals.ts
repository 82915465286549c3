import { createServer, IncomingMessage, ServerResponse, STATUS_CODES } from "node:http";
import { createSecureServer, createServer as createHttp2 } from "node:http2";
import { Server as NetServer, Socket } from "node:net";

/**
 * Everything here relies on undocumented behaviour of Node. `missingInternals` checks it at the start, and each function
 * has a fallback for a Node without it.
 */

/** Says what this Node lacks of this file, and what happens instead. Empty on versions that the tests cover. */
export function missingInternals(): string[] {
  const http1 = createServer();
  const missing: string[] = [];
  if (ownListener(http1, "connection") === undefined) {
    missing.push("Its HTTP/1.1 server takes connections in another way: its own time limits on requests do not apply.");
  }
  if (!("httpAllowHalfOpen" in http1)) {
    missing.push("It has no httpAllowHalfOpen: a caller of HTTP/1.1 that ends its side gets no answer.");
  }
  if (!keepsHeads)
    missing.push("It keeps heads in another way: it checks each header of an answer again, which costs more.");
  if (!closesWaitingAnswers) {
    missing.push(
      "It does not tell that the connection of a pipelined request has closed, so what it holds stays: use 24.16, 26.1 or newer.",
    );
  }
  if (!marksSockets) missing.push("It marks sockets in another way: answers under way are tracked one by one.");
  if (
    ownListener(
      createHttp2(() => {}),
      "stream",
    ) === undefined
  ) {
    missing.push("Its HTTP/2 server takes streams in another way: each request costs more.");
  }
  if (ownListener(createSecureServer({ allowHTTP1: true }), "secureConnection") === undefined) {
    missing.push("Its TLS server takes connections in another way: a request with Upgrade loses what follows it.");
  }
  return missing;
}

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);

/** Whether an answer that waits for an earlier one closes with its connection. */
const closesWaitingAnswers = major === 24 ? minor >= 16 : major > 26 || (major === 26 && minor >= 1);

type Listener = (...args: never[]) => void;

/** Returns Node's own listener of a new server's event; undefined unless there is exactly one. */
export function ownListener<L extends Listener>(
  server: { listeners(event: string): Function[] },
  event: string,
): L | undefined {
  const [own, ...others] = server.listeners(event) as L[];
  return others.length === 0 ? own : undefined;
}

/** Removes Node's own listener, and returns it. Removes nothing unless there is exactly one. */
export function takeOver<L extends Listener>(
  server: Parameters<typeof ownListener>[0] & { removeAllListeners(event: string): unknown },
  event: string,
): L | undefined {
  const own = ownListener<L>(server, event);
  if (own !== undefined) server.removeAllListeners(event);
  return own;
}

/** Makes an HTTP/1.1 server answer callers that have ended their side. */
export function answerHalfClosed(server: NetServer): void {
  (server as NetServer & { httpAllowHalfOpen?: boolean }).httpAllowHalfOpen = true;
}

interface MarkedSocket extends Socket {
  _httpMessage?: ServerResponse | null;
}

/** Whether a socket knows its current answer. */
const marksSockets = (() => {
  const socket: MarkedSocket = new Socket();
  const answer = new ServerResponse(new IncomingMessage(socket));
  answer.assignSocket(socket);
  const marks = socket._httpMessage === answer;
  answer.detachSocket(socket);
  socket.destroy();
  return marks;
})();

/** The current answers, if sockets do not know them. */
const tracked = new WeakMap<Socket, ServerResponse>();

/** The current HTTP/1.1 answer, until the system has taken all of it. */
export function answerUnderWay(socket: Socket): ServerResponse | undefined {
  return (marksSockets ? (socket as MarkedSocket)._httpMessage : tracked.get(socket)) ?? undefined;
}

/** Call this with every HTTP/1.1 answer before it begins. */
export function trackAnswer(answer: ServerResponse): void {
  if (marksSockets) return;
  const { socket } = answer.req;
  tracked.set(socket, answer);
  answer.once("close", () => tracked.get(socket) === answer && tracked.delete(socket));
}

interface HeadedResponse extends ServerResponse {
  _header?: string | null;
  _headerSent?: boolean;
}

/** Whether a response keeps its head as text until its first bytes leave. */
const keepsHeads = (() => {
  const response: HeadedResponse = new ServerResponse(new IncomingMessage(new Socket()));
  return response._header === null && response._headerSent === false;
})();

/** Any other value goes to Node, which refuses those that would end their line. */
const plainValue = /^[\t\x20-\x7e]*$/;

/**
 * Begins an answer. Node looks at each header for one that changes the connection. That is slow, so we write the head of
 * an answer with a known length after which the connection takes another request.
 */
export function beginAnswer(response: HeadedResponse, status: number, headers: Readonly<Record<string, string>>): void {
  const { "content-length": length, connection } = headers;
  const isUsual = mayHaveBody(status) && length !== undefined && connection === undefined;
  const isUntouched = response._header === null && response.shouldKeepAlive && response.getHeaderNames().length === 0;
  const head = keepsHeads && isUsual && isUntouched ? headOf(status, headers) : undefined;
  if (head === undefined) return void response.writeHead(status, headers);
  response.statusCode = status;
  response._header = head;
}

function headOf(status: number, headers: Readonly<Record<string, string>>): string | undefined {
  let head = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n`;
  for (const name in headers) {
    const value = headers[name] as string;
    if (!plainValue.test(value)) return undefined;
    head += `${name}: ${value}\r\n`;
  }
  return `${head}Date: ${dateNow()}\r\nConnection: keep-alive\r\n\r\n`;
}

let dated = { second: 0, text: "" };

function dateNow(): string {
  const second = Math.floor(Date.now() / 1000);
  if (second !== dated.second) dated = { second, text: new Date(second * 1000).toUTCString() };
  return dated.text;
}

/** Ends an answer with its body. ASCII leaves in one piece with the head, because Node then writes only once. */
export function endWith(response: HeadedResponse, body: string | Uint8Array): void {
  if (typeof body !== "string" || Buffer.byteLength(body) !== body.length) return void response.end(body);
  const isHeadHere = keepsHeads && typeof response._header === "string" && response._headerSent === false;
  if (!isHeadHere || response.chunkedEncoding || !mayHaveBody(response.statusCode)) {
    // ASCII is the same in both encodings, and Node writes Latin-1 faster.
    return void response.end(body, "latin1");
  }
  response._header += body;
  response.end();
}

const mayHaveBody = (status: number): boolean => status >= 200 && status !== 204 && status !== 304;

/**
 * Only stops listening. The close() of an HTTP server also ends connections that Node considers idle. To Node, one is idle
 * once its answer has ended, although the caller may still have to read much of it.
 */
export function stopListening(listener: NetServer): Promise<void> {
  return new Promise((resolve) => NetServer.prototype.close.call(listener, () => resolve()));
}

/**
 * Makes Node's HTTP/1.1 parser read the connection through its stream, as it does if there is a listener for the data.
 *
 * By default it reads past the stream. It pauses if a request begins before the system has taken all of the last answer.
 * TLS decrypts all records at once and still gives it the rest of the request. The parser reports that as an error
 * (HPE_PAUSED), and the bytes are lost. A paused stream keeps them.
 */
export function readThroughStream(socket: Socket): void {
  socket.on("data", () => {});
}

/** Whether Node leaves the body of an upgraded request in the connection. From Node 25 on, it reads the body first. */
export const leavesUpgradedBody = major < 25;

/** Gives connections away with their requests that ask for another protocol, and with the rest of the packet. */
export function takeUpgrades(
  server: NetServer,
  take: (request: IncomingMessage, socket: Socket, rest: Buffer) => void,
): void {
  const hasBody = ({ headers }: IncomingMessage) => "content-length" in headers || "transfer-encoding" in headers;
  // Otherwise the request is served as any other, and only what follows its body in the packet is lost.
  Object.assign(server, {
    shouldUpgradeCallback: (request: IncomingMessage) => leavesUpgradedBody || !hasBody(request),
  });
  server.on("upgrade", take);
}
