import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { Fault } from "../../errors.ts";
import { unknownEnd } from "../../exchange.ts";
import { toRestError } from "../rpc/errors.ts";
import { answerUnderWay } from "./node-internals.ts";
import { answerHeaders, jsonType } from "./answer-headers.ts";
import { type AdapterOptions, newStart } from "./options.ts";

/** Returns the raw HTTP/1.1 answer to bytes that are not HTTP. Node makes no request of them. */
export type MalformedHandler = (error: NodeJS.ErrnoException) => string;

/** Status and cause by the code of Node's parser. Any other code is a 400. */
const causes: Readonly<Record<string, readonly [status: number, cause: string]>> = {
  HPE_HEADER_OVERFLOW: [431, "its headers are too large"],
  HPE_CHUNK_EXTENSIONS_OVERFLOW: [413, "its chunk extensions are too large"],
  ERR_HTTP_REQUEST_TIMEOUT: [408, "it did not arrive in time"],
  CONNECT: [400, "CONNECT is for proxies, and this is none"],
};

/** A CONNECT of HTTP/1.1. Node's parser accepts it. */
export class Tunnel extends Error implements NodeJS.ErrnoException {
  readonly code = "CONNECT";
}

const unread = { method: "", headers: {}, remoteAddress: undefined, isGone: false };
const unknown = { protocol: "rest", rpc: "", path: "", deadlineMs: undefined, ambiguousHeader: undefined } as const;

export function createMalformedHandler(
  options: Pick<AdapterOptions, "newRequestId" | "now" | "onBegin" | "onEnd" | "publicUrl">,
): MalformedHandler {
  return (error) => {
    const [status, cause] = causes[error.code ?? ""] ?? [400, "it is not HTTP/1.1"];
    const start = newStart(options, unread, unknown);
    const fault = new Fault("invalid_body", `The request cannot be read: ${cause}.`, { cause: error });
    const end = { ...unknownEnd(start.requestId), fault, status };
    const { body } = toRestError(fault, end.requestId, options.publicUrl);
    options.onEnd?.(start, end);
    const all = {
      ...answerHeaders(end),
      "content-type": jsonType,
      "x-content-type-options": "nosniff",
      "content-length": String(Buffer.byteLength(body)),
      connection: "close",
    };
    const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
    return `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join("")}\r\n${body}`;
  };
}

/** How long the sender may take to read the answer, in milliseconds. */
const lingerMs = 1_000;
const answered = new WeakSet<Socket>();

/**
 * Sends the answer after those to earlier requests, and ends the connection. A request that arrived whole gets its own
 * answer, whatever follows it.
 */
export function answerMalformed(error: NodeJS.ErrnoException, socket: Socket, handler: MalformedHandler): void {
  // Nothing after the first malformed byte can be read.
  if (answered.has(socket)) return;
  answered.add(socket);
  endMalformed(error, socket, handler);
}

function endMalformed(error: NodeJS.ErrnoException, socket: Socket, handler: MalformedHandler): void {
  const current = answerUnderWay(socket);
  if (error.code === "ECONNRESET" || !socket.writable) return void socket.destroy();
  if (current?.req.complete === true) {
    current.once("close", () => endMalformed(error, socket, handler));
    return;
  }
  if (current?.headersSent === true) return void socket.destroy();
  socket.end(handler(error));
  // Wait: with unread bytes, the system would reset the connection, and the answer would be lost.
  const timer = setTimeout(() => socket.destroy(), lingerMs);
  socket.once("close", () => clearTimeout(timer));
}
