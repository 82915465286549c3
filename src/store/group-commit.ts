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
  /** Whose item it is: owners take turns. Default: all items have one owner. */
  readonly ownerOf?: (item: T) => string;
  /** Batches under way at once. */
  readonly concurrencyMax: number;
  /**
   * The same where a whole batch waits: it gains nothing by waiting longer, and the database can work on it while others
   * are being made durable. Default: `concurrencyMax`.
   */
  readonly fullConcurrencyMax?: number;
  /** Weight of one batch (documents, or 1 an item); a single heavier item still goes, alone. */
  readonly batchWeightMax: number;
  /**
   * Weight waiting at most, over all owners. One owner may fill as much as it leaves free, so half when it is alone. Past
   * that an item is refused at once as unavailable.
   */
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

/** What one owner has waiting and under way. */
interface Owner<T, R> {
  readonly name: string;
  waiting: Waiting<T, R>[];
  weight: number;
  /** Heavy batches of this owner under way. */
  running: number;
}

interface Batch<T, R> {
  readonly items: Waiting<T, R>[];
  /** Undefined: of light items, which several owners share. */
  readonly heavyOwner: Owner<T, R> | undefined;
}

/** An item that weighs more than this part of a batch is heavy: it makes others wait, so it shares its batch with no other owner. */
const heavyPart = 0.1;

/**
 * Joins operations that arrive while others are under way into one batch: each caller waits for its own item and gets
 * its own outcome, but a round trip and a journal flush are shared. An item that finds nothing under way goes at once.
 *
 * Owners take turns. Light items of all owners go together; heavy ones in batches of their own owner, one at a time while
 * another owner waits. An owner that is alone gets everything.
 */
export class GroupCommit<T, R> {
  readonly #options: GroupCommitOptions<T, R>;
  /** Those with anything waiting, in the order of their turns. */
  readonly #turns = new Map<string, Owner<T, R>>();
  /** Those with a heavy batch under way. */
  readonly #busy = new Map<string, Owner<T, R>>();
  #queueWeight = 0;
  #lightRunning = 0;
  #heavyRunning = 0;
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
      // After the input events of this turn of the event loop, so that what arrived together leaves together.
      setImmediate(() => {
        this.#scheduled = false;
        this.#pump();
      });
    });
  }

  #isHeavy({ waiting }: Owner<T, R>): boolean {
    return (waiting[0] as Waiting<T, R>).weight > heavyPart * this.#options.batchWeightMax;
  }

  /** The owner whose turn it is, of those that may begin a batch. */
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

  /** From each owner in turn as much as a heavy item would weigh, until the batch is full or no light item is left. */
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
   * Moves items of the owner to `items`, the first heavier than `itemMax` left out, and the owner to the end of the turns.
   * Answers their weight: at most `room`, unless a single item weighs more than a batch.
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
