import type { IncomingHttpHeaders, ServerResponse } from "node:http";
import { Code, ConnectError, createContextValues } from "@connectrpc/connect";
import type { UniversalHandler, UniversalServerResponse } from "@connectrpc/connect/protocol";
import type { Exchange } from "../exchange.ts";
import type { NodeRequest } from "./adapter.ts";
import { hasBody } from "./body.ts";
import { exchangeKey, headersKey } from "./context.ts";
import { type Dress, dressRpcError } from "./dress.ts";
import { answerHeaders } from "./headers.ts";

/** Serves one RPC by Connect's universal handler; answers its code, undefined for success. */
export async function serveRpc(
  handler: UniversalHandler,
  request: NodeRequest,
  response: ServerResponse,
  exchange: Exchange,
  dress: Dress,
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
    contextValues: createContextValues().set(exchangeKey, exchange).set(headersKey, request.headers),
  });
  const dressed = await dressRpcError(answer, handler, exchange, dress);
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
