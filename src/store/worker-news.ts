import type { ChangeStream, Db, Document } from "mongodb";
import { bounded } from "./database.ts";
import { following } from "./following.ts";
import { workers } from "./workers.ts";

export interface WorkerListener {
  workerChanged(workerId: string): void;
  /** Any worker may have changed without notice: the stream begins, or begins anew. */
  newsMissed(): void;
  onError(error: unknown): void;
}

/** The server answers at least this often while nothing changes, in milliseconds. */
const awaitMs = 500;
const reopenAfterMs = 500;

/**
 * News of workers that any instance has changed. It has a change stream of its own: one caller can change thousands of
 * workers a second, and news of a revoked key must not wait behind them.
 */
export class WorkerNews {
  readonly #db: Db;
  readonly #listener: WorkerListener;
  #stopped = false;
  #running: Promise<void> | undefined;

  constructor(db: Db, listener: WorkerListener) {
    this.#db = db;
    this.#listener = listener;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      // A new worker is in nobody's memory yet.
      const stream = this.#db
        .collection(workers.name)
        .watch([{ $match: { operationType: { $ne: "insert" } } }, { $project: { "documentKey._id": 1 } }], {
          maxAwaitTimeMS: awaitMs,
        });
      try {
        await this.#follow(stream);
      } catch (error) {
        if (!this.#stopped) this.#listener.onError(error);
      } finally {
        await bounded(stream.close()).catch(() => {});
      }
      if (!this.#stopped) await new Promise((resolve) => setTimeout(resolve, reopenAfterMs));
    }
  }

  async #follow(stream: ChangeStream): Promise<void> {
    const next = following<Document>(stream);
    for (let isOpen = false; !this.#stopped; isOpen = true) {
      const change = await next();
      // What changed before the stream was open is not told.
      if (!isOpen) this.#listener.newsMissed();
      if (change !== null) this.#listener.workerChanged(String(change.documentKey?._id));
    }
  }
}
