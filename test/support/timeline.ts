import { type CallOptions, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { Timeline, TimelineKind } from "../../src/gen/ingest/v1/timeline_pb.js";
import { eventCategories } from "../../src/ingest/schema.ts";
import type { Answer } from "./service.ts";

export type List = "events" | "snapshots";
/** Lists over one protocol; query and answer are those of REST. */
export type Read = (url: string, list: List, query: Query, headers?: Record<string, string>) => Promise<Answer>;
export type Query = Readonly<Record<string, string | number>>;

const rest: Read = async (url, list, query, headers = {}) => {
  const parameters = new URLSearchParams(
    Object.entries(query).map(([name, value]): [string, string] => [name, String(value)]),
  );
  const response = await fetch(`${url}/api/v1/timeline/${list}?${parameters}`, { headers });
  const body = (await response.json()) as any;
  return { status: response.status, headers: response.headers, body, error: body.error };
};

const rpc =
  (transportOf: (url: string) => Transport): Read =>
  async (url, list, query, headers = {}) => {
    const client = createClient(Timeline, transportOf(url));
    let seen = new Headers();
    const options: CallOptions = { headers, onHeader: (received) => (seen = received) };
    try {
      const body =
        list === "events"
          ? await client.listEvents(queryMessage(query), options).then(({ events, nextPageToken }) => ({
              events: events.map(plainRow),
              nextPageToken,
            }))
          : await client.listSnapshots(queryMessage(query), options).then(({ snapshots, nextPageToken }) => ({
              snapshots: snapshots.map(plainCard),
              nextPageToken,
            }));
      return { status: 0, headers: seen, body, error: undefined };
    } catch (thrown) {
      // Trailers-only answers of gRPC bring their headers as metadata.
      ConnectError.from(thrown).metadata.forEach((value, name) => seen.set(name, value));
      return { status: 0, headers: seen, body: undefined, error: plainError(thrown) };
    }
  };

export function plainError(thrown: unknown): NonNullable<Answer["error"]> {
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const code = info?.reason ?? `(no ErrorInfo) ${error.message}`;
  return { code, message: error.rawMessage, connect: error.code, details: error };
}

/** The REST query as a message. */
export function queryMessage({ category, kind, startTime, endTime, ...rest }: Query): any {
  return {
    ...rest,
    ...(category === undefined ? {} : { category: eventCategories.indexOf(category as never) + 1 }),
    ...(kind === undefined ? {} : { kind: TimelineKind[String(kind).toUpperCase() as "EVENT"] ?? 9 }),
    ...(startTime === undefined ? {} : { startTime: timestamp(startTime) }),
    ...(endTime === undefined ? {} : { endTime: timestamp(endTime) }),
  };
}

function timestamp(text: string | number) {
  const ms = Date.parse(String(text));
  return { seconds: BigInt(Math.floor(ms / 1000)), nanos: (ms % 1000) * 1e6 };
}

/** A message as REST JSON: members that it does not have are left out. */
export function plainRow(row: any) {
  const { id, type, workerId, appId, requestId } = row;
  return {
    id,
    kind: TimelineKind[row.kind]?.toLowerCase(),
    type,
    ...(row.category === 0 ? {} : { category: eventCategories[row.category - 1] }),
    workerId,
    appId,
    requestId,
    timestamp: time(row.timestamp),
    receivedAt: time(row.receivedAt),
    ...(row.duration === undefined ? {} : { duration: row.duration }),
    ...(Object.keys(row.metrics).length === 0 ? {} : { metrics: plainMetrics(row.metrics) }),
    ...(row.metadata === undefined ? {} : { metadata: row.metadata }),
  };
}

function plainCard(card: any) {
  const { snapshotType, worker, appId, requestId } = card;
  return {
    snapshotType,
    worker: { id: worker.id, displayName: worker.displayName },
    appId,
    requestId,
    timestamp: time(card.timestamp),
    receivedAt: time(card.receivedAt),
    metrics: plainMetrics(card.metrics),
    ...(card.metadata === undefined ? {} : { metadata: card.metadata }),
  };
}

const time = ({ seconds, nanos }: any) =>
  new Date(Number(seconds) * 1000 + nanos / 1e6).toISOString().replace(".000Z", "Z");

function plainMetrics(metrics: any) {
  return Object.fromEntries(
    Object.entries(metrics).map(([name, { kind }]: [string, any]) => {
      if (kind.case !== "measure") return [name, kind.value];
      const { value, unit, label } = kind.value;
      return [name, { value, ...(unit === undefined ? {} : { unit }), ...(label === undefined ? {} : { label }) }];
    }),
  );
}

/** The ways to call Timeline by RPC. */
export const transports: Readonly<Record<string, (url: string) => Transport>> = {
  "Connect JSON": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  "Connect binary": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: true }),
  "Connect GET": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1", useHttpGet: true }),
  gRPC: (baseUrl) => createGrpcTransport({ baseUrl }),
  "gRPC-Web": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
};

/** Every way to list. */
export const readers: Readonly<Record<string, Read>> = {
  REST: rest,
  ...Object.fromEntries(Object.entries(transports).map(([name, transportOf]) => [name, rpc(transportOf)])),
};
