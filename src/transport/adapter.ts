import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { constants, type Http2ServerRequest, type Http2ServerResponse } from "node:http2";
import { createGunzip } from "node:zlib";
import { Code, ConnectError, createConnectRouter, createContextValues, type ConnectRouter } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import type { UniversalHandler, UniversalServerResponse } from "@connectrpc/connect/protocol";
import { Fault, faultFrom } from "../errors.ts";
import { limits } from "../limits.ts";
import { dressRpcError } from "./dress.ts";
import { toRestError } from "./errors.ts";
import type { Exchange, Protocol } from "../exchange.ts";
import { exchangeKey } from "./context.ts";
import { answerHeaders } from "./headers.ts";

export interface RouteRequest {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly headers: IncomingHttpHeaders;
  /**
   * The whole body, decompressed.
   * @throws Fault batch_too_large as soon as it exceeds `bytesMax`; invalid_body for an encoding other than gzip.
   */
  readBody(bytesMax: number): Promise<Buffer>;
}

export interface RouteReply {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array;
}

/** A path with its handler: REST and pages. Light on purpose: no Headers, URL, AbortController or async iterable. */
export interface Route {
  readonly method: "GET" | "POST";
  /** Exact, or a beginning followed by `*`. */
  readonly path: string;
  /** The RPC that it stands for; empty for pages. */
  readonly rpc: string;
  handle(request: RouteRequest, exchange: Exchange): RouteReply | Promise<RouteReply>;
}

/** What the adapter tells of a finished exchange. */
export interface ExchangeEnd {
  readonly method: string;
  readonly path: string;
  /** HTTP status; 0 when the caller went away first. */
  readonly status: number;
  /** Of the RPC protocols; undefined for success. */
  readonly code: Code | undefined;
  readonly durationMs: number;
}

export interface AdapterOptions {
  readonly routes: readonly Route[];
  readonly services: (router: ConnectRouter) => void;
  /** Base of the documentation's addresses, without a slash at its end. */
  readonly publicUrl: string;
  readonly newRequestId: () => string;
  readonly now: () => number;
  readonly onEnd?: (exchange: Exchange, end: ExchangeEnd) => void;
}

export type NodeRequest = IncomingMessage | Http2ServerRequest;
export type NodeResponse = ServerResponse | Http2ServerResponse;
export type NodeHandler = (request: NodeRequest, response: NodeResponse) => void;

/** Bytes of an unwanted body that are read and dropped, so that the caller gets to read the answer. */
const drainBytesMax = 8 * limits.bodyBytesMax;

