import type { Db } from "mongodb";
import { bounded, databaseTimeouts } from "./database.ts";

/**
 * Estimates the database server's clock, so that instances with other clocks agree on times of receipt and on expiry.
 * The server's TTL sweep uses the same clock. Between measurements it follows the process's monotonic clock, so a step
 * of the machine's clock does not move it.
 */
export class ServerClock {
  readonly #db: Db;
  /** The server's time minus `performance.now()`; undefined before the first measurement. */
  #offsetMs: number | undefined;

  private constructor(db: Db) {
    this.#db = db;
  }

  static async start(db: Db): Promise<ServerClock> {
    const clock = new ServerClock(db);
    await clock.measure(databaseTimeouts.operationMs);
    return clock;
  }

  /** In whole milliseconds since 1970. */
  readonly now = (): number => Math.floor(performance.now() + (this.#offsetMs as number));

  /** How far this machine's clock is ahead of the server's; negative if it is behind. */
  get skewMs(): number {
    return Date.now() - this.now();
  }

  /**
   * Asks the server for its time. The server read its clock between question and answer, which bounds the offset. An
   * offset within the bounds stays; any other moves to the nearer bound. So a slow answer does no harm.
   */
  async measure(withinMs = 1_000): Promise<void> {
    const askedMs = performance.now();
    const { localTime } = await bounded(this.#db.command({ hello: 1 }), withinMs);
    const answeredMs = performance.now();
    const serverMs = (localTime as Date).getTime();
    // The server truncates to whole milliseconds.
    const [least, most] = [serverMs - answeredMs, serverMs + 1 - askedMs];
    this.#offsetMs = Math.min(most, Math.max(least, this.#offsetMs ?? (least + most) / 2));
  }
}
