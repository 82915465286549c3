import { setTimeout as delay } from "node:timers/promises";
import type { Db } from "mongodb";
import { bounded } from "./database.ts";
import { isFirstInstance } from "./instances.ts";
import { organizationCollection } from "./organizations.ts";
import { removeRowsBefore, restAfter } from "./row-removal.ts";

const lookEveryMs = 60_000;
const dayMs = 86_400_000;
export interface RetentionOptions {
  readonly instanceId: string;
  /** For organisations without a setting of their own; 0 keeps everything. */
  readonly retainDays: number;
  /** The server's clock, in milliseconds since 1970. */
  readonly now: () => number;
  readonly onError: (error: unknown) => void;
}

/**
 * Removes events and snapshot history that are older than their organisation keeps them, by timestamp. One instance does
 * it for all, in small steps; if it dies, another goes on. Cards stay.
 */
export class Retention {
  readonly #db: Db;
  readonly #options: RetentionOptions;
  readonly #stopping = new AbortController();
  #running: Promise<void> | undefined;

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
    const { instanceId, retainDays: retainDaysDefault, now, onError } = this.#options;
    try {
      const projection = { retainDays: 1 } as const;
      const found = await bounded(organizationCollection(this.#db).find({}, { projection }).toArray());
      for (const { _id, retainDays = retainDaysDefault } of found) {
        if (retainDays === 0) continue;
        const options = { now: new Date(now()), signal: this.#stopping.signal };
        const time = new Date(options.now.getTime() - retainDays * dayMs);
        const steps = removeRowsBefore(this.#db, _id, time, options);
        for (;;) {
          if (this.#stopping.signal.aborted || !(await bounded(isFirstInstance(this.#db, instanceId)))) return;
          const startedMs = performance.now();
          if ((await steps.next()).done) break;
          await restAfter(performance.now() - startedMs, this.#stopping.signal);
        }
      }
    } catch (error) {
      if (!this.#stopping.signal.aborted) onError(error);
    }
  }
}
