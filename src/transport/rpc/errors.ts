import type { DescMessage, MessageInitShape } from "@bufbuild/protobuf";
import { type Code, ConnectError } from "@connectrpc/connect";
import { docsUrl, type ErrorCode, Fault, faultFrom, type FaultOptions } from "../../errors.ts";
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

/** Namespace of the codes in google.rpc.ErrorInfo. */
export const errorDomain = "ingest.v1";

/** A fault to which the RPC protocols give a code of their own. */
export class RpcFault extends Fault {
  readonly #connectCode: Code;

  constructor(connectCode: Code, code: ErrorCode, message: string, options?: FaultOptions) {
    super(code, message, options);
    this.#connectCode = connectCode;
  }

  override get connectCode(): Code {
    return this.#connectCode;
  }
}

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
export function toConnectError(fault: Fault, exchange: Exchange, publicUrl: string): ConnectError {
  const { code, message, issues, retryAfterSeconds } = fault;
  const details: ErrorDetail[] = [
    detail(ErrorInfoSchema, { reason: code, domain: errorDomain, metadata: errorMetadata(exchange) }),
    detail(RequestInfoSchema, { requestId: exchange.requestId }),
    detail(HelpSchema, { links: [{ description: `About ${code}`, url: docsUrl(publicUrl, code) }] }),
  ];
  if (issues.length > 0) {
    const fieldViolations = issues
      .slice(0, limits.issuesMax)
      .map(({ path, message }) => ({ field: path, description: message }));
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
  return new ConnectError(message.toWellFormed(), fault.connectCode, undefined, details, fault.cause);
}

/** What an RPC threw, as it leaves. A ConnectError leaves as it is; all else is a Fault, which the exchange keeps. */
export function rpcErrorFrom(
  thrown: unknown,
  exchange: Exchange,
  publicUrl: string,
  errorOf: typeof toConnectError,
): ConnectError {
  if (thrown instanceof ConnectError) return thrown;
  exchange.fault = faultFrom(thrown);
  return errorOf(exchange.fault, exchange, publicUrl);
}

const errorMetadata = ({ requestId, traceId }: Exchange): Record<string, string> =>
  traceId === undefined ? { requestId } : { requestId, traceId };

type ErrorDetail = { desc: DescMessage; value: MessageInitShape<DescMessage> };

const detail = <Desc extends DescMessage>(desc: Desc, value: MessageInitShape<Desc>): ErrorDetail => ({ desc, value });
