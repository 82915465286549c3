import { ConnectError, type ConnectRouter, createConnectRouter, createContextValues } from "@connectrpc/connect";
import { compressionGzip } from "@connectrpc/connect-node";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import type { HttpCall } from "../http/http-call.ts";
import { timerMsMax } from "./deadline.ts";
import type { JsonOptions } from "./message-codec.ts";
import { requestKey } from "./stream-places.ts";
import { recordOf } from "./wires.ts";

/** The RPCs whose request is a stream, by path. Connect's router serves them. */
export function createStreamHandlers(
  register: (router: ConnectRouter) => void,
  readMaxBytes: number,
  jsonOptions: JsonOptions | undefined,
): ReadonlyMap<string, UniversalHandler> {
  const options = { readMaxBytes, acceptCompression: [compressionGzip] };
  const router = createConnectRouter(jsonOptions === undefined ? options : { ...options, jsonOptions });
  register(router);
  return new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
}

/** Serves a call by Connect's handler: bytes in, bytes out. */
export async function serveByRouter(call: HttpCall, handler: UniversalHandler): Promise<void> {
  const { channel, query, start } = call;
  const answer = await handler({
    httpVersion: channel.httpVersion,
    method: start.method,
    // Connect reads only the path and the query. The caller's Host could make the URL invalid.
    url: `http://localhost${start.path}?${query}`,
    header: webHeaders(call),
    body: bodyOf(call),
    signal: call.signal,
    contextValues: createContextValues().set(requestKey, call),
  });
  const { status, header = new Headers(), body = [], trailer } = answer;
  call.begin(status, recordOf(header), trailer === undefined ? "body" : "body and trailers");
  for await (const chunk of body) {
    if (call.isOver) return;
    await call.write(chunk);
  }
  // Connect has filled the trailers by now.
  call.end(undefined, trailer === undefined ? undefined : recordOf(trailer));
}

/** The request's bytes, within the budget. A reader that stops early must not destroy the answer's connection. */
async function* bodyOf({ channel, lease }: HttpCall): AsyncGenerator<Uint8Array, void> {
  if (channel.source.readableEnded) return;
  for await (const chunk of channel.source.iterator({ destroyOnReturn: false })) {
    const full = lease.take(chunk.length);
    if (full !== undefined) throw new ConnectError(full.message, full.connectCode);
    yield chunk;
  }
  lease.arrived();
}

function webHeaders({ headers, start, options }: HttpCall): Headers {
  const web = new Headers();
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || name.startsWith(":")) continue;
    try {
      for (const one of [value].flat()) web.append(name, one);
    } catch {
      // Node allows characters that Headers refuse. Connect reads no such header.
    }
  }
  // Connect sets a timer, and a Node timer with a longer time would fire at once.
  if ((start.deadlineMs ?? 0) - options.now() > timerMsMax) {
    for (const name of ["grpc-timeout", "connect-timeout-ms"]) web.delete(name);
  }
  return web;
}
