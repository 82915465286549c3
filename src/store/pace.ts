import { setTimeout as delay } from "node:timers/promises";

/** Rows that one read finds. */
export const foundRowsMax = 100;
/** Rows that one command removes or moves at first, so that callers' writes never wait long for one. */
const changedRowsMin = 12;

/** At first a rest is so many times as long as the step before: callers keep most of the database. */
const restTimesMax = 6;
const restTimesMin = 1;
const restMsMax = 5_000;

/** Hours before the pace rises. Five million rows go in less. */
const gentleHours = 2;

/**
 * The pace of a work on many rows. After `gentleHours`, each hour of the same work makes steps larger and rests shorter:
 * otherwise an installation that stores more rows than it removes would never catch up.
 */
export class Pace {
  readonly #now: () => number;
  readonly #startedMs: number;

  /** @param now the process's clock in milliseconds. */
  constructor(now = () => performance.now()) {
    this.#now = now;
    this.#startedMs = now();
  }

  get #hoursBehind(): number {
    return Math.max(0, (this.#now() - this.#startedMs) / 3_600_000 - gentleHours);
  }

  /** Rows that the next command may remove or move. */
  get rows(): number {
    return Math.min(Math.floor(changedRowsMin * (1 + this.#hoursBehind)), foundRowsMax);
  }

  /** Milliseconds to rest after a step that took this long. */
  restMs(tookMs: number): number {
    return Math.min(tookMs * Math.max(restTimesMin, restTimesMax - this.#hoursBehind / 2), restMsMax);
  }

  /** Rests after a step that took this long. Ends early, without an error, when the signal aborts. */
  async rest(tookMs: number, signal?: AbortSignal): Promise<void> {
    await delay(this.restMs(tookMs), undefined, { signal }).catch(() => {});
  }
}
