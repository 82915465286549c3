import { create, toBinary } from "@bufbuild/protobuf";
import { EventCategory, EventsRequestSchema, PingRequestSchema } from "../../src/gen/ingest/v1/ingest_pb.js";
import { limits } from "../../src/limits.ts";
import { batches, externalId, named, single, snapshots, times } from "./bodies.ts";
import { grpcLoad, type Load, percentiles, restLoad, type RestTarget } from "./load.ts";
import type { DriverReply, DriverRequest } from "./peers/driver.ts";
import type { Served } from "./processes.ts";
import type { Members, Stage } from "./stage.ts";

/**
 * The measured program: Ingest, the peer written by hand, or the limit of both; or Ingest over REST instead of gRPC, or
 * with the same events without ids.
 */
export type Role = "ingest" | "peer" | "cached peer" | "limit" | "REST" | "without ids";

export interface Contestant {
  readonly role: Role;
  /** For display. */
  readonly name: string;
  readonly served: Served;
  /** The database that must then have its events; undefined if it stores none. */
  readonly database?: string;
  readonly run: (seconds: number) => Promise<Load>;
}

/** The rate that Ingest must reach, as a multiple of another's. */
export interface Bar {
  readonly times: number;
  readonly of: Role;
  /** The size of the replica set for which it holds. Default: 1. */
  readonly members?: Members;
}

/** A load for any program that serves the contract. */
export interface Workload {
  readonly name: string;
  /** Events in each request; 0 for ping. */
  readonly events: number;
  readonly protocol: "REST" | "gRPC";
  readonly bars: readonly Bar[];
  /** Whether our median latency must not exceed the peer's. */
  readonly isLatencyBound?: boolean;
  readonly run: (url: string, seconds: number) => Promise<Load>;
}

