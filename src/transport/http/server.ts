import { createServer as createHttp1, IncomingMessage, type Server as Http1Server, ServerResponse } from "node:http";
import {
  createSecureServer,
  createServer as createHttp2,
  type Http2SecureServer,
  type Http2Server,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
} from "node:http2";
import { readFileSync } from "node:fs";
import { type AddressInfo, type Server as NetServer, Socket } from "node:net";
import type { Server as TlsServer, TLSSocket } from "node:tls";
import type { Adapter } from "./adapter.ts";
import { Certificate, type TlsFiles, tlsOptionsOf } from "./certificate.ts";
import { type ServerBounds, serverBounds } from "./server-limits.ts";
import { type ConnectionCounts, Connections } from "./connections.ts";
import {
  answerHalfClosed,
  missingInternals,
  ownListener,
  readThroughStream,
  stopListening,
  takeOver,
  trackAnswer,
} from "./node-internals.ts";
import { answerMalformed, type MalformedHandler, Tunnel } from "./malformed.ts";
import { ignoreUpgrades } from "./upgrade.ts";

export interface ServerOptions {
  readonly host: string;
  /** 0 picks a free port. */
  readonly port: number;
  /** PEM texts, or files that the server follows. Without them, the port speaks HTTP/1.1 and h2c. */
  readonly tls?: TlsFiles | Certificate;
  /** Whether callers need a certificate, if `tls` has authorities for theirs. Default true. */
  readonly asksCallers?: boolean;
  /** The refusal for a call without a key when there are too many; undefined for all other calls, and by default. */
  readonly keylessRefusal?: (headers: IncomingHttpHeaders) => OutgoingHttpHeaders | undefined;
  /** Receives what this Node lacks. */
  readonly warn?: (text: string) => void;
  /** Bounds that differ from `serverBounds`. */
  readonly bounds?: Partial<ServerBounds>;
}

export interface Server {
  readonly port: number;
  counts(): ConnectionCounts;
  /**
   * Sends callers elsewhere, but still serves everything, so that no caller is sending when the end comes. Answers over
   * HTTP/1.1 close their connection, and HTTP/2 callers learn to open no more streams on theirs.
   */
  windDown(): void;
  /** Takes no new requests. Lets those in flight finish for at most `drainMs`, then cuts the rest. */
  close(drainMs: number): Promise<void>;
}

/**
 * Listens on one port for HTTP/1.1 and HTTP/2. The server calls `createAdapter` with its port before it accepts the first
 * connection.
 * @throws when the port is not available.
 */
export async function startServer(createAdapter: (port: number) => Adapter, options: ServerOptions): Promise<Server> {
  for (const text of missingInternals()) options.warn?.(`Node ${process.version} is not one that was tried. ${text}`);
  const bounds = boundsFrom(options.bounds);
  const { tls, asksCallers = true, keylessRefusal = () => undefined } = options;
  const { listener, serveBy } = tls === undefined ? plainListener(bounds) : secureListener(bounds, tls, asksCallers);
  await new Promise<void>((resolve, reject) => {
    listener.once("error", reject);
    listener.listen(options.port, options.host, () => resolve());
  });
  using undo = new DisposableStack();
  undo.defer(() => void listener.close());
  // Node accepts connections from the next turn of its loop on, so nothing may be awaited until all handlers are set.
  const { port } = listener.address() as AddressInfo;
  const { request, stream, malformed } = createAdapter(port);
  const state = { closing: false };
  const serve: Adapter["request"] = (message, response) => {
    if (state.closing) response.setHeader("connection", "close");
    trackAnswer(response);
    request(message, response);
  };
  const connections = new Connections(bounds);
  serveBy({ serve, stream, malformed, bounds, connections, keylessRefusal });
  listener.maxConnections = bounds.connectionsMax;
  listener.on("drop", () => connections.turnedAway());
  const sockets = new Set<Socket>();
  listener.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });
  undo.move();
  return {
    port,
    counts: () => connections.counts(),
    windDown: () => {
      state.closing = true;
      connections.windDownSessions();
    },
    close: (drainMs) => {
      state.closing = true;
      connections.endAfterAnswers();
      return closeListener(listener, connections, sockets, drainMs).finally(() => connections.stop());
    },
  };
}

