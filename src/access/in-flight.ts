/** The requests in flight that may store something. */
export class InFlight {
  readonly #running = new Set<Promise<unknown>>();

  track<T>(work: Promise<T>): Promise<T> {
    const end = () => this.#running.delete(work);
    this.#running.add(work);
    work.then(end, end);
    return work;
  }

  /** Resolves when all that are in flight now have ended. */
  ended(): Promise<unknown> {
    return Promise.allSettled(this.#running);
  }
}
