import type { IncomingHttpHeaders } from "node:http";
import type { ConnectRouter } from "@connectrpc/connect";
import type { Fault } from "../../errors.ts";
import type { Activity } from "../../access/fair-turns.ts";
import type { Exchange, Protocol, Rejection } from "../../exchange.ts";
import type { RequestHeader } from "../../headers.ts";
import { traceIdOf } from "../../tracing.ts";
import type { toConnectError } from "../rpc/errors.ts";
import type { JsonOptions } from "../rpc/message-codec.ts";
import type { Rpc } from "../rpc/rpc.ts";
import { createPeerOf, type PeerOf } from "./peer.ts";
import type { ExchangeEnd, Route, RouteReply, RouteRequest } from "./route.ts";

export interface AdapterOptions {
  readonly routes: readonly Route[];
  /** The RPCs whose request is one message. */
  readonly rpcs: readonly Rpc[];
  /** Registers the RPCs whose request is a stream. */
  readonly services: (router: ConnectRouter) => void;
  /** Base of the documentation's addresses, without a slash at its end. */
  readonly publicUrl: string;
  /** Which organisations call at present; default nobody else does. */
  readonly activity?: Activity;
  readonly newRequestId: () => string;
  readonly now: () => number;
  /** Default: no proxy is trusted. */
  readonly peerOf?: PeerOf;
  /** Called with a new exchange and the request's headers. */
  readonly onBegin?: (exchange: Exchange, headers: IncomingHttpHeaders) => void;
  readonly onEnd?: (exchange: Exchange, end: ExchangeEnd) => void;
  /** Of an RPC's message after decompression; default the API's bound. */
  readonly messageBytesMax?: number;
  /** What a browser is shown in place of an error; undefined where it gets the error itself. */
  readonly refusalPage?: (request: RouteRequest, fault: Fault) => RouteReply | undefined;
  /** Whose pages may call from a browser; default none. */
  readonly corsOrigins?: readonly string[];
  /** How long an idle connection is kept, for the Keep-Alive header; default the server's bound. */
  readonly keepAliveMs?: number;
  /** Of RPC's JSON codec: the types that a google.protobuf.Any may hold. */
  readonly jsonOptions?: JsonOptions;
  /** A fault as RPC's callers get it; default with all that the API says of it. */
  readonly errorOf?: typeof toConnectError;
}

const none: readonly Rejection[] = [];

/** Without proxies that are trusted. */
const untrusting = createPeerOf([]);

/** A new exchange, at its beginning. */
export function newExchange(
  {
    newRequestId,
    now,
    onBegin,
    peerOf = untrusting,
  }: Pick<AdapterOptions, "newRequestId" | "now" | "onBegin" | "peerOf">,
  protocol: Protocol,
  rpc: string,
  headers: IncomingHttpHeaders,
  deadlineMs: number | undefined,
  ambiguousHeader?: RequestHeader,
  remoteAddress?: string,
): Exchange {
  const exchange: Exchange = {
    requestId: newRequestId(),
    receivedAt: new Date(now()),
    protocol,
    rpc,
    peer: () => peerOf(remoteAddress, headers),
    deadlineMs,
    ambiguousHeader,
    abandoned: false,
    caller: undefined,
    rateLimit: undefined,
    limitedBy: undefined,
    fault: undefined,
    claim: undefined,
    dryRun: false,
    ignoredMembers: [],
    accepted: 0,
    rejections: none,
    traceId: headers.traceparent === undefined ? undefined : traceIdOf(headers.traceparent),
  };
  onBegin?.(exchange, headers);
  return exchange;
}
