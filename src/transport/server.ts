import { createServer as createHttp1 } from "node:http";
import { createSecureServer, createServer as createHttp2, type Http2Server, type ServerHttp2Session } from "node:http2";
import type { AddressInfo, Server as NetServer, Socket } from "node:net";
import type { Adapter } from "./adapter.ts";
import type { NodeHandler } from "./route.ts";
import type { StreamHandler } from "./grpc-unary.ts";
import { answerMalformed } from "./malformed.ts";

/** Bounds on what a caller may hold open or make the server keep. */
export const serverBounds = {
  /** To send the request's headers. */
  headersMs: 10_000,
  /** To send the whole request. */
  requestMs: 30_000,
  /** An idle HTTP/1.1 connection is kept. */
  keepAliveMs: 65_000,
  /** A new connection may stay silent. */
  firstByteMs: 10_000,
  /** An HTTP/2 connection without streams is kept. */
  sessionIdleMs: 300_000,
  headerBytesMax: 16_384,
  connectionsMax: 20_000,
  streamsPerSessionMax: 250,
  /** Memory of one HTTP/2 session, in megabytes (Node's unit). */
  sessionMegabytesMax: 10,
} as const;

export interface ServerOptions {
  readonly host: string;
  /** 0 picks a free one. */
  readonly port: number;
  /** PEM texts; without them the port speaks HTTP/1.1 and h2c. */
  readonly tls?: { readonly cert: string; readonly key: string };
}

export interface Server {
  /** Where it listens. */
  readonly port: number;
  /**
   * Takes no new requests and lets those in flight finish, for at most `drainMs`; then cuts what is left.
   */
  close(drainMs: number): Promise<void>;
}

/** Listens on one port for HTTP/1.1 and HTTP/2. @throws when the port cannot be had. */
export async function startServer(adapter: Adapter, options: ServerOptions): Promise<Server> {
  const sessions = new Set<ServerHttp2Session>();
  const state = { closing: false };
  const serve: NodeHandler = (request, response) => {
    if (state.closing && request.httpVersionMajor === 1) response.setHeader("connection", "close");
    adapter.request(request, response);
  };
  const http2Options = {
    maxSessionMemory: serverBounds.sessionMegabytesMax,
    settings: {
      maxConcurrentStreams: serverBounds.streamsPerSessionMax,
      maxHeaderListSize: serverBounds.headerBytesMax,
      initialWindowSize: 1_048_576,
    },
  };
  const listener =
    options.tls === undefined
      ? plainListener(serve, adapter.stream, http2Options, sessions)
      : secureListener(serve, adapter.stream, { ...http2Options, ...options.tls }, sessions);
  listener.on("clientError", (error: Error, socket: Socket) => answerMalformed(error, socket, adapter.malformed));
  listener.maxConnections = serverBounds.connectionsMax;
  await new Promise<void>((resolve, reject) => {
    listener.once("error", reject);
    listener.listen(options.port, options.host, () => resolve());
  });
  return {
    port: (listener.address() as AddressInfo).port,
    close: (drainMs) => {
      state.closing = true;
      return closeListener(listener, sessions, drainMs);
    },
  };
}

type Listener = NetServer & { closeIdleConnections?(): void; closeAllConnections?(): void };

const http1Options = {
  maxHeaderSize: serverBounds.headerBytesMax,
  headersTimeout: serverBounds.headersMs,
  requestTimeout: serverBounds.requestMs,
  keepAliveTimeout: serverBounds.keepAliveMs,
  noDelay: true,
  // Our own answer says what is wrong with such a request.
  requireHostHeader: false,
};

/**
 * The real listener is the HTTP/1.1 server, so that its time limits keep working; a connection that begins with HTTP/2's
 * preface is handed to the other one.
 */
function plainListener(
  serve: NodeHandler,
  stream: StreamHandler,
  http2Options: object,
  sessions: Set<ServerHttp2Session>,
): Listener {
  const http1 = createHttp1(http1Options, serve);
  const http2 = createHttp2(http2Options, serve);
  offerStreams(http2, stream);
  watchSessions(http2, sessions);
  const [asHttp1] = http1.listeners("connection") as [(socket: Socket) => void];
  http1.removeAllListeners("connection");
  http1.on("connection", (socket: Socket) => {
    socket.on("error", () => {});
    socket.setTimeout(serverBounds.firstByteMs, () => socket.destroy());
    const peek = (): void => {
      const chunk = socket.read() as Buffer | null;
      if (chunk === null) return;
      const isBeginning = preface.startsWith(chunk.toString("latin1", 0, preface.length));
      socket.unshift(chunk);
      if (isBeginning && chunk.length < preface.length) return;
      socket.off("readable", peek);
      socket.setTimeout(0);
      socket.removeAllListeners("timeout");
      if (isBeginning) http2.emit("connection", socket);
      else asHttp1.call(http1, socket);
    };
    socket.on("readable", peek);
  });
  return http1;
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

function secureListener(
  serve: NodeHandler,
  stream: StreamHandler,
  options: object,
  sessions: Set<ServerHttp2Session>,
): Listener {
  const server = createSecureServer({ ...http1Options, ...options, allowHTTP1: true }, serve);
  offerStreams(server as unknown as Http2Server, stream);
  watchSessions(server as unknown as Http2Server, sessions);
  server.on("tlsClientError", () => {});
  return server as unknown as Listener;
}

/**
 * Offers each stream to `serve` before the compatibility layer makes a request and a response of it, which Node does in a
 * listener of its own.
 */
function offerStreams(server: Http2Server, serve: StreamHandler): void {
  const [compatibility] = server.listeners("stream") as [(...args: unknown[]) => void];
  server.removeAllListeners("stream");
  server.on("stream", (stream, headers, ...rest) => {
    if (!serve(stream, headers)) compatibility(stream, headers, ...rest);
  });
}

function watchSessions(server: Http2Server, sessions: Set<ServerHttp2Session>): void {
  server.on("session", (session) => {
    sessions.add(session);
    session.setTimeout(serverBounds.sessionIdleMs, () => session.close());
    session.once("close", () => sessions.delete(session));
    session.on("error", () => {});
  });
  server.on("sessionError", () => {});
}

async function closeListener(listener: Listener, sessions: Set<ServerHttp2Session>, drainMs: number): Promise<void> {
  const closed = new Promise<void>((resolve) => listener.close(() => resolve()));
  for (const session of sessions) session.close();
  const sweep = setInterval(() => listener.closeIdleConnections?.(), 50);
  listener.closeIdleConnections?.();
  const cut = setTimeout(() => {
    for (const session of sessions) session.destroy();
    listener.closeAllConnections?.();
  }, drainMs);
  await closed;
  clearInterval(sweep);
  clearTimeout(cut);
}
