import { Code } from "@connectrpc/connect";
import type { MongoClient } from "mongodb";
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
import { type ErrorCode, rejectionCodes } from "../errors.ts";
import type { RequestEnd, RequestStart } from "../exchange.ts";
import type { BatchHooks } from "../store/group-commit.ts";
import type { ConnectionCounts } from "../transport/http/connections.ts";

interface CacheCounts {
  readonly hits: number;
  readonly misses: number;
}

interface FeedState {
  /** In milliseconds of `performance.now()`; -Infinity before the first beat. */
  readonly freshAtMs: number;
}

interface Queue {
  readonly weight: () => number;
  readonly weightMax: number;
}

/** In seconds. */
const durationBounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
const batchBuckets = [1, 2, 5, 10, 25, 50, 100, 250, 500];
const groupBuckets = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000];

/**
 * Labels have few values, which callers cannot add to: RPCs, protocols, error codes, queues and caches. No label is an
 * organisation, an app, a key or a path.
 */
export class Metrics {
  readonly registry = new Registry();
  readonly #requests = new Counter({
    name: "ingest_requests_total",
    help: "Finished requests, by RPC (none = a page), protocol and code (ok, an error code, or aborted by the caller).",
    labelNames: ["rpc", "protocol", "code"],
    registers: [this.registry],
  });
  readonly #durations = new Histogram({
    name: "ingest_request_duration_seconds",
    help: "Time from a request's headers to the end of its answer.",
    labelNames: ["rpc", "protocol"],
    buckets: durationBounds,
    registers: [this.registry],
  });
  readonly #accepted = new Counter({
    name: "ingest_events_accepted_total",
    help: "Accepted events and snapshots, with duplicates, without replays, dry runs and test keys.",
    labelNames: ["rpc"],
    registers: [this.registry],
  });
  readonly #rejected = new Counter({
    name: "ingest_events_rejected_total",
    help: "Rejected events of valid batches and rejected snapshots, by code, without replays, dry runs and test keys.",
    labelNames: ["code"],
    registers: [this.registry],
  });
  readonly #batches = new Histogram({
    name: "ingest_batch_events",
    help: "Events in a valid batch, accepted or not.",
    buckets: batchBuckets,
    registers: [this.registry],
  });
  readonly #claims = new Counter({
    name: "ingest_idempotency_total",
    help: "Requests with an Idempotency-Key: taken = the first with the key, replayed, conflict = another request used the key.",
    labelNames: ["outcome"],
    registers: [this.registry],
  });
  readonly #limited = new Counter({
    name: "ingest_rate_limited_total",
    help: "Requests that the rate limit refused, by the empty bucket (key, organization).",
    labelNames: ["bucket"],
    registers: [this.registry],
  });
  readonly #groupItems = new Histogram({
    name: "ingest_group_commit_items",
    help: "Operations that shared one round trip to the database, by queue.",
    labelNames: ["queue"],
    buckets: groupBuckets,
    registers: [this.registry],
  });
  readonly #groupDurations = new Histogram({
    name: "ingest_group_commit_duration_seconds",
    help: "Duration of a shared round trip to the database, by queue.",
    labelNames: ["queue"],
    buckets: durationBounds,
    registers: [this.registry],
  });
  readonly #queues = new Map<string, Queue>();
  #inFlight = 0;

  readonly batchHooks: BatchHooks = {
    onQueue: (name, queue) => void this.#queues.set(labelOf(name), queue),
    onBatch: (name, { items, durationMs }) => {
      const labels = { queue: labelOf(name) };
      this.#groupItems.observe(labels, items);
      this.#groupDurations.observe(labels, durationMs / 1000);
    },
  };

  constructor() {
    collectDefaultMetrics({ register: this.registry });
    // Prometheus takes the first value of a series for its beginning, so an alert would miss the first rejections.
    for (const code of rejectionCodes) this.#rejected.inc({ code }, 0);
    this.#gauge("ingest_requests_in_flight", "Requests in progress.", "sum", () => this.#inFlight);
    const queue = (name: string, help: string, value: (queue: Queue) => number): void =>
      this.#gaugeBy("queue", name, help, () => this.#queues.entries().map(([label, of]) => [label, value(of)]));
    queue("ingest_group_commit_queue", "Documents or operations that wait for a round trip, by queue.", (of) =>
      of.weight(),
    );
    queue(
      "ingest_group_commit_queue_max",
      "How many may wait. Beyond this, the service refuses requests as unavailable.",
      (of) => of.weightMax,
    );
  }

  begun(): void {
    this.#inFlight++;
  }

  ended({ rpc: name, protocol }: RequestStart, end: RequestEnd): void {
    this.#inFlight--;
    const { claim, limitedBy, accepted, rejections, fault } = end;
    const isTrial = end.dryRun || end.caller?.test === true;
    const rpc = name || "none";
    this.#requests.inc({ rpc, protocol, code: codeOf(end) });
    // The caller decides how long a stream lasts.
    if (!streams.test(rpc)) this.#durations.observe({ rpc, protocol }, end.durationMs / 1000);
    if (claim !== undefined && !isTrial) this.#claims.inc({ outcome: claim });
    if (limitedBy !== undefined) this.#limited.inc({ bucket: limitedBy });
    if (claim === "replayed" || isTrial) return;
    if (rpc === "Snapshots" && fault !== undefined && rejects(fault.code)) this.#rejected.inc({ code: fault.code });
    if (accepted + rejections.length === 0) return;
    if (accepted > 0) this.#accepted.inc({ rpc }, accepted);
    for (const { code } of rejections) this.#rejected.inc({ code });
    if (rpc === "Events") this.#batches.observe(accepted + rejections.length);
  }

  /** @param places of streams that need no key, by name. */
  watchConnections(
    counts: () => ConnectionCounts,
    places: Readonly<Record<string, { readonly open: number; readonly refused: number }>>,
  ): void {
    const ofPlaces = (name: "open" | "refused") =>
      Object.fromEntries(Object.entries(places).map(([kind, of]) => [kind, of[name]]));
    this.#gaugeBy(
      "speaks",
      "ingest_connections",
      "Open connections of callers, by protocol (new = the caller has not sent anything).",
      () => Object.entries(counts().connections),
    );
    this.#gauge(
      "ingest_connections_max",
      "How many there may be. Beyond this, the service closes new ones at once.",
      "sum",
      () => counts().connectionsMax,
    );
    this.#gaugeBy(
      "kind",
      "ingest_streams",
      "Open HTTP/2 streams (open = the caller waits, unfinished = no caller waits and the request has not ended), and open streams that need no key.",
      () => Object.entries({ ...counts().streams, ...ofPlaces("open") }),
    );
    this.#gauge(
      "ingest_streams_max",
      "How many HTTP/2 streams may be open. Beyond this, the service refuses new ones.",
      "sum",
      () => counts().streamsMax,
    );
    this.#counterBy(
      "reason",
      "ingest_connections_dropped_total",
      "Connections that the service closed before their callers did, by reason.",
      () => counts().dropped,
    );
    this.#counterBy(
      "reason",
      "ingest_streams_refused_total",
      "Streams that the service refused or cut, by reason.",
      () => ({
        ...counts().refused,
        ...ofPlaces("refused"),
      }),
    );
  }

  watchCaches(caches: Readonly<Record<string, CacheCounts>>): void {
    new Counter({
      name: "ingest_cache_lookups_total",
      help: "Look-ups of keys and workers: hit = from memory, miss = from the database.",
      labelNames: ["cache", "result"],
      registers: [this.registry],
      collect() {
        this.reset();
        for (const [cache, { hits, misses }] of Object.entries(caches)) {
          this.inc({ cache, result: "hit" }, hits);
          this.inc({ cache, result: "miss" }, misses);
        }
      },
    });
  }

  watchRecords(counts: Readonly<Record<string, number>>): void {
    this.#counterBy(
      "outcome",
      "ingest_request_records_total",
      "Records for `ingest request show`: written, dropped because the database was too slow or a share was used up, or repeated (a key's further refusals by the rate limit in one second).",
      () => counts,
    );
  }

  watchClock(clock: { readonly skewMs: number }): void {
    this.#gauge(
      "ingest_clock_skew_seconds",
      "How far this machine's clock is ahead of the database's; negative if it is behind.",
      "average",
      () => clock.skewMs / 1000,
    );
  }

  watchCatchUps(turns: { readonly counts: { readonly cost: number; readonly waiting: number } }): void {
    this.#gauge(
      "ingest_watch_catch_up_bytes",
      "Bytes of rows that WatchEvents streams have reserved to catch up.",
      "sum",
      () => turns.counts.cost,
    );
    this.#gauge(
      "ingest_watch_catch_ups_waiting",
      "WatchEvents streams that wait for their turn to catch up.",
      "sum",
      () => turns.counts.waiting,
    );
  }

  watchFeed(feed: FeedState): void {
    const startedAtMs = performance.now();
    this.#gauge(
      "ingest_news_age_seconds",
      "Age of the news of keys, apps, organisations and workers. This instance obeys every older change.",
      "max",
      () => (performance.now() - Math.max(startedAtMs, feed.freshAtMs)) / 1000,
    );
  }

  /** Call it before the clients connect. */
  watchPools(clients: Readonly<Record<string, MongoClient>>): void {
    const failures = this.#poolCounter(
      "checkout_failures_total",
      "Operations that got no connection, by reason.",
      "reason",
    );
    const cleared = this.#poolCounter(
      "cleared_total",
      "How often the driver closed all idle connections of a pool after an error.",
    );
    const pools = Object.entries(clients).map(([pool, client]) => {
      const state = { pool, connections: 0, inUse: 0, waiting: 0 };
      client
        .on("connectionCreated", () => state.connections++)
        .on("connectionClosed", () => state.connections--)
        .on("connectionCheckOutStarted", () => state.waiting++)
        .on("connectionCheckedOut", () => (state.waiting--, state.inUse++))
        .on("connectionCheckedIn", () => state.inUse--)
        .on("connectionCheckOutFailed", ({ reason }) => (state.waiting--, failures.inc({ pool, reason })))
        .on("connectionPoolCleared", () => cleared.inc({ pool }));
      return state;
    });
    const gauge = (name: string, help: string, value: (state: (typeof pools)[number]) => number): void =>
      this.#gaugeBy("pool", `ingest_mongodb_pool_${name}`, help, () =>
        pools.map((state) => [state.pool, value(state)]),
      );
    gauge("connections", "Open connections to MongoDB, by pool.", ({ connections }) => connections);
    gauge("in_use", "Connections that an operation uses.", ({ inUse }) => inUse);
    gauge("waiting", "Operations that wait for a connection.", ({ waiting }) => waiting);
  }

  #poolCounter(name: string, help: string, ...labels: string[]): Counter {
    const labelNames = ["pool", ...labels];
    return new Counter({ name: `ingest_mongodb_pool_${name}`, help, labelNames, registers: [this.registry] });
  }

  /** A gauge whose values have one label. */
  #gaugeBy(label: string, name: string, help: string, values: () => Iterable<readonly [string, number]>): void {
    new Gauge({
      ...{ name, help, labelNames: [label], registers: [this.registry] },
      collect() {
        for (const [value, count] of values()) this.set({ [label]: labelOf(value) }, count);
      },
    });
  }

  /** A counter whose counts, by one label, others keep. */
  #counterBy(label: string, name: string, help: string, values: () => Readonly<Record<string, number>>): void {
    new Counter({
      ...{ name, help, labelNames: [label], registers: [this.registry] },
      collect() {
        this.reset();
        for (const [value, count] of Object.entries(values())) this.inc({ [label]: labelOf(value) }, count);
      },
    });
  }

  /** @param aggregator combines the values of several processes of one instance. */
  #gauge(name: string, help: string, aggregator: "sum" | "min" | "max" | "average", value: () => number): void {
    new Gauge({
      name,
      help,
      aggregator,
      registers: [this.registry],
      collect() {
        this.set(value());
      },
    });
  }
}

const streams = /^Watch|^ServerReflectionInfo$/;
const rejects = (code: ErrorCode) => (rejectionCodes as readonly ErrorCode[]).includes(code);
const labelOf = (name: string) => name.replaceAll(" ", "_");

/** `ok`, an error code of the API, an RPC code if the API has none, or `aborted`. */
function codeOf({ fault, status, code }: RequestEnd): string {
  if (fault !== undefined) return fault.code;
  if (status === 0) return "aborted";
  if (code === undefined) return "ok";
  return (Code[code] ?? "unknown").replace(/(?<=[a-z])[A-Z]/g, "_$&").toLowerCase();
}
