import type { IncomingHttpHeaders } from "node:http";
import { setTimeout as wait } from "node:timers/promises";
import { create, type DescMethodServerStreaming, type DescMethodUnary, type Message } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";
import { type Rpc, type RpcContext, serverStream, unary } from "../../src/transport/rpc/rpc.ts";
import { message, method } from "./schema.ts";

/** Messages whose types are known only at run time. */
type Any = any;

/** The suite's service: it answers as the request defines, and reports what it saw of the request. */
export const conformanceRpcs: Rpc[] = [
  row("unary", (request, context) => answerOnce(request, [request], contextOf(context))),
  row("idempotentUnary", (request, context) => answerOnce(request, [request], contextOf(context))),
  row("unimplemented", () => {
    throw new ConnectError("not implemented", Code.Unimplemented);
  }),
  serverStream(
    method("serverStream", "server_streaming") as DescMethodServerStreaming,
    () => undefined,
    (request: Any, _admitted, context) => answerStream(request.responseDefinition, [request], contextOf(context)),
  ),
];

function row(name: string, call: (request: Any, context: RpcContext) => Any): Rpc {
  return unary(
    method(name, "unary") as DescMethodUnary,
    () => undefined,
    (request, _admitted, context) => call(request, context),
  );
}

export function registerStreams(router: ConnectRouter): void {
  const client = (name: string, implementation: Any) => router.rpc(method(name, "client_streaming"), implementation);
  const bidi = (name: string, implementation: Any) => router.rpc(method(name, "bidi_streaming"), implementation);
  client("clientStream", async (requests: AsyncIterable<Any>, context: HandlerContext) => {
    const all: Any[] = [];
    for await (const request of requests) all.push(request);
    return answerOnce(all[0], all, contextOf(context));
  });
  bidi("bidiStream", (requests: AsyncIterable<Any>, context: HandlerContext) => converse(requests, contextOf(context)));
}

/** The common part of both kinds of context. */
interface Context {
  readonly headers: IncomingHttpHeaders;
  readonly timeoutMs: number | undefined;
  readonly responseHeader: Headers;
  readonly responseTrailer: Headers;
}

function contextOf(context: RpcContext | HandlerContext): Context {
  const { responseHeader, responseTrailer } = context;
  const headers = "request" in context ? context.request.headers : headersOf(context.requestHeader);
  // As sent: the time that is left depends on how busy the machine is.
  const timeoutMs = timeoutOf(headers["connect-timeout-ms"] ?? headers["grpc-timeout"]);
  return { headers, timeoutMs, responseHeader, responseTrailer };
}

function headersOf(web: Headers): IncomingHttpHeaders {
  const headers: IncomingHttpHeaders = {};
  web.forEach((value, name) => (headers[name] = value));
  return headers;
}

const unitMs: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6, "": 1 };

function timeoutOf(header: string | string[] | undefined): number | undefined {
  const [, count, unit] = /^(\d+)([HMSmun]?)$/.exec(String(header ?? "")) ?? [];
  return count === undefined ? undefined : Math.round(Number(count) * (unitMs[unit ?? ""] as number));
}

async function answerOnce(first: Any, requests: Any[], context: Context): Promise<Any> {
  const definition = first?.responseDefinition;
  setHeaders(definition, context);
  const requestInfo = infoOf(requests, context);
  if (definition?.response.case === "error") throw errorOf(definition.response.value, requestInfo);
  if (definition !== undefined) await wait(definition.responseDelayMs);
  return { payload: { requestInfo, data: definition?.response.value } };
}

async function* answerStream(definition: Any, requests: Any[], context: Context): AsyncIterable<Any> {
  setHeaders(definition, context);
  const requestInfo = infoOf(requests, context);
  const data: Any[] = definition?.responseData ?? [];
  for (const [i, one] of data.entries()) {
    await wait(definition.responseDelayMs);
    yield { payload: { requestInfo: i === 0 ? requestInfo : undefined, data: one } };
  }
  if (definition?.error) throw errorOf(definition.error, data.length === 0 ? requestInfo : undefined);
}

/** With full duplex it answers each request as it comes; with half duplex it reads all of them first. */
async function* converse(requests: AsyncIterable<Any>, context: Context): AsyncIterable<Any> {
  let definition: Any;
  let unanswered: Any[] = [];
  let isFullDuplex = false;
  let sent = 0;
  for await (const request of requests) {
    if (definition === undefined) {
      definition = request.responseDefinition;
      isFullDuplex = request.fullDuplex;
      setHeaders(definition, context);
    }
    unanswered.push(request);
    if (!isFullDuplex) continue;
    if (sent >= (definition?.responseData.length ?? 0)) break;
    await wait(definition.responseDelayMs);
    yield { payload: { requestInfo: infoOf(unanswered, context), data: definition.responseData[sent++] } };
    unanswered = [];
  }
  const requestInfo = infoOf(unanswered, context);
  for (; sent < (definition?.responseData.length ?? 0); sent++) {
    await wait(definition.responseDelayMs);
    yield { payload: { requestInfo: sent === 0 ? requestInfo : undefined, data: definition.responseData[sent] } };
  }
  if (definition?.error) throw errorOf(definition.error, sent === 0 ? requestInfo : undefined);
}

function setHeaders(definition: Any, { responseHeader, responseTrailer }: Context): void {
  for (const { name, value } of definition?.responseHeaders ?? []) {
    for (const one of value) responseHeader.append(name, one);
  }
  for (const { name, value } of definition?.responseTrailers ?? []) {
    for (const one of value) responseTrailer.append(name, one);
  }
}

function infoOf(requests: readonly Any[], { headers, timeoutMs }: Context): Message {
  const requestHeaders = Object.entries(headers)
    .filter(([name]) => !name.startsWith(":"))
    .map(([name, value]) => ({ name, value: [value].flat() }));
  return create(message("ConformancePayload.RequestInfo"), {
    requestHeaders,
    requests: requests.map((request) => anyPack(message(request.$typeName.split(".").at(-1)), request)),
    ...(timeoutMs === undefined ? {} : { timeoutMs: BigInt(timeoutMs) }),
  });
}

function errorOf(definition: Any, requestInfo: Message | undefined): ConnectError {
  const info = requestInfo === undefined ? [] : [anyPack(message("ConformancePayload.RequestInfo"), requestInfo)];
  const error = new ConnectError(definition.message ?? "", definition.code);
  error.details = [...definition.details, ...info].map(({ typeUrl, value }: Any) => ({
    type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1),
    value,
  }));
  return error;
}
