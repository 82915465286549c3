import { gunzipSync } from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import {
  compressedFlag,
  encodeEnvelopes,
  type UniversalHandler,
  type UniversalServerResponse,
} from "@connectrpc/connect/protocol";
import { codeFromString, codeToHttpStatus, errorFromJson, errorToJson } from "@connectrpc/connect/protocol-connect";
import { findTrailerError, setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { trailerFlag, trailerParse, trailerSerialize } from "@connectrpc/connect/protocol-grpc-web";
import type { Exchange } from "../exchange.ts";

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
  if (exchange.protocol === "connect") return dressConnect(response, dress);
  if (exchange.protocol === "grpc-web" && handler.method.methodKind === "unary") return dressGrpcWeb(response, dress);
  return dressGrpc(response, dress);
}

/** The error as it should leave; undefined = as it is. */
export type Dress = (error: ConnectError) => ConnectError | undefined;

async function dressConnect(response: UniversalServerResponse, dress: Dress): Promise<DressedResponse> {
  const isError = response.status >= 400 && response.header?.get("content-type") === "application/json";
  if (!isError || response.body === undefined) return { response, code: () => undefined };
  const bytes = await collect(response.body);
  const plain = response.header?.get("content-encoding") === "gzip" ? gunzipSync(bytes) : bytes;
  const parsed = JSON.parse(new TextDecoder().decode(plain));
  const error = errorFromJson(parsed, undefined, new ConnectError("", codeFromString(parsed.code) ?? Code.Unknown));
  const dressed = dress(error);
  if (dressed === undefined) return { response: { ...response, body: once(bytes) }, code: () => error.code };
  const body = new TextEncoder().encode(JSON.stringify(errorToJson(dressed, undefined)));
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

/** In gRPC-Web the status is the last envelope of the body. */
async function dressGrpcWeb(response: UniversalServerResponse, dress: Dress): Promise<DressedResponse> {
  if (response.body === undefined) return { response, code: () => undefined };
  const bytes = await collect(response.body);
  let offset = 0;
  while (offset + 5 <= bytes.length && ((bytes[offset] as number) & trailerFlag) === 0) {
    offset += 5 + new DataView(bytes.buffer, bytes.byteOffset + offset + 1).getUint32(0);
  }
  if (offset + 5 > bytes.length) return { response: { ...response, body: once(bytes) }, code: () => undefined };
  const data = bytes.subarray(offset + 5);
  const isCompressed = ((bytes[offset] as number) & compressedFlag) !== 0;
  const trailer = trailerParse(isCompressed ? gunzipSync(data) : data);
  const error = findTrailerError(trailer);
  const dressed = error === undefined ? undefined : dress(error);
  if (dressed === undefined) return { response: { ...response, body: once(bytes) }, code: () => error?.code };
  setTrailerStatus(trailer, dressed);
  const end = encodeEnvelopes({ flags: trailerFlag, data: trailerSerialize(trailer) });
  return {
    response: { ...response, body: once(Buffer.concat([bytes.subarray(0, offset), end])) },
    code: () => dressed.code,
  };
}

async function collect(body: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes;
}
