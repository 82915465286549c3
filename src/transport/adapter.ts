import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { type Code, type ConnectRouter, type ConnectRouterOptions, createConnectRouter } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import { Fault } from "../errors.ts";
import type { Exchange, Protocol, Rejection } from "../exchange.ts";
import { limits } from "../limits.ts";
import { traceIdOf } from "../tracing.ts";
import { createCors } from "./cors.ts";
import { deadlineOf } from "./deadline.ts";
import { type FaultOf, faultOfConnect, MethodNotAllowed } from "./errors.ts";
import { createGrpcUnary, type StreamHandler } from "./grpc-unary.ts";
import { createMalformedHandler, type MalformedHandler } from "./malformed.ts";
import { Turn } from "./turn.ts";
import { registerUnary, type UnaryRpc } from "./unary.ts";

export interface RouteRequest {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly headers: IncomingHttpHeaders;
  /**
   * The whole body, decompressed.
   * @throws Fault batch_too_large as soon as it exceeds `bytesMax`; invalid_body for an encoding other than gzip.
   */
  readBody(bytesMax: number): Promise<Buffer>;
}

export interface RouteReply {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array;
}

/** A path with its handler: REST and pages. Light on purpose: no Headers, URL, AbortController or async iterable. */
export interface Route {
  readonly method: "GET" | "POST";
  /** Exact, or a beginning followed by `*`. */
  readonly path: string;
  /** The RPC that it stands for; empty for pages. */
  readonly rpc: string;
  handle(request: RouteRequest, exchange: Exchange): RouteReply | Promise<RouteReply>;
}

/** What the adapter tells of a finished exchange. */
export interface ExchangeEnd {
  readonly method: string;
  readonly path: string;
  /** HTTP status; 0 when the caller went away first. */
  readonly status: number;
  /** Of the RPC protocols; undefined for success. */
  readonly code: Code | undefined;
  readonly durationMs: number;
}

export interface AdapterOptions {
  readonly routes: readonly Route[];
  /** The unary RPCs. */
  readonly unary: readonly UnaryRpc[];
  /** Registers what streams. */
  readonly services: (router: ConnectRouter) => void;
  /** Base of the documentation's addresses, without a slash at its end. */
  readonly publicUrl: string;
  readonly newRequestId: () => string;
  readonly now: () => number;
  /** Called with a new exchange and the request's headers. */
  readonly onBegin?: (exchange: Exchange, headers: IncomingHttpHeaders) => void;
  readonly onEnd?: (exchange: Exchange, end: ExchangeEnd) => void;
  /** Of an RPC's message after decompression; default the API's bound. */
  readonly messageBytesMax?: number;
  /** Whose pages may call from a browser; default none. */
  readonly corsOrigins?: readonly string[];
  /** Of RPC's JSON codec: the types that a google.protobuf.Any may hold. */
  readonly jsonOptions?: ConnectRouterOptions["jsonOptions"];
  /** What stands behind an error of Connect's own parts; default the API's faults. */
  readonly faultOf?: FaultOf;
}

export type NodeRequest = IncomingMessage | Http2ServerRequest;
export type NodeResponse = ServerResponse | Http2ServerResponse;
export type NodeHandler = (request: NodeRequest, response: NodeResponse) => void;

export interface Adapter {
  /** Serves every protocol. */
  readonly request: NodeHandler;
  /** Serves gRPC unary calls from HTTP/2's streams; what it declines is for `request`. */
  readonly stream: StreamHandler;
  /** Answers what is not HTTP. */
  readonly malformed: MalformedHandler;
}

const none: readonly Rejection[] = [];

