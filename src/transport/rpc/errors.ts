import type { DescMessage, MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { docsUrl, Fault, faultFrom, unavailable } from "../../errors.ts";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  HelpSchema,
  QuotaFailureSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "../../gen/google/rpc/error_details_pb.js";
import { limits } from "../../limits.ts";
import type { RouteReply } from "../http/route.ts";
import type { Exchange } from "../../exchange.ts";
import { tooManyBodies } from "../http/body-budget.ts";

/** Namespace of the codes in google.rpc.ErrorInfo. */
export const errorDomain = "ingest.v1";

/** Knows the verbs that are allowed, for the Allow header. */
export class MethodNotAllowed extends Fault {
  readonly allow: string;

  constructor(path: string, method: string, allowed: readonly string[]) {
    const allow = allowed.join(", ");
    super("method_not_allowed", `${path} does not take ${method}; allowed: ${allow}.`);
    this.allow = allow;
  }
}

/** The reference's error shape, exactly its four members. */
export function toRestError(fault: Fault, exchange: Exchange, publicUrl: string): RouteReply {
  const { code, message } = fault;
  return {
    status: fault.definition.http,
    ...(fault instanceof MethodNotAllowed ? { headers: { allow: fault.allow } } : {}),
    body: JSON.stringify({
      error: { code, message, requestId: exchange.requestId, docsUrl: docsUrl(publicUrl, code) },
    }),
  };
}

/** The same error for Connect, gRPC and gRPC-Web, with the details that tell the caller what to do. */
export function toConnectError(
  fault: Fault,
  exchange: Exchange,
  publicUrl: string,
  connectCode = fault.connectCode,
): ConnectError {
  const { code, message, issues, retryAfterSeconds } = fault;
  const details: ErrorDetail[] = [
    detail(ErrorInfoSchema, { reason: code, domain: errorDomain, metadata: errorMetadata(exchange) }),
    detail(RequestInfoSchema, { requestId: exchange.requestId }),
    detail(HelpSchema, { links: [{ description: `About ${code}`, url: docsUrl(publicUrl, code) }] }),
  ];
  if (issues.length > 0) {
    const fieldViolations = issues.map(({ path, message }) => ({ field: path, description: message }));
    details.push(detail(BadRequestSchema, { fieldViolations }));
  }
  if (retryAfterSeconds !== undefined) {
    details.push(detail(RetryInfoSchema, { retryDelay: { seconds: BigInt(retryAfterSeconds) } }));
  }
  if (code === "quota_exceeded" || code === "rate_limited") {
    const subject = exchange.caller === undefined ? "" : `organization:${exchange.caller.organizationId}`;
    details.push(detail(QuotaFailureSchema, { violations: [{ subject, description: message }] }));
  }
  // gRPC's message is percent-encoded, which half a surrogate pair cannot be.
  return new ConnectError(message.toWellFormed(), connectCode, undefined, details, fault.cause);
}

/**
 * Whatever an RPC's implementation threw, as it leaves. A ConnectError is taken as meant; all else is a Fault, which the
 * exchange keeps.
 */
export function rpcErrorFrom(thrown: unknown, exchange: Exchange, publicUrl: string): ConnectError {
  if (thrown instanceof ConnectError) return thrown;
  exchange.fault = faultFrom(thrown);
  return toConnectError(exchange.fault, exchange, publicUrl);
}

const errorMetadata = ({ requestId, traceId }: Exchange): Record<string, string> =>
  traceId === undefined ? { requestId } : { requestId, traceId };

type ErrorDetail = { desc: DescMessage; value: MessageInitShape<DescMessage> };

const detail = <Desc extends DescMessage>(desc: Desc, value: MessageInitShape<Desc>): ErrorDetail => ({ desc, value });

/**
 * The fault behind an error that Connect's own parts raised before an implementation was reached; undefined where it
 * needs no more than its code. A message that does not decode is the caller's mistake, which Connect calls internal.
 */
export function faultOfConnect({ code, rawMessage }: ConnectError): Fault | undefined {
  switch (code) {
    case Code.ResourceExhausted:
      return new Fault(
        "batch_too_large",
        `The message is larger than ${limits.bodyBytesMax} bytes after decompression.`,
      );
    case Code.InvalidArgument:
      return undecodable(rawMessage);
    case Code.Unavailable:
      return rawMessage === tooManyBodies ? unavailable(rawMessage) : undefined;
    case Code.Unimplemented:
      return unheardOfPattern.test(rawMessage) ? undecodable(rawMessage) : undefined;
    case Code.Internal:
      return undecodablePattern.test(rawMessage)
        ? undecodable(rawMessage)
        : new Fault("internal_error", "Unexpected failure; retry with backoff.", {
            retryAfterSeconds: 1,
            cause: rawMessage,
          });
    default:
      return undefined;
  }
}

/** No message, two of them, or a compression that is not known. */
const unheardOfPattern = /^(protocol error|unknown compression)/;
const undecodablePattern = /^(parse binary|decompression failed|received compressed envelope)/;

function undecodable(rawMessage: string): Fault {
  const message = withoutExcerpt(rawMessage);
  return new Fault("invalid_body", message, { issues: [{ path: "body", message }] });
}

/** The message of a JSON parser without the piece of the body that V8 quotes: it could be a piece of a secret. */
export const withoutExcerpt = (message: string): string =>
  message.replace(/, (\.{3})?".*"(\.{3})? is not valid JSON/s, "");

/** What may stand behind an error of Connect's own parts. */
export type FaultOf = (error: ConnectError) => Fault | undefined;

/** The error with the details of the fault behind it; undefined where there is none or it has details already. */
export function dressedError(
  error: ConnectError,
  exchange: Exchange,
  publicUrl: string,
  faultOf: FaultOf,
): ConnectError | undefined {
  if (error.details.length > 0) return undefined;
  const fault = faultOf(error);
  if (fault === undefined) return undefined;
  exchange.fault ??= fault;
  // The protocols' own: clients read from it that they may try without compression.
  const ownCode = error.code === Code.Unimplemented ? error.code : undefined;
  return toConnectError(fault, exchange, publicUrl, ownCode);
}
