import { setTimeout as delay } from "node:timers/promises";
import type { Db } from "mongodb";
import { bounded } from "./database.ts";
import { isFirstInstance } from "./instances.ts";
import { organizationCollection } from "./organizations.ts";
import { Pace, removeRowsBefore } from "./row-removal.ts";
import { removeTestData, testOrganizations } from "./test-data.ts";

const lookEveryMs = 60_000;
/** Instances are seen every few seconds, so the doer does not change more often. */
const askEveryMs = 1_000;
const dayMs = 86_400_000;
/** Days after receipt for which test data stays. */
const testDays = 7;
/** Milliseconds between two looks for old test data. It has no index by receipt, so a look costs more. */
const lookForTestsEveryMs = 3_600_000;

export interface RetentionOptions {
  readonly instanceId: string;
  /** For organisations without a setting of their own; 0 keeps everything. */
  readonly retainDays: number;
  /** The server's clock, in milliseconds since 1970. */
  readonly now: () => number;
  readonly onError: (error: unknown) => void;
}

/**
 * Removes events and snapshot history that are older than their organisation keeps them, by timestamp. Cards stay. Test
 * data goes `testDays` after its receipt, with its cards and workers. One instance does it for all, in small steps; if it
 * dies, another goes on.
 */
export class Retention {
  readonly #db: Db;
  readonly #options: RetentionOptions;
  readonly #stopping = new AbortController();
  #running: Promise<void> | undefined;
  #lookedForTestsAtMs = Number.NEGATIVE_INFINITY;

  constructor(db: Db, options: RetentionOptions) {
    this.#db = db;
    this.#options = options;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      await this.look();
      await delay(lookEveryMs, undefined, { signal, ref: false }).catch(() => {});
    }
  }

  /** Removes all that is too old now, if that is this instance's work. Never rejects. */
  async look(): Promise<void> {
    const pace = new Pace();
    try {
      await this.#removeOldRows(pace);
      const nowMs = performance.now();
      if (nowMs - this.#lookedForTestsAtMs < lookForTestsEveryMs) return;
      if (await this.#removeTestData(pace)) this.#lookedForTestsAtMs = nowMs;
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.#options.onError(error);
    }
  }

  async #removeOldRows(pace: Pace): Promise<void> {
    const { retainDays: retainDaysDefault, now } = this.#options;
    const projection = { retainDays: 1 } as const;
    const found = await bounded(organizationCollection(this.#db).find({}, { projection }).toArray());
    for (const { _id, retainDays = retainDaysDefault } of found) {
      if (retainDays === 0) continue;
      const options = { now: new Date(now()), signal: this.#stopping.signal, pace };
      const time = new Date(options.now.getTime() - retainDays * dayMs);
      if (!(await this.#carryOut(removeRowsBefore(this.#db, _id, time, options), pace))) return;
    }
  }

  /** Returns whether all that is due is gone. */
  async #removeTestData(pace: Pace): Promise<boolean> {
    if (!(await this.#isDoer())) return false;
    for (const id of await testOrganizations(this.#db)) {
      const options = { now: new Date(this.#options.now()), signal: this.#stopping.signal, pace };
      const time = new Date(options.now.getTime() - testDays * dayMs);
      if (!(await this.#carryOut(removeTestData(this.#db, id, time, options), pace))) return false;
    }
    return true;
  }

  /** Returns false if it stopped because the work is another instance's, or this one ends. */
  async #carryOut(steps: AsyncGenerator<number, void>, pace: Pace): Promise<boolean> {
    const { signal } = this.#stopping;
    for (let askedMs = Number.NEGATIVE_INFINITY; !signal.aborted;) {
      if (performance.now() - askedMs >= askEveryMs) {
        if (!(await this.#isDoer())) return false;
        askedMs = performance.now();
      }
      const startedMs = performance.now();
      if ((await steps.next()).done) return true;
      await pace.rest(performance.now() - startedMs, signal);
    }
    return false;
  }

  #isDoer(): Promise<boolean> {
    return bounded(isFirstInstance(this.#db, this.#options.instanceId));
  }
}
