import { setTimeout as wait } from "node:timers/promises";
import type { DescService } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../gen/health/v1/health_pb.js";
import type { StreamPlaces } from "./stream-places.ts";
import { streamHeaders } from "../http/answer-headers.ts";
import { shown } from "../../ingest/validate.ts";

/** How late a watcher is told of a change, in milliseconds. */
const watchEveryMs = 500;

/** Watchers at once: they need no key and each keeps a stream, or a connection of HTTP/1.1. */
export const watcherPlaces = { max: 500, perConnectionMax: 4, perAddressMax: 100 } as const;

/** How long one may watch, in milliseconds. */
export const watchMs = 600_000;

export interface HealthOptions {
  /** Whether requests can be answered. */
  readonly ready: () => Promise<boolean>;
  /** Those whose health may be asked for, beside the server as a whole (""). */
  readonly services: readonly DescService[];
  /** Aborted when the server closes: a watcher that stayed would hold it open. */
  readonly closing: AbortSignal;
  readonly places: StreamPlaces;
  /** Default `watchMs`. */
  readonly watchMs?: number;
}

/** grpc.health.v1. */
export function healthService({
  ready,
  services,
  closing,
  places,
  watchMs: longestMs = watchMs,
}: HealthOptions): (router: ConnectRouter) => void {
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
      async *watch({ service }, context) {
        const { signal, responseHeader } = context;
        for (const [name, value] of Object.entries(streamHeaders)) responseHeader.set(name, value);
        const leave = places.take(context);
        if (leave === undefined) throw unwatched("there are too many watchers");
        try {
          const endsAtMs = performance.now() + longestMs;
          const ended = AbortSignal.any([signal, closing]);
          let last: Status | undefined;
          while (!ended.aborted) {
            const status = (await statusOf(service)) ?? Status.SERVICE_UNKNOWN;
            if (status !== last) yield { status };
            last = status;
            if (performance.now() > endsAtMs)
              throw unwatched(`nobody may watch for more than ${longestMs / 60_000} minutes`);
            await wait(watchEveryMs, undefined, { signal: ended }).catch(() => {});
          }
        } finally {
          leave();
        }
        throw ConnectError.from(
          signal.aborted ? signal.reason : new ConnectError("the server closes", Code.Unavailable),
        );
      },
    });
}

/** Ends a watch; `keylessRefusal` says why with this code. */
const unwatched = (why: string) => new ConnectError(`${why}: ask Check, or watch again later`, Code.Unimplemented);
