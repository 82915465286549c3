import { create, toBinary } from "@bufbuild/protobuf";
import { EventCategory, EventsRequestSchema, PingRequestSchema } from "../../src/gen/ingest/v1/ingest_pb.js";
import { limits } from "../../src/limits.ts";
import { batches, externalId, single, snapshots, times } from "./bodies.ts";
import { grpcLoad, type GrpcTarget, type Load, percentiles, restLoad, type RestTarget } from "./load.ts";
import type { DriverReply, DriverRequest } from "./peers/driver.ts";
import type { Served } from "./processes.ts";
import type { Stage } from "./stage.ts";

/** Who is measured: ourselves, the peer written by hand, or what bounds everybody. */
export type Role = "ingest" | "peer" | "cached peer" | "limit";

export interface Contestant {
  readonly role: Role;
  /** For people. */
  readonly name: string;
  readonly served: Served;
  /** Where its events must be found afterwards; undefined when it stores none. */
  readonly database?: string;
  readonly run: (seconds: number) => Promise<Load>;
}

/** What our own rate must reach, as a multiple of another's. */
export interface Bar {
  readonly times: number;
  readonly of: Role;
}

export interface Row {
  readonly name: string;
  /** Events in each request; 0 for ping. */
  readonly events: number;
  readonly bars: readonly Bar[];
  /** True where our median latency must not be above the peer's. */
  readonly isLatencyBound?: boolean;
  readonly contestants: readonly Contestant[];
}

const message = (count: number) =>
  toBinary(
    EventsRequestSchema,
    create(EventsRequestSchema, {
      events: times(count, (i) => ({
        eventType: "ticket.resolved",
        category: EventCategory.PROJECT_MANAGEMENT,
        actor: { id: { case: "externalId" as const, value: externalId(i) } },
        duration: 240,
        metadata: { ticket_id: `SUP-${i}` },
      })),
    }),
  );

/** Every row of the table, over programs that are already running. */
export async function buildRows(stage: Stage): Promise<Row[]> {
  const [service, fastify, grpcJs, bare, driver] = await Promise.all([
    stage.startService(),
    stage.startPeer("fastify"),
    stage.startPeer("grpc-js"),
    stage.startPeer("bare"),
    stage.startPeer("driver"),
  ]);
  const { authorization } = stage;

  const rest = (
    role: Role,
    name: string,
    served: Served,
    target: Omit<RestTarget, "url" | "authorization">,
    connections: number,
    database?: string,
  ): Contestant => ({
    role,
    name,
    served,
    ...(database === undefined ? {} : { database }),
    run: (seconds) => restLoad({ ...target, url: served.url, authorization }, connections, seconds),
  });
  const posted = (path: string, bodies: readonly string[], connections: number, isKeyed = false) => {
    const target = { method: "POST", path, bodies, isKeyed } as const;
    return [
      rest("ingest", "Ingest", service, target, connections, "ingest"),
      rest("peer", "Fastify", fastify, target, connections, "fastify"),
    ];
  };
  const raw = (documents: number, connections: number): Contestant => ({
    role: "limit",
    name: documents === 1 ? "driver, insertOne" : "driver, insertMany",
    served: driver,
    database: "driver",
    run: async (seconds) => {
      const request: DriverRequest = { documents, connections, seconds };
      const { latenciesMs, ...reply } = await driver.ask<DriverReply>(request);
      return { ...reply, failed: 0, ...percentiles(latenciesMs) };
    },
  });
  const grpc = (
    target: Omit<GrpcTarget, "url" | "authorization">,
    connections: number,
    stores: boolean,
  ): Contestant[] =>
    (
      [
        ["ingest", "Ingest", service, "ingest"],
        ["peer", "grpc-js", grpcJs, "grpc-js"],
      ] as const
    ).map(([role, name, served, database]) => ({
      role,
      name,
      served,
      ...(stores ? { database } : {}),
      run: (seconds) => grpcLoad({ ...target, url: served.url, authorization }, connections, seconds),
    }));

  const ping = { method: "GET", path: "/api/v1/ingest/ping" } as const;
  const eventsPath = "/api/v1/ingest/events";
  const events = (connections: number, isKeyed: boolean): Row => ({
    name: `one event${isKeyed ? " with Idempotency-Key" : ""}, ${connections} connection${connections === 1 ? "" : "s"}`,
    events: 1,
    bars: connections === 64 ? [{ times: 8, of: "peer" }] : [],
    isLatencyBound: connections === 1,
    contestants: [
      ...posted(eventsPath, single, connections, isKeyed),
      ...(connections === 64 && !isKeyed ? [raw(1, connections)] : []),
    ],
  });
  return [
    {
      name: "ping, 64 connections",
      events: 0,
      bars: [
        { times: 4, of: "peer" },
        { times: 1, of: "cached peer" },
        { times: 0.5, of: "limit" },
      ],
      contestants: [
        rest("ingest", "Ingest", service, ping, 64),
        rest("peer", "Fastify", fastify, ping, 64),
        rest("cached peer", "Fastify, key cached", fastify, { ...ping, path: "/cached/ping" }, 64),
        rest("limit", "bare node:http", bare, ping, 64),
      ],
    },
    ...[1, 64, 512].map((connections) => events(connections, false)),
    ...[1, 64, 512].map((connections) => events(connections, true)),
    {
      name: `${limits.eventsMax} events, 8 connections`,
      events: limits.eventsMax,
      bars: [{ times: 0.75, of: "limit" }],
      contestants: [...posted(eventsPath, batches, 8), raw(limits.eventsMax, 8)],
    },
    {
      name: "snapshots of 1 000 workers, 64 connections",
      events: 1,
      bars: [{ times: 5, of: "peer" }],
      contestants: posted("/api/v1/ingest/snapshots", snapshots, 64),
    },
    {
      name: "gRPC ping, 8 connections × 16 streams",
      events: 0,
      bars: [{ times: 1.5, of: "peer" }],
      contestants: grpc(
        {
          path: "/ingest.v1.Ingest/Ping",
          message: toBinary(PingRequestSchema, create(PingRequestSchema)),
          streams: 16,
        },
        8,
        false,
      ),
    },
    {
      name: "gRPC one event, 8 connections × 16 streams",
      events: 1,
      bars: [{ times: 8, of: "peer" }],
      contestants: grpc({ path: "/ingest.v1.Ingest/Events", message: message(1), streams: 16 }, 8, true),
    },
    {
      name: `gRPC ${limits.eventsMax} events, 8 connections`,
      events: limits.eventsMax,
      bars: [],
      contestants: grpc({ path: "/ingest.v1.Ingest/Events", message: message(limits.eventsMax), streams: 1 }, 8, true),
    },
  ];
}
