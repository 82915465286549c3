import { createHash, timingSafeEqual } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { Fault } from "../errors.ts";
import type { Route } from "../transport/http/route.ts";

/** Calls `make` at most once in `everyMs`. Callers that come sooner wait and share the next result. */
export function atMostOnceIn<T>(everyMs: number, make: () => Promise<T>): () => Promise<T> {
  let madeAtMs = Number.NEGATIVE_INFINITY;
  let next: Promise<T> | undefined;
  const makeNext = async () => {
    const waitMs = madeAtMs + everyMs - performance.now();
    // Wait at least one microtask, so that all callers of this moment share the result.
    await (waitMs > 0 ? delay(waitMs) : undefined);
    next = undefined;
    madeAtMs = performance.now();
    return make();
  };
  return () => (next ??= makeNext());
}

const digest = (text: string) => createHash("sha256").update(text).digest();

export interface MetricsPageOptions {
  readonly text: () => Promise<string>;
  readonly contentType: string;
  /** If set, callers need it as `Authorization: Bearer`. */
  readonly token: string | undefined;
  /** A page costs as much as several requests. */
  readonly everyMs: number;
}

export function metricsRoute({ text, contentType, token, everyMs }: MetricsPageOptions): Route {
  const page = atMostOnceIn(everyMs, text);
  const expected = token === undefined ? undefined : digest(`Bearer ${token}`);
  return {
    method: "GET",
    path: "/metrics",
    rpc: "",
    // Without METRICS_TOKEN, a page that an operator visits could read it.
    isSameOrigin: true,
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
      return { status: 200, headers: { "content-type": contentType }, body: await page() };
    },
  };
}
