import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Db } from "mongodb";
import { claimJob, findJob, findWaitingJobs, type JobDocument } from "../store/worker-jobs.ts";
import { JobLost, runJob, type RunOptions } from "./worker-steps.ts";

type Job = Pick<JobDocument, "_id" | "jobId">;

const lookEveryMs = 5_000;
/** Milliseconds between two tries of a command to carry on a job that another process may have. */
const tryEveryMs = 1_000;
/** Jobs that one process carries on at once. */
const jobsMax = 2;

export interface JobKeeperOptions extends Pick<RunOptions, "now"> {
  readonly onError: (error: unknown) => void;
  readonly lookEveryMs?: number;
}

/**
 * Carries on erasures and merges: those that this process began, and those that wait for a runner because theirs died.
 * Several processes may look at the same time, and each job has one runner.
 */
export class JobKeeper {
  readonly #db: Db;
  readonly #options: JobKeeperOptions;
  readonly #runner = randomUUID();
  /** By organisation. */
  readonly #running = new Map<string, Promise<void>>();
  readonly #stopping = new AbortController();
  #looking: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  /** Whether it carries on the jobs of others, too. */
  #isStarted = false;

  constructor(db: Db, options: JobKeeperOptions) {
    this.#db = db;
    this.#options = options;
  }

  /** Looks for jobs until it stops. */
  start(): void {
    this.#isStarted = true;
    const look = () => void this.look();
    look();
    this.#timer = setInterval(look, this.#options.lookEveryMs ?? lookEveryMs).unref();
  }

  /** Ends its jobs between two steps, and lets others carry them on. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#stopping.abort();
    await this.#looking;
    await Promise.all(this.#running.values());
  }

  /**
   * Carries on a job that a call has begun, or found. If the process is busy, the job waits. A command, which does not
   * start the keeper, tries until its end: the job's runner may die, and no service may run.
   */
  begun(job: Job): void {
    const take = () => void this.#inTurn(() => this.#take(job));
    take();
    this.#timer ??= setInterval(take, tryEveryMs).unref();
  }

  /** Carries on what waits for a runner. Never rejects. */
  look(): Promise<void> {
    return this.#inTurn(async () => {
      for (const job of await findWaitingJobs(this.#db)) await this.#take(job);
    });
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const { signal } = this.#stopping;
    this.#looking = this.#looking.then(async () => {
      if (!signal.aborted) await work().catch(this.#options.onError);
    });
    return this.#looking;
  }

  async #take(job: Job): Promise<void> {
    if (this.#stopping.signal.aborted || this.#running.size >= jobsMax || this.#running.has(job._id)) return;
    const claimed = await claimJob(this.#db, job, this.#runner);
    if (claimed === undefined) return;
    const run = runJob(this.#db, claimed, { now: this.#options.now, signal: this.#stopping.signal })
      .then(
        () => {},
        (error: unknown) => {
          if (!(error instanceof JobLost || this.#stopping.signal.aborted)) this.#options.onError(error);
        },
      )
      .finally(() => {
        this.#running.delete(job._id);
        // Others may wait until this process has time.
        if (this.#isStarted) void this.look();
      });
    this.#running.set(job._id, run);
  }
}

/** Milliseconds between two looks at a job that another process carries on. */
const watchEveryMs = 200;

export interface WatchOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called with what the job says, several times a second. */
  readonly onJob?: (job: JobDocument) => void;
}

/** Waits until the job is done. @throws the signal's AbortError when it aborts. */
export async function waitForJob(db: Db, job: Job, { signal, onJob }: WatchOptions = {}): Promise<void> {
  for (;;) {
    const found = await findJob(db, job._id);
    if (found?.jobId !== job.jobId) return;
    onJob?.(found);
    await delay(watchEveryMs, undefined, { signal });
  }
}
