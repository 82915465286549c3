import { metricUnits } from "../../src/limits.ts";
import { type CallOptions, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { Timeline, TimelineKind, WatchEndReason } from "../../src/gen/ingest/v1/timeline_pb.js";
import { eventCategories } from "../../src/ingest/schema.ts";
import type { Answer } from "./service.ts";

export type List = "events" | "snapshots";
/** Lists over one protocol; query and answer have REST's form. */
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
      // gRPC's Trailers-Only answers have their headers as metadata.
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

/** A message as REST JSON, without absent members. */
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
      return [
        name,
        {
          value,
          ...(unit === undefined ? {} : { unit: metricUnits[unit - 1] }),
          ...(label === undefined ? {} : { label }),
        },
      ];
    }),
  );
}

/** Every RPC protocol for Timeline. */
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

/** A message of a stream, as REST JSON. */
export interface Told {
  readonly events: readonly any[];
  readonly resumeToken: string;
  readonly endReason?: string;
}

/** Watches over one protocol; fails with `WatchError`. */
export type Watch = (
  url: string,
  query: Query,
  headers: Record<string, string>,
  signal?: AbortSignal,
) => AsyncGenerator<Told, void>;

export class WatchError extends Error {
  readonly code: string;

  constructor({ code, message }: { code: string; message: string }) {
    super(message);
    this.code = code;
  }
}

async function* textOf(response: Response): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  for await (const chunk of response.body as AsyncIterable<Uint8Array>) yield decoder.decode(chunk, { stream: true });
}

/** Splits a text stream into parts that end with `separator`. */
async function* partsOf(texts: AsyncIterable<string>, separator: string): AsyncGenerator<string> {
  let rest = "";
  for await (const text of texts) {
    const parts = (rest + text).split(separator);
    rest = parts.pop() as string;
    yield* parts;
  }
}

const restWatch = (accept: string, separator: string, jsonOf: (part: string) => string): Watch =>
  async function* (url, query, headers, signal) {
    const parameters = new URLSearchParams(
      Object.entries(query).map(([name, value]) => [name, String(value)] as const as [string, string]),
    );
    const response = await fetch(`${url}/api/v1/timeline/events:watch?${parameters}`, {
      headers: { ...headers, accept },
      ...(signal === undefined ? {} : { signal }),
    });
    if (response.status !== 200) throw new WatchError(((await response.json()) as any).error);
    if (!response.headers.get("content-type")?.startsWith(accept)) throw new Error("not the content type asked for");
    for await (const part of partsOf(textOf(response), separator)) {
      const message = JSON.parse(jsonOf(part));
      if (message.error !== undefined) throw new WatchError(message.error);
      yield message;
    }
  };

const rpcWatch = (transportOf: (url: string) => Transport): Watch =>
  async function* (url, query, headers, signal) {
    const client = createClient(Timeline, transportOf(url));
    // An early return does not cancel the call; this does.
    const left = new AbortController();
    try {
      const options = { headers, signal: AbortSignal.any([left.signal, ...(signal === undefined ? [] : [signal])]) };
      for await (const { events, resumeToken, endReason } of client.watchEvents(queryMessage(query), options)) {
        const told = { events: events.map(plainRow), resumeToken };
        yield endReason === 0 ? told : { ...told, endReason: WatchEndReason[endReason].toLowerCase() };
      }
    } catch (thrown) {
      throw new WatchError(plainError(thrown));
    } finally {
      left.abort();
    }
  };

/** Every way to watch. */
export const watchers: Readonly<Record<string, Watch>> = {
  "REST lines": restWatch("application/x-ndjson", "\n", (line) => line),
  "REST server-sent events": restWatch(
    "text/event-stream",
    "\n\n",
    (block) => /^data: (.*)$/m.exec(block)?.[1] as string,
  ),
  ...Object.fromEntries(
    Object.entries(transports)
      .filter(([name]) => name !== "Connect GET")
      .map(([name, transportOf]) => [name, rpcWatch(transportOf)]),
  ),
};
