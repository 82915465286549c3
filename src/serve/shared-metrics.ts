import type { Worker as WorkerProcess } from "node:cluster";
import { AggregatorRegistry, type MetricObject } from "prom-client";

/** The metrics of one process, as `Registry.getMetricsAsJSON` makes them. */
export type Metrics = readonly (MetricObject & { readonly values: readonly object[] })[];

/** Milliseconds within which each process must answer. */
const answerMs = 5_000;

const isCount = ({ type }: MetricObject) => ["counter", "histogram"].includes(String(type));

/**
 * Adds up the metrics of worker processes. The counts of those that have ended stay, as they were last said: a sum that
 * falls would look like a restart of all.
 */
export class SharedMetrics {
  readonly #said = new Map<WorkerProcess, Metrics>();
  readonly #asked = new Map<WorkerProcess, PromiseWithResolvers<void>>();
  #ended: Metrics = [];

  /** The page of all of them. @param ask asks a process, which answers by `heard`. @throws Error if one does not answer. */
  async page(processes: Iterable<WorkerProcess>, ask: (child: WorkerProcess) => void): Promise<string> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => late.reject(new Error(`no answer within ${answerMs} ms`)), answerMs);
    try {
      await Promise.race([Promise.all([...processes].map((child) => this.#answerOf(child, ask))), late.promise]);
    } finally {
      clearTimeout(timer);
    }
    return AggregatorRegistry.aggregate([this.#ended, ...this.#said.values()]).metrics();
  }

  heard(child: WorkerProcess, metrics: Metrics): void {
    this.#said.set(child, metrics);
    this.#answered(child);
  }

  left(child: WorkerProcess): void {
    const counts = this.#said.get(child)?.filter(isCount) ?? [];
    this.#said.delete(child);
    this.#ended = AggregatorRegistry.aggregate([this.#ended, counts]).getMetricsAsArray() as never;
    this.#answered(child);
  }

  #answerOf(child: WorkerProcess, ask: (child: WorkerProcess) => void): Promise<void> {
    const known = this.#asked.get(child);
    if (known !== undefined) return known.promise;
    const asked = Promise.withResolvers<void>();
    this.#asked.set(child, asked);
    ask(child);
    return asked.promise;
  }

  #answered(child: WorkerProcess): void {
    this.#asked.get(child)?.resolve();
    this.#asked.delete(child);
  }
}
