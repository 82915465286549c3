import { Fault, unavailable } from "../errors.ts";

/** What became of one item of a batch: its result, or why it alone failed. */
export type Settled<R> = { readonly value: R } | { readonly error: unknown };

/** What looks on at group commits: metrics and traces. None of it changes what happens. */
export interface BatchHooks {
  /** A queue was made; `weight` answers the weight that waits in it, at most `weightMax`. */
  readonly onQueue?: (name: string, queue: { weight: () => number; weightMax: number }) => void;
  /** An item was submitted; what this answers is handed to `around` with the item's batch. */
  readonly onSubmit?: () => unknown;
  /** Runs a batch: `run` is to be called once, and its result answered. `submitted` is from `onSubmit`, an entry an item. */
  readonly around?: <T>(name: string, submitted: readonly unknown[], run: () => Promise<T>) => Promise<T>;
  /** A batch has ended, well or not. */
  readonly onBatch?: (name: string, batch: { items: number; weight: number; durationMs: number }) => void;
}

export interface GroupCommitOptions<T, R> extends BatchHooks {
  /** For metrics and error messages. */
  readonly name: string;
  /** Does a batch at once; answers one outcome an item, in order. What it throws fails every item of the batch. */
  readonly run: (items: readonly T[]) => Promise<readonly Settled<R>[]>;
  /** Batches under way at once. */
  readonly concurrencyMax: number;
  /**
   * The same where a whole batch waits: it gains nothing by waiting longer, and the database can work on it while others
   * are being made durable. Default: `concurrencyMax`.
   */
  readonly fullConcurrencyMax?: number;
  /** Weight of one batch (documents, or 1 an item); a single heavier item still goes, alone. */
  readonly batchWeightMax: number;
  /** Weight waiting at most; past it an item is refused at once as unavailable. */
  readonly queueWeightMax: number;
}

/**
 * A batch that takes longer, in milliseconds, lets the next one begin. It may hang on a primary that has stopped, while the
 * next one reaches the one that was elected in its place.
 */
const lateAfterMs = 1_000;
/** Batches that may be late at once: more would only add to what a slow database has to do. */
const lateMax = 4;

/** Why an item was refused before anything was done for it. */
class NotBegun extends Error {}

/** Whether the failure says that the item was never begun, so that what was reserved for it may be given back. */
export const isNotBegun = (error: unknown) => error instanceof Fault && error.cause instanceof NotBegun;

interface Waiting<T, R> {
  readonly item: T;
  readonly weight: number;
  readonly wanted: (() => boolean) | undefined;
  readonly submitted: unknown;
  readonly resolve: (value: R) => void;
  readonly reject: (reason: unknown) => void;
}

/**
 * Joins operations that arrive while others are under way into one batch: each caller waits for its own item and gets
 * its own outcome, but a round trip and a journal flush are shared. An item that finds nothing under way goes at once.
 */
export class GroupCommit<T, R> {
  readonly #options: GroupCommitOptions<T, R>;
  #queue: Waiting<T, R>[] = [];
  #queueWeight = 0;
  #running = 0;
  /** Batches under way that have let the next one begin. */
  #late = 0;
  #scheduled = false;

  constructor(options: GroupCommitOptions<T, R>) {
    this.#options = options;
    options.onQueue?.(options.name, { weight: () => this.#queueWeight, weightMax: options.queueWeightMax });
  }

  /** Weight waiting, not yet under way. */
  get queueWeight(): number {
    return this.#queueWeight;
  }

  /**
   * Adds an item. `wanted` is asked when its batch begins: an item nobody waits for any more is dropped, not done.
   * @throws Fault `internal_error`, unavailable, when the queue is full or the item is no longer wanted.
   */
  submit(item: T, weight = 1, wanted?: () => boolean): Promise<R> {
    const { queueWeightMax, name, onSubmit } = this.#options;
    if (this.#queueWeight > 0 && this.#queueWeight + weight > queueWeightMax) {
      return Promise.reject(
        unavailable(new NotBegun(`queue of ${name} is full: ${this.#queueWeight} of ${queueWeightMax}`)),
      );
    }
    return new Promise((resolve, reject) => {
      this.#queue.push({ item, weight, wanted, submitted: onSubmit?.(), resolve, reject });
      this.#queueWeight += weight;
      if (!this.#scheduled && this.#mayRun()) {
        this.#scheduled = true;
        // After the input events of this turn of the event loop, so that what arrived together leaves together.
        setImmediate(() => {
          this.#scheduled = false;
          this.#pump();
        });
      }
    });
  }

  #mayRun(): boolean {
    const { concurrencyMax, fullConcurrencyMax = concurrencyMax, batchWeightMax } = this.#options;
    return this.#running < (this.#queueWeight >= batchWeightMax ? fullConcurrencyMax : concurrencyMax);
  }

  #pump(): void {
    while (this.#queue.length > 0 && this.#mayRun()) {
      const batch = this.#take();
      if (batch.length > 0) void this.#run(batch);
    }
  }

  #take(): Waiting<T, R>[] {
    const batch: Waiting<T, R>[] = [];
    let weight = 0;
    let taken = 0;
    for (const waiting of this.#queue) {
      if (batch.length > 0 && weight + waiting.weight > this.#options.batchWeightMax) break;
      taken++;
      this.#queueWeight -= waiting.weight;
      if (waiting.wanted !== undefined && !waiting.wanted()) {
        waiting.reject(unavailable(new NotBegun("nobody waits for this request any more")));
        continue;
      }
      weight += waiting.weight;
      batch.push(waiting);
    }
    this.#queue = this.#queue.slice(taken);
    return batch;
  }

  async #run(batch: readonly Waiting<T, R>[]): Promise<void> {
    const { name, run, around, onBatch } = this.#options;
    const startedMs = performance.now();
    this.#running++;
    const end = this.#onEndOrLate(() => this.#running--);
    try {
      const items = batch.map((waiting) => waiting.item);
      const submitted = around === undefined ? [] : batch.map((waiting) => waiting.submitted);
      const outcomes = await (around === undefined ? run(items) : around(name, submitted, () => run(items)));
      batch.forEach((waiting, i) => {
        const outcome = outcomes[i];
        if (outcome === undefined) waiting.reject(new Error(`${name}: no outcome for an item`));
        else if ("error" in outcome) waiting.reject(outcome.error);
        else waiting.resolve(outcome.value);
      });
    } catch (error) {
      for (const waiting of batch) waiting.reject(error);
    } finally {
      end();
      onBatch?.(name, { items: batch.length, weight: weightOf(batch), durationMs: performance.now() - startedMs });
      this.#pump();
    }
  }

  /** Calls `leave` once: when the batch is late, unless too many are, or else when it ends, which the caller tells. */
  #onEndOrLate(leave: () => void): () => void {
    let isLate = false;
    const timer = setTimeout(() => {
      if (this.#late === lateMax) return;
      isLate = true;
      this.#late++;
      leave();
      this.#pump();
    }, lateAfterMs);
    return () => {
      clearTimeout(timer);
      if (isLate) this.#late--;
      else leave();
    };
  }
}

function weightOf(batch: readonly { readonly weight: number }[]): number {
  let weight = 0;
  for (const item of batch) weight += item.weight;
  return weight;
}
