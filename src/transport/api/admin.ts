import { type DescMessage, type DescMethodUnary, getOption } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Identity } from "../../access/identity.ts";
import { AdminCall, type AdminServices } from "../../admin/call.ts";
import { dispatch } from "../../admin/dispatch.ts";
import { handlers } from "../../admin/handlers.ts";
import type { AdminRpc } from "../../admin/roles.ts";
import type { Outcome, RequestStart } from "../../exchange.ts";
import { http } from "../../gen/google/api/annotations_pb.js";
import { Admin } from "../../gen/ingest/admin/v1/admin_pb.js";
import { restJson } from "../../message-json.ts";
import type { Incoming, Route, RouteRequest } from "../http/route.ts";
import { readMessage } from "../rest/gateway.ts";
import { type Rpc, unary } from "../rpc/rpc.ts";
import { reply } from "./ingest-rest.ts";

export interface AdminApi {
  readonly services: AdminServices;
  /** Says who calls, and takes from the caller's rate. @throws Fault. */
  readonly admit: (authorization: string | undefined, start: RequestStart) => Promise<Outcome<Identity>>;
}

const methods = Object.entries(Admin.method).filter(([rpc]) => rpc in handlers) as [AdminRpc, DescMethodUnary][];

/** Administration's RPCs for Connect, gRPC and gRPC-Web. They only translate. */
export const adminRpcs = (api: AdminApi): Rpc[] =>
  methods.map(([rpc, method]) =>
    unary(
      method,
      ({ request }) => admit(api, request),
      (message, identity, { request, signal }) =>
        dispatch(handlers, message, callOf(api, rpc, identity, request, signal)),
    ),
  );

/** Administration's REST paths, which the schema declares on its RPCs. They only translate. */
export const adminRoutes = (api: AdminApi): Route[] =>
  methods.map(([rpc, method]) => {
    const { pattern, body } = getOption(method, http);
    const { case: verb, value: path } = pattern;
    if (path === undefined || typeof path !== "string")
      throw new Error(`${method.name} declares no google.api.http path`);
    return {
      method: verb.toUpperCase() as Route["method"],
      path,
      rpc: method.name,
      async handle(request, variables) {
        const identity = await admit(api, request);
        const message = await readMessage(method.input as DescMessage, request, variables, body === "*");
        const signal = signalOf(request);
        const answer = await dispatch(handlers, message, callOf(api, rpc, identity, request, signal));
        return reply(200, restJson(method.output, answer));
      },
    };
  });

const admit = (api: AdminApi, request: Incoming): Promise<Identity> =>
  api.admit(request.headers.authorization, request.start).then((outcome) => request.answerOf(outcome));

function signalOf(request: RouteRequest): AbortSignal {
  const abort = new AbortController();
  request.onClose(() => abort.abort(new ConnectError("the caller has gone away", Code.Canceled)));
  return abort.signal;
}

const callOf = (
  { services }: AdminApi,
  rpc: AdminRpc,
  identity: Identity,
  { start, headers: { authorization } }: Incoming,
  signal: AbortSignal,
): AdminCall =>
  new AdminCall(services, {
    ...{ identity, rpc, authorization, signal },
    requestId: start.requestId,
    peer: start.peer().address,
  });
