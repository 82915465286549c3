import { createServer as createHttp1 } from "node:http";
import { createSecureServer, createServer as createHttp2, type Http2Server } from "node:http2";
import { type AddressInfo, Server as NetServer, Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { Adapter } from "./adapter.ts";
import { type ServerBounds, serverBounds } from "./server-limits.ts";
import { Connections } from "./connections.ts";
import type { NodeHandler, NodeRequest, NodeResponse } from "./route.ts";
import type { StreamHandler } from "../rpc/grpc-unary.ts";
import { answerMalformed, type MalformedHandler, Tunnel } from "./malformed.ts";
import { Sessions } from "./sessions.ts";

export interface ServerOptions {
  readonly host: string;
  /** 0 picks a free one. */
  readonly port: number;
  /** PEM texts; without them the port speaks HTTP/1.1 and h2c. */
  readonly tls?: { readonly cert: string; readonly key: string };
  /** What differs from `serverBounds`. */
  readonly bounds?: Partial<ServerBounds>;
}

export interface Server {
  /** Where it listens. */
  readonly port: number;
  /**
   * Sends callers elsewhere while everything is still served, so that nobody is in the middle of sending when the end
   * comes: answers over HTTP/1.1 end their connection, HTTP/2 callers are told to open no more streams on theirs.
   */
  windDown(): void;
  /** Takes no new requests and lets those in flight finish, for at most `drainMs`; then cuts what is left. */
  close(drainMs: number): Promise<void>;
}

/** Listens on one port for HTTP/1.1 and HTTP/2. @throws when the port cannot be had. */
export async function startServer(adapter: Adapter, options: ServerOptions): Promise<Server> {
  const sessions = new Sessions();
  const state = { closing: false };
  const serve: NodeHandler = (request, response) => {
    if (state.closing && request.httpVersionMajor === 1) response.setHeader("connection", "close");
    adapter.request(request, response);
  };
  const bounds = boundsFrom(options.bounds);
  const connections = new Connections(bounds);
  const { stream, malformed } = adapter;
  const parts: ListenerParts = { serve, stream, malformed, bounds, sessions, connections };
  const listener = options.tls === undefined ? plainListener(parts) : secureListener(parts, options.tls);
  listener.maxConnections = bounds.connectionsMax;
  const sockets = new Set<Socket>();
  listener.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve, reject) => {
    listener.once("error", reject);
    listener.listen(options.port, options.host, () => resolve());
  });
  return {
    port: (listener.address() as AddressInfo).port,
    windDown: () => {
      state.closing = true;
      sessions.windDown();
    },
    close: (drainMs) => {
      state.closing = true;
      connections.endAfterAnswers();
      return closeListener(listener, sessions, connections, sockets, drainMs).finally(() => connections.stop());
    },
  };
}

/** The bounds, but no more connections than the open files allow. */
function boundsFrom(others: Partial<ServerBounds> | undefined): ServerBounds {
  const bounds = { ...serverBounds, ...others };
  const { userLimits } = process.report.getReport() as { userLimits?: { open_files?: { soft: number | string } } };
  const files = Number(userLimits?.open_files?.soft);
  if (!(files > 0)) return bounds;
  return { ...bounds, connectionsMax: Math.min(bounds.connectionsMax, files - bounds.filesReserved) };
}

type Listener = NetServer & { closeIdleConnections?(): void };

interface ListenerParts {
  readonly serve: NodeHandler;
  readonly stream: StreamHandler;
  readonly malformed: MalformedHandler;
  readonly bounds: ServerBounds;
  readonly sessions: Sessions;
  readonly connections: Connections;
}

const http1Options = (bounds: ServerBounds) => ({
  maxHeaderSize: bounds.headerBytesMax,
  headersTimeout: bounds.headersMs,
  requestTimeout: bounds.requestMs,
  // Connections that are idle are ended by the sweep over all of them: here it would be a timer for each answer.
  keepAliveTimeout: 0,
  // Node looks at its time limits this often only.
  connectionsCheckingInterval: 2_000,
  noDelay: true,
  // A request without a body gets a stream that has ended, and no events of one: a tenth of what a ping costs.
  optimizeEmptyRequests: true,
  // Our own answer says what is wrong with such a request.
  requireHostHeader: false,
});

const http2Options = (bounds: ServerBounds) => ({
  // Node would drop a value with a space at either end in silence; HTTP/1.1 trims it, and so do we.
  strictFieldWhitespaceValidation: false,
  // Node's 128 would refuse what HTTP/1.1 takes. The bound on bytes bounds the count too: each field counts 32 bytes more.
  maxHeaderListPairs: Math.floor(bounds.headerBytesMax / 32),
  maxSessionMemory: bounds.sessionMegabytesMax,
  settings: {
    maxConcurrentStreams: bounds.streamsPerSessionMax,
    maxHeaderListSize: bounds.headerBytesMax,
    initialWindowSize: 1_048_576,
  },
});

/**
 * The real listener is the HTTP/1.1 server, so that its time limits keep working; a connection that begins with HTTP/2's
 * preface is handed to the other one.
 */
