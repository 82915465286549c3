import { createRequire } from "node:module";
import { Code } from "@connectrpc/connect";
import { type DestinationStream, type Logger, pino } from "pino";
import type { Exchange } from "../exchange.ts";
import { redactCallerText, redactSecrets } from "../redact.ts";
import type { ExchangeEnd } from "../transport/http/route.ts";

export interface LogOptions {
  /** Least level that is logged. */
  readonly level: string;
  /** For people: coloured text instead of JSON lines. Default false. */
  readonly pretty?: boolean;
  /** Default: standard output. */
  readonly destination?: DestinationStream;
}

/** Lines leave together, when they are so many bytes or have waited so long: a write a line would cost more than the line. */
const writtenTogether = { minLength: 8_192, periodicFlush: 50 } as const;

/**
 * A logger whose every line has gone through `redactSecrets`, whatever was logged. Lines are written without waiting, some
 * together; those of the last moment before a SIGKILL may be lost.
 */
export function createLogger({ level, pretty = false, destination }: LogOptions): Logger {
  const options = { level, hooks: { streamWrite: redactSecrets } };
  if (pretty) {
    const target = createRequire(import.meta.url).resolve("pino-pretty");
    return pino({ ...options, transport: { target, options: { ignore: "pid,hostname" } } });
  }
  return pino(options, destination ?? pino.destination({ dest: 1, sync: false, ...writtenTogether }));
}

/** Longest path that is logged, in characters. */
const pathCharactersMax = 200;

/**
 * One line a request, at its code's level; pages that were served as asked, health checks among them, at `debug`. Of a
 * key it has the hint only, and of a URL no query.
 */
export function logExchange(logger: Logger, exchange: Exchange, end: ExchangeEnd): void {
  const { fault, caller, rejections } = exchange;
  const level = fault?.definition.logLevel ?? (exchange.rpc === "" ? "debug" : "info");
  if (!logger.isLevelEnabled(level)) return;
  logger[level](
    {
      requestId: exchange.requestId,
      traceId: exchange.traceId,
      protocol: exchange.protocol,
      rpc: exchange.rpc || undefined,
      method: end.method,
      path: exchange.rpc === "" ? redactCallerText(end.path.slice(0, pathCharactersMax)) : end.path,
      status: end.status,
      aborted: end.status === 0 || undefined,
      code: fault?.code,
      connectCode: end.code === undefined ? undefined : Code[end.code],
      // What is wrong with a page is its path.
      reason: exchange.rpc === "" || fault === undefined ? undefined : redactCallerText(fault.message),
      organizationId: caller?.organizationId,
      appId: caller?.appId,
      keyHint: caller?.keyHint,
      limitedBy: exchange.limitedBy,
      accepted: exchange.accepted || undefined,
      rejected: rejections.length || undefined,
      replayed: exchange.claim === "replayed" || undefined,
      dryRun: exchange.dryRun || undefined,
      durationMs: Math.round(end.durationMs * 100) / 100,
      err: fault?.cause,
    },
    "request",
  );
}
