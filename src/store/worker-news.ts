import type { ChangeStream, Db, Document } from "mongodb";
import { bounded } from "./database.ts";
import { following } from "./following.ts";
import { revisions } from "./instances.ts";
import { workers } from "./workers.ts";

export interface WorkerListener {
  workerChanged(workerId: string): void;
  /** The stream has reported all changes of workers from before this revision. */
  revisionHeard(revision: number): void;
  /** The stream was opened or reopened, so changes to any worker may have been missed. */
  newsMissed(): void;
  onError(error: unknown): void;
}

const awaitMs = 1_000;
const reopenAfterMs = 500;

/**
 * Reports changed workers. It has its own change stream: one caller can change thousands of workers a second, and news
 * of a revoked key must not queue after them.
 */
export class WorkerNews {
  readonly #db: Db;
  readonly #listener: WorkerListener;
  #stream: ChangeStream | undefined;
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
    await this.#close();
    await this.#running;
  }

  async #close(): Promise<void> {
    if (this.#stream !== undefined) await bounded(this.#stream.close()).catch(() => {});
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      this.#stream = this.#db.watch(
        [
          {
            $match: {
              $or: [
                // No instance has a new worker in its cache yet.
                { "ns.coll": workers.name, operationType: { $ne: "insert" } },
                { "ns.coll": revisions.name },
              ],
            },
          },
          {
            $project: {
              "ns.coll": 1,
              "documentKey._id": 1,
              revision: {
                $ifNull: ["$updateDescription.updatedFields.workersRevision", "$fullDocument.workersRevision"],
              },
            },
          },
        ],
        { maxAwaitTimeMS: awaitMs },
      );
      try {
        await this.#follow(this.#stream);
      } catch (error) {
        if (!this.#stopped) this.#listener.onError(error);
      } finally {
        await this.#close();
      }
      if (!this.#stopped) await new Promise((resolve) => setTimeout(resolve, reopenAfterMs));
    }
  }

  async #follow(stream: ChangeStream): Promise<void> {
    const next = following<Document>(stream);
    for (let isOpen = false; !this.#stopped; isOpen = true) {
      const change = await next();
      // The stream does not report changes from before it was open.
      if (!isOpen) this.#listener.newsMissed();
      if (change?.ns?.coll === revisions.name) this.#listener.revisionHeard(Number(change.revision ?? 0));
      else if (change !== null) this.#listener.workerChanged(String(change.documentKey?._id));
    }
  }
}
