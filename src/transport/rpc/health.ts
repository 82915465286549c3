import { setTimeout as wait } from "node:timers/promises";
import type { DescService } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../gen/health/v1/health_pb.js";
import { streamHeaders } from "../http/answer-headers.ts";
import { shown } from "../../ingest/validate.ts";

/** How late a watcher is told of a change, in milliseconds. */
const watchEveryMs = 500;

export interface HealthOptions {
  /** Whether requests can be answered. */
  readonly ready: () => Promise<boolean>;
  /** Those whose health may be asked for, beside the server as a whole (""). */
  readonly services: readonly DescService[];
  /** Aborted when the server closes: a watcher that stayed would hold it open. */
  readonly closing: AbortSignal;
}

/** grpc.health.v1. */
export function healthService({ ready, services, closing }: HealthOptions): (router: ConnectRouter) => void {
  const names = new Set(["", ...services.map(({ typeName }) => typeName)]);
  const statusOf = async (service: string) => {
    if (!names.has(service)) return undefined;
    return (await ready()) ? Status.SERVING : Status.NOT_SERVING;
  };
  return (router) =>
    router.service(Health, {
      async check({ service }) {
        const status = await statusOf(service);
        if (status === undefined) throw new ConnectError(`unknown service ${shown(service)}`, Code.NotFound);
        return { status };
      },
      async *watch({ service }, { signal, responseHeader }) {
        for (const [name, value] of Object.entries(streamHeaders)) responseHeader.set(name, value);
        const ended = AbortSignal.any([signal, closing]);
        let last: Status | undefined;
        while (!ended.aborted) {
          const status = (await statusOf(service)) ?? Status.SERVICE_UNKNOWN;
          if (status !== last) yield { status };
          last = status;
          await wait(watchEveryMs, undefined, { signal: ended }).catch(() => {});
        }
        throw ConnectError.from(
          signal.aborted ? signal.reason : new ConnectError("the server closes", Code.Unavailable),
        );
      },
    });
}
