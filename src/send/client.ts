import { setTimeout as delay } from "node:timers/promises";
import type { SourceKind } from "./kinds.ts";

/** What the service said to a request. */
export interface Reply {
  readonly status: number;
  /** The JSON of the answer; undefined when it was none. */
  readonly body: any;
  /** Undefined without the header. */
  readonly retryAfterMs: number | undefined;
}

/** No answer came. */
export class NoReply extends Error {
  /** Whether the request may have reached the service. */
  readonly mayHaveArrived: boolean;

  constructor(cause: unknown) {
    super(reasonOf(cause), { cause });
    const codes = [cause, (cause as Error).cause].map((error) => (error as NodeJS.ErrnoException | undefined)?.code);
    this.mayHaveArrived = !codes.some((code) => code !== undefined && neverSent.has(code));
  }
}

/** Failures that come before the first byte is sent. */
const neverSent = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"]);

function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  return cause instanceof Error ? cause.message || String((cause as NodeJS.ErrnoException).code) : message;
}

/** The longest that a request waits for its answer, in milliseconds. */
export const replyMs = 30_000;

/** Sends lines over the public REST API. Connections are kept and shared by Node's fetch. */
export function createPoster(
  url: string,
  key: string,
  { path, bodyOf }: SourceKind,
): (lines: readonly string[], idempotencyKey: string) => Promise<Reply> {
  const target = url.replace(/\/+$/, "") + path;
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  return async (lines, idempotencyKey) => {
    try {
      const response = await fetch(target, {
        method: "POST",
        headers: { ...headers, "idempotency-key": idempotencyKey },
        body: bodyOf(lines),
        signal: AbortSignal.timeout(replyMs),
      });
      const text = await response.text();
      const retryAfter = Number(response.headers.get("retry-after") ?? Number.NaN);
      return {
        status: response.status,
        body: parsed(text),
        retryAfterMs: Number.isFinite(retryAfter) ? retryAfter * 1000 : undefined,
      };
    } catch (error) {
      throw new NoReply(error);
    }
  };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const backoffMs = { first: 250, max: 30_000 } as const;

/** Waits before try number `attempt` (from 1): what the service says, or else longer each time, a random part of it. */
export async function backOff(attempt: number, retryAfterMs: number | undefined, signal: AbortSignal): Promise<void> {
  const ceiling = Math.min(backoffMs.max, backoffMs.first * 2 ** (attempt - 1));
  const ms =
    retryAfterMs === undefined ? ceiling * (0.5 + Math.random() / 2) : retryAfterMs + Math.random() * backoffMs.first;
  await delay(ms, undefined, { signal }).catch(() => {});
}
