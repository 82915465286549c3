import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import type { ServerHttp2Stream } from "node:http2";
import { Fault } from "../../errors.ts";
import type { RequestHeader } from "../../headers.ts";
import { createCors } from "../rest/cors.ts";
import { MethodNotAllowed } from "../rpc/errors.ts";
import { createRpcs } from "../rpc/serve.ts";
import { BodyBudget } from "./body-budget.ts";
import { type Channel, Http1Channel, Http2Channel } from "./channel.ts";
import { HttpCall } from "./http-call.ts";
import { createMalformedHandler, type MalformedHandler } from "./malformed.ts";
import { type AdapterOptions, newStart } from "./options.ts";
import { tidyHeaders } from "./request-headers.ts";
import type { Route } from "./route.ts";
import { serverBounds } from "./server-limits.ts";

export interface Adapter {
  /** Serves a request of HTTP/1.1. */
  readonly request: (request: IncomingMessage, response: ServerResponse) => void;
  /** Serves a request of HTTP/2. */
  readonly stream: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, rawHeaders: readonly string[]) => void;
  /** Answers bytes that are not HTTP. */
  readonly malformed: MalformedHandler;
}

/** Serves every protocol over both versions of HTTP. A defect of ours ends its request, and never the process. */
export function createAdapter(given: AdapterOptions): Adapter {
  const { onError } = given;
  const onEnd: AdapterOptions["onEnd"] = (start, end) => {
    try {
      given.onEnd?.(start, end);
    } catch (defect) {
      onError(defect);
    }
  };
  const options = { ...given, onEnd };
  const rpcs = createRpcs(options);
  const routes = createRouteTable(options.routes);
  const cors = createCors(options.corsOrigins ?? []);
  const keepAlive = `timeout=${Math.floor((options.keepAliveMs ?? serverBounds.keepAliveMs) / 1000)}`;
  const callOptions = { ...options, cors, keepAlive, budget: new BodyBudget(serverBounds, options.activity) };

  const serve = async (channel: Channel): Promise<void> => {
    const { method, headers, rawHeaders } = channel;
    const ambiguous = tidyHeaders(headers, rawHeaders);
    const [path, query] = splitTarget(channel.target);
    const rpc = rpcs(withoutEscapes(path), headers);
    const route = rpc === undefined ? routes(method, path) : undefined;
    const start = newStart(options, channel, {
      protocol: rpc?.protocol ?? "rest",
      rpc: rpc?.name ?? (route instanceof Fault ? "" : route?.rpc) ?? "",
      path,
      deadlineMs: rpc?.deadlineMs,
      ambiguousHeader: ambiguous,
    });
    const call = new HttpCall(channel, query, start, callOptions);
    try {
      const preflight = cors?.preflight(method, headers);
      const badHost = channel.httpVersion === "1.1" ? hostProblem(headers.host, ambiguous) : undefined;
      if (badHost !== undefined) {
        // A proxy may have read another host, so this connection takes no further request.
        channel.close();
        call.fail(new Fault("invalid_body", `The request cannot be read: ${badHost}.`));
      } else if (preflight !== undefined) call.send(preflight);
      else if (rpc !== undefined) await rpc.serve(call);
      else if (route instanceof Fault) call.fail(route);
      else if (route !== undefined) await call.serve(route);
    } catch (defect) {
      call.crash(defect);
    }
  };
  const begin = (channel: Channel): void => {
    serve(channel).catch((defect: unknown) => {
      onError(defect);
      channel.cut();
    });
  };
  return {
    request: (request, response) => begin(new Http1Channel(request, response)),
    stream: (stream, headers, rawHeaders) => begin(new Http2Channel(stream, headers, rawHeaders)),
    malformed: createMalformedHandler(options),
  };
}

/** Splits a request's target into path and query. Proxies write the scheme and host before the path. */
function splitTarget(target: string): [path: string, query: string] {
  const url = target.startsWith("/") ? target : target.replace(/^https?:\/\/[^/?#]*/i, "");
  const mark = url.indexOf("?");
  const path = mark < 0 ? url : url.slice(0, mark);
  return [path, mark < 0 ? "" : url.slice(mark + 1)];
}

/** What is wrong with the Host header of an HTTP/1.1 request; undefined if nothing is. */
function hostProblem(host: string | undefined, ambiguous: RequestHeader | undefined): string | undefined {
  if (host === undefined) return "it has no Host header";
  if (ambiguous === "host") return "it has two Host headers";
  return hostPattern.test(host) ? undefined : "its Host header is no host and port";
}

const hostPattern = /^(?:\[[0-9a-f:.]+\]|[\w.~!$&'()*+,;=%-]*)(?::\d*)?$/i;

/** Undoes unnecessary escapes in a path, which mean the same. `%2F` stays, because it is no slash. */
const withoutEscapes = (path: string): string =>
  path.includes("%")
    ? path.replace(/%(?:[46][1-9a-f]|[57][0-9a]|3\d|2[de]|5f|7e)/gi, (escape) => decodeURIComponent(escape))
    : path;

/** Finds the route of a request, also with a trailing slash. Returns a Fault if there is none. */
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
