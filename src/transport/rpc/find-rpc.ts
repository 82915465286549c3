import type { IncomingHttpHeaders } from "node:http";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { Fault } from "../../errors.ts";
import { limits } from "../../limits.ts";
import type { Found, HttpCall } from "../http/http-call.ts";
import type { AdapterOptions } from "../http/options.ts";
import { MethodNotAllowed, toConnectError } from "./errors.ts";
import { createStreamHandlers, serveByRouter } from "./router-stream.ts";
import { RpcCall } from "./rpc-call.ts";
import { canCarry, defaultForm, formOf, formOfGet } from "./wires.ts";

/** Returns a function that finds a request's RPC; undefined if the request is for no RPC. */
export function createRpcs(options: AdapterOptions): (path: string, headers: IncomingHttpHeaders) => Found | undefined {
  const { now, messageBytesMax = limits.bodyBytesMax, jsonOptions, errorOf = toConnectError } = options;
  const callOptions = { ...options, messageBytesMax, errorOf };
  const handlers = createStreamHandlers(options.services, messageBytesMax, jsonOptions);
  const rpcs = new Map(options.rpcs.map((rpc) => [`/${rpc.method.parent.typeName}/${rpc.method.name}`, rpc]));
  const services = new Set([...rpcs.keys(), ...handlers.keys()].map(serviceOf));

  return (path, headers) => {
    const rpc = rpcs.get(path);
    const handler = handlers.get(path);
    const posted = formOf(headers["content-type"]);
    const isGrpc = posted !== undefined && posted.wire.protocol !== "connect";
    const method = rpc?.method ?? handler?.method;
    // Only gRPC shows that a request for an unknown service is an RPC.
    if (method === undefined && !isGrpc && !services.has(serviceOf(path))) return undefined;
    const { protocol, timeoutOf } = (posted ?? defaultForm).wire;
    const timeout = timeoutOf(headers);
    const serve = async (call: HttpCall): Promise<void> => {
      if (method === undefined) return new RpcCall(call, posted ?? defaultForm, callOptions).failUnknown(path);
      const { method: verb } = call.start;
      const isUnary = method.methodKind === "unary";
      const takesGet = isUnary && method.idempotency === MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS;
      const isGet = takesGet && verb === "GET";
      if (verb !== "POST" && !isGet) {
        return call.fail(new MethodNotAllowed(path, verb, takesGet ? ["POST", "GET"] : ["POST"]));
      }
      const form = isGet ? formOfGet(new URLSearchParams(call.query).get("encoding")) : posted;
      if (form === undefined || !canCarry(form, !isUnary)) {
        return call.fail(new Fault("invalid_body", notOurs(headers["content-type"], isGet, isUnary)), 415);
      }
      if (method.methodKind === "bidi_streaming" && call.channel.httpVersion !== "2") {
        return call.fail(new Fault("invalid_body", `${path} streams both ways, which needs HTTP/2.`), 505);
      }
      if (handler !== undefined) return serveByRouter(call, handler);
      return rpc && new RpcCall(call, form, callOptions).run(rpc, timeout instanceof Fault ? timeout : undefined);
    };
    return {
      rpc: method?.name ?? "",
      protocol,
      deadlineMs: typeof timeout === "number" ? now() + timeout : undefined,
      serve: (call) =>
        serve(call).catch((defect) => new RpcCall(call, posted ?? defaultForm, callOptions).crash(defect)),
    };
  };
}

const serviceOf = (path: string): string => path.slice(0, path.lastIndexOf("/"));

/** Why a request's content type does not fit its RPC. */
function notOurs(contentType: string | undefined, isGet: boolean, isUnary: boolean): string {
  if (isGet) return "encoding: must be 'json' or 'proto' in the query of a Connect GET";
  const connect = isUnary
    ? "application/json, application/proto"
    : "application/connect+json, application/connect+proto";
  const allowed = `${connect}, application/grpc or application/grpc-web`;
  const given = contentType === undefined ? "missing" : `'${contentType}'`;
  const hint = contentType?.startsWith("application/grpc-web-text")
    ? "; generate the client with mode=grpcweb, we do not take gRPC-Web as text"
    : "";
  return `Content-Type: must be ${allowed}; it is ${given}${hint}`;
}
