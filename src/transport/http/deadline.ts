import type { IncomingHttpHeaders } from "node:http";

const grpcUnits: Record<string, number> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 };

/** When nobody waits any more, in milliseconds; undefined without a (well-formed) deadline. */
export function deadlineOf(headers: IncomingHttpHeaders, nowMs: number): number | undefined {
  const grpc = /^(\d{1,8})([HMSmun])$/.exec(String(headers["grpc-timeout"] ?? ""));
  if (grpc !== null) return nowMs + Number(grpc[1]) * (grpcUnits[grpc[2] as string] as number);
  const connect = headers["connect-timeout-ms"];
  return connect !== undefined && /^\d{1,10}$/.test(String(connect)) ? nowMs + Number(connect) : undefined;
}

/** Timers are set to whole steps, so that Node keeps few lists of them however many different deadlines callers send. */
const stepMs = 10;
/** The longest that a timer of Node can wait, in milliseconds: 24 days. */
export const timerMsMax = 2 ** 31 - 1;

/** Does `work` once `ms` have passed, at most a step late; answers how to call it off. */
export function afterMs(ms: number, work: () => void): () => void {
  const timer = setTimeout(work, Math.min(Math.max(Math.ceil(ms / stepMs) * stepMs, 0), timerMsMax));
  return () => clearTimeout(timer);
}
