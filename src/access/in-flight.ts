/** The requests that began between two calls of `ended`. */
export interface Generation {
  running: number;
  isClosed: boolean;
  readonly over: PromiseWithResolvers<void>;
}

const newGeneration = (): Generation => ({ running: 0, isClosed: false, over: Promise.withResolvers() });

/** The requests in flight that may store something. */
export class InFlight {
  #latest = newGeneration();
  #earlier: Promise<unknown> = Promise.resolve();

  /** A request begins. Returns what `leave` takes when it ends. */
  enter(): Generation {
    this.#latest.running++;
    return this.#latest;
  }

  leave(generation: Generation): void {
    generation.running--;
    settle(generation);
  }

  /** Resolves when all that are in flight now have ended. */
  ended(): Promise<unknown> {
    const closed = this.#latest;
    closed.isClosed = true;
    settle(closed);
    this.#latest = newGeneration();
    this.#earlier = Promise.all([this.#earlier, closed.over.promise]);
    return this.#earlier;
  }
}

function settle({ running, isClosed, over }: Generation): void {
  if (running === 0 && isClosed) over.resolve();
}
