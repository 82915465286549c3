import { cors as connectCors } from "@connectrpc/connect";
import type { IncomingHttpHeaders } from "node:http";
import { answerHeaderNames, pageHeaderNames, requestHeaderTable } from "../../headers.ts";
import type { RouteReply } from "../http/route.ts";

/** How long a browser may cache a preflight, in seconds. Chromium allows no more. */
const preflightSeconds = 7200;

// Headers of Connect that our table does not have.
const others = connectCors.allowedHeaders.filter((name) => !(name.toLowerCase() in requestHeaderTable));
const allowHeaders = [...pageHeaderNames, ...others].join(", ");
const exposeHeaders = [...answerHeaderNames, ...connectCors.exposedHeaders].join(", ");

/** Lets pages of other origins call the API from a browser, over REST, Connect and gRPC-Web. */
export interface Cors {
  /** Adds the headers that an answer to `origin` needs. */
  allow(origin: string | undefined, headers: Record<string, string>): void;
  /** The answer to a preflight; undefined for any other request. */
  preflight(method: string, headers: IncomingHttpHeaders): RouteReply | undefined;
}

/**
 * @param origins whose pages may call, such as `https://app.example.org`; `*` allows all.
 * @param methods of the routes, beside those of Connect.
 */
export function createCors(origins: readonly string[], methods: readonly string[] = []): Cors | undefined {
  if (origins.length === 0) return undefined;
  const allowMethods = [...new Set([...connectCors.allowedMethods, ...methods])].join(", ");
  const known = new Set(origins);
  const all = known.has("*");
  const isAllowed = (origin: string | undefined) => origin !== undefined && (all || known.has(origin));
  return {
    allow(origin, headers) {
      // Caches must not give one origin's answer to another.
      if (!all) headers.vary = "origin";
      if (!isAllowed(origin)) return;
      headers["access-control-allow-origin"] = all ? "*" : (origin as string);
      headers["access-control-expose-headers"] = exposeHeaders;
    },
    preflight(method, headers) {
      if (method !== "OPTIONS" || headers["access-control-request-method"] === undefined) return undefined;
      if (!isAllowed(headers.origin)) return { status: 204, body: "" };
      return {
        status: 204,
        headers: {
          "access-control-allow-methods": allowMethods,
          "access-control-allow-headers": allowHeaders,
          "access-control-max-age": String(preflightSeconds),
        },
        body: "",
      };
    },
  };
}