/** The bounds, with as many connections as the system allows open files. */
function boundsFrom(others: Partial<ServerBounds> | undefined): ServerBounds {
  const bounds = { ...serverBounds, ...others };
  return { ...bounds, connectionsMax: Math.min(bounds.connectionsMax, openFilesMax() - bounds.filesReserved) };
}

/** Files that this process may open. Only Linux tells; elsewhere there is no bound. */
function openFilesMax(): number {
  try {
    const [, soft] = /^Max open files +(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8")) ?? [];
    return Number(soft ?? Number.POSITIVE_INFINITY);
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

type Listener = NetServer & { closeIdleConnections?(): void };

/** A listener whose connections have no handlers yet, and what sets these. */
interface Unserved {
  readonly listener: Listener;
  readonly serveBy: (parts: ListenerParts) => void;
}

interface ListenerParts {
  readonly serve: Adapter["request"];
  readonly stream: Adapter["stream"];
  readonly malformed: MalformedHandler;
  readonly bounds: ServerBounds;
  readonly connections: Connections;
  readonly keylessRefusal: NonNullable<ServerOptions["keylessRefusal"]>;
}

const http1Options = (bounds: ServerBounds) => ({
  maxHeaderSize: bounds.headerBytesMax,
  headersTimeout: bounds.headersMs,
  requestTimeout: bounds.requestMs,
  // The sweep closes idle connections. Node would need a timer for each answer.
  keepAliveTimeout: 0,
  // How often Node checks its time limits.
  connectionsCheckingInterval: 2_000,
  noDelay: true,
  // A request without a body gets a stream that has ended and emits nothing. It saves a tenth of the cost of a ping.
  optimizeEmptyRequests: true,
  // Our answer says more than Node's.
  requireHostHeader: false,
});

const http2Options = (bounds: ServerBounds) => ({
  // Node would silently drop a value with a space at either end. We trim it, as HTTP/1.1 does.
  strictFieldWhitespaceValidation: false,
  // Node's 128 would refuse what HTTP/1.1 takes. Each field counts 32 more bytes, so the bound on bytes bounds the count.
  maxHeaderListPairs: Math.floor(bounds.headerBytesMax / 32),
  maxSessionMemory: bounds.sessionMegabytesMax,
  settings: {
    maxConcurrentStreams: bounds.streamsPerSessionMax,
    maxHeaderListSize: bounds.headerBytesMax,
    initialWindowSize: 1_048_576,
  },
});

function plainListener(bounds: ServerBounds): Unserved {
  const listener = createHttp1(http1Options(bounds));
  return { listener, serveBy: (parts) => servePlain(listener, parts) };
}

/**
 * The HTTP/1.1 server listens, so that its time limits keep working. It hands connections that begin with HTTP/2's
 * preface to the HTTP/2 server.
 */
function servePlain(http1: Http1Server, parts: ListenerParts): void {
  const { serve, bounds, connections } = parts;
  http1.on("request", serve);
  const http2 = createHttp2(http2Options(bounds));
  for (const server of [http1, http2]) answerOddRequests(server, parts);
  takeWholeRequests(http1);
  serveStreams(http2, parts);
  watchSessions(http2, connections);
  const asHttp1 =
    takeOver<(socket: Socket) => void>(http1, "connection") ?? injectedInto(createHttp1(http1Options(bounds), serve));
  ignoreUpgrades(http1, (socket) => asHttp1.call(http1, socket));
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
      // Do not put a part back: the socket would report it as readable at once, again and again.
      if (isBeginning && seen.length < preface.length) return;
      socket.off("readable", peek).off("end", gone);
      socket.unshift(seen);
      if (isBeginning) {
        connections.delete(socket);
        // HTTP/1.1 answers callers that have ended their side. An HTTP/2 session ends with its caller.
        socket.allowHalfOpen = false;
        http2.emit("connection", socket);
      } else {
        connections.speaksHttp1(socket);
        asHttp1.call(http1, socket);
      }
    };
    socket.on("readable", peek);
  });
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/** Gives connections to another HTTP/1.1 server in the documented way, which loses that server's time limits. */
const injectedInto = (server: NetServer) => (socket: Socket) => void server.emit("connection", socket);

function secureListener(bounds: ServerBounds, tls: TlsFiles | Certificate, asksCallers: boolean): Unserved {
  const tlsOptions = tls instanceof Certificate ? tls.options(asksCallers) : tlsOptionsOf(tls, asksCallers);
  const both = { ...http1Options(bounds), ...http2Options(bounds), allowHTTP1: true };
  const server = createSecureServer({ ...both, ...tlsOptions, allowHalfOpen: true });
  if (tls instanceof Certificate) tls.serves(server as unknown as TlsServer, asksCallers);
  return { listener: server as unknown as Listener, serveBy: (parts) => serveSecure(server, parts) };
}

function serveSecure(server: Http2SecureServer, parts: ListenerParts): void {
  const { serve, connections } = parts;
  const begin = ownListener<(socket: Socket) => void>(server, "secureConnection");
  if (begin !== undefined) ignoreUpgrades(server, (socket) => begin.call(server, socket));
  // These are requests of HTTP/1.1; those of HTTP/2 arrive as streams.
  server.on("request", (request: object, response: object) => {
    if (request instanceof IncomingMessage && response instanceof ServerResponse) serve(request, response);
  });
  answerOddRequests(server, parts);
  takeWholeRequests(server);
  // The two sockets of a handshake have the same remote end.
  const shaking = new Map<string, Socket>();
  const otherEnd = ({ remoteAddress, remotePort }: Socket) => `${remoteAddress} ${remotePort}`;
  server.on("connection", (socket: Socket) => {
    const name = otherEnd(socket);
    shaking.set(name, socket);
    socket.once("close", () => shaking.get(name) === socket && shaking.delete(name));
    connections.add(socket, true);
  });
  server.on("secureConnection", (socket: TLSSocket) => {
    const name = otherEnd(socket);
    const raw = shaking.get(name);
    shaking.delete(name);
    if (raw !== undefined) connections.delete(raw);
    if (socket.alpnProtocol === "h2") return;
    connections.add(socket, false);
    connections.speaksHttp1(socket);
    readThroughStream(socket);
  });
  serveStreams(server as unknown as Http2Server, parts);
  watchSessions(server as unknown as Http2Server, connections);
  server.on("tlsClientError", () => {});
}

/** Answers requests that Node would answer itself, or not at all. */
function answerOddRequests(server: NetServer, { serve, malformed }: ListenerParts): void {
  server.on("clientError", (error: Error, socket: Socket) => answerMalformed(error, socket, malformed));
  // Node itself answers 100-continue.
  server.on("checkExpectation", serve);
  server.on("connect", (_request: IncomingMessage, socket: Socket) => {
    answerMalformed(new Tunnel("asked to be a proxy"), socket, malformed);
  });
}

/** Allows what HTTP/1.1 allows and Node by default does not. */
function takeWholeRequests(server: NetServer & { maxHeadersCount?: number | null }): void {
  answerHalfClosed(server);
  // Node would silently drop headers past 2,000. The bound on bytes is enough.
  server.maxHeadersCount = 0;
}

/** Serves streams directly: Node's requests and responses for HTTP/2 cost several times as much. */
function serveStreams(server: Http2Server, { stream: serve, connections, keylessRefusal }: ListenerParts): void {
  // Node has added its own listener for a server that also takes HTTP/1.1.
  takeOver(server, "stream");
  server.on("stream", (stream, headers, _flags, rawHeaders) => {
    if (connections.addStream(stream, keylessRefusal(headers))) serve(stream, headers, rawHeaders);
  });
}

function watchSessions(server: Http2Server, connections: Connections): void {
  server.on("session", (session) => {
    connections.addSession(session);
    session.on("error", () => {});
  });
  server.on("sessionError", () => {});
}

async function closeListener(
  listener: Listener,
  connections: Connections,
  sockets: Set<Socket>,
  drainMs: number,
): Promise<void> {
  const closed = stopListening(listener);
  const closeIdle = (): void => {
    if (!connections.isSending()) listener.closeIdleConnections?.();
  };
  connections.closeSessions();
  const sweep = setInterval(closeIdle, 50);
  closeIdle();
  const cut = setTimeout(() => {
    connections.destroySessions();
    // A destroyed session still waits for its caller to close the connection.
    for (const socket of sockets) socket.destroy();
  }, drainMs);
  await closed;
  clearInterval(sweep);
  clearTimeout(cut);
}
