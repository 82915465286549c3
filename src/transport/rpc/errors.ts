import type { DescMessage, MessageInitShape } from "@bufbuild/protobuf";
import { type Code, ConnectError } from "@connectrpc/connect";
import { docsUrl, Fault } from "../../errors.ts";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  HelpSchema,
  QuotaFailureSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "../../gen/google/rpc/error_details_pb.js";
import type { RequestEnd, RequestStart } from "../../exchange.ts";
import type { RouteReply } from "../http/route.ts";

/** Namespace of the codes in google.rpc.ErrorInfo. */
export const errorDomain = "ingest.v1";

/** A fault with an RPC code of its own. */
export class RpcFault extends Fault {
  readonly #connectCode: Code;

  constructor(connectCode: Code, fault: Fault) {
    super(fault.code, fault.message, fault);
    this.#connectCode = connectCode;
  }

  override get connectCode(): Code {
    return this.#connectCode;
  }
}

/** A fault that names the allowed methods, for the Allow header. */
export class MethodNotAllowed extends Fault {
  readonly allow: string;

  constructor(path: string, method: string, allowed: readonly string[]) {
    const allow = allowed.join(", ");
    super("method_not_allowed", `${path} does not take ${method}; allowed: ${allow}.`);
    this.allow = allow;
  }
}

/** The error in the reference's shape, with exactly its four members. */
export function toRestError(fault: Fault, requestId: string, publicUrl: string): RouteReply {
  const { code, message } = fault;
  return {
    status: fault.definition.http,
    ...(fault instanceof MethodNotAllowed ? { headers: { allow: fault.allow } } : {}),
    body: JSON.stringify({
      error: { code, message, requestId, docsUrl: docsUrl(publicUrl, code) },
    }),
  };
}

/** What an error over RPC says of its request. */
interface FailedCall {
  readonly start: Pick<RequestStart, "traceId">;
  readonly known: Pick<RequestEnd, "requestId" | "caller">;
}

/** The same error for Connect, gRPC and gRPC-Web, with the details that tell the caller what to do. */
export function toConnectError(
  fault: Fault,
  { start: { traceId }, known: { requestId, caller } }: FailedCall,
  publicUrl: string,
): ConnectError {
  const { code, message, issues, retryAfterSeconds } = fault;
  const metadata: Record<string, string> = traceId === undefined ? { requestId } : { requestId, traceId };
  const details: ErrorDetail[] = [
    detail(ErrorInfoSchema, { reason: code, domain: errorDomain, metadata }),
    detail(RequestInfoSchema, { requestId }),
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
    const subject = caller === undefined ? "" : `organization:${caller.organizationId}`;
    details.push(detail(QuotaFailureSchema, { violations: [{ subject, description: message }] }));
  }
  // gRPC percent-encodes the message, which fails for a lone surrogate.
  return new ConnectError(message.toWellFormed(), fault.connectCode, undefined, details, fault.cause);
}

type ErrorDetail = { desc: DescMessage; value: MessageInitShape<DescMessage> };

const detail = <Desc extends DescMessage>(desc: Desc, value: MessageInitShape<Desc>): ErrorDetail => ({ desc, value });
