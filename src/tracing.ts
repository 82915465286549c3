import type { RequestStart } from "./exchange.ts";

/** The stages of a request; spans have these names. */
export type StageName = "admit" | "validate" | "decide" | "write" | "read";

/** Runs a stage and returns or throws what `work` does. Tracing makes it a span. */
export type Stage = <T>(start: RequestStart, name: StageName, work: () => T) => T;

/** The stage runner without tracing. */
export const untraced: Stage = (_start, _name, work) => work();

/** Whether OpenTelemetry's variables ask for tracing. */
export function wantsTracing(env: Readonly<Record<string, string | undefined>>): boolean {
  if (env.OTEL_SDK_DISABLED?.toLowerCase() === "true") return false;
  if (env.OTEL_TRACES_EXPORTER) return env.OTEL_TRACES_EXPORTER !== "none";
  return Boolean(env.OTEL_EXPORTER_OTLP_ENDPOINT || env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT);
}

const traceparentPattern = /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$/;

/** The trace id of W3C's `traceparent` header: 32 hex digits, or undefined if it is missing or invalid. */
export function traceIdOf(traceparent: unknown): string | undefined {
  if (typeof traceparent !== "string") return undefined;
  const [, version, traceId, more] = traceparentPattern.exec(traceparent.trim()) ?? [];
  // Only versions after 00 may have more fields after the flags.
  return version === "00" && more !== undefined ? undefined : traceId;
}
