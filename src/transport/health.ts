import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../gen/health/v1/health_pb.js";
import { Ingest } from "../gen/ingest/v1/ingest_pb.js";
import { Timeline } from "../gen/ingest/v1/timeline_pb.js";

/** The server as a whole, and what it serves. */
const served = new Set(["", Ingest.typeName, Timeline.typeName]);

/** How often a watcher is told of a change, in milliseconds. */
const watchEveryMs = 500;

/** grpc.health.v1 for the server as a whole ("") and for our services. `ready` = requests can be answered. */
export function healthService(ready: () => Promise<boolean>): (router: ConnectRouter) => void {
  const statusOf = async (service: string) => {
    if (!served.has(service)) return undefined;
    return (await ready()) ? Status.SERVING : Status.NOT_SERVING;
  };
  return (router) =>
    router.service(Health, {
      async check({ service }) {
        const status = await statusOf(service);
        if (status === undefined) throw new ConnectError(`unknown service '${service}'`, Code.NotFound);
        return { status };
      },
      async *watch({ service }, { signal }) {
        let last: Status | undefined;
        while (!signal.aborted) {
          const status = (await statusOf(service)) ?? Status.SERVICE_UNKNOWN;
          if (status !== last) yield { status };
          last = status;
          await new Promise<void>((resolve) => setTimeout(resolve, watchEveryMs));
        }
      },
    });
}
