import type { ChangeStream, Db, Document } from "mongodb";
import { apps } from "./apps.ts";
import { bounded } from "./database.ts";
import { revisions } from "./instances.ts";
import { keys } from "./keys.ts";
import { organizations } from "./organizations.ts";

export interface ChangeListener {
  /** A key, app or organisation was changed by any instance. */
  accessChanged(): void;
  /** All that was written before this revision has been told. */
  revisionHeard(revision: number): void;
  /** Anything may have changed without notice: the stream begins, or begins anew. */
  newsMissed(): void;
  onError(error: unknown): void;
  /** A change was told `lagMs` after it was made, by the server's clock and this one's. */
  onLag?(lagMs: number): void;
  now(): number;
}

/** The server answers at least this often while nothing changes, in milliseconds: proof that the stream is alive. */
const heartbeatMs = 500;
const reopenAfterMs = 500;

/** News of changes to keys, apps and organisations, made by any instance or the command line, through one change stream that reopens by itself. */
export class ChangeFeed {
  readonly #db: Db;
  readonly #listener: ChangeListener;
  #stream: ChangeStream | undefined;
  #freshAtMs = 0;
  #connected = false;
  #opened = 0;
  #stopped = false;
  #running: Promise<void> | undefined;

  constructor(db: Db, listener: ChangeListener) {
    this.#db = db;
    this.#listener = listener;
  }

  /** Until when news is known to be complete, in milliseconds of the listener's clock; 0 before the first news. */
  get freshAtMs(): number {
    return this.#freshAtMs;
  }

  /** How often the stream was opened. */
  get opened(): number {
    return this.#opened;
  }

  get connected(): boolean {
    return this.#connected;
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
      try {
        await this.#follow();
      } catch (error) {
        if (!this.#stopped) this.#listener.onError(error);
      } finally {
        this.#connected = false;
        await this.#close();
      }
      if (!this.#stopped) await new Promise((resolve) => setTimeout(resolve, reopenAfterMs));
    }
  }

  async #follow(): Promise<void> {
    const watched = [organizations.name, apps.name, keys.name, revisions.name];
    const pipeline = [
      { $match: { "ns.coll": { $in: watched } } },
      {
        $project: {
          ...{ "ns.coll": 1, "documentKey._id": 1, operationType: 1, wallTime: 1 },
          revision: { $ifNull: ["$updateDescription.updatedFields.revision", "$fullDocument.revision"] },
        },
      },
    ];
    const stream = this.#db.watch(pipeline, { maxAwaitTimeMS: heartbeatMs });
    this.#stream = stream;
    let opened = false;
    while (!this.#stopped) {
      const askedAtMs = this.#listener.now();
      const change = (await bounded(stream.tryNext())) as Document | null;
      if (!opened) {
        opened = true;
        this.#opened++;
        this.#listener.newsMissed();
      }
      if (change !== null) this.#tell(change);
      this.#freshAtMs = askedAtMs;
      this.#connected = true;
    }
  }

  #tell(change: Document): void {
    if (change.wallTime instanceof Date) this.#listener.onLag?.(this.#listener.now() - change.wallTime.getTime());
    if (change.ns?.coll === revisions.name) this.#listener.revisionHeard(Number(change.revision ?? 0));
    else this.#listener.accessChanged();
  }
}
