import type { IncomingHttpHeaders } from "node:http";
import type { ConnectRouter } from "@connectrpc/connect";
import type { Fault } from "../../errors.ts";
import type { Activity } from "../../access/fair-turns.ts";
import type { RequestEnd, RequestStart } from "../../exchange.ts";
import { timeOfId } from "../../ids.ts";
import { traceIdOf } from "../../tracing.ts";
import type { toConnectError } from "../rpc/errors.ts";
import type { JsonOptions } from "../rpc/message-codec.ts";
import type { Rpc } from "../rpc/rpc.ts";
import type { Channel } from "./channel.ts";
import { createPeerOf, type PeerOf } from "./peer.ts";
import type { Route, RouteReply, RouteRequest } from "./route.ts";

export interface AdapterOptions {
  readonly routes: readonly Route[];
  /** The RPCs whose request is one message. */
  readonly rpcs: readonly Rpc[];
  /** Registers the RPCs whose request is a stream. */
  readonly services: (router: ConnectRouter) => void;
  /** Base of the documentation's addresses, without a slash at its end. */
  readonly publicUrl: string;
  /** Which organisations are active. Default: no other is. */
  readonly activity?: Activity;
  readonly newRequestId: () => string;
  readonly now: () => number;
  /** Default: no proxy is trusted. */
  readonly peerOf?: PeerOf;
  /** Called when a request begins. Returns the id of the service's own trace, if there is one. */
  readonly onBegin?: (start: Omit<RequestStart, "traceId">, headers: IncomingHttpHeaders) => string | undefined;
  /** Called when the answer has ended, or the caller has gone away, and the work is over. */
  readonly onEnd?: (start: RequestStart, end: RequestEnd) => void;
  /** Receives the defects that no request's log line shows. */
  readonly onError: (error: unknown) => void;
  /** Limit on an RPC's message after decompression. Default: the API's limit. */
  readonly messageBytesMax?: number;
  /** The page that a browser shows instead of an error; undefined if it shows the error itself. */
  readonly refusalPage?: (request: RouteRequest, fault: Fault) => RouteReply | undefined;
  /** Origins whose pages may call from a browser. Default: none. */
  readonly corsOrigins?: readonly string[];
  /** How long the server keeps an idle connection, for the Keep-Alive header. Default: the server's bound. */
  readonly keepAliveMs?: number;
  /** For RPC's JSON: the types that a google.protobuf.Any may hold. */
  readonly jsonOptions?: JsonOptions;
  /** Makes an RPC's error of a fault. Default: with all details of the API. */
  readonly errorOf?: typeof toConnectError;
}

const untrusting = createPeerOf([]);

/** Begins a request: gives it its id, and notes the rest of what is known at the start. */
export function newStart(
  { newRequestId, onBegin, peerOf = untrusting }: Pick<AdapterOptions, "newRequestId" | "onBegin" | "peerOf">,
  channel: Pick<Channel, "method" | "headers" | "remoteAddress" | "isGone">,
  found: Pick<RequestStart, "protocol" | "rpc" | "path" | "deadlineMs" | "ambiguousHeader">,
): RequestStart {
  const { method, headers, remoteAddress } = channel;
  const requestId = newRequestId();
  const start: RequestStart = {
    protocol: found.protocol,
    rpc: found.rpc,
    path: found.path,
    deadlineMs: found.deadlineMs,
    ambiguousHeader: found.ambiguousHeader,
    requestId,
    receivedAt: timeOfId(requestId),
    method,
    peer: () => peerOf(remoteAddress, headers),
    traceId: traceIdOf(headers.traceparent),
    isAbandoned: () => channel.isGone,
  };
  const ownTraceId = onBegin?.(start, headers);
  return ownTraceId === undefined ? start : { ...start, traceId: ownTraceId };
}
