import { Activity, FairTurns, type Turn } from "../../access/fair-turns.ts";
import { type Fault, unavailable } from "../../errors.ts";

export interface BodyBudgetOptions {
  /** Bytes of all bodies in memory, from their first byte until their answer has left. */
  readonly bodiesBytesMax: number;
  /** From here on a body that is still arriving counts as slow, in milliseconds. */
  readonly slowBodyMs: number;
  /** Bytes of one organisation's bodies that are decoded and not yet answered, while others are active. */
  readonly sharedBodiesBytesMax: number;
  /** From here on a body is heavy: while others are active one is decoded in a turn of the event loop. */
  readonly heavyBodyBytes: number;
  /** From here on a body is large: one is decoded in a turn of the event loop, whoever is active. */
  readonly largeBodyBytes: number;
  /** Large bodies at once that are decoded and not yet answered. */
  readonly largeBodiesMax: number;
  /** A body waits at most so long to be decoded, in milliseconds. */
  readonly largeBodyWaitMs: number;
}

/** For the log: why a body was refused. */
const tooManyBodies = "The service is reading too many bodies at once.";

/**
 * Bounds the bytes of request bodies in memory, over all callers: while they arrive, while they wait to be decoded and in
 * the queues of the stores, until their answer has left. An organisation may hold as much as it leaves free, so half of
 * the budget when it is alone, and whoever comes then still finds room. An organisation that has used up its share makes
 * room with its own slow bodies, the oldest first; without any, the newcomer is refused as unavailable.
 *
 * A body can become objects of many times its size, and keeps the event loop busy while it does. So organisations take
 * turns at having theirs decoded: see `FairTurns`.
 */
export class BodyBudget {
  readonly #options: BodyBudgetOptions;
  readonly #turns: FairTurns;
  readonly #shares = new Map<string, Share>();
  #bytes = 0;

  constructor(options: BodyBudgetOptions, activity = new Activity()) {
    this.#options = options;
    this.#turns = new FairTurns(activity, {
      sharedCostMax: options.sharedBodiesBytesMax,
      aloneCostMax: Number.POSITIVE_INFINITY,
      heavyCost: options.heavyBodyBytes,
      restTimes: 1,
      largeCost: options.largeBodyBytes,
      largeMax: options.largeBodiesMax,
      waitMs: options.largeBodyWaitMs,
    });
  }

  /**
   * A place for one body. `cut` ends its request without an answer. `ownerOf` tells whose it is, once its first byte is
   * here; bodies of strangers have one owner together.
   */
  open(cut: () => void, ownerOf: () => string = () => ""): BodyLease {
    return new BodyLease(this, cut, ownerOf);
  }

  /** For leases: accounts for more bytes of one. Answers whether there was room for them. */
  take(lease: BodyLease, bytes: number): boolean {
    const { bodiesBytesMax, slowBodyMs } = this.#options;
    const share = this.#shareOf(lease.owner);
    share.bytes += bytes;
    this.#bytes += bytes;
    const hasRoom = () => share.bytes <= bodiesBytesMax - this.#bytes;
    const slowBefore = performance.now() - slowBodyMs;
    for (const other of share.arriving) {
      if (hasRoom() || other.openedAtMs > slowBefore) break;
      if (other !== lease) other.cut();
    }
    if (lease.isArriving) share.arriving.add(lease);
    return hasRoom();
  }

  /** For leases: the whole body is here. */
  arrived(lease: BodyLease): void {
    this.#shares.get(lease.owner)?.arriving.delete(lease);
  }

  /** For leases: the body is not in memory any more. */
  giveBack(lease: BodyLease): void {
    const share = this.#shareOf(lease.owner);
    share.bytes -= lease.bytes;
    this.#bytes -= lease.bytes;
    if (share.bytes === 0 && share.arriving.size === 0) this.#shares.delete(lease.owner);
  }

  /** For leases: asks for a turn to decode the body. */
  enter(lease: BodyLease, begin: (refusal: Fault | undefined) => void): Turn {
    return this.#turns.enter(lease.owner, lease.bytes, begin);
  }

  #shareOf(owner: string): Share {
    let share = this.#shares.get(owner);
    if (share === undefined) this.#shares.set(owner, (share = { bytes: 0, arriving: new Set() }));
    return share;
  }
}

/** What one owner has in memory. */
interface Share {
  bytes: number;
  /** Still arriving, the oldest first. */
  readonly arriving: Set<BodyLease>;
}

/** One body's part of the budget. */
export class BodyLease {
  readonly openedAtMs = performance.now();
  readonly #budget: BodyBudget;
  readonly #cut: () => void;
  readonly #ownerOf: () => string;
  #owner: string | undefined;
  #bytes = 0;
  #isArriving = true;
  #isReleased = false;
  #turn: Turn | undefined;
  /** Of the bytes that have a turn or wait for one. */
  #turnBytes = 0;
  /** Ends the wait to be decoded. */
  #settle: ((refusal: Fault | undefined) => void) | undefined;

  constructor(budget: BodyBudget, cut: () => void, ownerOf: () => string) {
    this.#budget = budget;
    this.#cut = cut;
    this.#ownerOf = ownerOf;
  }

  get owner(): string {
    return (this.#owner ??= this.#ownerOf());
  }

  get bytes(): number {
    return this.#bytes;
  }

  get isArriving(): boolean {
    return this.#isArriving;
  }

  /**
   * Accounts for more bytes. Answers the fault that ends the request when there is no room for them. Bytes of a released
   * body are refused too: it may still be being decompressed, and nobody would give them back.
   */
  take(bytes: number): Fault | undefined {
    if (this.#isReleased) return unavailable(new Error(tooManyBodies));
    this.#bytes += bytes;
    return this.#budget.take(this, bytes) ? undefined : unavailable(new Error(tooManyBodies));
  }

  /** The whole body is here: it will not be cut off any more. */
  arrived(): void {
    this.#isArriving = false;
    this.#budget.arrived(this);
  }

  /**
   * To be waited for before the body is decoded; undefined when it may be at once. Resolves to the fault that ends the
   * request when there are too many before it. Asked again after more bytes were taken, as by decompression, it is another
   * turn.
   */
  turn(): Promise<Fault | undefined> | undefined {
    if (this.#turnBytes === this.#bytes) return undefined;
    this.done();
    if (this.#isReleased) return Promise.resolve(unavailable(new Error(tooManyBodies)));
    this.#turnBytes = this.#bytes;
    let hasBegun = false;
    this.#turn = this.#budget.enter(this, (refusal) => {
      hasBegun = true;
      this.#settle?.(refusal);
    });
    if (hasBegun) return undefined;
    return new Promise((resolve) => {
      this.#settle = (refusal) => {
        this.#settle = undefined;
        resolve(refusal);
      };
    });
  }

  /** The answer is known: what the body was decoded to is not needed any more. */
  done(): void {
    this.#turn?.leave();
    this.#turn = undefined;
  }

  cut(): void {
    this.release();
    this.#cut();
  }

  /** Its answer has left, or nobody waits for one. */
  release(): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    this.done();
    this.#settle?.(unavailable(new Error(tooManyBodies)));
    this.arrived();
    this.#budget.giveBack(this);
    this.#bytes = 0;
  }
}
