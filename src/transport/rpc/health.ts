import { setTimeout as wait } from "node:timers/promises";
import type { DescService } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../gen/health/v1/health_pb.js";
import { Fault, unavailable } from "../../errors.ts";
import { shown } from "../../ingest/validate.ts";
import { type Rpc, serverStream, unary } from "./rpc.ts";
import type { StreamPlaces } from "./stream-places.ts";

/** How late a watcher learns of a change, in milliseconds. */
const watchEveryMs = 500;

/** Limits on watchers. They need no key, and each holds a stream or an HTTP/1.1 connection. */
export const watcherPlaces = { max: 500, perConnectionMax: 4, perAddressMax: 100 } as const;

/** Longest watch, in milliseconds. */
export const watchMs = 600_000;

export interface HealthOptions {
  /** Whether the service can answer requests. */
  readonly ready: () => Promise<boolean>;
  /** Services with a health of their own, besides that of the whole server (""). */
  readonly services: readonly DescService[];
  /** Aborted when the server closes, which a watcher would otherwise delay. */
  readonly closing: AbortSignal;
  readonly places: StreamPlaces;
  /** Default: `watchMs`. */
  readonly watchMs?: number;
}

/** The RPCs of grpc.health.v1. They need no key. */
export function healthRpcs({ ready, services, closing, places, watchMs: longestMs = watchMs }: HealthOptions): Rpc[] {
  const names = new Set(["", ...services.map(({ typeName }) => typeName)]);
  const admit = () => undefined;
  const statusOf = async (service: string) => {
    if (!names.has(service)) return undefined;
    return (await ready()) ? Status.SERVING : Status.NOT_SERVING;
  };
  return [
    unary(Health.method.check, admit, async ({ service }) => {
      const status = await statusOf(service);
      if (status === undefined) {
        throw new Fault("not_found", `There is no service ${shown(service)}.`);
      }
      return { status };
    }),
    serverStream(Health.method.watch, admit, async function* ({ service }, _admitted, context) {
      const { request, signal } = context;
      const leave = places.take(request);
      if (leave === undefined) throw unwatched("there are too many watchers");
      try {
        const endsAtMs = performance.now() + longestMs;
        const ended = AbortSignal.any([signal, closing]);
        let last: Status | undefined;
        while (!ended.aborted) {
          const status = (await statusOf(service)) ?? Status.SERVICE_UNKNOWN;
          if (status !== last) yield { status };
          last = status;
          if (performance.now() > endsAtMs) {
            throw unwatched(`a watch lasts at most ${longestMs / 60_000} minutes`);
          }
          await wait(watchEveryMs, undefined, { signal: ended }).catch(() => {});
        }
      } finally {
        leave();
      }
      if (!signal.aborted) throw unavailable(new Error("the server closes"));
    }),
  ];
}

/** The error that ends a watch. `keylessRefusal` explains its code. */
const unwatched = (why: string) => new ConnectError(`${why}: ask Check, or watch again later`, Code.Unimplemented);
