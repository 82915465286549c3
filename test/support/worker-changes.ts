import { randomUUID } from "node:crypto";
import type { ClientSession, Db } from "mongodb";
import { allowAgain, beginJob, findErasureOf, type JobPlan, type WorkerName } from "../../src/admin/worker-changes.ts";
import { runJob } from "../../src/admin/worker-steps.ts";
import { createIdSource } from "../../src/ids.ts";
import {
  claimJob,
  type Erasure,
  findErasure,
  type JobDocument,
  type JobProgress,
  neverAlive,
  workerJobs,
} from "../../src/store/worker-jobs.ts";
import { announce, workersOf } from "../../src/store/revisions.ts";
import { workerCollection } from "../../src/store/workers.ts";

export interface JobOptions {
  readonly by: string;
  /** May throw, which ends the work at that moment. */
  readonly onProgress?: (progress: JobProgress) => void;
}

const ids = createIdSource();

const inTransaction = <T>(db: Db, work: (session: ClientSession) => Promise<T>): Promise<T> =>
  db.client.withSession((session) => session.withTransaction(() => work(session)));

/** Begins a job as a handler does. `afterwards` belongs to the transaction. */
export const begin = (
  db: Db,
  plan: JobPlan,
  by: string,
  afterwards: (session: ClientSession) => Promise<unknown> = async () => {},
) =>
  inTransaction(db, async (session) => {
    const begun = await beginJob(db, plan, { ids, nowDate: new Date(), by, session });
    await announce(db, [workersOf(plan.organizationId)], session);
    await afterwards(session);
    return begun;
  });

/** Erases and merges workers as a command does: begins the job, and carries it out in this process. */
export class WorkerChanges {
  readonly #db: Db;

  constructor(db: Db) {
    this.#db = db;
  }

  /** @returns the receipt. */
  async erase(workerId: string, options: JobOptions): Promise<Erasure> {
    const organizationId = await this.#organizationOf(workerId);
    const { jobId } = await this.#run({ kind: "erase", organizationId, workerId }, options);
    return (await findErasure(this.#db, jobId)) as Erasure;
  }

  /** @returns the job's last record. */
  async merge(into: string, workerId: string, options: JobOptions): Promise<JobDocument> {
    const organizationId = await this.#organizationOf(workerId);
    return this.#run({ kind: "merge", organizationId, workerId, into }, options);
  }

  async allowAgain(organizationId: string, name: WorkerName): Promise<number> {
    const erasure = await findErasureOf(this.#db, organizationId, name);
    if (erasure === undefined) throw new Error("No worker was erased with this id.");
    return inTransaction(this.#db, (session) => allowAgain(this.#db, erasure, session));
  }

  async #organizationOf(workerId: string): Promise<string> {
    const worker = await workerCollection(this.#db).findOne({ _id: workerId }, { comment: "every shard: a test" });
    if (worker === null) throw new Error(`There is no worker with the id '${workerId}'.`);
    return worker.organizationId;
  }

  async #run(plan: JobPlan, { by, onProgress }: JobOptions): Promise<JobDocument> {
    const runner = randomUUID();
    // In the transaction, so that no service takes a new job first.
    const own = { $set: { runner, aliveAt: new Date() } };
    const filter = { _id: plan.organizationId, aliveAt: neverAlive };
    const jobs = this.#db.collection<JobDocument>(workerJobs.name);
    const claim = (session: ClientSession) => jobs.updateOne(filter, own, { session });
    const { job, isNew } = await begin(this.#db, plan, by, claim);
    const claimed = isNew ? { ...job, runner } : await claimJob(this.#db, job, runner);
    if (claimed === undefined) throw new Error("Another process carries the job on.");
    return runJob(this.#db, claimed, { now: Date.now, onProgress });
  }
}
