import { type Fault, unavailable } from "../../errors.ts";

export interface BodyBudgetOptions {
  /** Bytes of all bodies in memory, from their first byte until their answer has left. */
  readonly bodiesBytesMax: number;
  /** From here on a body that is still arriving counts as slow, in milliseconds. */
  readonly slowBodyMs: number;
  /** From here on a body is large. */
  readonly largeBodyBytes: number;
  /** Large bodies at once that are decoded and not yet answered. */
  readonly largeBodiesMax: number;
  /** A large body waits at most so long to be decoded, in milliseconds. */
  readonly largeBodyWaitMs: number;
}

/** What the caller is told; over RPC it is how the fault is recognised. */
export const tooManyBodies = "The service is reading too many bodies at once.";

/**
 * Bounds the bytes of request bodies that are in memory at once, over all callers: while they arrive, while they wait in
 * the queues of the stores, until their answer has left. When there is no room, the bodies that have been arriving
 * longest make it, if they are slow: a caller that sends a byte a second must not keep out one that sends a megabyte at
 * once. So do those that hold more than twice as much as the newcomer, the ones that wait to be decoded too: large bodies
 * keep out no small ones. If there is none of either, the newcomer is refused as unavailable.
 *
 * A large body can become objects of many times its size, and keeps the event loop busy while it does. So they are decoded
 * one in a turn of the event loop, with time for everybody else between them, and few at once are kept as objects; the
 * others wait as the bytes that they are.
 */
export class BodyBudget {
  readonly #options: BodyBudgetOptions;
  /** Still arriving, the oldest first. */
  readonly #arriving = new Set<BodyLease>();
  /** Large bodies that wait to be decoded, the oldest first. */
  readonly #waiting = new Set<BodyLease>();
  /** Large bodies that are decoded. */
  #decoded = 0;
  /** Whether one has begun in this turn of the event loop. */
  #hasBegun = false;
  #bytes = 0;
  readonly #shares: Shares = {
    add: (bytes) => (this.#bytes += bytes),
    hasRoom: (hold) => this.#hasRoom(hold),
    arrived: (hold) => this.#arriving.delete(hold),
    wait: (hold) => {
      this.#waiting.add(hold);
      this.#next();
    },
    leave: (hold) => this.#waiting.delete(hold),
    done: () => {
      this.#decoded--;
      this.#next();
    },
  };

  constructor(options: BodyBudgetOptions) {
    this.#options = options;
  }

  /** A place for one body. `cut` ends its request without an answer. */
  open(cut: () => void): BodyLease {
    const hold = new BodyLease(this.#options, this.#shares, cut);
    this.#arriving.add(hold);
    return hold;
  }

  #hasRoom(newcomer: BodyLease): boolean {
    const { bodiesBytesMax, slowBodyMs } = this.#options;
    if (this.#bytes <= bodiesBytesMax) return true;
    const slowBefore = performance.now() - slowBodyMs;
    for (const hold of this.#arriving) {
      const isSlow = hold.openedAtMs <= slowBefore;
      if (hold === newcomer || (!isSlow && hold.bytes <= smallerBy * newcomer.bytes)) continue;
      hold.cut();
      if (this.#bytes <= bodiesBytesMax) return true;
    }
    for (const hold of this.#waiting) {
      if (hold.bytes <= smallerBy * newcomer.bytes) continue;
      // Which refuses it.
      hold.release();
      if (this.#bytes <= bodiesBytesMax) return true;
    }
    return false;
  }

  #next(): void {
    if (this.#hasBegun || this.#decoded >= this.#options.largeBodiesMax) return;
    const [first] = this.#waiting;
    if (first === undefined) return;
    this.#waiting.delete(first);
    this.#decoded++;
    this.#hasBegun = true;
    const begunMs = performance.now();
    first.begin();
    setImmediate(() => {
      const goOn = () => {
        this.#hasBegun = false;
        this.#next();
      };
      const busyMs = performance.now() - begunMs;
      if (busyMs < longDecodeMs) goOn();
      else setTimeout(goOn, busyMs);
    });
  }
}

/** How much smaller than a body that arrives or waits a newcomer must be to take its place. */
const smallerBy = 2;

/** Decoding that kept the event loop busy for longer is followed by a pause as long, in milliseconds. */
const longDecodeMs = 25;

/** What bodies ask of their budget. */
interface Shares {
  add(bytes: number): void;
  hasRoom(hold: BodyLease): boolean;
  arrived(hold: BodyLease): void;
  /** Waits to be decoded: `begin` is called when it may. */
  wait(hold: BodyLease): void;
  /** Waits no longer. */
  leave(hold: BodyLease): void;
  /** What it was decoded to is not needed any more. */
  done(): void;
}

/** One body's share of the budget. */
export class BodyLease {
  readonly openedAtMs = performance.now();
  readonly #options: BodyBudgetOptions;
  readonly #shares: Shares;
  readonly #cut: () => void;
  #bytes = 0;
  #isReleased = false;
  #isDecoded = false;
  /** Ends the wait to be decoded. */
  #settle: ((refusal: Fault | undefined) => void) | undefined;

  constructor(options: BodyBudgetOptions, shares: Shares, cut: () => void) {
    this.#options = options;
    this.#shares = shares;
    this.#cut = cut;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Accounts for more bytes. Answers the fault that ends the request when there is no room for them, or nobody waits for it
   * any more: what is being decompressed then still comes, and nobody would ever give it back.
   */
  take(bytes: number): Fault | undefined {
    if (this.#isReleased) return unavailable(new Error(tooManyBodies));
    this.#bytes += bytes;
    this.#shares.add(bytes);
    return this.#shares.hasRoom(this) ? undefined : unavailable(new Error(tooManyBodies));
  }

  /** The whole body is here: it will not be cut off any more. */
  arrived(): void {
    this.#shares.arrived(this);
  }

  /**
   * To be waited for before the body is decoded; undefined when it may be at once. Resolves to the fault that ends the
   * request when there are too many before it.
   */
  turn(): Promise<Fault | undefined> | undefined {
    if (this.#isDecoded || this.#bytes < this.#options.largeBodyBytes) return undefined;
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#leave(), this.#options.largeBodyWaitMs);
      this.#settle = (refusal) => {
        clearTimeout(timer);
        this.#settle = undefined;
        resolve(refusal);
      };
      this.#shares.wait(this);
    });
  }

  /** For the budget: the body's turn has come. */
  begin(): void {
    this.#isDecoded = true;
    this.#settle?.(undefined);
  }

  /** The answer is known: what the body was decoded to is not needed any more. */
  done(): void {
    if (!this.#isDecoded) return;
    this.#isDecoded = false;
    this.#shares.done();
  }

  cut(): void {
    this.release();
    this.#cut();
  }

  /** Its answer has left, or nobody waits for one. */
  release(): void {
    this.#isReleased = true;
    this.#leave();
    this.done();
    this.#shares.arrived(this);
    this.#shares.add(-this.#bytes);
    this.#bytes = 0;
  }

  #leave(): void {
    this.#shares.leave(this);
    this.#settle?.(unavailable(new Error(tooManyBodies)));
  }
}
