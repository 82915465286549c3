import { Activity, FairTurns, type Turn } from "../../access/fair-turns.ts";
import { type Fault, unavailable } from "../../errors.ts";
import type { ServerBounds } from "./server-limits.ts";

export type BodyBudgetOptions = Pick<
  ServerBounds,
  | "bodiesBytesMax"
  | "slowBodyMs"
  | "sharedBodiesBytesMax"
  | "heavyBodyBytes"
  | "largeBodyBytes"
  | "largeBodiesMax"
  | "largeBodyWaitMs"
>;

/** For the log. */
const tooManyBodies = "The service is reading too many bodies at once.";

/**
 * Bounds the bytes of all request bodies in memory, from their arrival until their answer has left. An organisation may
 * hold as much as it leaves free: half of the budget when it is alone, so that a newcomer finds room. An organisation past
 * its share loses its slow bodies, the oldest first. If it has none, its new body is refused as unavailable.
 *
 * Decoding a body can take many times its size, and blocks the event loop. So organisations decode in turns: see
 * `FairTurns`.
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
   * Opens the lease of one body. `cut` ends its request without an answer. `ownerOf` returns its owner when the first
   * byte has arrived. All strangers are one owner.
   */
  open(cut: () => void, ownerOf: () => string = () => ""): BodyLease {
    return new BodyLease(this, cut, ownerOf);
  }

  /** For leases: takes more bytes. Returns whether there was room for them. */
  take(lease: BodyLease, bytes: number): boolean {
    const { bodiesBytesMax, slowBodyMs } = this.#options;
    const share = this.#shareOf(lease.owner);
    share.bytes += bytes;
    this.#bytes += bytes;
    if (lease.isArriving) share.arriving.add(lease);
    const hasRoom = () => share.bytes <= bodiesBytesMax - this.#bytes;
    if (hasRoom()) return true;
    const slowBefore = performance.now() - slowBodyMs;
    for (const other of share.arriving) {
      if (other.openedAtMs > slowBefore) break;
      if (other !== lease) other.cut();
      if (hasRoom()) return true;
    }
    return false;
  }

  /** For leases: the whole body has arrived. */
  arrived(lease: BodyLease): void {
    this.#shares.get(lease.owner)?.arriving.delete(lease);
  }

  /** For leases: the body has left the memory. */
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

/** The bodies of one owner. */
interface Share {
  bytes: number;
  /** Bodies that are arriving, the oldest first. */
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
  /** How many bytes have a turn or wait for one. */
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
   * Takes more bytes. Returns a fault that ends the request if there is no room for them. It also refuses bytes of a
   * released body, which may still be decompressing, because nothing would give them back.
   */
  take(bytes: number): Fault | undefined {
    if (this.#isReleased) return unavailable(new Error(tooManyBodies));
    this.#bytes += bytes;
    return this.#budget.take(this, bytes) ? undefined : unavailable(new Error(tooManyBodies));
  }

  /** The whole body has arrived, so the budget no longer cuts it off. */
  arrived(): void {
    if (!this.#isArriving) return;
    this.#isArriving = false;
    this.#budget.arrived(this);
  }

  /**
   * Wait for this before you decode the body; undefined if you may at once. Resolves to a fault that ends the request if
   * the wait is too long. After more bytes were taken, for example by decompression, it is a new turn.
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

  /** Ends the turn: the answer is known, so the decoded body is no longer needed. */
  done(): void {
    this.#turn?.leave();
    this.#turn = undefined;
  }

  cut(): void {
    this.release();
    this.#cut();
  }

  /** Gives everything back: the answer has left, or the caller has gone away. */
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