/** Serves every protocol from Node's requests. Nothing that a request holds can make it throw. */
export function createAdapter(options: AdapterOptions): NodeHandler {
  const router = createConnectRouter({
    readMaxBytes: limits.bodyBytesMax,
    acceptCompression: [compressionGzip],
  });
  options.services(router);
  const rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  const exact = new Map<string, Map<string, Route>>();
  const prefixes: Route[] = [];
  for (const route of options.routes) {
    if (route.path.endsWith("*")) prefixes.push(route);
    else exact.set(route.path, (exact.get(route.path) ?? new Map()).set(route.method, route));
  }

  function newExchange(protocol: Protocol, rpc: string, deadlineMs: number | undefined): Exchange {
    return {
      requestId: options.newRequestId(),
      receivedAt: new Date(options.now()),
      protocol,
      rpc,
      deadlineMs,
      abandoned: false,
      caller: undefined,
      rateLimit: undefined,
      fault: undefined,
      replayed: false,
      accepted: 0,
      rejected: 0,
    };
  }

  return (request, response) => {
    const url = request.url ?? "";
    const mark = url.indexOf("?");
    const path = mark < 0 ? url : url.slice(0, mark);
    const query = mark < 0 ? "" : url.slice(mark + 1);
    const rpc = rpcs.get(path);
    const startedMs = performance.now();
    const protocol = rpc === undefined ? "rest" : protocolOf(request.headers["content-type"]);
    const verbs = exact.get(path);
    const method = request.method === "HEAD" ? "GET" : (request.method ?? "");
    const route =
      verbs?.get(method) ?? prefixes.find((one) => one.method === method && path.startsWith(one.path.slice(0, -1)));
    const deadlineMs = rpc === undefined ? undefined : deadlineOf(request.headers, options.now());
    const exchange = newExchange(protocol, rpc?.method.name ?? route?.rpc ?? "", deadlineMs);

    let code: Code | undefined;
    let ended = false;
    response.once("close", () => {
      if (!ended) exchange.abandoned = true;
      options.onEnd?.(exchange, {
        method: request.method ?? "",
        path,
        status: ended ? response.statusCode : 0,
        code,
        durationMs: performance.now() - startedMs,
      });
    });
    response.on("error", () => {});
    request.on("error", () => {});

    const send = ({ status, headers, body }: RouteReply): void => {
      const bytes = typeof body === "string" ? Buffer.byteLength(body) : body.byteLength;
      const unread = !request.complete && request.httpVersionMajor === 1 && hasBody(request);
      ended = true;
      (response as ServerResponse).writeHead(status, {
        ...answerHeaders(exchange),
        ...headers,
        "content-length": bytes,
        ...(unread ? { connection: "close" } : {}),
      });
      if (request.method === "HEAD") response.end();
      else (response as ServerResponse).end(body);
      if (!request.complete) drain(request);
    };
    const fail = (error: unknown): void => {
      exchange.fault = faultFrom(error);
      if (!response.headersSent) send(toRestError(exchange.fault, exchange, options.publicUrl));
    };

    try {
      if (rpc !== undefined) {
        serveRpc(rpc, request, response as ServerResponse, exchange, options.publicUrl)
          .then((outcome) => (code = outcome))
          .catch((error: unknown) => {
            exchange.fault ??= faultFrom(error);
            if (response.headersSent) destroy(response);
            else fail(error);
          })
          .finally(() => {
            ended = response.writableEnded;
            if (!request.complete) drain(request);
          });
        ended = true;
        return;
      }
      if (route === undefined) {
        if (verbs === undefined) return fail(new Fault("not_found", `There is nothing at '${path}'.`));
        const allow = [...verbs.keys()].join(", ");
        const fault = new Fault("method_not_allowed", `${path} does not take ${request.method}; allowed: ${allow}.`);
        exchange.fault = fault;
        const reply = toRestError(fault, exchange, options.publicUrl);
        return send({ ...reply, headers: { ...reply.headers, allow } });
      }
      const readBody = (bytesMax: number) => readWhole(request, bytesMax);
      const reply = route.handle({ method, path, query, headers: request.headers, readBody }, exchange);
      if (reply instanceof Promise) reply.then(send).catch(fail);
      else send(reply);
    } catch (error) {
      fail(error);
    }
  };
}

const hasBody = ({ headers }: NodeRequest) =>
  headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;

function protocolOf(contentType: string | undefined): Protocol {
  if (contentType?.startsWith("application/grpc-web")) return "grpc-web";
  return contentType?.startsWith("application/grpc") ? "grpc" : "connect";
}

const grpcUnits: Record<string, number> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 };

/** When nobody waits any more, in milliseconds; undefined without a (well-formed) deadline. */
function deadlineOf(headers: IncomingHttpHeaders, nowMs: number): number | undefined {
  const grpc = /^(\d{1,8})([HMSmun])$/.exec(String(headers["grpc-timeout"] ?? ""));
  if (grpc !== null) return nowMs + Number(grpc[1]) * (grpcUnits[grpc[2] as string] as number);
  const connect = headers["connect-timeout-ms"];
  return connect !== undefined && /^\d{1,10}$/.test(String(connect)) ? nowMs + Number(connect) : undefined;
}

