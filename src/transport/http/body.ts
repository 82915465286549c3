import type { ServerResponse } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import type { Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { Fault } from "../../errors.ts";
import type { BodyLease } from "./body-budget.ts";
import { limits } from "../../limits.ts";
import type { NodeRequest, NodeResponse } from "./route.ts";

/** Bytes of an unwanted body that are read and dropped, so that the caller gets to read the answer. */
const drainBytesMax = 8 * limits.bodyBytesMax;

/**
 * Ends an answer whose body has been written. What the caller still sends of its request is read and dropped, up to a
 * bound; past it the caller is cut off.
 *
 * Where the connection is to be closed the end waits for that: Node closes it as soon as the answer ends, and a caller
 * that is still writing then gets a broken pipe and never reads the answer.
 */
export function endAnswer(request: NodeRequest, response: NodeResponse): void {
  if (isRead(request)) return void response.end();
  const closes = request.httpVersionMajor === 1 && !keepsAlive(request, response);
  if (!closes) response.end();
  drop(
    request,
    () => destroy(request),
    () => closes && response.end(),
  );
}

/** Whether nobody is there any more to write to. Node's response over HTTP/2 does not know. */
export const isGone = (response: NodeResponse): boolean =>
  "stream" in response ? response.stream.destroyed : response.destroyed;

/** Settles when more can be written, or nobody is there any more. */
export function drained(response: NodeResponse): Promise<void> {
  // Of an end that has been nobody would be told again.
  if (isGone(response)) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      response.off("drain", done);
      response.off("close", done);
      resolve();
    };
    response.on("drain", done);
    response.on("close", done);
  });
}

/** Whether nothing more of the request is to come. A request without a body is not `complete` before its handler returns. */
export function isRead(request: NodeRequest): boolean {
  if (request.complete) return true;
  if ("stream" in request) return request.stream.endAfterHeaders;
  return request.headers["transfer-encoding"] === undefined && Number(request.headers["content-length"] ?? 0) === 0;
}

/** Reads and drops the rest of what a stream of HTTP/2 brings, up to a bound; past it the sender is cut off. */
export function drainStream(stream: ServerHttp2Stream): void {
  drop(
    stream,
    () => stream.close(constants.NGHTTP2_CANCEL),
    () => {},
  );
}

/** Whether another request may follow on the connection, of HTTP/1.1. */
export const keepsAlive = (request: NodeRequest, response: NodeResponse): boolean =>
  request.httpVersionMajor === 1 &&
  (response as ServerResponse).shouldKeepAlive &&
  response.getHeader("connection") !== "close";

function drop(source: Readable, cut: () => void, done: () => void): void {
  let bytes = 0;
  source.removeAllListeners("data");
  // A reader that waits for more would keep the rest from flowing.
  source.removeAllListeners("readable");
  source.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > drainBytesMax) cut();
  });
  source.once("end", done);
  source.resume();
}

/** Cuts a request or its answer off. */
export function destroy(side: NodeRequest | NodeResponse): void {
  if ("stream" in side) side.stream.close(constants.NGHTTP2_CANCEL);
  else side.destroy();
}

/**
 * The whole body, decompressed; `hold` accounts for it. Neither form of it may exceed `bytesMax`: what is compressed to
 * more than it was, or to nothing at all without end, is no body of ours.
 * @throws Fault batch_too_large as soon as it exceeds `bytesMax`; invalid_body for an encoding other than gzip;
 * unavailable when there is no room for it. Resolves when it may be decoded.
 */
export function readWhole(request: NodeRequest, bytesMax: number, hold: BodyLease): Promise<Buffer> {
  const encoding = request.headers["content-encoding"]?.toLowerCase() ?? "identity";
  const declared = Number(request.headers["content-length"] ?? 0);
  const tooLarge = () => new Fault("batch_too_large", `The body is larger than ${bytesMax} bytes after decompression.`);
  if (encoding !== "identity" && encoding !== "gzip") {
    const message = `must be gzip or absent; it is '${encoding}'`;
    return Promise.reject(
      new Fault("invalid_body", `Content-Encoding: ${message}`, { issues: [{ path: "Content-Encoding", message }] }),
    );
  }
  if (declared > bytesMax) return Promise.reject(tooLarge());
  // Known to have no body: no event will come.
  if (request.readableEnded)
    return encoding === "gzip" ? Promise.reject(incomplete()) : Promise.resolve(Buffer.alloc(0));
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
      const full = hold.take(chunk.length);
      if (full !== undefined) return stop(full);
      chunks.push(chunk);
    };
    source.on("data", onData);
    if (source !== request) {
      let compressedBytes = 0;
      request.on("data", (chunk: Buffer) => {
        compressedBytes += chunk.length;
        if (compressedBytes > bytesMax) stop(tooLarge());
      });
    }
    source.once("end", () => {
      hold.arrived();
      const whole = () => resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, bytes));
      const turn = hold.turn();
      if (turn === undefined) whole();
      else void turn.then((refusal) => (refusal === undefined ? whole() : reject(refusal)));
    });
    const broken = () => stop(incomplete());
    source.once("error", broken);
    request.once("close", () => {
      if (!request.complete) broken();
    });
  });
}

const incomplete = () =>
  new Fault("invalid_body", "body: is incomplete or not valid gzip", {
    issues: [{ path: "body", message: "is incomplete or not valid gzip" }],
  });
