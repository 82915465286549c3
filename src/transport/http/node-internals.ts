import { createServer, IncomingMessage, ServerResponse } from "node:http";
import { createServer as createHttp2 } from "node:http2";
import { Server as NetServer, Socket } from "node:net";

/**
 * Everything here leans on what Node does and does not promise. `missingInternals` looks at the start whether this Node
 * still does it; each function has another way for a Node that does not.
 */

/** What this Node no longer has of the below, and what happens instead; empty on those that the tests run on. */
export function missingInternals(): string[] {
  const http1 = createServer();
  const missing: string[] = [];
  if (http1.listeners("connection").length !== 1) {
    missing.push("Its HTTP/1.1 server takes connections in another way: its own time limits on requests do not apply.");
  }
  if (!("httpAllowHalfOpen" in http1)) {
    missing.push("It has no httpAllowHalfOpen: a caller of HTTP/1.1 that ends its side gets no answer.");
  }
  if (!marksSockets) missing.push("It marks sockets in another way: answers under way are tracked one by one.");
  if (createHttp2(() => {}).listeners("stream").length !== 1) {
    missing.push("Its HTTP/2 server takes streams in another way: each request costs more.");
  }
  return missing;
}

type Listener = (...args: never[]) => void;

/**
 * Takes an event of a server over from Node's own listener, and answers that listener. undefined where there is not
 * exactly one: then nothing is taken.
 */
export function takeOver<L extends Listener>(
  server: { listeners(event: string): Function[]; removeAllListeners(event: string): unknown },
  event: string,
): L | undefined {
  const [own, ...others] = server.listeners(event) as L[];
  if (own === undefined || others.length > 0) return undefined;
  server.removeAllListeners(event);
  return own;
}

/** Makes an HTTP/1.1 server answer callers that have ended their side, as they may. */
export function answerHalfClosed(server: NetServer): void {
  (server as NetServer & { httpAllowHalfOpen?: boolean }).httpAllowHalfOpen = true;
}

interface MarkedSocket extends Socket {
  _httpMessage?: ServerResponse | null;
}

/** Whether Node keeps the answer under way with its socket. */
const marksSockets = (() => {
  const socket: MarkedSocket = new Socket();
  const answer = new ServerResponse(new IncomingMessage(socket));
  answer.assignSocket(socket);
  const marks = socket._httpMessage === answer;
  answer.detachSocket(socket);
  socket.destroy();
  return marks;
})();

/** The answers under way, where Node does not tell. */
const tracked = new WeakMap<Socket, ServerResponse>();

/** The answer under way over HTTP/1.1, until the system has taken the whole of it. */
export function answerUnderWay(socket: Socket): ServerResponse | undefined {
  return (marksSockets ? (socket as MarkedSocket)._httpMessage : tracked.get(socket)) ?? undefined;
}

/** To be called with every answer of HTTP/1.1 before it is made. */
export function trackAnswer(answer: ServerResponse, isNeeded = !marksSockets): void {
  const { socket } = answer.req;
  if (!isNeeded) return;
  tracked.set(socket, answer);
  answer.once("close", () => tracked.get(socket) === answer && tracked.delete(socket));
}

/**
 * Stops listening and does nothing else. The close() of an HTTP server also ends connections that Node takes for idle: to
 * it one is as soon as its answer has ended, although the caller may have much of it still to read.
 */
export function stopListening(listener: NetServer): Promise<void> {
  return new Promise((resolve) => NetServer.prototype.close.call(listener, () => resolve()));
}

/**
 * Makes Node's HTTP/1.1 parser read the connection through its stream, as it does for whoever listens for the bytes too.
 *
 * By itself it reads past the stream. It pauses when a request begins before the system has taken the whole of the answer
 * before, and TLS, which decrypts all the records it has at once, would give it the rest of the request all the same: the
 * parser takes that for an error (HPE_PAUSED), and the bytes are lost. A stream that is paused keeps them.
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
