import type { IncomingHttpHeaders } from "node:http";
import type { ConnectError } from "@connectrpc/connect";
import { encodeEnvelope } from "@connectrpc/connect/protocol";
import {
  codeToHttpStatus,
  endStreamFlag,
  endStreamToJson,
  errorToJson,
  parseTimeout as parseConnectTimeout,
} from "@connectrpc/connect/protocol-connect";
import { parseTimeout as parseGrpcTimeout, setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { trailerFlag, trailerSerialize } from "@connectrpc/connect/protocol-grpc-web";
import type { Fault } from "../../errors.ts";
import type { Protocol } from "../../exchange.ts";
import type { RequestHeader } from "../../headers.ts";
import { invalidMember } from "../../ingest/validate.ts";
import { mediaTypeOf } from "../http/body.ts";
import type { Format } from "./json-check.ts";
import type { JsonOptions } from "./message-codec.ts";

/** How a protocol writes a call, apart from the messages. */
export interface Wire {
  readonly protocol: Exclude<Protocol, "rest">;
  /** Headers with the request's compression, and with the compressions that its caller takes. */
  readonly encodingHeader: string;
  readonly acceptHeader: string;
  /** The caller's time limit in milliseconds, or what is wrong with its header; undefined without one. */
  readonly timeoutOf: (headers: IncomingHttpHeaders) => number | Fault | undefined;
  readonly contentTypes: Readonly<Record<Format, string>>;
  /** Makes the end of an answer with envelopes; undefined if the body is the bare message. */
  readonly end?: (
    error: ConnectError | undefined,
    trailer: Headers | undefined,
    jsonOptions: JsonOptions | undefined,
  ) => End;
}

/** The last envelope, or trailers of HTTP. */
export interface End {
  readonly data?: Uint8Array;
  readonly trailers?: Record<string, string>;
}

const connect = { timeoutOf: timeouts("connect-timeout-ms", parseConnectTimeout) };
const grpcHeaders = {
  encodingHeader: "grpc-encoding",
  acceptHeader: "grpc-accept-encoding",
  timeoutOf: timeouts("grpc-timeout", parseGrpcTimeout),
};

function timeouts(header: RequestHeader, parse: typeof parseGrpcTimeout): Wire["timeoutOf"] {
  return ({ [header]: value }) => {
    if (value === undefined) return undefined;
    const { timeoutMs, error } = parse(String(value), Number.POSITIVE_INFINITY);
    if (error === undefined) return timeoutMs;
    return invalidMember(header, `is not a time limit; it is '${String(value)}'`);
  };
}

const connectUnary: Wire = {
  protocol: "connect",
  ...connect,
  encodingHeader: "content-encoding",
  acceptHeader: "accept-encoding",
  contentTypes: { proto: "application/proto", json: "application/json" },
};

const connectStream: Wire = {
  protocol: "connect",
  ...connect,
  encodingHeader: "connect-content-encoding",
  acceptHeader: "connect-accept-encoding",
  contentTypes: { proto: "application/connect+proto", json: "application/connect+json" },
  end: (error, trailer, jsonOptions) => {
    const json = endStreamToJson(trailer ?? new Headers(), error, jsonOptions);
    return { data: encodeEnvelope(endStreamFlag, Buffer.from(JSON.stringify(json))) };
  },
};

const ok: End = { trailers: { "grpc-status": "0" } };

const grpc: Wire = {
  protocol: "grpc",
  ...grpcHeaders,
  contentTypes: { proto: "application/grpc+proto", json: "application/grpc+json" },
  end: (error, trailer) =>
    error === undefined && trailer === undefined
      ? ok
      : { trailers: recordOf(setTrailerStatus(trailer ?? new Headers(), error)) },
};

const grpcWeb: Wire = {
  protocol: "grpc-web",
  ...grpcHeaders,
  contentTypes: { proto: "application/grpc-web+proto", json: "application/grpc-web+json" },
  end: (error, trailer) => ({
    data: encodeEnvelope(trailerFlag, trailerSerialize(setTrailerStatus(trailer ?? new Headers(), error))),
  }),
};

/** A protocol with the format of its messages. */
export interface Form {
  readonly wire: Wire;
  readonly format: Format;
}

const formsByMediaType = new Map<string, Form>([
  ...[connectUnary, connectStream, grpc, grpcWeb].flatMap((wire): [string, Form][] => [
    [wire.contentTypes.proto, { wire, format: "proto" }],
    [wire.contentTypes.json, { wire, format: "json" }],
  ]),
  ["application/grpc", { wire: grpc, format: "proto" }],
  ["application/grpc-web", { wire: grpcWeb, format: "proto" }],
]);

/** The form of a POST; undefined for an unknown content type. */
export const formOf = (contentType = ""): Form | undefined =>
  formsByMediaType.get(contentType) ?? formsByMediaType.get(mediaTypeOf(contentType));

/** The form of a Connect GET, by the `encoding` of its query. */
export function formOfGet(encoding: string | null): Form | undefined {
  return encoding === "proto" || encoding === "json" ? { wire: connectUnary, format: encoding } : undefined;
}

/** The form of an error if the request's form is unknown. */
export const defaultForm: Form = { wire: connectUnary, format: "json" };

/** Whether the form can carry a call with one message as its answer, or with a stream. */
export const canCarry = ({ wire }: Form, isStream: boolean): boolean =>
  wire.protocol !== "connect" || (wire === connectStream) === isStream;

/** The answer to a unary call of Connect that failed. */
export function connectErrorReply(error: ConnectError, jsonOptions: JsonOptions | undefined) {
  return {
    status: codeToHttpStatus(error.code),
    headers: { "content-type": "application/json" },
    body: JSON.stringify(errorToJson(error, jsonOptions)),
  };
}

export function recordOf(headers: Headers): Record<string, string> {
  const record: Record<string, string> = {};
  headers.forEach((value, name) => (record[name] = value));
  return record;
}
