import { createClient, createRouterTransport, type Client, type HandlerContext } from "@connectrpc/connect";
import type { Message } from "@bufbuild/protobuf";
import type { Identity } from "../../access/identity.ts";
import { AdminCall, type AdminServices } from "../../admin/call.ts";
import { dispatch, dispatchStream, type Request, type StreamRpc } from "../../admin/dispatch.ts";
import { handlers, streamHandlers } from "../../admin/handlers.ts";
import type { AdminRpc } from "../../admin/roles.ts";
import { faultFrom } from "../../errors.ts";
import { Admin } from "../../gen/ingest/admin/v1/admin_pb.js";
import { toConnectError } from "../rpc/errors.ts";

export type AdminClient = Client<typeof Admin>;

/**
 * A client of the administration API that calls the handlers in this process, for commands on the database itself.
 * @param identity who runs the command, for the audit.
 * @param onFailure gets the cause of an `internal_error`, which the answer does not tell.
 */
export function adminInProcess(
  services: AdminServices,
  identity: Identity,
  onFailure?: (cause: unknown) => void,
): AdminClient {
  const callOf = (rpc: AdminRpc, signal: AbortSignal) => {
    const requestId = services.ids.next("req");
    return new AdminCall(services, { identity, rpc, requestId, peer: "", authorization: undefined, signal });
  };
  const errorOf = ({ facts: { requestId } }: AdminCall, error: unknown) => {
    const fault = faultFrom(error);
    if (fault.code === "internal_error") onFailure?.(fault.cause);
    const failed = { start: { traceId: undefined }, known: { requestId, caller: undefined } };
    // There is no page, because no service runs.
    return toConnectError(fault, failed, "");
  };
  const unary = Object.keys(handlers).map((rpc) => [
    rpc,
    async (request: Message, { signal }: HandlerContext) => {
      const call = callOf(rpc as AdminRpc, signal);
      try {
        return await dispatch(handlers, request, call);
      } catch (error) {
        throw errorOf(call, error);
      }
    },
  ]);
  const streams = (Object.keys(streamHandlers) as StreamRpc[]).map((rpc) => [
    rpc,
    async function* (request: Request<StreamRpc>, { signal }: HandlerContext) {
      const call = callOf(rpc, signal);
      try {
        yield* dispatchStream(streamHandlers, rpc, request, call);
      } catch (error) {
        throw errorOf(call, error);
      }
    },
  ]);
  const implementation = Object.fromEntries([...unary, ...streams]);
  return createClient(
    Admin,
    createRouterTransport(({ service }) => service(Admin, implementation)),
  );
}
