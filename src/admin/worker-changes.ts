import type { ClientSession, Db } from "mongodb";
import { Fault } from "../errors.ts";
import type { IdSource } from "../ids.ts";
import { sharedSecret } from "../store/secrets.ts";
import { hasOldRows } from "../store/version-2.ts";
import {
  type Erasure,
  findErasure,
  findJob,
  insertJob,
  type JobCounts,
  type JobDocument,
  neverAlive,
} from "../store/worker-jobs.ts";
import {
  erasedNameCollection,
  erasedNameId,
  erasedNameSecret,
  type WorkerDocument,
  workerCollection,
} from "../store/workers.ts";

/*
 * Erasures and merges of workers begin here. Each is a job with a record in the database. A `JobKeeper` carries it out, in
 * whatever process.
 */

/** What to do with the worker of an organisation. */
export type JobPlan =
  | { readonly kind: "erase"; readonly organizationId: string; readonly workerId: string }
  | { readonly kind: "merge"; readonly organizationId: string; readonly workerId: string; readonly into: string };

export interface BeginOptions {
  readonly ids: IdSource;
  readonly nowDate: Date;
  /** Who asks, for the receipt. */
  readonly by: string;
  readonly session: ClientSession;
}

const noCounts: JobCounts = { events: 0, cards: 0, idempotency: 0, requests: 0, workers: 0 };

/**
 * Begins a job as a part of the session's transaction. From its commit on, an erased worker's ids are refused, and a merged
 * worker's ids name the other one. If the organisation does this very job already, returns that one.
 *
 * A merged worker's record stays, with its ids, and says who took its place: so no event in between can create a worker.
 * Rows are rewritten: the timeline of a worker stays one range of one index, and an erasure finds everything under one id.
 * That changes no shard key, which is the organisation.
 * @throws Fault not_found, or failed_precondition if the organisation does another job.
 */
export async function beginJob(
  db: Db,
  plan: JobPlan,
  { ids, nowDate, by, session }: BeginOptions,
): Promise<{ readonly job: JobDocument; readonly isNew: boolean }> {
  if (await hasOldRows(db)) {
    throw new Fault("failed_precondition", "Rows of an older version wait: run `ingest migrate` first.");
  }
  const { kind, organizationId } = plan;
  const running = await findJob(db, organizationId, session);
  const worker = await currentWorker(db, organizationId, plan.workerId, session);
  if (running !== undefined) {
    if (isSame(running, plan, worker)) return { job: running, isNew: false };
    throw busy(running);
  }
  if (worker === undefined) throw unknown(plan.workerId);
  const named = plan.kind === "erase" ? await mark(db, worker, session) : await giveNames(db, plan, worker, session);
  const job = {
    ...{ _id: organizationId, jobId: ids.next("ers"), kind, ...named, by },
    ...{ startedAt: nowDate, aliveAt: neverAlive, counts: noCounts },
  };
  await insertJob(db, job, session);
  return { job, isNew: true };
}

/** From the commit on, its ids do not change. */
async function mark(db: Db, { _id, organizationId }: WorkerDocument, session: ClientSession) {
  await workerCollection(db).updateOne({ _id, organizationId }, { $set: { erasing: true } }, { session });
  return { workerId: _id };
}

async function giveNames(
  db: Db,
  { organizationId, workerId: from, into }: JobPlan & { readonly kind: "merge" },
  worker: WorkerDocument,
  session: ClientSession,
) {
  const target = await currentWorker(db, organizationId, into, session);
  if (target === undefined || target.erasing) throw unknown(into);
  if (worker.erasing) throw unknown(from);
  if (target._id === worker._id) {
    throw new Fault("failed_precondition", `'${into}' and '${from}' are one worker already.`);
  }
  const { _id, email, links, merged = [], displayName } = worker;
  const own = { _id, ...(email === undefined ? {} : { email }), links };
  const ids = [_id, ...merged.map((one) => one._id)];
  const taken = { $set: { mergedInto: target._id } };
  await workerCollection(db).updateMany({ organizationId, _id: { $in: ids } }, taken, { session });
  const named = displayName === undefined || target.displayName !== undefined ? {} : { $set: { displayName } };
  const gain = { $push: { merged: { $each: [own, ...merged] } }, ...named };
  await workerCollection(db).updateOne({ _id: target._id, organizationId }, gain, { session });
  return { workerId: _id, into: target._id };
}

/** The worker with this id, or the one that took its place. */
export async function currentWorker(
  db: Db,
  organizationId: string,
  id: string,
  session?: ClientSession,
): Promise<WorkerDocument | undefined> {
  const options = session === undefined ? { readConcern: "majority" as const } : { session };
  const found = await workerCollection(db).findOne({ _id: id, organizationId }, options);
  if (found?.mergedInto === undefined) return found ?? undefined;
  return currentWorker(db, organizationId, found.mergedInto, session);
}

/** An id by which callers of an organisation may have named a worker. */
export type WorkerName =
  | { readonly case: "workerId" | "email"; readonly value: string }
  | { readonly case: "externalId"; readonly value: string; readonly appId: string };

/** The erasure of a worker, by an id that callers know. */
export async function findErasureOf(db: Db, organizationId: string, name: WorkerName): Promise<Erasure | undefined> {
  const secret = await sharedSecret(db, erasedNameSecret);
  const _id = erasedNameId(secret, textOf(organizationId, name));
  const erased = await erasedNameCollection(db).findOne({ _id, organizationId });
  return erased === null ? undefined : findErasure(db, erased.erasure);
}

/** As `namesOfWorker` writes it. */
function textOf(organizationId: string, name: WorkerName): string {
  switch (name.case) {
    case "workerId":
      return `${organizationId}|id|${name.value}`;
    case "email":
      return `${organizationId}|email|${name.value.toLowerCase()}`;
    case "externalId":
      return `link|${name.appId}/${name.value}`;
  }
}

/**
 * Lets callers name an erased worker again: its next event makes a new one.
 * @returns the number of ids that were remembered.
 * @throws Fault failed_precondition if the erasure is not done.
 */
export async function allowAgain(db: Db, erasure: Erasure, session: ClientSession): Promise<number> {
  const { id, organizationId, state } = erasure;
  if (state !== "done") throw new Fault("failed_precondition", `The erasure '${id}' is not done. Wait until it is.`);
  const filter = { _id: { $gt: "erased_", $lt: "erased`" }, organizationId, erasure: id };
  return (await erasedNameCollection(db).deleteMany(filter, { session })).deletedCount;
}

/** A merged worker is the other one from the beginning on. */
const isSame = (job: JobDocument, plan: JobPlan, worker: WorkerDocument | undefined): boolean =>
  plan.kind === "erase"
    ? job.kind === "erase" && job.workerId === (worker?._id ?? plan.workerId)
    : job.kind === "merge" && job.workerId === plan.workerId && job.into === plan.into;

const unknown = (id: string) => new Fault("not_found", `There is no worker with the id '${id}'.`);

/** Callers wait; or the one that they find is their own. */
const busy = ({ _id, kind, jobId }: JobDocument) =>
  new Fault(
    "failed_precondition",
    `The organisation '${_id}' ${kind === "erase" ? "erases" : "merges"} a worker already (${jobId}), and does one at a time. Try again when that is done.`,
  );
