import { createServer, IncomingMessage, ServerResponse } from "node:http";
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
export const leavesUpgradedBody = Number(process.versions.node.split(".")[0]) < 25;

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
