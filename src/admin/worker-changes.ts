import type { ClientSession, Db, Filter } from "mongodb";
import { Fault } from "../errors.ts";
import type { IdSource } from "../ids.ts";
import { appCollection } from "../store/apps.ts";
import { everyShard } from "../store/database.ts";
import { organizationCollection } from "../store/organizations.ts";
import { sharedSecret } from "../store/secrets.ts";
import { hasOldRows } from "../store/version-2.ts";
import {
  type Erasure,
  findErasure,
  findJob,
  findJobOfWorker,
  insertJob,
  type JobCounts,
  type JobDocument,
  type JobProgress,
  neverAlive,
} from "../store/worker-jobs.ts";
import {
  erasedNameCollection,
  erasedNameId,
  erasedNameSecret,
  isLive,
  type WorkerDocument,
  workerCollection,
} from "../store/workers.ts";
import { finishJob } from "./job-keeper.ts";

/** How an operator names a worker: by its own id, or by an id that an app knows. */
export type WorkerSelector =
  | { readonly id: string; readonly appId?: string | undefined }
  | { readonly appId: string; readonly email: string }
  | { readonly appId: string; readonly externalId: string };

export interface JobOptions {
  /** Who asks, for the receipt. */
  readonly by: string;
  readonly onProgress?: (progress: JobProgress) => void;
  /** Ends the work in this process. The job stays, and goes on elsewhere or later. */
  readonly signal?: AbortSignal;
}

/** What to do with the worker of an organisation. */
export type JobPlan =
  | { readonly kind: "erase"; readonly organizationId: string; readonly workerId: string }
  | { readonly kind: "merge"; readonly organizationId: string; readonly workerId: string; readonly into: string };

const noCounts: JobCounts = { events: 0, cards: 0, idempotency: 0, requests: 0, workers: 0 };

/**
 * Begins erasures and merges of workers. Each is a job with a record in the database. `JobKeeper` or `finishJob` carries it
 * out, in whatever process.
 */
export class WorkerChanges {
  readonly #db: Db;
  readonly #ids: IdSource;
  readonly #now: () => number;

  constructor(db: Db, ids: IdSource, now: () => number) {
    this.#db = db;
    this.#ids = ids;
    this.#now = now;
  }

