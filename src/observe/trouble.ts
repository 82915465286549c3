import type { Logger } from "pino";

export interface TroubleLogOptions {
  readonly logger: Logger;
  /** Default: the process's clock. */
  readonly now?: () => number;
  /** Between two counts, and without a failure until the trouble counts as over. */
  readonly everyMs?: number;
}

interface Trouble {
  readonly message: string;
  readonly sinceMs: number;
  lastMs: number;
  /** Since the last line about this kind. */
  repeats: number;
  total: number;
}

/** Further kinds count as one. */
const kindsMax = 50;

/**
 * Logs failures of background work: the first of a kind in full, then a count once a minute, then the end. So a failure
 * that keeps repeating does not flood the log.
 */
export class TroubleLog {
  readonly #logger: Logger;
  readonly #now: () => number;
  readonly #everyMs: number;
  readonly #troubles = new Map<string, Trouble>();
  #timer: NodeJS.Timeout | undefined;

  constructor({ logger, now = () => performance.now(), everyMs = 60_000 }: TroubleLogOptions) {
    this.#logger = logger;
    this.#now = now;
    this.#everyMs = everyMs;
  }

  readonly onError = (error: unknown): void => {
    const message = error instanceof Error ? error.message : String(error);
    // Numbers and ids differ between failures of one kind.
    const own = message.slice(0, 300).replace(/[0-9a-f]+/gi, (run) => (/\d/.test(run) ? "#" : run));
    const kind = this.#troubles.has(own) || this.#troubles.size < kindsMax ? own : "others";
    const trouble = this.#troubles.get(kind);
    const now = this.#now();
    if (trouble !== undefined) {
      trouble.lastMs = now;
      trouble.repeats++;
      trouble.total++;
      return;
    }
    this.#troubles.set(kind, { message, sinceMs: now, lastMs: now, repeats: 0, total: 1 });
    this.#logger.warn({ err: error }, "background work failed");
    this.#timer ??= setInterval(() => this.sum(), this.#everyMs).unref();
  };

  sum(): void {
    const now = this.#now();
    for (const [kind, { message, sinceMs, lastMs, repeats, total }] of this.#troubles) {
      const seconds = Math.round((lastMs - sinceMs) / 1000);
      const what = { reason: message, times: total, seconds };
      if (repeats > 0) {
        this.#logger.warn(what, `background work failed ${repeats} more times`);
        (this.#troubles.get(kind) as Trouble).repeats = 0;
      } else if (now - lastMs >= this.#everyMs) {
        if (total > 1) this.#logger.warn(what, "background work no longer fails");
        this.#troubles.delete(kind);
      }
    }
    if (this.#troubles.size === 0) this.stop();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
