import type { Exchange } from "./exchange.ts";

/** The stages of a request's work, as spans name them. */
export type StageName = "admit" | "validate" | "decide" | "write" | "read";

/** Runs a stage: answers what `work` answers, and throws what it throws. Tracing, where it is on, makes a span of it. */
export type Stage = <T>(exchange: Exchange, name: StageName, work: () => T) => T;

/** Tracing that is off. */
export const untraced: Stage = (_exchange, _name, work) => work();

/** Whether the environment asks for tracing, by OpenTelemetry's usual variables. */
export function wantsTracing(env: Readonly<Record<string, string | undefined>>): boolean {
  if (env.OTEL_SDK_DISABLED?.toLowerCase() === "true") return false;
  if (env.OTEL_TRACES_EXPORTER) return env.OTEL_TRACES_EXPORTER !== "none";
  return Boolean(env.OTEL_EXPORTER_OTLP_ENDPOINT || env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT);
}

const traceparentPattern = /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$/;

/** The trace of W3C's `traceparent` header: 32 hex digits; undefined when it is missing or invalid. */
export function traceIdOf(traceparent: unknown): string | undefined {
  if (typeof traceparent !== "string") return undefined;
  const [, version, traceId, more] = traceparentPattern.exec(traceparent.trim()) ?? [];
  // Only later versions may have more behind the flags.
  return version === "00" && more !== undefined ? undefined : traceId;
}
