import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { type Code, type ConnectError, type ConnectRouter, createConnectRouter } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import { Fault, faultFrom } from "../errors.ts";
import type { Exchange, Protocol, Rejection } from "../exchange.ts";
import { limits } from "../limits.ts";
import { traceIdOf } from "../tracing.ts";
import { destroy, drain, hasBody, readWhole } from "./body.ts";
import { deadlineOf } from "./deadline.ts";
import { dressedError, type FaultOf, faultOfConnect, toRestError } from "./errors.ts";
import { createGrpcUnary, type StreamHandler } from "./grpc-unary.ts";
import { answerHeaders } from "./headers.ts";
import { registerUnary, type UnaryRpc } from "./unary.ts";
import { serveRpc } from "./universal.ts";

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
    accepted: 0,
    rejections: none,
    traceId: headers.traceparent === undefined ? undefined : traceIdOf(headers.traceparent),
  };
  onBegin?.(exchange, headers);
  return exchange;
}

/** Serves every protocol from Node's requests. Nothing that a request holds can make it throw. */
export function createAdapter(options: AdapterOptions): Adapter {
  const { publicUrl, messageBytesMax = limits.bodyBytesMax, faultOf = faultOfConnect } = options;
  const router = createConnectRouter({
    readMaxBytes: messageBytesMax,
    acceptCompression: [compressionGzip],
  });
  registerUnary(router, options.unary, publicUrl);
  options.services(router);
  const rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  const exact = new Map<string, Map<string, Route>>();
  const prefixes: Route[] = [];
  for (const route of options.routes) {
    if (route.path.endsWith("*")) prefixes.push(route);
    else exact.set(route.path, (exact.get(route.path) ?? new Map()).set(route.method, route));
  }

  const request: NodeHandler = (request, response) => {
    const url = request.url ?? "";
    const mark = url.indexOf("?");
    const path = mark < 0 ? url : url.slice(0, mark);
    const query = mark < 0 ? "" : url.slice(mark + 1);
    const rpc = rpcs.get(path);
    const startedMs = performance.now();
    const protocol = rpc === undefined ? "rest" : protocolOf(request.headers["content-type"]);
    const verbs = exact.get(path);
    const method = request.method === "HEAD" ? "GET" : (request.method ?? "");
    const route =
      verbs?.get(method) ?? prefixes.find((one) => one.method === method && path.startsWith(one.path.slice(0, -1)));
    const deadlineMs = rpc === undefined ? undefined : deadlineOf(request.headers, options.now());
    const exchange = newExchange(options, protocol, rpc?.method.name ?? route?.rpc ?? "", request.headers, deadlineMs);

    let code: Code | undefined;
    let ended = false;
    response.once("close", () => {
      if (!ended) exchange.abandoned = true;
      options.onEnd?.(exchange, {
        method: request.method ?? "",
        path,
        status: ended ? response.statusCode : 0,
        code,
        durationMs: performance.now() - startedMs,
      });
    });
    response.on("error", () => {});
    request.on("error", () => {});

    const send = ({ status, headers, body }: RouteReply): void => {
      const bytes = typeof body === "string" ? Buffer.byteLength(body) : body.byteLength;
      const unread = !request.complete && request.httpVersionMajor === 1 && hasBody(request);
      ended = true;
      (response as ServerResponse).writeHead(status, {
        ...answerHeaders(exchange),
        ...headers,
        "content-length": bytes,
        ...(unread ? { connection: "close" } : {}),
      });
      if (request.method === "HEAD") response.end();
      else (response as ServerResponse).end(body);
      if (!request.complete) drain(request);
    };
    const fail = (error: unknown): void => {
      exchange.fault = faultFrom(error);
      if (!response.headersSent) send(toRestError(exchange.fault, exchange, publicUrl));
    };

    try {
      if (rpc !== undefined) {
        const dress = (error: ConnectError) => dressedError(error, exchange, publicUrl, faultOf);
        serveRpc(rpc, request, response as ServerResponse, exchange, dress)
          .then((outcome) => (code = outcome))
          .catch((error: unknown) => {
            exchange.fault ??= faultFrom(error);
            if (response.headersSent) destroy(response);
            else fail(error);
          })
          .finally(() => {
            ended = response.writableEnded;
            if (!request.complete) drain(request);
          });
        ended = true;
        return;
      }
      if (route === undefined) {
        if (verbs === undefined) return fail(new Fault("not_found", `There is nothing at '${path}'.`));
        const allow = [...verbs.keys()].join(", ");
        const fault = new Fault("method_not_allowed", `${path} does not take ${request.method}; allowed: ${allow}.`);
        exchange.fault = fault;
        const reply = toRestError(fault, exchange, publicUrl);
        return send({ ...reply, headers: { ...reply.headers, allow } });
      }
      const readBody = (bytesMax: number) => readWhole(request, bytesMax);
      const reply = route.handle({ method, path, query, headers: request.headers, readBody }, exchange);
      if (reply instanceof Promise) reply.then(send).catch(fail);
      else send(reply);
    } catch (error) {
      fail(error);
    }
  };
  return { request, stream: createGrpcUnary({ ...options, messageBytesMax, faultOf }) };
}

function protocolOf(contentType: string | undefined): Protocol {
  if (contentType?.startsWith("application/grpc-web")) return "grpc-web";
  return contentType?.startsWith("application/grpc") ? "grpc" : "connect";
}