async function serveRpc(
  handler: UniversalHandler,
  request: NodeRequest,
  response: ServerResponse,
  exchange: Exchange,
  publicUrl: string,
): Promise<Code | undefined> {
  const abort = new AbortController();
  response.once("close", () => abort.abort(new ConnectError("the caller has gone away", Code.Canceled)));
  const answer = await handler({
    httpVersion: request.httpVersion,
    method: request.method ?? "",
    // Connect reads the query only; the caller's Host could make a URL that does not parse.
    url: `http://localhost${request.url ?? "/"}`,
    header: webHeaders(request.headers),
    body: bodyOf(request),
    signal: abort.signal,
    contextValues: createContextValues().set(exchangeKey, exchange),
  });
  const dressed = await dressRpcError(answer, handler, exchange, publicUrl);
  await writeUniversal(dressed.response, request, response, exchange);
  return dressed.code();
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

/** The request's bytes. A reader that stops early must not destroy the connection that the answer goes over. */
async function* bodyOf(request: NodeRequest): AsyncIterable<Uint8Array> {
  yield* request.iterator({ destroyOnReturn: false });
}

async function writeUniversal(
  answer: UniversalServerResponse,
  request: NodeRequest,
  response: ServerResponse,
  exchange: Exchange,
): Promise<void> {
  const iterator = answer.body?.[Symbol.asyncIterator]();
  let chunk = await iterator?.next();
  const headers: Record<string, string> = {};
  answer.header?.forEach((value, name) => (headers[name] = value));
  Object.assign(headers, answerHeaders(exchange));
  if (!request.complete && request.httpVersionMajor === 1 && hasBody(request)) headers.connection = "close";
  response.writeHead(answer.status, headers);
  for (; chunk !== undefined && !chunk.done; chunk = await iterator?.next()) {
    if (response.destroyed) {
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
  response.end();
}

function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off("drain", done).off("close", done);
      resolve();
    };
    response.on("drain", done).on("close", done);
  });
}

/** Reads and drops the rest of a body, up to a bound; past it the sender is cut off. */
function drain(request: NodeRequest): void {
  let bytes = 0;
  request.removeAllListeners("data");
  request.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > drainBytesMax) destroy(request);
  });
  request.resume();
}

function destroy(side: NodeRequest | NodeResponse): void {
  if ("stream" in side) side.stream.close(constants.NGHTTP2_CANCEL);
  else side.destroy();
}

function readWhole(request: NodeRequest, bytesMax: number): Promise<Buffer> {
  const encoding = request.headers["content-encoding"]?.toLowerCase() ?? "identity";
  const declared = Number(request.headers["content-length"] ?? 0);
  const tooLarge = () => new Fault("batch_too_large", `The body is larger than ${bytesMax} bytes after decompression.`);
  if (encoding !== "identity" && encoding !== "gzip") {
    const message = `must be gzip or absent; it is '${encoding}'`;
    return Promise.reject(
      new Fault("invalid_body", `Content-Encoding: ${message}`, { issues: [{ path: "Content-Encoding", message }] }),
    );
  }
  if (declared > bytesMax && encoding === "identity") return Promise.reject(tooLarge());
  return new Promise((resolve, reject) => {
    const source = encoding === "gzip" ? request.pipe(createGunzip()) : request;
    const chunks: Buffer[] = [];
    let bytes = 0;
    const stop = (error: Fault): void => {
      source.off("data", onData);
      if (source !== request) {
        request.unpipe();
        source.destroy();
      }
      reject(error);
    };
    const onData = (chunk: Buffer): void => {
      bytes += chunk.length;
      if (bytes > bytesMax) return stop(tooLarge());
      chunks.push(chunk);
    };
    source.on("data", onData);
    source.once("end", () => resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, bytes)));
    const broken = () =>
      stop(
        new Fault("invalid_body", "body: is incomplete or not valid gzip", {
          issues: [{ path: "body", message: "is incomplete or not valid gzip" }],
        }),
      );
    source.once("error", broken);
    request.once("close", () => {
      if (!request.complete) broken();
    });
  });
}
