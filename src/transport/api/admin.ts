import type { DescMessage, DescMethod, DescMethodUnary } from "@bufbuild/protobuf";
import type { Identity } from "../../access/identity.ts";
import { AdminCall, type AdminServices } from "../../admin/call.ts";
import { dispatch, dispatchStream, type Request, type StreamRpc } from "../../admin/dispatch.ts";
import { handlers, streamHandlers } from "../../admin/handlers.ts";
import type { AdminRpc } from "../../admin/roles.ts";
import type { Outcome, RequestStart } from "../../exchange.ts";
import { Admin } from "../../gen/ingest/admin/v1/admin_pb.js";
import { httpRuleOf } from "../../http-rule.ts";
import { restJson } from "../../message-json.ts";
import type { Incoming, Route, RouteReply, RouteRequest, StreamReply } from "../http/route.ts";
import { readMessage } from "../rest/gateway.ts";
import { lastEventIdOf, streamReply } from "../rest/stream-reply.ts";
import { type Rpc, serverStream, unary } from "../rpc/rpc.ts";
import { reply } from "./ingest-rest.ts";

export interface AdminApi {
  readonly services: AdminServices;
  /** Says who calls, and takes from the caller's rate. @throws Fault. */
  readonly admit: (authorization: string | undefined, start: RequestStart) => Promise<Outcome<Identity>>;
  /** Checks that the caller of a stream may go on. @throws Fault. */
  readonly recheck: (authorization: string | undefined, identity: Identity) => Promise<void>;
}

const methods = Object.entries(Admin.method).filter(([rpc]) => rpc in handlers) as [AdminRpc, DescMethodUnary][];

const streams = Object.keys(streamHandlers) as StreamRpc[];

/** Administration's RPCs for Connect, gRPC and gRPC-Web. They only translate. */
export const adminRpcs = (api: AdminApi): Rpc[] => [
  ...methods.map(([rpc, method]) =>
    unary(
      method,
      ({ request }) => admit(api, request),
      (message, identity, { request, signal }) =>
        dispatch(handlers, message, callOf(api, rpc, identity, request, signal)),
    ),
  ),
  ...streams.map((rpc) =>
    serverStream(
      Admin.method[rpc],
      ({ request }) => admit(api, request),
      (message, identity, { request, signal }) =>
        dispatchStream(streamHandlers, rpc, message, callOf(api, rpc, identity, request, signal)),
    ),
  ),
];

/** Administration's REST paths, which the schema declares on its RPCs. They only translate. */
export const adminRoutes = (api: AdminApi): Route[] => [
  ...methods.map(([rpc, method]) =>
    routeOf(method, async (request, variables, hasBody) => {
      const identity = await admit(api, request);
      const message = await readMessage(method.input as DescMessage, request, variables, hasBody);
      const answer = await dispatch(handlers, message, callOf(api, rpc, identity, request, request.signal));
      return reply(200, restJson(method.output, answer));
    }),
  ),
  ...streams.map((rpc) => {
    const { input, output } = Admin.method[rpc];
    return routeOf(Admin.method[rpc], async (request, variables, hasBody) => {
      const identity = await admit(api, request);
      const message = (await readMessage(input, request, variables, hasBody)) as Request<StreamRpc>;
      const resumeToken = lastEventIdOf(request);
      const from = resumeToken === undefined ? message : { ...message, resumeToken };
      const call = callOf(api, rpc, identity, request, request.signal);
      return streamReply(request, dispatchStream(streamHandlers, rpc, from, call), (one) => restJson(output, one));
    });
  }),
];

function routeOf(
  method: DescMethod,
  handle: (
    request: RouteRequest,
    variables: Readonly<Record<string, string>>,
    hasBody: boolean,
  ) => Promise<RouteReply | StreamReply>,
): Route {
  const { method: verb, path, hasBody } = httpRuleOf(method);
  return {
    ...{ method: verb, path, rpc: method.name },
    handle: (request, variables) => handle(request, variables, hasBody),
  };
}

const admit = (api: AdminApi, request: Incoming): Promise<Identity> =>
  api.admit(request.headers.authorization, request.start).then((outcome) => request.answerOf(outcome));

const callOf = (
  { services, recheck }: AdminApi,
  rpc: AdminRpc,
  identity: Identity,
  { start, headers: { authorization } }: Incoming,
  signal: AbortSignal,
): AdminCall =>
  new AdminCall(services, {
    ...{ identity, rpc, authorization, signal },
    requestId: start.requestId,
    peer: start.peer().address,
    recheck: () => recheck(authorization, identity),
  });
