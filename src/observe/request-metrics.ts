import { Counter, type Histogram, type Registry } from "prom-client";

/** In seconds. */
export const durationBounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

interface Series {
  readonly rpc: string;
  readonly protocol: string;
  /** Requests by code. */
  readonly codes: Map<string, number>;
  /** Durations up to each bound and above the one before; the last are above all. */
  readonly durations: number[];
  sumSeconds: number;
}

/**
 * Requests that have ended, by RPC, protocol and code, and how long they took. Counted here and given to the metrics
 * library when it is read: its own counters find a series by all its labels on every observation, which costs more than
 * the rest of a ping's bookkeeping.
 */
export class EndedRequests {
  readonly #byRpc = new Map<string, Map<string, Series>>();

  constructor(registry: Registry) {
    const all = () => [...this.#byRpc.values()].flatMap((byProtocol) => [...byProtocol.values()]);
    new Counter({
      name: "ingest_requests_total",
      help: "Requests that have ended, by RPC (none = a page), protocol and code (ok, an error code, or aborted by the caller).",
      labelNames: ["rpc", "protocol", "code"],
      registers: [registry],
      collect() {
        this.reset();
        for (const { rpc, protocol, codes } of all()) {
          for (const [code, count] of codes) this.inc({ rpc, protocol, code }, count);
        }
      },
    });
    registry.registerMetric(durationHistogram(all));
  }

  /** @param durationSeconds undefined when it is nobody's latency. */
  add(rpc: string, protocol: string, code: string, durationSeconds: number | undefined): void {
    const series = this.#seriesOf(rpc, protocol);
    series.codes.set(code, (series.codes.get(code) ?? 0) + 1);
    if (durationSeconds === undefined) return;
    let bound = 0;
    while (bound < durationBounds.length && durationSeconds > (durationBounds[bound] as number)) bound++;
    (series.durations[bound] as number)++;
    series.sumSeconds += durationSeconds;
  }

  #seriesOf(rpc: string, protocol: string): Series {
    let byProtocol = this.#byRpc.get(rpc);
    if (byProtocol === undefined) this.#byRpc.set(rpc, (byProtocol = new Map()));
    let series = byProtocol.get(protocol);
    if (series === undefined) {
      series = { rpc, protocol, codes: new Map(), durations: durationBounds.map(() => 0).concat(0), sumSeconds: 0 };
      byProtocol.set(protocol, series);
    }
    return series;
  }
}

/** Of the library's Histogram what the library itself reads: a whole one takes observations one by one only. */
function durationHistogram(all: () => readonly Series[]): Histogram {
  const metric = {
    name: "ingest_request_duration_seconds",
    help: "From a request's headers to the end of its answer.",
    type: "histogram",
    labelNames: ["rpc", "protocol"],
    aggregator: "sum",
  };
  const get = async () => ({ ...metric, values: all().flatMap((series) => valuesOf(metric.name, series)) });
  return { ...metric, get, reset() {} } as unknown as Histogram;
}

function valuesOf(name: string, { rpc, protocol, durations, sumSeconds }: Series) {
  const labels = { rpc, protocol };
  let count = 0;
  const buckets = durations.map((more, i) => ({
    metricName: `${name}_bucket`,
    labels: { le: durationBounds[i] ?? "+Inf", ...labels },
    value: (count += more),
  }));
  if (count === 0) return [];
  return [
    ...buckets,
    { metricName: `${name}_sum`, labels, value: sumSeconds },
    { metricName: `${name}_count`, labels, value: count },
  ];
}
