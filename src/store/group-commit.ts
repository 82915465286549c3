import { Fault, unavailable } from "../errors.ts";

/** The outcome of one item of a batch. */
export type Settled<R> = { readonly value: R } | { readonly error: unknown };

/** Hooks for metrics and traces. */
export interface BatchHooks {
  /** `weight` returns the weight that waits in the queue, at most `weightMax`. */
  readonly onQueue?: (name: string, queue: { weight: () => number; weightMax: number }) => void;
  /** `around` gets the result with the item's batch. */
  readonly onSubmit?: () => unknown;
  /** Must call `run` once and return its result. `submitted` has the result of `onSubmit` for each item. */
  readonly around?: <T>(name: string, submitted: readonly unknown[], run: () => Promise<T>) => Promise<T>;
  readonly onBatch?: (name: string, batch: { items: number; weight: number; durationMs: number }) => void;
}

export interface GroupCommitOptions<T, R> extends BatchHooks {
  readonly name: string;
  /** Returns the outcome of each item, in order. If it throws, every item of the batch fails. */
  readonly run: (items: readonly T[]) => Promise<readonly Settled<R>[]>;
  /** Owners take turns. Default: all items have one owner. */
  readonly ownerOf?: (item: T) => string;
  readonly concurrencyMax: number;
  /**
   * Batches that run at once while a full batch waits, which gains nothing by waiting. The database can process it
   * while it makes others durable. Default: `concurrencyMax`.
   */
  readonly fullConcurrencyMax?: number;
  /** A heavier item goes alone. */
  readonly batchWeightMax: number;
  /**
   * Largest weight that waits, over all owners. One owner may fill as much as it leaves free, so half if it is alone.
   * Further items are refused at once as unavailable.
   */
  readonly queueWeightMax: number;
}

/**
 * After this many milliseconds a batch is late, and the next one may begin. The late one may hang on a dead primary,
 * while the next one reaches the new primary.
 */
const lateAfterMs = 1_000;
/** More late batches would only burden a slow database further. */
const lateMax = 4;

/** The item was refused before its batch began. */
class NotBegun extends Error {}

/** Whether the item's batch never began, so that the caller may give back its reservations. */
export const isNotBegun = (error: unknown) => error instanceof Fault && error.cause instanceof NotBegun;

interface Waiting<T, R> {
  readonly item: T;
  readonly weight: number;
  readonly wanted: (() => boolean) | undefined;
  readonly submitted: unknown;
  readonly resolve: (value: R) => void;
  readonly reject: (reason: unknown) => void;
}

interface Owner<T, R> {
  readonly name: string;
  waiting: Waiting<T, R>[];
  weight: number;
  /** Heavy batches only. */
  running: number;
}

interface Batch<T, R> {
  readonly items: Waiting<T, R>[];
  /** Undefined for a batch of light items, which several owners share. */
  readonly heavyOwner: Owner<T, R> | undefined;
}

/** An item heavier than this fraction of a batch would delay others, so its batch has no other owner. */
const heavyPart = 0.1;

/**
 * Joins operations that arrive while others run into one batch, which shares a round trip and a journal flush. Each
 * caller waits for its own item and gets its own outcome. An item goes at once if no batch is running.
 *
 * Owners take turns. Light items of all owners go together. Heavy items go in batches of one owner, one batch at a time
 * while another owner waits. A single owner gets everything.
 */
export class GroupCommit<T, R> {
  readonly #options: GroupCommitOptions<T, R>;
  /** Owners with waiting items, in the order of their turns. */
  readonly #turns = new Map<string, Owner<T, R>>();
  /** Owners with a running heavy batch. */
  readonly #busy = new Map<string, Owner<T, R>>();
  #queueWeight = 0;
  #lightRunning = 0;
  #heavyRunning = 0;
  /** Running batches that are late, so that another one could begin. */
  #late = 0;
  #scheduled = false;

