import { Server, ServerCredentials, type ServerUnaryCall, status, type sendUnaryData } from "@grpc/grpc-js";
import { loadPackageDefinition } from "@grpc/grpc-js";
import { load } from "@grpc/proto-loader";
import { ByHand, eventsBody, type PeerKey, Refusal } from "./by-hand.ts";

/**
 * The gRPC peer: grpc-js, proto-loader, zod and the driver. `MONGODB_URI` names its database. It prints its address.
 */
const service = await ByHand.open(process.env.MONGODB_URI as string);
const root = new URL("../../../", import.meta.url).pathname;
const definition = await load("ingest/v1/ingest.proto", {
  includeDirs: [`${root}proto`],
  enums: String,
  longs: Number,
});
const ingest = (loadPackageDefinition(definition) as any).ingest.v1.Ingest;

function unary<Request, Response>(
  work: (caller: PeerKey, request: Request, key?: string) => Response | Promise<Response>,
) {
  return async (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>) => {
    try {
      const authorization = call.metadata.get("authorization")[0] as string;
      const caller = await service.authenticate(authorization);
      callback(null, await work(caller, call.request, call.metadata.get("idempotency-key")[0] as string | undefined));
    } catch (error) {
      const code = error instanceof Refusal && error.status === 401 ? status.UNAUTHENTICATED : status.INVALID_ARGUMENT;
      callback({ code, details: (error as Error).message });
    }
  };
}

/** proto-loader's google.protobuf.Struct as plain JSON. */
function plain(value: any): unknown {
  if (value.structValue) return plainStruct(value.structValue);
  if (value.listValue) return value.listValue.values.map(plain);
  return value.stringValue ?? value.numberValue ?? value.boolValue ?? null;
}
const plainStruct = (struct: any) =>
  Object.fromEntries(Object.entries(struct.fields).map(([name, value]) => [name, plain(value)]));

const server = new Server();
server.addService(ingest.service, {
  ping: unary((caller) => ({ ok: true, organizationId: caller.organizationId, app: caller.app })),
  events: unary(async (caller, request: any, key) => {
    const body = eventsBody.parse({
      events: request.events.map((event: any) => ({
        eventType: event.eventType,
        category: String(event.category).replace("EVENT_CATEGORY_", "").toLowerCase(),
        actor: event.actor,
        timestamp: event.timestamp ? new Date(event.timestamp.seconds * 1000).toISOString() : undefined,
        duration: event.duration,
        metadata: event.metadata ? plainStruct(event.metadata) : undefined,
      })),
    });
    const answer = await service.ingestEvents(caller, key, body);
    return {
      ...answer,
      results: {
        accepted: answer.results.accepted.map(({ eventType, timestamp }) => {
          const ms = Date.parse(timestamp);
          return { eventType, timestamp: { seconds: Math.floor(ms / 1000), nanos: (ms % 1000) * 1_000_000 } };
        }),
        rejected: [],
      },
    };
  }),
});
server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`Listening on http://127.0.0.1:${port}`);
});
