import { apiVersion } from "../limits.ts";
import type { Exchange } from "../exchange.ts";

/**
 * The headers that every answer of every protocol carries, from what is known of the exchange. Names in lower case. They
 * are set, never appended, in one place, so that no protocol can forget or double one.
 */
export function answerHeaders(exchange: Exchange): Record<string, string> {
  const headers: Record<string, string> = { "x-request-id": exchange.requestId, "x-api-version": apiVersion };
  const { rateLimit, fault } = exchange;
  if (rateLimit !== undefined) {
    headers["x-ratelimit-limit"] = String(rateLimit.limit);
    headers["x-ratelimit-remaining"] = String(rateLimit.remaining);
    headers["ratelimit-policy"] = `"key";q=${rateLimit.limit};w=1`;
    headers.ratelimit = `"key";r=${rateLimit.remaining};t=1`;
  }
  if (exchange.claim === "replayed") headers["idempotency-replayed"] = "true";
  if (fault?.retryAfterSeconds !== undefined) headers["retry-after"] = String(fault.retryAfterSeconds);
  if (fault?.definition.http === 401) headers["www-authenticate"] = "Bearer";
  return headers;
}
