import { createHash, timingSafeEqual } from "node:crypto";
import { Fault } from "../errors.ts";
import type { Route } from "../transport/http/route.ts";

const digest = (text: string) => createHash("sha256").update(text).digest();

/**
 * `GET /metrics`.
 * @param token when given, only `Authorization: Bearer` with it may read.
 */
export function metricsRoute(text: () => Promise<string>, contentType: string, token: string | undefined): Route {
  const expected = token === undefined ? undefined : digest(`Bearer ${token}`);
  return {
    method: "GET",
    path: "/metrics",
    rpc: "",
    async handle({ headers }) {
      if (expected !== undefined) {
        const { authorization } = headers;
        if (authorization === undefined) {
          throw new Fault("missing_authorization", "Send 'Authorization: Bearer' with the value of METRICS_TOKEN.");
        }
        if (!timingSafeEqual(digest(authorization), expected)) {
          throw new Fault("invalid_key", "This is not 'Bearer' and the value of METRICS_TOKEN.");
        }
      }
      return { status: 200, headers: { "content-type": contentType }, body: await text() };
    },
  };
}
