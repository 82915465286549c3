import type { Identity } from "../access/identity.ts";
import { Fault, unavailable } from "../errors.ts";
import { timelineLimits } from "../limits.ts";

/** Counts the open streams of this process. Each one reads the whole oplog, whatever its filters. */
export class RequestWatches {
  static readonly max = 50;
  static readonly perCallerMax = 5;
  readonly #ofCallers = new Map<string, number>();
  #count = 0;
  #isStopping = false;

  /**
   * Takes a place. @returns a function that leaves it, to be called once.
   * @throws Fault rate_limited when the caller has too many streams; unavailable.
   */
  enter({ kind, id }: Identity): () => void {
    this.check();
    const caller = `${kind} ${id}`;
    const own = this.#ofCallers.get(caller) ?? 0;
    const { heartbeatSeconds: retryAfterSeconds } = timelineLimits;
    if (own >= RequestWatches.perCallerMax) {
      const message = `Your credential already has ${own} streams on this instance; at most ${RequestWatches.perCallerMax} are allowed.`;
      throw new Fault("rate_limited", message, { retryAfterSeconds });
    }
    if (this.#count >= RequestWatches.max) {
      throw unavailable(new Error(`${this.#count} streams of requests on this instance`), retryAfterSeconds);
    }
    this.#add(caller, 1);
    return () => this.#add(caller, -1);
  }

  /** @throws Fault unavailable when the process stops. */
  check(): void {
    if (this.#isStopping) throw unavailable(new Error("the server is stopping"));
  }

  /** Ends all streams and refuses new ones. */
  stop(): void {
    this.#isStopping = true;
  }

  #add(caller: string, change: 1 | -1): void {
    this.#count += change;
    const own = (this.#ofCallers.get(caller) ?? 0) + change;
    if (own === 0) this.#ofCallers.delete(caller);
    else this.#ofCallers.set(caller, own);
  }
}
