import { setTimeout as delay } from "node:timers/promises";
import type { Db } from "mongodb";
import { bounded } from "./database.ts";
import { organizationCollection } from "./organizations.ts";
import { Pace } from "./pace.ts";
import { type RemovalOptions, removeRowsBefore } from "./row-removal.ts";
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
  /** Whether this instance does the work now: one does it for all. */
  readonly isDoer: () => Promise<boolean>;
  /** Whether the clock can be trusted: what a wrong one removes is lost. Default: always. */
  readonly isClockSure?: () => boolean;
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
    await this.#reported(async () => {
      if (!(await this.#isDoer())) return;
      const found = await bounded(organizationCollection(this.#db).find({}, { projection }).toArray());
      for (const { _id, retainDays = this.#options.retainDays } of found) {
        // A round may take hours. What an operator decides meanwhile, it respects.
        const isStillSet = async () => (await this.#retainDaysOf(_id)) === retainDays;
        if (retainDays > 0) await this.#removeOlder(removeRowsBefore, _id, retainDays, pace, isStillSet);
      }
      const nowMs = performance.now();
      if (nowMs - this.#lookedForTestsAtMs < lookForTestsEveryMs) return;
      let isDone = true;
      for (const id of await testOrganizations(this.#db)) {
        isDone = (await this.#removeOlder(removeTestData, id, testDays, pace)) && isDone;
      }
      if (isDone) this.#lookedForTestsAtMs = nowMs;
    });
  }

  /**
   * Removes data of an organisation that is older. Returns false if some may be left: this work is another instance's, or
   * not wanted any more, or failed.
   */
  async #removeOlder(
    remove: (db: Db, organizationId: string, before: Date, options: RemovalOptions) => AsyncGenerator<number, void>,
    organizationId: string,
    days: number,
    pace: Pace,
    isStillSet: () => Promise<boolean> = async () => true,
  ): Promise<boolean> {
    const { signal } = this.#stopping;
    const now = new Date(this.#options.now());
    const steps = remove(this.#db, organizationId, new Date(now.getTime() - days * dayMs), { now, signal, pace });
    for (let askedMs = Number.NEGATIVE_INFINITY; !signal.aborted;) {
      if (performance.now() - askedMs >= askEveryMs) {
        if (!(await this.#isDoer()) || !(await isStillSet())) return false;
        askedMs = performance.now();
      }
      const startedMs = performance.now();
      // An organisation whose removal fails must not keep the next ones from their turn.
      const step = await this.#reported(() => steps.next());
      if (step === undefined || step.done === true) return step !== undefined;
      await pace.rest(performance.now() - startedMs, signal);
    }
    return false;
  }

  async #isDoer(): Promise<boolean> {
    const { isDoer, isClockSure = () => true } = this.#options;
    return isClockSure() && bounded(isDoer());
  }

  /** Undefined if it failed. */
  async #reported<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.#options.onError(error);
      return undefined;
    }
  }

  async #retainDaysOf(_id: string): Promise<number> {
    const found = await bounded(organizationCollection(this.#db).findOne({ _id }, { projection }));
    return found?.retainDays ?? this.#options.retainDays;
  }
}

const projection = { retainDays: 1 } as const;
