import { createRequire } from "node:module";
import { Code } from "@connectrpc/connect";
import { type DestinationStream, type Logger, pino } from "pino";
import type { PrettyOptions } from "pino-pretty";
import type { RequestEnd, RequestStart } from "../exchange.ts";
import { redactCallerText, redactSecrets } from "../redact.ts";
import { escapeControls, escapeLines } from "../terminal.ts";

export interface LogOptions {
  readonly level: string;
  /** Short coloured lines for a terminal instead of JSON. */
  readonly pretty?: boolean;
  /** Default: standard output. */
  readonly destination?: DestinationStream;
}

/** Writes lines together, after this many bytes or milliseconds: a write costs more than a line. */
const writtenTogether = { minLength: 8_192, periodicFlush: 50 } as const;

/** Removes secrets from every line. It writes in the background, so a SIGKILL may lose the last lines. */
export function createLogger({ level, pretty = false, destination }: LogOptions): Logger {
  const options = {
    level,
    hooks: { streamWrite: (line: string) => escapeLines(redactSecrets(line)) },
    serializers: { err: errorFacts },
  };
  if (!pretty) return pino(options, destination ?? pino.destination({ dest: 1, sync: false, ...writtenTogether }));
  // Loaded only for a terminal, so that the service starts faster.
  const prettify = createRequire(import.meta.url)("pino-pretty") as (options: PrettyOptions) => DestinationStream;
  return pino(
    options,
    prettify({
      translateTime: "SYS:HH:MM:ss",
      ignore: "pid,hostname",
      hideObject: true,
      messageFormat: (line) => escapeControls(lineForPeople(line)),
      ...(destination === undefined ? {} : { destination }),
    }),
  );
}

const stackCharactersMax = 1_500;

/** Node's errors also have a caller's bytes, such as a whole packet, so keep only kind, message and stack. */
function errorFacts(error: unknown): object {
  if (!(error instanceof Error)) return { message: String(error).slice(0, stackCharactersMax) };
  const { type, message, stack } = pino.stdSerializers.err(error);
  const { code } = error as { code?: unknown };
  return {
    type,
    message: message.slice(0, stackCharactersMax),
    stack: stack.slice(0, stackCharactersMax),
    ...(typeof code === "string" || typeof code === "number" ? { code } : {}),
  };
}

function lineForPeople(line: Record<string, any>): string {
  if (line.msg !== "request") return [line.msg, line.err?.message].filter(Boolean).join(": ");
  const { method, path, rpc, protocol, status, code, connectCode, accepted, rejected, durationMs, reason, requestId } =
    line;
  const said = {
    accepted,
    rejected,
    replayed: line.replayed,
    dryRun: line.dryRun,
  };
  return [
    protocol === "rest" ? `${method} ${path}` : `${protocol} ${rpc}`,
    status === 0 ? "aborted" : status,
    code ?? connectCode,
    ...Object.entries(said).flatMap(([name, value]) =>
      value === undefined ? [] : [value === true ? name : `${name}=${value}`],
    ),
    `${Math.round(durationMs)}ms`,
    requestId,
    reason,
    line.err?.message,
  ]
    .filter((part) => part !== undefined)
    .join(" ");
}

/** Longest logged texts from callers, in characters. */
const pathCharactersMax = 200;
const reasonCharactersMax = 300;

/** Lines for refusals with one code in one window, for each key, and for all callers without a key. */
export const refusalLinesMax = 20;
const windowMs = 10_000;

export type LogRequest = (start: RequestStart, end: RequestEnd) => void;

/**
 * Logs one line for each request, at the level of its code; successful pages and health checks at `debug`. It counts
 * repeated refusals, and logs how many it left out. A line has only the hint of a key, and never the query of a URL.
 */
export function createRequestLog(logger: Logger): LogRequest {
  const refusals = new Map<string, { lines: number; leftOut: number; facts: object }>();
  const endWindow = (): void => {
    for (const { leftOut, facts } of refusals.values()) {
      if (leftOut > 0) logger.info({ ...facts, leftOut }, "more refusals of the same kind");
    }
    refusals.clear();
  };
  const isLeftOut = ({ fault, caller }: RequestEnd): boolean => {
    if (fault === undefined) return false;
    if (refusals.size === 0) setTimeout(endWindow, windowMs).unref();
    const kind = `${fault.code} ${caller?.keyId}`;
    const seen = refusals.get(kind) ?? { lines: 0, leftOut: 0, facts: { code: fault.code, keyHint: caller?.keyHint } };
    refusals.set(kind, seen);
    if (seen.lines < refusalLinesMax) seen.lines++;
    else seen.leftOut++;
    return seen.leftOut > 0;
  };
  return (start, end) => {
    const level = end.fault?.definition.logLevel ?? (start.rpc === "" ? "debug" : "info");
    if (logger.isLevelEnabled(level) && !isLeftOut(end)) logger[level](factsOf(start, end), "request");
  };
}

function factsOf({ rpc, protocol, method, path, traceId, peer }: RequestStart, end: RequestEnd): object {
  const { fault, caller, rejections } = end;
  const { address, userAgent, keyHint } = peer();
  return {
    requestId: end.requestId,
    traceId,
    protocol,
    rpc: rpc || undefined,
    method,
    path: redactCallerText(path, pathCharactersMax),
    status: end.status,
    aborted: end.status === 0 || undefined,
    code: fault?.code,
    connectCode: end.code === undefined ? undefined : Code[end.code],
    // For a page, the path tells enough.
    reason: rpc === "" || fault === undefined ? undefined : redactCallerText(fault.message, reasonCharactersMax),
    peer: address || undefined,
    userAgent: userAgent === undefined ? undefined : redactCallerText(userAgent, userAgent.length),
    organizationId: caller?.organizationId,
    appId: caller?.appId,
    keyHint: caller?.keyHint ?? keyHint,
    test: caller?.test,
    limitedBy: end.limitedBy,
    accepted: end.accepted || undefined,
    rejected: rejections.length || undefined,
    replayed: end.claim === "replayed" || undefined,
    dryRun: end.dryRun || undefined,
    durationMs: Math.round(end.durationMs * 100) / 100,
    err: fault?.cause,
  };
}
