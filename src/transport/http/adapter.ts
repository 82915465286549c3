import type { IncomingHttpHeaders } from "node:http";
import { createConnectRouter } from "@connectrpc/connect";
import { Fault } from "../../errors.ts";
import type { Protocol } from "../../exchange.ts";
import { limits } from "../../limits.ts";
import { BodyBudget } from "./body-budget.ts";
import { serverBounds } from "./server-limits.ts";
import { createCors } from "../rest/cors.ts";
import { deadlineOf } from "./deadline.ts";
import { faultOfConnect, MethodNotAllowed } from "../rpc/errors.ts";
import { createGrpcUnary, type StreamHandler } from "../rpc/grpc-unary.ts";
import { createMalformedHandler, type MalformedHandler } from "./malformed.ts";
import { type AdapterOptions, newExchange } from "./options.ts";
import type { NodeHandler, Route } from "./route.ts";
import { HttpCall } from "./http-call.ts";
import type { RequestHeader } from "../../headers.ts";
import { tidyHeaders } from "./request-headers.ts";
import { registerUnary } from "../rpc/unary.ts";
import { heldGzip } from "../rpc/universal.ts";

export interface Adapter {
  /** Serves every protocol. */
  readonly request: NodeHandler;
  /** Serves gRPC unary calls from HTTP/2's streams; what it declines is for `request`. */
  readonly stream: StreamHandler;
  /** Answers what is not HTTP. */
  readonly malformed: MalformedHandler;
}

/** Serves every protocol from Node's requests. Nothing that a request holds can make it throw. */
export function createAdapter(options: AdapterOptions): Adapter {
  const { publicUrl, messageBytesMax = limits.bodyBytesMax, faultOf = faultOfConnect, jsonOptions } = options;
  const router = createConnectRouter({
    readMaxBytes: messageBytesMax,
    acceptCompression: [heldGzip],
    ...(jsonOptions === undefined ? {} : { jsonOptions }),
  });
  registerUnary(router, options.unary, publicUrl);
  options.services(router);
  const rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  const routes = createRouteTable(options.routes);
  const cors = createCors(options.corsOrigins ?? []);
  const budget = new BodyBudget(serverBounds, options.activity);
  const keepAlive = `timeout=${Math.floor((options.keepAliveMs ?? serverBounds.keepAliveMs) / 1000)}`;
  const turnOptions = { ...options, cors, budget, keepAlive };

  const request: NodeHandler = (request, response) => {
    const url = originForm(request.url ?? "");
    const mark = url.indexOf("?");
    const path = mark < 0 ? url : url.slice(0, mark);
    const query = mark < 0 ? "" : url.slice(mark + 1);
    const { method = "", headers } = request;
    const ambiguous = tidyHeaders(headers, request.rawHeaders);
    const rpc = rpcs.get(path) ?? rpcs.get(withoutEscapes(path));
    const found = rpc ?? routes(method, path);
    const preflight = cors?.preflight(method, headers);
    const protocol = rpc === undefined ? "rest" : protocolOf(headers);
    const deadlineMs = rpc === undefined ? undefined : deadlineOf(headers, options.now());
    const rpcName = rpc?.method.name ?? ("rpc" in found ? found.rpc : "");
    const exchange = newExchange(
      options,
      protocol,
      rpcName,
      headers,
      deadlineMs,
      ambiguous,
      request.socket.remoteAddress,
    );
    const turn = new HttpCall(request, response, path, query, exchange, turnOptions);
    const badHost = request.httpVersion === "1.1" ? hostProblem(headers.host, ambiguous) : undefined;
    if (badHost !== undefined) {
      // Whoever stands between may have read another host: nothing more is taken from this connection.
      response.setHeader("connection", "close");
      turn.fail(new Fault("invalid_body", `The request cannot be read: ${badHost}.`));
    } else if (preflight !== undefined) turn.send(preflight);
    else if (rpc !== undefined) turn.serveRpc(rpc, faultOf);
    else if (found instanceof Fault) turn.fail(found);
    else turn.serve(found as Route);
  };
  return {
    request,
    stream: createGrpcUnary({ ...options, messageBytesMax, faultOf, budget }),
    malformed: createMalformedHandler(options),
  };
}

/** What is wrong with the Host of an HTTP/1.1 request; undefined when nothing is. */
function hostProblem(host: string | undefined, ambiguous: RequestHeader | undefined): string | undefined {
  if (host === undefined) return "it has no Host header";
  if (ambiguous === "host") return "it has two Host headers";
  return hostPattern.test(host) ? undefined : "its Host header is no host and port";
}

const hostPattern = /^(?:\[[0-9a-f:.]+\]|[\w.~!$&'()*+,;=%-]*)(?::\d*)?$/i;

/** A request's target as callers of a server write it; proxies write it with the scheme and host before the path. */
const originForm = (url: string): string => (url.startsWith("/") ? url : url.replace(/^https?:\/\/[^/?#]*/i, ""));

/** The same path for HTTP: what needs no escape is not escaped. `%2F` stays, since it is no slash. */
const withoutEscapes = (path: string): string =>
  path.includes("%")
    ? path.replace(/%(?:[46][1-9a-f]|[57][0-9a]|3\d|2[de]|5f|7e)/gi, (escape) => decodeURIComponent(escape))
    : path;

/** Finds the route of a request, also with a slash at its end; a Fault where there is none. */
function createRouteTable(routes: readonly Route[]): (method: string, path: string) => Route | Fault {
  const exact = new Map<string, Map<string, Route>>();
  const usualPath = (path: string) => {
    if (exact.has(path)) return path;
    const plain = withoutEscapes(path);
    return plain.length > 1 && plain.endsWith("/") ? plain.slice(0, -1) : plain;
  };
  const prefixes: Route[] = [];
  for (const route of routes) {
    if (route.path.endsWith("*")) prefixes.push(route);
    else exact.set(route.path, (exact.get(route.path) ?? new Map()).set(route.method, route));
  }
  return (verb, given) => {
    const path = usualPath(given);
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
