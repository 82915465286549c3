import { create, type DescMessage, type Message, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import { recheckAfterMs } from "../exchange.ts";
import { Admin, type Worker } from "../gen/ingest/admin/v1/admin_pb.js";
import { timeOfId } from "../ids.ts";
import { faultOfDatabase } from "../store/database.ts";
import { settleOnInstances } from "../store/instances.ts";
import type { AdminCall } from "./call.ts";
import { keptAnswer } from "./change.ts";
import { untilMerged } from "./merge-wait.ts";
import type { AdminRpc } from "./roles.ts";

type Methods = (typeof Admin)["method"];
export type Request<Rpc extends AdminRpc> = MessageShape<Methods[Rpc]["input"]>;
export type Answer<Rpc extends AdminRpc> = MessageInitShape<Methods[Rpc]["output"]>;
/** The RPCs that answer with one message. */
export type UnaryRpc = Exclude<AdminRpc, "watchRequests">;

/** An RPC's only implementation: every protocol and the command line call it. */
export type Handler<Rpc extends AdminRpc> = (request: Request<Rpc>, call: AdminCall) => Promise<Answer<Rpc>>;
export type Handlers = { readonly [Rpc in UnaryRpc]: Handler<Rpc> };

/** The implementation of an RPC that answers with a stream. The caller must run the generator to its end. */
export type StreamHandler<Rpc extends AdminRpc> = (
  request: Request<Rpc>,
  call: AdminCall,
) => AsyncGenerator<Answer<Rpc>, void>;
export type StreamRpc = Exclude<AdminRpc, UnaryRpc>;
export type StreamHandlers = { readonly [Rpc in StreamRpc]: StreamHandler<Rpc> };

/** How long `wait` waits for the instances, in seconds. */
const settleSecondsMax = 30;

/**
 * Answers a call: with the first answer if its idempotency key was used, or else by its handler.
 * @throws Fault.
 */
export async function dispatch(handlers: Partial<Handlers>, request: Message, call: AdminCall): Promise<Message> {
  const rpc = call.facts.rpc as UnaryRpc;
  const { output } = Admin.method[rpc] as { output: DescMessage };
  try {
    // The caller may have taken long to send the message, and its token may have been revoked meanwhile.
    const isLate = call.services.now() - timeOfId(call.facts.requestId).getTime() > recheckAfterMs;
    if (isLate) await call.facts.recheck?.();
    const kept = await keptAnswer(call, request);
    if (kept !== undefined && rpc === "mergeWorkers") {
      const { organizationId, id } = kept as Worker;
      await untilMerged(call, organizationId, id);
    }
    const answer = kept ?? create(output, await (handlers[rpc] as Handler<UnaryRpc>)(request as never, call));
    if (kept === undefined && !call.isChecked) throw new Error(`${call.rpcName} answers without a check of the role`);
    return (request as { wait?: boolean }).wait === true ? await settled(call, answer) : answer;
  } catch (error) {
    throw faultOfDatabase(error);
  }
}

/** Answers a call with a stream. @throws Fault. */
export async function* dispatchStream<Rpc extends StreamRpc>(
  handlers: StreamHandlers,
  rpc: Rpc,
  request: Request<Rpc>,
  call: AdminCall,
): AsyncGenerator<MessageShape<Methods[Rpc]["output"]>, void> {
  const output = Admin.method[rpc].output as Methods[Rpc]["output"];
  try {
    for await (const answer of handlers[rpc](request, call)) {
      if (!call.isChecked) throw new Error(`${call.rpcName} answers without a check of the role`);
      yield create(output, answer);
    }
  } catch (error) {
    throw faultOfDatabase(error);
  }
}

/** The answer with the time until every instance acted on the change; without it if one has not confirmed it. */
async function settled(call: AdminCall, answer: Message): Promise<Message> {
  const startedMs = performance.now();
  const behind = await settleOnInstances(call.db, settleSecondsMax);
  return behind.length > 0
    ? answer
    : Object.assign(answer, { actedAfterMs: Math.round(performance.now() - startedMs) });
}