function plainListener(parts: ListenerParts): Listener {
  const { serve, stream, bounds, sessions, connections } = parts;
  const http1 = createHttp1(http1Options(bounds), serve);
  const http2 = createHttp2(http2Options(bounds), serve);
  for (const server of [http1, http2]) answerOddRequests(server, parts);
  takeHalfClosed(http1);
  offerStreams(http2, stream, connections);
  watchSessions(http2, sessions, connections);
  const [asHttp1] = http1.listeners("connection") as [(socket: Socket) => void];
  http1.removeAllListeners("connection");
  http1.on("connection", (socket: Socket) => {
    socket.on("error", () => {});
    connections.add(socket, true);
    const gone = () => socket.destroy();
    socket.once("end", gone);
    let seen: Buffer | undefined;
    const peek = (): void => {
      const chunk = socket.read() as Buffer | null;
      if (chunk === null) return;
      seen = seen === undefined ? chunk : Buffer.concat([seen, chunk]);
      const isBeginning = preface.startsWith(seen.toString("latin1", 0, preface.length));
      // Kept and not put back meanwhile: what is put back is readable at once, again and again.
      if (isBeginning && seen.length < preface.length) return;
      socket.off("readable", peek).off("end", gone);
      socket.unshift(seen);
      if (isBeginning) {
        connections.delete(socket);
        // HTTP/1.1 answers a caller that has ended its side; a session of HTTP/2 has nobody left to talk to.
        socket.allowHalfOpen = false;
        http2.emit("connection", socket);
      } else {
        connections.speaksHttp1(socket);
        socket.once("end", () => connections.endedByCaller(socket));
        asHttp1.call(http1, socket);
      }
    };
    socket.on("readable", peek);
  });
  return http1;
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

function secureListener(parts: ListenerParts, tls: { readonly cert: string; readonly key: string }): Listener {
  const { serve, stream, bounds, sessions, connections } = parts;
  const both = { ...http1Options(bounds), ...http2Options(bounds), allowHTTP1: true };
  const server = createSecureServer({ ...both, ...tls, allowHalfOpen: true }, serve);
  answerOddRequests(server, parts);
  takeHalfClosed(server);
  server.on("connection", (socket: Socket) => connections.add(socket, true));
  server.on("secureConnection", (socket: TLSSocket & { _parent?: Socket }) => {
    if (socket._parent !== undefined) connections.delete(socket._parent);
    if (socket.alpnProtocol === "h2") return;
    connections.add(socket, false);
    socket.once("end", () => connections.endedByCaller(socket));
    holdBack(socket);
  });
  offerStreams(server as unknown as Http2Server, stream, connections);
  watchSessions(server as unknown as Http2Server, sessions, connections);
  server.on("tlsClientError", () => {});
  return server as unknown as Listener;
}

/** Answers in our own way what Node would answer by itself, or not at all: what is no request of ours. */
function answerOddRequests(server: NetServer, { serve, malformed }: ListenerParts): void {
  server.on("clientError", (error: Error, socket: Socket) => answerMalformed(error, socket, malformed));
  // Other than 100-continue, which Node fulfils.
  server.on("checkExpectation", serve);
  server.on("connect", (request: NodeRequest, side: NodeResponse | Socket) => {
    // Over HTTP/1.1 what follows would be a tunnel's, so there is no response.
    if (side instanceof Socket) answerMalformed(new Tunnel("asked to be a proxy"), side, malformed);
    else serve(request, side);
  });
}

/** Makes Node answer a caller of HTTP/1.1 that has ended its side, as it may; by itself Node drops the answer. */
function takeHalfClosed(server: NetServer & { httpAllowHalfOpen?: boolean; maxHeadersCount?: number | null }): void {
  server.httpAllowHalfOpen = true;
  // Past Node's 2,000 it would drop the rest in silence; the bound on bytes is enough.
  server.maxHeadersCount = 0;
}

/**
 * Makes Node's HTTP/1.1 parser read the connection through its stream, as it does for whoever listens for the bytes too.
 *
 * By itself it reads past the stream. It pauses when a request begins before the system has taken the whole of the answer
 * before, and TLS, which decrypts all the records it has at once, would give it the rest of the request all the same: the
 * parser takes that for an error (HPE_PAUSED), and the bytes are lost. A stream that is paused keeps them.
 */
function holdBack(socket: TLSSocket): void {
  socket.on("data", () => {});
}

/**
 * Offers each stream to `serve` before the compatibility layer makes a request and a response of it, which Node does in a
 * listener of its own.
 */
function offerStreams(server: Http2Server, serve: StreamHandler, connections: Connections): void {
  const [compatibility] = server.listeners("stream") as [(...args: unknown[]) => void];
  server.removeAllListeners("stream");
  server.on("stream", (stream, headers, flags, rawHeaders) => {
    if (connections.addStream(stream) && !serve(stream, headers, rawHeaders)) {
      compatibility(stream, headers, flags, rawHeaders);
    }
  });
}

function watchSessions(server: Http2Server, sessions: Sessions, connections: Connections): void {
  server.on("session", (session) => {
    sessions.add(session);
    connections.addSession(session);
    session.once("close", () => sessions.delete(session));
    session.on("error", () => {});
  });
  server.on("sessionError", () => {});
}

async function closeListener(
  listener: Listener,
  sessions: Sessions,
  connections: Connections,
  sockets: Set<Socket>,
  drainMs: number,
): Promise<void> {
  // To Node a connection is idle once its answer has ended, although the caller may have much of it still to read: its
  // own close() would cut such an answer.
  const closed = new Promise<void>((resolve) => NetServer.prototype.close.call(listener, () => resolve()));
  const closeIdle = (): void => {
    if (!connections.isSending()) listener.closeIdleConnections?.();
  };
  sessions.close();
  const sweep = setInterval(closeIdle, 50);
  closeIdle();
  const cut = setTimeout(() => {
    for (const session of sessions) session.destroy();
    // A session that is destroyed still waits for its caller to close the connection.
    for (const socket of sockets) socket.destroy();
  }, drainMs);
  await closed;
  clearInterval(sweep);
  clearTimeout(cut);
}
