import type { Readable, Writable } from "node:stream";
import { isUtf8 } from "node:buffer";
import { createGunzip } from "node:zlib";
import { Fault } from "../../errors.ts";
import { invalidMember } from "../../ingest/validate.ts";
import { limits } from "../../limits.ts";
import type { BodyLease } from "./body-budget.ts";
import type { Channel } from "./channel.ts";

/** How many bytes of an unwanted body we read and drop, so that the caller reads the answer. */
const drainBytesMax = 8 * limits.bodyBytesMax;

/**
 * Ends an answer. Reads and drops the rest of the request up to a bound, then cuts the caller off.
 *
 * Node closes a connection without keep-alive as soon as the answer ends. A caller that still writes would get a broken
 * pipe and never read the answer. So the end of such an answer waits for the rest of the request.
 */
export function endAnswer(
  channel: Channel,
  body: string | Uint8Array | undefined,
  trailers: Record<string, string> | undefined,
): void {
  if (channel.isRead) return channel.end(body, trailers);
  const isLast = channel.httpVersion !== "2" && !channel.keepsAlive;
  if (!isLast) {
    channel.end(body, trailers);
    return drop(channel, () => {});
  }
  if (body !== undefined && channel.method !== "HEAD") channel.sink.write(body);
  drop(channel, () => channel.end(undefined, trailers));
}

function drop(channel: Channel, done: () => void): void {
  const { source } = channel;
  let bytes = 0;
  source.removeAllListeners("data");
  // A reader that waits for data would stop the flow.
  source.removeAllListeners("readable");
  source.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > drainBytesMax) channel.cut();
  });
  source.once("end", done);
  source.resume();
}

/** Settles when the sink takes more, or the caller has gone away. */
export function drained(sink: Writable): Promise<void> {
  // Node does not emit "close" again.
  if (sink.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      sink.off("drain", done);
      sink.off("close", done);
      resolve();
    };
    sink.on("drain", done);
    sink.on("close", done);
  });
}

/** Names of no compression and of gzip (RFC 9110 8.4.1), in lower case. */
const encodings: ReadonlyMap<string, Encoding> = new Map([
  ["", "identity"],
  ["identity", "identity"],
  ["gzip", "gzip"],
  ["x-gzip", "gzip"],
]);

export type Encoding = "identity" | "gzip";

/** The compression that a header names; undefined if we do not have it. */
export const encodingOf = (value: string | string[] | undefined): Encoding | undefined =>
  value === undefined ? "identity" : encodings.get(String(value).trim().toLowerCase());

export interface ReadOptions {
  /** Bound on the body, both compressed and decompressed. */
  readonly bytesMax: number;
  /** Bytes before the body that do not count. */
  readonly prefixBytes?: number;
  readonly encoding: Encoding;
  /** The body's part of the budget. */
  readonly lease: BodyLease;
}

/**
 * Reads and decompresses the whole body. Resolves when the caller may decode it.
 * @throws Fault batch_too_large as soon as the body exceeds `bytesMax`; invalid_body if it is cut off or not gzip;
 * unavailable if the budget has no room.
 */
