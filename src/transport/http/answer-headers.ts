import type { RequestEnd } from "../../exchange.ts";
import type { AnswerHeader } from "../../headers.ts";
import { apiVersion } from "../../limits.ts";

/** The content type of JSON over REST. */
export const jsonType = "application/json; charset=utf-8";

/** Headers of a streamed answer. Without them, proxies such as nginx buffer it. */
export const streamHeaders = { "cache-control": "no-store", "x-accel-buffering": "no" } as const;

/**
 * The headers that every answer of every protocol carries, from what is known of the request so far. Names are in lower
 * case. One place sets all of them, so no protocol can forget or double one.
 */
export function answerHeaders(end: RequestEnd): Record<string, string> {
  const headers: Partial<Record<AnswerHeader, string>> = {
    "x-request-id": end.requestId,
    "x-api-version": apiVersion,
  };
  const { rateLimit, fault } = end;
  if (rateLimit !== undefined) {
    const { limit, remaining, of = "key" } = rateLimit;
    headers["x-ratelimit-limit"] = String(limit);
    headers["x-ratelimit-remaining"] = String(remaining);
    headers["ratelimit-policy"] = `"${of}";q=${limit};w=1`;
    headers.ratelimit = `"${of}";r=${remaining};t=1`;
  }
  // A retry that found its claim but failed replays nothing.
  if (end.claim === "replayed" && fault === undefined) headers["idempotency-replayed"] = "true";
  if (end.dryRun) headers["x-dry-run"] = "true";
  if (end.ignoredMembers.length > 0) headers["x-ignored-members"] = end.ignoredMembers.map(token).join(", ");
  if (fault?.retryAfterSeconds !== undefined) headers["retry-after"] = String(fault.retryAfterSeconds);
  if (fault?.definition.http === 401) headers["www-authenticate"] = "Bearer";
  return headers as Record<string, string>;
}

/** A caller's text as an item of a header's list: percent-encodes commas and everything but visible ASCII. */
const token = (text: string) => text.toWellFormed().replace(/[^!-~]|[,%]/gu, encodeURIComponent);