  constructor(options: GroupCommitOptions<T, R>) {
    this.#options = options;
    options.onQueue?.(options.name, { weight: () => this.#queueWeight, weightMax: options.queueWeightMax });
  }

  get queueWeight(): number {
    return this.#queueWeight;
  }

  /**
   * Adds an item. When its batch begins, it drops the item if `wanted` returns false, because its caller has gone.
   * @throws Fault `internal_error` (unavailable) if the queue is full or the item was dropped.
   */
  submit(item: T, weight = 1, wanted?: () => boolean): Promise<R> {
    const { queueWeightMax, name, onSubmit, ownerOf } = this.#options;
    const ownerName = ownerOf?.(item) ?? "";
    const known = this.#turns.get(ownerName);
    if (this.#queueWeight > 0 && (known?.weight ?? 0) + weight > queueWeightMax - this.#queueWeight) {
      return Promise.reject(
        unavailable(new NotBegun(`queue of ${name} is full: ${this.#queueWeight} of ${queueWeightMax}`)),
      );
    }
    const owner = known ?? this.#busy.get(ownerName) ?? { name: ownerName, waiting: [], weight: 0, running: 0 };
    if (known === undefined) this.#turns.set(ownerName, owner);
    return new Promise((resolve, reject) => {
      owner.waiting.push({ item, weight, wanted, submitted: onSubmit?.(), resolve, reject });
      owner.weight += weight;
      this.#queueWeight += weight;
      if (this.#scheduled || !this.#mayRun(owner)) return;
      this.#scheduled = true;
      // Run after the input events of this event-loop tick, so that items that arrive together share a batch.
      setImmediate(() => {
        this.#scheduled = false;
        this.#pump();
      });
    });
  }

  #isHeavy({ waiting }: Owner<T, R>): boolean {
    return (waiting[0] as Waiting<T, R>).weight > heavyPart * this.#options.batchWeightMax;
  }

  #next(): Owner<T, R> | undefined {
    for (const owner of this.#turns.values()) if (this.#mayRun(owner)) return owner;
    return undefined;
  }

  #mayRun(owner: Owner<T, R>): boolean {
    const { concurrencyMax, fullConcurrencyMax = concurrencyMax, batchWeightMax } = this.#options;
    const isHeavy = this.#isHeavy(owner);
    const isAlone = this.#turns.size === 1 && (this.#busy.size === 0 || this.#busy.has(owner.name));
    if (isHeavy && owner.running > 0 && !isAlone) return false;
    const running = isHeavy ? this.#heavyRunning : this.#lightRunning;
    return running < (this.#queueWeight >= batchWeightMax ? fullConcurrencyMax : concurrencyMax);
  }

  #pump(): void {
    for (let owner = this.#next(); owner !== undefined; owner = this.#next()) {
      const batch = this.#isHeavy(owner) ? this.#takeHeavy(owner) : this.#takeLight();
      if (batch.items.length > 0) void this.#run(batch);
    }
  }

  #takeHeavy(owner: Owner<T, R>): Batch<T, R> {
    const items: Waiting<T, R>[] = [];
    this.#takeFrom(owner, items, this.#options.batchWeightMax, Number.POSITIVE_INFINITY);
    return { items, heavyOwner: owner };
  }

  /** Takes from each owner in turn at most the weight of a heavy item, until the batch is full. */
  #takeLight(): Batch<T, R> {
    const { batchWeightMax } = this.#options;
    const items: Waiting<T, R>[] = [];
    let room = batchWeightMax;
    for (let isMore = true; isMore && room > 0;) {
      isMore = false;
      for (const owner of [...this.#turns.values()]) {
        if (this.#isHeavy(owner)) continue;
        const quantum = this.#turns.size === 1 ? room : Math.min(room, Math.ceil(heavyPart * batchWeightMax));
        const taken = this.#takeFrom(owner, items, quantum, heavyPart * batchWeightMax);
        room -= taken;
        isMore ||= taken > 0;
      }
    }
    return { items, heavyOwner: undefined };
  }

  /**
   * Moves items of the owner to `items`, up to the first that is heavier than `itemMax`. Then moves the owner to the
   * end of the turns.
   * @returns their weight: at most `room`, unless a single item weighs more than a batch.
   */
  #takeFrom(owner: Owner<T, R>, items: Waiting<T, R>[], room: number, itemMax: number): number {
    let weight = 0;
    let taken = 0;
    for (const waiting of owner.waiting) {
      if (waiting.weight > itemMax || (items.length > 0 && weight + waiting.weight > room)) break;
      taken++;
      owner.weight -= waiting.weight;
      this.#queueWeight -= waiting.weight;
      if (waiting.wanted !== undefined && !waiting.wanted()) {
        waiting.reject(unavailable(new NotBegun("nobody waits for this request any more")));
        continue;
      }
      weight += waiting.weight;
      items.push(waiting);
    }
    owner.waiting = owner.waiting.slice(taken);
    this.#turns.delete(owner.name);
    if (owner.waiting.length > 0) this.#turns.set(owner.name, owner);
    return weight;
  }

  #begun({ heavyOwner: owner }: Batch<T, R>): void {
    if (owner === undefined) this.#lightRunning++;
    else {
      this.#heavyRunning++;
      owner.running++;
      this.#busy.set(owner.name, owner);
    }
  }

  #ended({ heavyOwner: owner }: Batch<T, R>): void {
    if (owner === undefined) this.#lightRunning--;
    else {
      this.#heavyRunning--;
      if (--owner.running === 0) this.#busy.delete(owner.name);
    }
  }

  async #run(whole: Batch<T, R>): Promise<void> {
    const { name, run, around, onBatch } = this.#options;
    const batch = whole.items;
    const startedMs = performance.now();
    this.#begun(whole);
    const end = this.#onEndOrLate(() => this.#ended(whole));
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

  /**
   * Calls `leave` once: when the batch becomes late, unless too many are late, or when the caller says that it ended.
   */
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