export interface Row extends Pick<Workload, "name" | "events" | "bars" | "isLatencyBound"> {
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

const pingTarget = { method: "GET", path: "/api/v1/ingest/ping" } as const;
const eventsTarget = { method: "POST", path: "/api/v1/ingest/events" } as const;
const pingName = "ping, 64 connections";
const batchName = `${limits.eventsMax} events, 8 connections`;
const grpcBatchName = `gRPC ${batchName}`;
const namedName = `${limits.eventsMax} events with ids, 8 connections`;
const namedSingleName = "one event with an id, 64 connections";
const singleName = (connections: number, isKeyed: boolean) =>
  `one event${isKeyed ? " with Idempotency-Key" : ""}, ${connections} connection${connections === 1 ? "" : "s"}`;

/** Every load of the table, by callers with this `authorization`. */
export function workloads(authorization: string): Workload[] {
  const rest = (target: Omit<RestTarget, "url" | "authorization">, connections: number) =>
    ({
      protocol: "REST",
      run: (url: string, seconds: number) => restLoad({ ...target, url, authorization }, connections, seconds),
    }) as const;
  const posted = (path: string, bodies: readonly string[], connections: number, isKeyed = false) =>
    rest({ method: "POST", path: `/api/v1/ingest/${path}`, bodies, isKeyed }, connections);
  const grpc = (method: string, content: Uint8Array, streams: number) =>
    ({
      protocol: "gRPC",
      run: (url: string, seconds: number) =>
        grpcLoad({ path: `/ingest.v1.Ingest/${method}`, message: content, streams, url, authorization }, 8, seconds),
    }) as const;
  const singles = (connections: number, isKeyed: boolean): Workload => ({
    name: singleName(connections, isKeyed),
    events: 1,
    bars: connections === 64 ? [{ times: 8, of: "peer" }] : [],
    isLatencyBound: connections === 1,
    ...posted("events", single, connections, isKeyed),
  });
  return [
    {
      name: pingName,
      events: 0,
      bars: [{ times: 4, of: "peer" }],
      ...rest(pingTarget, 64),
    },
    // A single connection last: it sends too few requests for Node to compile the code.
    ...[64, 512, 1].map((connections) => singles(connections, false)),
    ...[64, 512, 1].map((connections) => singles(connections, true)),
    {
      name: batchName,
      events: limits.eventsMax,
      bars: [
        { times: 1, of: "limit" },
        { times: 1.25, of: "peer", members: 3 },
      ],
      ...posted("events", batches, 8),
    },
    {
      name: namedName,
      events: limits.eventsMax,
      bars: [{ times: 0.95, of: "without ids" }],
      ...rest({ ...eventsTarget, bodies: named(batches), isNamed: true }, 8),
    },
    {
      name: namedSingleName,
      events: 1,
      bars: [{ times: 0.95, of: "without ids" }],
      ...rest({ ...eventsTarget, bodies: named(single), isNamed: true }, 64),
    },
    {
      name: "snapshots of 1 000 workers, 64 connections",
      events: 1,
      bars: [{ times: 5, of: "peer" }],
      ...posted("snapshots", snapshots, 64),
    },
    {
      name: "gRPC ping, 8 connections × 16 streams",
      events: 0,
      bars: [{ times: 1.5, of: "peer" }],
      ...grpc("Ping", toBinary(PingRequestSchema, create(PingRequestSchema)), 16),
    },
    {
      name: "gRPC one event, 8 connections × 16 streams",
      events: 1,
      bars: [{ times: 8, of: "peer" }],
      ...grpc("Events", message(1), 16),
    },
    {
      name: grpcBatchName,
      events: limits.eventsMax,
      bars: [{ times: 0.9, of: "REST" }],
      ...grpc("Events", message(limits.eventsMax), 1),
    },
  ];
}

/** A program under a load. `database` is the one for its events. */
export function contestant(
  role: Role,
  name: string,
  served: Served,
  { events, run }: Workload,
  database: string,
): Contestant {
  return {
    role,
    name,
    served,
    ...(events === 0 ? {} : { database }),
    run: (seconds) => run(served.url, seconds),
  };
}

/** Every row of the table, over running programs. Only rows with events depend on the number of members. */
export async function buildRows(stage: Stage): Promise<Row[]> {
  const [service, fastify, grpcJs, bare, driver] = await Promise.all([
    stage.startService(),
    stage.startPeer("fastify"),
    stage.startPeer("grpc-js"),
    stage.startPeer("bare"),
    stage.startPeer("driver"),
  ]);
  const { authorization, members } = stage;
  const loads = workloads(authorization).filter(({ events }) => members === 1 || events > 0);
  const loadOf = (wanted: string) => loads.find(({ name }) => name === wanted) as Workload;
  const own = (role: Role, name: string, load: string) => contestant(role, name, service, loadOf(load), "ingest");
  const pings = (role: Role, name: string, served: Served, path: string): Contestant => ({
    role,
    name,
    served,
    run: (seconds) => restLoad({ ...pingTarget, path, url: served.url, authorization }, 64, seconds),
  });
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
  const others: Readonly<Record<string, readonly Contestant[]>> = {
    [pingName]: [
      pings("cached peer", "Fastify, key cached", fastify, "/cached/ping"),
      pings("limit", "bare node:http", bare, pingTarget.path),
    ],
    [singleName(64, false)]: [raw(1, 64)],
    [batchName]: [raw(limits.eventsMax, 8)],
    [namedName]: [own("without ids", "Ingest without ids", batchName)],
    [namedSingleName]: [own("without ids", "Ingest without ids", singleName(64, false))],
    [grpcBatchName]: [own("REST", "Ingest over REST", batchName)],
  };
  return loads.map((workload) => ({
    ...workload,
    bars: workload.bars.filter((bar) => (bar.members ?? 1) === members),
    contestants: [
      contestant("ingest", "Ingest", service, workload, "ingest"),
      workload.protocol === "REST"
        ? contestant("peer", "Fastify", fastify, workload, "fastify")
        : contestant("peer", "grpc-js", grpcJs, workload, "grpc-js"),
      ...(others[workload.name] ?? []),
    ],
  }));
}
