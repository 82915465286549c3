import type { Db } from "mongodb";
import { bounded, databaseTimeouts } from "./database.ts";

/**
 * The database server's clock, told by this process. Instances whose machines disagree about the time still agree about
 * when a request came, and about what has expired; the server's TTL sweep goes by the same clock.
 *
 * Between measurements it runs with the process's monotonic clock, so a step of the machine's clock does not move it.
 */
export class ServerClock {
  readonly #db: Db;
  /** The server's time less `performance.now()`; undefined before the first measurement. */
  #offsetMs: number | undefined;

  private constructor(db: Db) {
    this.#db = db;
  }

  /** @throws when the server does not tell its time. */
  static async start(db: Db): Promise<ServerClock> {
    const clock = new ServerClock(db);
    await clock.measure(databaseTimeouts.operationMs);
    return clock;
  }

  /** In whole milliseconds since 1970. */
  readonly now = (): number => Math.floor(performance.now() + (this.#offsetMs as number));

  /** By how much this machine's clock is ahead of the server's, in milliseconds; negative when it is behind. */
  get skewMs(): number {
    return Date.now() - this.now();
  }

  /**
   * Asks the server for its time. The server read its clock between the question and the answer, which bounds the offset:
   * an offset within the bounds stays, another moves to the nearer bound. So a slow answer changes nothing.
   * @param withinMs longest that the answer may take, in milliseconds.
   * @throws when there is no answer in time.
   */
  async measure(withinMs = 1_000): Promise<void> {
    const askedMs = performance.now();
    const { localTime } = await bounded(this.#db.command({ hello: 1 }), withinMs);
    const answeredMs = performance.now();
    const serverMs = (localTime as Date).getTime();
    // The server cuts off fractions of a millisecond.
    const [least, most] = [serverMs - answeredMs, serverMs + 1 - askedMs];
    this.#offsetMs = Math.min(most, Math.max(least, this.#offsetMs ?? (least + most) / 2));
  }
}
