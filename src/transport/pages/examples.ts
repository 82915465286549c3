import { create, type JsonObject, toJson } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { type ErrorCode, errorTable, Fault } from "../../errors.ts";
import { type RequestEnd, unknownEnd } from "../../exchange.ts";
import { answerHeaderTable, type AnswerHeader } from "../../headers.ts";
import { limits } from "../../limits.ts";
import { MethodNotAllowed, toConnectError, toRestError } from "../rpc/errors.ts";
import { answerHeaders, jsonType } from "../http/answer-headers.ts";

function exampleFault(code: ErrorCode): Fault {
  const { example, retryable } = errorTable[code];
  if (code === "method_not_allowed") return new MethodNotAllowed("/api/v1/ingest/ping", "POST", ["GET"]);
  const [path = "", message = ""] = example.split(": ");
  const issues: Partial<Record<ErrorCode, { path: string; message: string }>> = {
    invalid_body: { path, message },
    missing_actor: { path: "actor", message: example },
  };
  const issue = issues[code];
  return new Fault(code, example, {
    ...(issue === undefined ? {} : { issues: [issue] }),
    ...(retryable ? { retryAfterSeconds: 1 } : {}),
    unavailable: code === "internal_error",
  });
}

function exampleEnd(fault: Fault): RequestEnd {
  const { http } = fault.definition;
  const recognised = http !== 401 && http !== 405 && fault.code !== "not_found";
  const rateLimit = { limit: limits.keyRequestsPerSecond, remaining: http === 429 ? 0 : 59 };
  const end = { ...unknownEnd(answerHeaderTable["x-request-id"].example), fault };
  return recognised ? { ...end, rateLimit } : end;
}

/** The error over REST: status, headers, body. The service's own code makes it, so it cannot be out of date. */
export function restExample(code: ErrorCode, publicUrl: string): string {
  const fault = exampleFault(code);
  const end = exampleEnd(fault);
  const { status, body } = toRestError(fault, end.requestId, publicUrl);
  const shown = Object.entries({ "content-type": jsonType, ...answerHeaders(end) }).map(
    ([name, value]) =>
      `${Object.hasOwn(answerHeaderTable, name) ? answerHeaderTable[name as AnswerHeader].name : name}: ${value}`,
  );
  return [`HTTP ${status}`, ...shown, "", JSON.stringify(JSON.parse(String(body)), undefined, 2)].join("\n");
}

/** The gRPC spelling of a Connect code. */
export const grpcCodeName = (code: Code): string =>
  (Code[code] as string).replace(/(?<=[a-z])[A-Z]/g, (letter) => `_${letter}`).toUpperCase();

/** The error over gRPC: code, message and details. */
export function grpcExample(code: ErrorCode, publicUrl: string): string {
  const fault = exampleFault(code);
  const error = toConnectError(fault, { start: { traceId: undefined }, known: exampleEnd(fault) }, publicUrl);
  const details = error.details.map((detail) => {
    if (!("desc" in detail)) throw new Error("a detail of an outgoing error has its schema");
    const { desc, value } = detail;
    return { "@type": desc.typeName, ...(toJson(desc, create(desc, value)) as JsonObject) };
  });
  return [
    `code: ${error.code} ${grpcCodeName(error.code)}`,
    `message: ${error.rawMessage}`,
    `details: ${JSON.stringify(details, undefined, 2)}`,
  ].join("\n");
}