  /**
   * Begins a job as a part of the session's transaction. From its commit on, an erased worker's ids are refused, and a merged
   * worker's ids name the other one. If the organisation does this very job already, returns that one.
   *
   * A merged worker's record stays, with its ids, and says who took its place: so no event in between can create a
   * worker. Rows are rewritten: the timeline of a worker stays one range of one index, and an erasure finds everything
   * under one id. That changes no shard key, which is the organisation.
   */
  async begin(plan: JobPlan, by: string, session: ClientSession): Promise<{ job: JobDocument; isNew: boolean }> {
    if (await hasOldRows(this.#db)) {
      throw new Fault("failed_precondition", "Rows of an older version wait: run `ingest migrate` first.");
    }
    const { kind, organizationId } = plan;
    const running = await findJob(this.#db, organizationId, session);
    if (running !== undefined) {
      if (isSame(running, plan)) return { job: running, isNew: false };
      throw busy(running);
    }
    const names = kind === "erase" ? await this.#mark(plan, session) : await this.#giveNames(plan, session);
    const startedAt = new Date(this.#now());
    const jobId = this.#ids.next("ers");
    const job = { _id: organizationId, jobId, kind, ...names, by, startedAt, aliveAt: neverAlive, counts: noCounts };
    await insertJob(this.#db, job, session);
    return { job, isNew: true };
  }

  /** From the commit on, its ids do not change. */
  async #mark({ organizationId, workerId }: JobPlan, session: ClientSession) {
    const worker = await this.#follow({ _id: workerId, organizationId }, session);
    if (worker === undefined) {
      const [erased] = await this.#erasedNames([`${organizationId}|id|${workerId}`]);
      throw new Fault("not_found", erased === undefined ? unknown({ id: workerId }) : wasErased(erased.erasure));
    }
    const { _id } = worker;
    await workerCollection(this.#db).updateOne({ _id, organizationId }, { $set: { erasing: true } }, { session });
    return { workerId: _id };
  }

  async #giveNames(plan: JobPlan & { readonly kind: "merge" }, session: ClientSession) {
    const { organizationId, workerId: from, into } = plan;
    const target = await this.#follow({ _id: into, organizationId }, session);
    const worker = await this.#follow({ _id: from, organizationId }, session);
    if (target === undefined)
      throw new Fault("not_found", `${unknown({ id: into })} It must be of the same organisation.`);
    if (worker === undefined) throw new Fault("not_found", unknown({ id: from }));
    if (target._id === worker._id)
      throw new Fault("failed_precondition", `'${into}' and '${from}' are one worker already.`);
    const { _id, email, links, merged = [], displayName } = worker;
    const own = { _id, ...(email === undefined ? {} : { email }), links };
    const ids = [_id, ...merged.map((one) => one._id)];
    const taken = { $set: { mergedInto: target._id } };
    await workerCollection(this.#db).updateMany({ organizationId, _id: { $in: ids } }, taken, { session });
    const named = displayName === undefined || target.displayName !== undefined ? {} : { $set: { displayName } };
    const gain = { $push: { merged: { $each: [own, ...merged] } }, ...named };
    await workerCollection(this.#db).updateOne({ _id: target._id, organizationId }, gain, { session });
    return { workerId: _id, into: target._id };
  }

  /**
   * Removes everything about a worker, and remembers its ids as keyed hashes, so that its next event is rejected. Does the
   * work in this process, unless another one has it. After a crash the same call goes on.
   * @returns the receipt.
   * @throws Fault if there is no such worker.
   */
  async erase(selector: WorkerSelector, options: JobOptions): Promise<Erasure> {
    const { organizationId, names } = await this.#named(selector);
    const resumed = organizationId === undefined ? undefined : await this.#resume(organizationId, options);
    const worker = await this.#find(selector);
    if (worker === undefined) {
      const [erased] = await this.#erasedNames(names);
      // The command that was interrupted was the same.
      if (erased !== undefined && erased.erasure === resumed?.jobId) return this.#receipt(erased.erasure);
      throw new Fault("not_found", erased === undefined ? unknown(selector) : wasErased(erased.erasure));
    }
    const plan = { kind: "erase", organizationId: worker.organizationId, workerId: worker._id } as const;
    return this.#receipt((await this.#run(plan, options)).jobId);
  }

  /**
   * Gives the rows, cards and ids of the worker `from` to the worker `into`. Does the work in this process, unless another
   * one has it. After a crash the same call goes on.
   */
  async merge(into: string, from: string, options: JobOptions) {
    const organizationId = (await this.#find({ id: into }))?.organizationId;
    if (organizationId === undefined) throw new Fault("not_found", unknown({ id: into }));
    const resumed = await this.#resume(organizationId, options);
    if (resumed?.kind === "merge") {
      const [target, worker] = [await this.#find({ id: into }), await this.#find({ id: from })];
      // The command that was interrupted was the same.
      if (target?._id === worker?._id && resumed.into === target?._id) return answerOfMerge(resumed);
    }
    return answerOfMerge(await this.#run({ kind: "merge", organizationId, workerId: from, into }, options));
  }

  /**
   * Lets callers name an erased worker again: its next event makes a new one.
   * @throws Fault if none was erased, or its erasure is not done.
   */
  async allowAgain(selector: WorkerSelector) {
    const erasure = await this.findErasureOf(selector);
    if (erasure === undefined) throw new Fault("not_found", `No worker was erased with this id. ${unknown(selector)}`);
    return { erasure: erasure.id, allowedNames: await this.allow(erasure) };
  }

  /**
   * The same by the erasure, as a part of the session's transaction if there is one.
   * @returns the number of ids that were remembered.
   * @throws Fault if the erasure is not done.
   */
  async allow({ id: erasure, organizationId, state }: Erasure, session?: ClientSession): Promise<number> {
    if (state !== "done")
      throw new Fault("failed_precondition", `The erasure '${erasure}' is not done. Wait until it is.`);
    const filter = { _id: { $gt: "erased_", $lt: "erased`" }, organizationId, erasure };
    const options = session === undefined ? {} : { session };
    return (await erasedNameCollection(this.#db).deleteMany(filter, options)).deletedCount;
  }

  /** The erasure of a worker, by an id that callers know. */
  async findErasureOf(selector: WorkerSelector): Promise<Erasure | undefined> {
    const { names } = await this.#named(selector);
    const [erased] = await this.#erasedNames(names);
    return erased === undefined ? undefined : findErasure(this.#db, erased.erasure);
  }

  /** @returns the job's last record. */
  async #run(plan: JobPlan, options: JobOptions): Promise<JobDocument> {
    const begin = (session: ClientSession) => session.withTransaction(() => this.begin(plan, options.by, session));
    const { job } = await this.#db.client.withSession(begin);
    return this.#finish(job, options);
  }

  /** Finishes what the organisation's last command has left. @throws Fault if another process carries that on. */
  async #resume(organizationId: string, options: JobOptions): Promise<JobDocument | undefined> {
    const job = await findJob(this.#db, organizationId);
    return job === undefined ? undefined : this.#finish(job, options);
  }

  #finish(job: JobDocument, { onProgress, signal }: JobOptions): Promise<JobDocument> {
    return finishJob(this.#db, job, { now: this.#now, onProgress, signal });
  }

  async #receipt(id: string): Promise<Erasure> {
    return (await findErasure(this.#db, id)) as Erasure;
  }

  /** The worker, or the one that took its place. */
  async #find(selector: WorkerSelector): Promise<WorkerDocument | undefined> {
    let filter: Filter<WorkerDocument>;
    if ("id" in selector) filter = { _id: selector.id, ...isLive, ...(await this.#organizationOf(selector.appId)) };
    else {
      const { organizationId } = await this.#app(selector.appId);
      filter =
        "email" in selector
          ? { organizationId, email: selector.email.toLowerCase() }
          : { organizationId, "links.key": `${selector.appId}/${selector.externalId}` };
    }
    return this.#follow(filter);
  }

  async #follow(filter: Filter<WorkerDocument>, session?: ClientSession): Promise<WorkerDocument | undefined> {
    const options = {
      ...everyShard("an operator may know the id alone"),
      ...(session === undefined ? {} : { session }),
    };
    const found = await workerCollection(this.#db).findOne(filter, options);
    if (found?.mergedInto === undefined) return found ?? undefined;
    return this.#follow({ _id: found.mergedInto, organizationId: found.organizationId }, session);
  }

  /** The names under which an erasure would remember it, and its organisation if that is known. */
  async #named(selector: WorkerSelector): Promise<{ organizationId?: string; names: string[] }> {
    if ("id" in selector) {
      const found = await this.#find(selector);
      const job = found === undefined ? await findJobOfWorker(this.#db, selector.id) : undefined;
      const organizationId = found?.organizationId ?? job?._id;
      const organizationIds =
        organizationId === undefined
          ? await organizationCollection(this.#db)
              .find({}, { projection: { _id: 1 } })
              .map(({ _id }) => _id)
              .toArray()
          : [organizationId];
      const names = organizationIds.map((one) => `${one}|id|${selector.id}`);
      return { names, ...(organizationId === undefined ? {} : { organizationId }) };
    }
    const { organizationId } = await this.#app(selector.appId);
    const name =
      "email" in selector
        ? `${organizationId}|email|${selector.email.toLowerCase()}`
        : `link|${selector.appId}/${selector.externalId}`;
    return { organizationId, names: [name] };
  }

  async #erasedNames(names: readonly string[]) {
    const secret = await sharedSecret(this.#db, erasedNameSecret);
    const ids = names.map((name) => erasedNameId(secret, name));
    const options = everyShard("an operator may know the worker's id alone");
    return erasedNameCollection(this.#db)
      .find({ _id: { $in: ids } }, options)
      .toArray();
  }

  async #organizationOf(appId: string | undefined): Promise<{ organizationId?: string }> {
    return appId === undefined ? {} : { organizationId: (await this.#app(appId)).organizationId };
  }

  async #app(id: string) {
    const app = await appCollection(this.#db).findOne({ _id: id });
    if (app === null) throw new Fault("not_found", `There is no app with the id '${id}'.`);
    return app;
  }
}

const answerOfMerge = ({ into, workerId, counts: { events, cards } }: JobDocument) => ({
  workerId: into as string,
  merged: workerId,
  events,
  cards,
});

const isSame = (job: JobDocument, plan: JobPlan): boolean =>
  job.kind === plan.kind && job.workerId === plan.workerId && (plan.kind === "erase" || job.into === plan.into);

const wasErased = (erasure: string) => `This worker was erased already (${erasure}).`;

const unknown = (selector: WorkerSelector): string =>
  "id" in selector
    ? `There is no worker with the id '${selector.id}'.`
    : "email" in selector
      ? `There is no worker with the email '${selector.email}' in the organisation of this app.`
      : `There is no worker with the external id '${selector.externalId}' in this app.`;

/** Callers wait; or the one that they find is their own. */
const busy = ({ _id, kind, jobId }: JobDocument) =>
  new Fault(
    "failed_precondition",
    `The organisation '${_id}' ${kind === "erase" ? "erases" : "merges"} a worker already (${jobId}), and does one at a time. Try again when that is done.`,
  );
