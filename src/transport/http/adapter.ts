import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import type { ServerHttp2Stream } from "node:http2";
import { Fault } from "../../errors.ts";
import type { RequestHeader } from "../../headers.ts";
import { createCors } from "../rest/cors.ts";
import { MethodNotAllowed } from "../rpc/errors.ts";
import { createRpcs } from "../rpc/find-rpc.ts";
import { BodyBudget } from "./body-budget.ts";
import { type Channel, Http1Channel, Http2Channel } from "./channel.ts";
import { type Found, HttpCall } from "./http-call.ts";
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
  const methods = options.routes.map(({ method }) => method);
  const cors = createCors(options.corsOrigins ?? [], methods);
  const keepAlive = `timeout=${Math.floor((options.keepAliveMs ?? serverBounds.keepAliveMs) / 1000)}`;
  const callOptions = { ...options, cors, keepAlive, budget: new BodyBudget(serverBounds, options.activity) };

  const guarded = (channel: Channel, work: () => void): void => {
    try {
      work();
    } catch (defect) {
      onError(defect);
      channel.cut();
    }
  };
  const answer = (channel: Channel): void => {
    const { method, headers, rawHeaders } = channel;
    const ambiguousHeader = tidyHeaders(headers, rawHeaders);
    const [path, query] = splitTarget(channel.target);
    const { protocol, rpc, deadlineMs, serve } = rpcs(withoutEscapes(path), headers) ?? routes(method, path);
    const start = newStart(options, channel, { protocol, rpc, path, deadlineMs, ambiguousHeader });
    const call = new HttpCall(channel, query, start, callOptions);
    try {
      const preflight = cors?.preflight(method, headers);
      const badHost = channel.httpVersion === "1.1" ? hostProblem(headers.host, ambiguousHeader) : undefined;
      if (badHost !== undefined) {
        // A proxy may have read another host, so this connection takes no further request.
        channel.close();
        call.fail(new Fault("invalid_body", `The request cannot be read: ${badHost}.`));
      } else if (preflight !== undefined) call.send(preflight);
      else {
        const failed = (defect: unknown) => {
          guarded(channel, () => call.crash(defect));
          call.served();
        };
        serve(call).then(() => call.served(), failed);
        return;
      }
    } catch (defect) {
      call.crash(defect);
    }
    call.served();
  };
  const begin = (channel: Channel): void => guarded(channel, () => answer(channel));
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

const rest = { protocol: "rest", deadlineMs: undefined } as const;

/** Finds what serves a request to a route, also with a trailing slash. */
function createRouteTable(routes: readonly Route[]): (method: string, path: string) => Found {
  const table = new Map<string, Map<string, MakeFound>>();
  for (const route of routes) {
    table.set(route.path, (table.get(route.path) ?? new Map()).set(route.method, makeFound(route)));
  }
  const templates = [...table].filter(([path]) => path.includes("{"));
  const find = (path: string) => {
    const methods = table.get(path);
    if (methods !== undefined) return { methods, variables: {} };
    for (const [template, methods] of templates) {
      const variables = variablesOf(template, path);
      if (variables !== undefined) return { methods, variables };
    }
    return undefined;
  };
  const refused = (fault: Fault): Found => ({ ...rest, rpc: "", serve: async (call) => call.fail(fault) });
  return (method, given) => {
    const path = table.has(given) ? given : withoutEscapes(given).replace(/(?<=.)\/$/, "");
    const found = find(path);
    if (found === undefined) return refused(new Fault("not_found", `There is nothing at '${path}'.`));
    const { methods, variables } = found;
    const make = methods.get(method === "HEAD" ? "GET" : method);
    return make?.(variables) ?? refused(new MethodNotAllowed(path, method, [...methods.keys()]));
  };
}

type MakeFound = (variables: Readonly<Record<string, string>>) => Found;

function makeFound(route: Route): MakeFound {
  const found: MakeFound = (variables) => ({ ...rest, rpc: route.rpc, serve: (call) => call.serve(route, variables) });
  if (route.path.includes("{")) return found;
  const only = found({});
  return () => only;
}

/** The variables of a path that fits the template; undefined if it does not. */
function variablesOf(template: string, path: string): Record<string, string> | undefined {
  const [wanted, given] = [template.split("/"), path.split("/")];
  if (wanted.length !== given.length) return undefined;
  const variables: Record<string, string> = {};
  for (const [i, segment] of wanted.entries()) {
    const value = given[i] ?? "";
    const [, name, verb = ""] = /^\{(\w+)\}(:\w+)?$/.exec(segment) ?? [];
    if (name === undefined) {
      if (segment !== value) return undefined;
    } else {
      const id = value.slice(0, value.length - verb.length);
      if (id === "" || id.includes(":") || !value.endsWith(verb)) return undefined;
      variables[name] = decoded(id);
    }
  }
  return variables;
}

/** A segment with escapes that are not valid stays as it is: no object has such an id. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
