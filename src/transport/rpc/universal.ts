import { AsyncLocalStorage } from "node:async_hooks";
import type { IncomingHttpHeaders, ServerResponse } from "node:http";
import { Code, ConnectError, createContextValues } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import type {
  Compression,
  UniversalHandler,
  UniversalServerRequest,
  UniversalServerResponse,
} from "@connectrpc/connect/protocol";
import { Fault } from "../../errors.ts";
import type { Exchange } from "../../exchange.ts";
import type { NodeRequest, RouteReply } from "../http/route.ts";
import { drained, endAnswer, isGone } from "../http/body.ts";
import { type BodyLease, tooManyBodies } from "../http/body-budget.ts";
import { connectionKey, exchangeKey, headersKey } from "./context.ts";
import { afterMs, timerMsMax } from "../http/deadline.ts";
import { type Dress, dressRpcError } from "./error-details.ts";
import { MethodNotAllowed } from "./errors.ts";

export interface UniversalOptions {
  /** The error as it should leave. */
  readonly dress: Dress;
  /** What every answer carries; asked when the answer leaves. */
  readonly headers: () => Record<string, string>;
  /** The answer to a request that is no call at all: a wrong verb or content type. */
  readonly refuse: (fault: Fault) => RouteReply;
  /** Accounts for the body. */
  readonly hold: BodyLease;
  /** Milliseconds until nobody waits any more; undefined = no deadline. */
  readonly remainingMs: number | undefined;
}

/** Serves one RPC by Connect's universal handler; answers its code, undefined for success. */
export async function serveRpc(
  handler: UniversalHandler,
  request: NodeRequest,
  response: ServerResponse,
  exchange: Exchange,
  options: UniversalOptions,
): Promise<Code | undefined> {
  const abort = new AbortController();
  response.once("close", () => {
    if (!response.writableEnded) abort.abort(new ConnectError("the caller has gone away", Code.Canceled));
  });
  const isUnary = handler.method.methodKind === "unary";
  const isCompressed = (request.headers["content-encoding"] ?? request.headers["grpc-encoding"]) !== undefined;
  const call: UniversalServerRequest = {
    httpVersion: request.httpVersion,
    method: request.method ?? "",
    // Connect reads the query only; the caller's Host could make a URL that does not parse.
    url: `http://localhost${request.url ?? "/"}`,
    header: connectHeaders(request.headers, options.remainingMs),
    body: held(bodyOf(request, options.remainingMs), options.hold, isUnary),
    signal: abort.signal,
    contextValues: createContextValues()
      .set(exchangeKey, exchange)
      .set(headersKey, request.headers)
      .set(connectionKey, "stream" in request ? request.stream.session : request.socket),
  };
  const answer = await (isUnary && isCompressed ? decompressing.run(options.hold, () => handler(call)) : handler(call));
  const dressed = await dressRpcError(
    explained(answer, handler, request, options.refuse),
    handler,
    exchange,
    options.dress,
  );
  await writeUniversal(dressed.response, request, response, options);
  return dressed.code();
}

/** A refusal of the handler that says nothing but a status gets the body of an error. */
function explained(
  answer: UniversalServerResponse,
  { allowedMethods, method }: UniversalHandler,
  request: NodeRequest,
  refuse: (fault: Fault) => RouteReply,
): UniversalServerResponse {
  if (answer.status < 400 || answer.body !== undefined) return answer;
  const { headers, body } = refuse(
    refusalOf(answer.status, request, `/${method.parent.typeName}/${method.name}`, allowedMethods),
  );
  const header = new Headers(headers);
  answer.header?.forEach((value, name) => header.set(name, value));
  const bytes = typeof body === "string" ? new TextEncoder().encode(body) : body;
  header.set("content-length", String(bytes.byteLength));
  return { status: answer.status, header, body: once(bytes) };
}

function refusalOf(status: number, { method = "", headers }: NodeRequest, path: string, allowed: string[]): Fault {
  if (status === 405) return new MethodNotAllowed(path, method, allowed);
  const contentType = headers["content-type"];
  const message =
    status === 415
      ? `Content-Type: ${contentType === undefined ? "is missing" : `'${contentType}' is not one of gRPC, gRPC-Web or Connect`}`
      : `${path} streams both ways, which needs HTTP/2.`;
  return new Fault("invalid_body", message);
}

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes;
}