/** A new exchange, at its beginning. */
export function newExchange(
  { newRequestId, now, onBegin }: Pick<AdapterOptions, "newRequestId" | "now" | "onBegin">,
  protocol: Protocol,
  rpc: string,
  headers: IncomingHttpHeaders,
  deadlineMs: number | undefined,
): Exchange {
  const exchange: Exchange = {
    requestId: newRequestId(),
    receivedAt: new Date(now()),
    protocol,
    rpc,
    deadlineMs,
    abandoned: false,
    caller: undefined,
    rateLimit: undefined,
    limitedBy: undefined,
    fault: undefined,
    claim: undefined,
    dryRun: false,
    accepted: 0,
    rejections: none,
    traceId: headers.traceparent === undefined ? undefined : traceIdOf(headers.traceparent),
  };
  onBegin?.(exchange, headers);
  return exchange;
}

/** Serves every protocol from Node's requests. Nothing that a request holds can make it throw. */
export function createAdapter(options: AdapterOptions): Adapter {
  const { publicUrl, messageBytesMax = limits.bodyBytesMax, faultOf = faultOfConnect, jsonOptions } = options;
  const router = createConnectRouter({
    readMaxBytes: messageBytesMax,
    acceptCompression: [compressionGzip],
    ...(jsonOptions === undefined ? {} : { jsonOptions }),
  });
  registerUnary(router, options.unary, publicUrl);
  options.services(router);
  const rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  const routes = createRouteTable(options.routes);
  const cors = createCors(options.corsOrigins ?? []);
  const turnOptions = { ...options, cors };

  const request: NodeHandler = (request, response) => {
    const url = originForm(request.url ?? "");
    const mark = url.indexOf("?");
    const path = mark < 0 ? url : url.slice(0, mark);
    const query = mark < 0 ? "" : url.slice(mark + 1);
    const { method = "", headers } = request;
    const rpc = rpcs.get(path);
    const found = rpc ?? routes(method, path);
    const preflight = cors?.preflight(method, headers);
    const protocol = rpc === undefined ? "rest" : protocolOf(headers);
    const deadlineMs = rpc === undefined ? undefined : deadlineOf(headers, options.now());
    const rpcName = rpc?.method.name ?? ("rpc" in found ? found.rpc : "");
    const exchange = newExchange(options, protocol, rpcName, headers, deadlineMs);
    const turn = new Turn(request, response, path, query, exchange, turnOptions);
    if (preflight !== undefined) turn.send(preflight);
    else if (rpc !== undefined) turn.serveRpc(rpc, faultOf);
    else if (found instanceof Fault) turn.fail(found);
    else turn.serve(found as Route);
  };
  return {
    request,
    stream: createGrpcUnary({ ...options, messageBytesMax, faultOf }),
    malformed: createMalformedHandler(options),
  };
}

/** A request's target as callers of a server write it; proxies write it with the scheme and host before the path. */
const originForm = (url: string): string => (url.startsWith("/") ? url : url.replace(/^https?:\/\/[^/?#]*/i, ""));

/** Finds the route of a request; a Fault where there is none. */
function createRouteTable(routes: readonly Route[]): (method: string, path: string) => Route | Fault {
  const exact = new Map<string, Map<string, Route>>();
  const prefixes: Route[] = [];
  for (const route of routes) {
    if (route.path.endsWith("*")) prefixes.push(route);
    else exact.set(route.path, (exact.get(route.path) ?? new Map()).set(route.method, route));
  }
  return (verb, path) => {
    const method = verb === "HEAD" ? "GET" : verb;
    const verbs = exact.get(path);
    const route = verbs?.get(method);
    if (route !== undefined) return route;
    const prefix = prefixes.find((one) => path.startsWith(one.path.slice(0, -1)));
    if (prefix?.method === method) return prefix;
    const allowed = verbs === undefined ? prefix && [prefix.method] : [...verbs.keys()];
    if (allowed === undefined) return new Fault("not_found", `There is nothing at '${path}'.`);
    return new MethodNotAllowed(path, verb, allowed);
  };
}

function protocolOf(headers: IncomingHttpHeaders): Protocol {
  const contentType = headers["content-type"];
  if (contentType?.startsWith("application/grpc-web")) return "grpc-web";
  return contentType?.startsWith("application/grpc") ? "grpc" : "connect";
}