export function readWhole(
  channel: Channel,
  { bytesMax, prefixBytes = 0, encoding, lease }: ReadOptions,
): Promise<Buffer> {
  const request = channel.source;
  const sentBytesMax = bytesMax + prefixBytes;
  if (Number(channel.headers["content-length"] ?? 0) > sentBytesMax) return Promise.reject(tooLarge(bytesMax));
  // Node emits no events for a request without a body.
  if (request.readableEnded) {
    return encoding === "gzip" ? Promise.reject(incomplete()) : Promise.resolve(Buffer.alloc(0));
  }
  if (channel.hasArrived && encoding === "identity") return takeWhole(request, sentBytesMax, bytesMax, lease);
  // Nothing would tell that the caller has gone away: the request has closed before.
  if (request.destroyed) return Promise.reject(incomplete());
  return new Promise((resolve, reject) => {
    const source: Readable = encoding === "gzip" ? request.pipe(createGunzip()) : request;
    const chunks: Buffer[] = [];
    let bytes = 0;
    let hasEnded = false;
    let isRefused = false;
    const stop = (error: Fault): void => {
      isRefused = true;
      source.off("data", onData);
      if (source !== request) {
        request.unpipe();
        source.destroy();
      }
      reject(error);
    };
    const onData = (chunk: Buffer): void => {
      bytes += chunk.length;
      if (bytes > sentBytesMax) return stop(tooLarge(bytesMax));
      const full = lease.take(chunk.length);
      if (full !== undefined) return stop(full);
      chunks.push(chunk);
    };
    source.on("data", onData);
    if (source !== request) {
      let compressedBytes = 0;
      request.on("data", (chunk: Buffer) => {
        compressedBytes += chunk.length;
        if (compressedBytes > bytesMax) stop(tooLarge(bytesMax));
      });
    }
    source.on("end", () => {
      hasEnded = true;
      // The rest of a refused body still arrives. Nothing would handle the refusal of its turn, which ends the process.
      if (isRefused) return lease.arrived();
      resolve(inTurn(lease, () => (chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, bytes))));
    });
    const broken = () => stop(incomplete());
    if (source !== request) source.on("error", broken);
    request.on("close", () => {
      if (!hasEnded && !request.readableEnded) broken();
    });
  });
}

/** Takes a body that arrived with its headers: most bodies do, and then no event of the stream is needed. */
function takeWhole(request: Readable, sentBytesMax: number, bytesMax: number, lease: BodyLease): Promise<Buffer> {
  const body: Buffer = request.read() ?? Buffer.alloc(0);
  // Otherwise the stream would not end.
  request.resume();
  // Before the budget takes it, so that it is never listed as arriving.
  lease.arrived();
  const refusal = body.length > sentBytesMax ? tooLarge(bytesMax) : lease.take(body.length);
  return refusal === undefined ? inTurn(lease, () => body) : Promise.reject(refusal);
}

/** The body, when the caller may decode it. */
function inTurn(lease: BodyLease, body: () => Buffer): Promise<Buffer> {
  lease.arrived();
  const turn = lease.turn();
  if (turn === undefined) return Promise.resolve(body());
  return turn.then((refusal) => (refusal === undefined ? body() : Promise.reject(refusal)));
}

export const tooLarge = (bytesMax: number) =>
  new Fault("batch_too_large", `The body is larger than ${bytesMax} bytes after decompression.`);

const bodyFault = (message: string) => invalidMember("body", message);

const incomplete = () => bodyFault("is incomplete or not valid gzip");

const utf8 = new TextDecoder();

/** Parses JSON. @throws Fault invalid_body with the place of the first byte that is not UTF-8, or not JSON. */
export function parseJson(bytes: Uint8Array): unknown {
  const text = utf8.decode(bytes);
  if (!isUtf8(bytes)) {
    // The first invalid byte became U+FFFD. All bytes before it encode to the same bytes again.
    const again = Buffer.from(text);
    throw bodyFault(`is not valid UTF-8: see byte ${again.findIndex((byte, i) => byte !== bytes[i])} (counted from 0)`);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw bodyFault(`is not valid JSON: ${error instanceof SyntaxError ? withoutExcerpt(error.message) : ""}`);
  }
}

/** Removes the part of the body that V8 quotes in its message: it may be part of a secret. */
const withoutExcerpt = (message: string): string => message.replace(/, (\.{3})?".*$/s, "");

/** @throws Fault invalid_body for another content type than JSON. */
export function checkJsonType(contentType: string | undefined): void {
  if (contentType === "application/json" || mediaTypeOf(contentType) === "application/json") return;
  const given = contentType === undefined ? "missing" : `'${contentType}'`;
  throw invalidMember("Content-Type", `must be application/json; it is ${given}`);
}

/** The media type of a Content-Type header, in lower case. We ignore its parameters: bodies are UTF-8. */
export const mediaTypeOf = (contentType: string | undefined): string =>
  (contentType ?? "").split(";", 1)[0]?.trim().toLowerCase() ?? "";
