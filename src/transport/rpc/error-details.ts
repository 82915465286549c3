import { gunzipSync } from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import {
  compressedFlag,
  encodeEnvelope,
  type UniversalHandler,
  type UniversalServerResponse,
} from "@connectrpc/connect/protocol";
import {
  codeFromString,
  codeToHttpStatus,
  endStreamFlag,
  endStreamFromJson,
  endStreamToJson,
  errorFromJson,
  errorToJson,
} from "@connectrpc/connect/protocol-connect";
import { findTrailerError, setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { trailerFlag, trailerParse, trailerSerialize } from "@connectrpc/connect/protocol-grpc-web";
import type { Exchange } from "../../exchange.ts";

export interface DressedResponse {
  readonly response: UniversalServerResponse;
  /** The RPC's code once the body has been written; undefined for success. */
  code(): Code | undefined;
}

/**
 * Gives errors that Connect's own parts raise (a message that does not decode or is too large) the same details as ours:
 * they never pass through a handler or an interceptor, so the finished answer is the only place to do it.
 */
export async function dressRpcError(
  response: UniversalServerResponse,
  handler: UniversalHandler,
  exchange: Exchange,
  dress: Dress,
): Promise<DressedResponse> {
  switch (exchange.protocol) {
    case "connect":
      return handler.method.methodKind === "unary"
        ? dressConnectUnary(response, dress)
        : dressEnd(response, endStreamFlag, dress, redoEndStream);
    case "grpc-web":
      return dressEnd(response, trailerFlag, dress, redoTrailer);
    default:
      return dressGrpc(response, dress);
  }
}

/** The error as it should leave; undefined = as it is. */
export type Dress = (error: ConnectError) => ConnectError | undefined;

async function dressConnectUnary(response: UniversalServerResponse, dress: Dress): Promise<DressedResponse> {
  const isError = response.status >= 400 && response.header?.get("content-type") === "application/json";
  if (!isError || response.body === undefined) return { response, code: () => undefined };
  const bytes = await collect(response.body);
  const plain = response.header?.get("content-encoding") === "gzip" ? gunzipSync(bytes) : bytes;
  const parsed = JSON.parse(new TextDecoder().decode(plain));
  const error = errorFromJson(parsed, undefined, new ConnectError("", codeFromString(parsed.code) ?? Code.Unknown));
  const dressed = dress(error);
  if (dressed === undefined) return { response: { ...response, body: once(bytes) }, code: () => error.code };
  const body = utf8.encode(JSON.stringify(errorToJson(dressed, undefined)));
  response.header?.delete("content-encoding");
  response.header?.set("content-length", String(body.byteLength));
  return {
    response: { ...response, status: codeToHttpStatus(dressed.code), body: once(body) },
    code: () => dressed.code,
  };
}

function dressGrpc(response: UniversalServerResponse, dress: Dress): DressedResponse {
  let code: Code | undefined;
  const { trailer, body } = response;
  const settle = () => {
    const error = trailer === undefined ? undefined : findTrailerError(trailer);
    if (error === undefined || trailer === undefined) return;
    const dressed = dress(error);
    code = (dressed ?? error).code;
    if (dressed !== undefined) setTrailerStatus(trailer, dressed);
  };
  async function* settled(source: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
    yield* source;
    settle();
  }
  if (body === undefined) settle();
  return { response: body === undefined ? response : { ...response, body: settled(body) }, code: () => code };
}

/** What the last envelope says of an error, and the envelope with another in its place. */
interface End {
  readonly error: ConnectError;
  with(dressed: ConnectError): Uint8Array;
}

/** In gRPC-Web, and in Connect's streams, the status is the last envelope of the body; each chunk is one envelope. */
function dressEnd(
  response: UniversalServerResponse,
  flag: number,
  dress: Dress,
  read: (data: Uint8Array) => End | undefined,
): DressedResponse {
  let code: Code | undefined;
  const redo = (envelope: Uint8Array): Uint8Array => {
    const data = envelope.subarray(5);
    const end = read(((envelope[0] as number) & compressedFlag) === 0 ? data : gunzipSync(data));
    if (end === undefined) return envelope;
    const dressed = dress(end.error);
    code = (dressed ?? end.error).code;
    return dressed === undefined ? envelope : encodeEnvelope(flag, end.with(dressed));
  };
  async function* redone(source: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
    for await (const envelope of source) yield ((envelope[0] ?? 0) & flag) === 0 ? envelope : redo(envelope);
  }
  const { body, status } = response;
  if (body === undefined || status !== 200) return { response, code: () => undefined };
  return { response: { ...response, body: redone(body) }, code: () => code };
}

function redoTrailer(data: Uint8Array): End | undefined {
  const trailer = trailerParse(data);
  const error = findTrailerError(trailer);
  return error && { error, with: (dressed) => trailerSerialize(setTrailerStatus(trailer, dressed)) };
}

function redoEndStream(data: Uint8Array): End | undefined {
  const { metadata, error } = endStreamFromJson(data);
  return (
    error && { error, with: (dressed) => utf8.encode(JSON.stringify(endStreamToJson(metadata, dressed, undefined))) }
  );
}

const utf8 = new TextEncoder();

async function collect(body: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes;
}