/**
 * The headers for Connect. It starts a timer for the deadline, and a timer of Node that is to wait longer than it can
 * (24 days) fires at once: such a deadline is brought nearer.
 */
function connectHeaders(headers: IncomingHttpHeaders, remainingMs: number | undefined): Headers {
  const web = webHeaders(headers);
  if (remainingMs !== undefined && remainingMs > timerMsMax) {
    const seconds = Math.floor(timerMsMax / 1000);
    web.set("connect-timeout-ms", `${seconds}000`);
    web.set("grpc-timeout", `${seconds}S`);
  }
  return web;
}

function webHeaders(headers: IncomingHttpHeaders): Headers {
  const web = new Headers();
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || name.startsWith(":")) continue;
    for (const one of Array.isArray(value) ? value : [value]) {
      try {
        web.append(name, one);
      } catch {
        // Node lets characters through that the web's Headers refuse; such a header cannot mean anything to us.
      }
    }
  }
  return web;
}

const tooMany = () => new ConnectError(tooManyBodies, Code.Unavailable);

/** The same bytes, accounted for. Where they are one message it ends when that may be decoded. */
async function* held(body: AsyncIterable<Uint8Array>, hold: BodyLease, isUnary: boolean): AsyncIterable<Uint8Array> {
  for await (const chunk of body) {
    if (hold.take(chunk.length) !== undefined) throw tooMany();
    yield chunk;
  }
  hold.arrived();
  if (isUnary && (await hold.turn()) !== undefined) throw tooMany();
}

/** Whose message is being decompressed: the codec is told nothing of the call. */
const decompressing = new AsyncLocalStorage<BodyLease>();

/** gzip for Connect's router: what a message is decompressed to is accounted for, and waits for its turn as any body does. */
export const heldGzip: Compression = {
  ...compressionGzip,
  async decompress(bytes, bytesMax) {
    const message = await compressionGzip.decompress(bytes, bytesMax);
    const hold = decompressing.getStore();
    if (hold?.take(message.length) !== undefined || (await hold?.turn()) !== undefined) throw tooMany();
    return message;
  },
};

/**
 * The request's bytes, until the deadline. A reader that stops early must not destroy the connection that the answer goes
 * over.
 */
async function* bodyOf(request: NodeRequest, remainingMs: number | undefined): AsyncIterable<Uint8Array> {
  if (request.readableEnded) return;
  const iterator = request.iterator({ destroyOnReturn: false });
  if (remainingMs === undefined) return yield* iterator;
  const deadline = Promise.withResolvers<never>();
  deadline.promise.catch(() => {});
  const stop = afterMs(remainingMs, () =>
    deadline.reject(new ConnectError("the operation timed out", Code.DeadlineExceeded)),
  );
  try {
    for (;;) {
      const { done, value } = await Promise.race([iterator.next(), deadline.promise]);
      if (done) return;
      yield value;
    }
  } finally {
    stop();
    // Not awaited: it would wait for bytes that may never come.
    void iterator.return?.();
  }
}

async function writeUniversal(
  answer: UniversalServerResponse,
  request: NodeRequest,
  response: ServerResponse,
  { headers: answerHeaders, hold }: UniversalOptions,
): Promise<void> {
  const iterator = answer.body?.[Symbol.asyncIterator]();
  let chunk = await iterator?.next();
  hold.done();
  const headers: Record<string, string> = {};
  answer.header?.forEach((value, name) => (headers[name] = value));
  response.writeHead(answer.status, Object.assign(headers, answerHeaders()));
  for (; chunk !== undefined && !chunk.done; chunk = await iterator?.next()) {
    if (isGone(response)) {
      await iterator?.return?.();
      return;
    }
    if (!response.write(chunk.value)) await drained(response);
  }
  if (answer.trailer !== undefined) {
    const trailers: Record<string, string> = {};
    answer.trailer.forEach((value, name) => (trailers[name] = value));
    response.addTrailers(trailers);
  }
  endAnswer(request, response);
}
