import { type Fault, unavailable } from "../errors.ts";

export interface BodyBudgetOptions {
  /** Bytes of all bodies in memory, from their first byte until their answer has left. */
  readonly bodiesBytesMax: number;
  /** From here on a body that is still arriving counts as slow, in milliseconds. */
  readonly slowBodyMs: number;
}

/** What the caller is told; over RPC it is how the fault is recognised. */
export const tooManyBodies = "The service is reading too many bodies at once.";

/**
 * Bounds the bytes of request bodies that are in memory at once, over all callers: while they arrive, while they wait in
 * the queues of the stores, until their answer has left. When there is no room, the bodies that have been arriving
 * longest make it, if they are slow: a caller that sends a byte a second must not keep out one that sends a megabyte at
 * once. If none is slow, the newcomer is refused as unavailable.
 */
export class BodyBudget {
  readonly #options: BodyBudgetOptions;
  /** Still arriving, the oldest first. */
  readonly #arriving = new Set<BodyHold>();
  #bytes = 0;

  constructor(options: BodyBudgetOptions) {
    this.#options = options;
  }

  /** A place for one body. `cut` ends its request without an answer. */
  open(cut: () => void): BodyHold {
    const hold = new BodyHold(
      (bytes) => (this.#bytes += bytes),
      () => this.#hasRoom(hold),
      () => this.#arriving.delete(hold),
      cut,
    );
    this.#arriving.add(hold);
    return hold;
  }

  #hasRoom(newcomer: BodyHold): boolean {
    const { bodiesBytesMax, slowBodyMs } = this.#options;
    if (this.#bytes <= bodiesBytesMax) return true;
    const slowBefore = performance.now() - slowBodyMs;
    for (const hold of this.#arriving) {
      if (hold.openedAtMs > slowBefore) break;
      if (hold === newcomer) continue;
      hold.cut();
      if (this.#bytes <= bodiesBytesMax) return true;
    }
    return false;
  }
}

/** One body's share of the budget. */
export class BodyHold {
  readonly openedAtMs = performance.now();
  readonly #add: (bytes: number) => void;
  readonly #hasRoom: () => boolean;
  readonly #arrived: () => void;
  readonly #cut: () => void;
  #bytes = 0;

  constructor(add: (bytes: number) => void, hasRoom: () => boolean, arrived: () => void, cut: () => void) {
    this.#add = add;
    this.#hasRoom = hasRoom;
    this.#arrived = arrived;
    this.#cut = cut;
  }

  /** Accounts for more bytes. Answers the fault that ends the request when there is no room for them. */
  take(bytes: number): Fault | undefined {
    this.#bytes += bytes;
    this.#add(bytes);
    return this.#hasRoom() ? undefined : unavailable(new Error(tooManyBodies));
  }

  /** The whole body is here: it will not be cut off any more. */
  arrived(): void {
    this.#arrived();
  }

  cut(): void {
    this.release();
    this.#cut();
  }

  /** Its answer has left, or nobody waits for one. */
  release(): void {
    this.#arrived();
    this.#add(-this.#bytes);
    this.#bytes = 0;
  }
}
