import type { ClientSession, Db } from "mongodb";
import { bounded, type CollectionDefinition, durable } from "./database.ts";

/** How many documents of each collection an erasure or a merge has changed. */
export interface JobCounts {
  readonly events: number;
  readonly cards: number;
  /** Kept decisions of Idempotency-Keys. */
  readonly idempotency: number;
  /** Records of requests whose messages named the worker. */
  readonly requests: number;
  readonly workers: number;
}

/** How far a job is. */
export interface JobProgress {
  /** Such as "removing events". */
  readonly step: string;
  readonly done: number;
  /** Undefined for a step whose length is not known. */
  readonly total?: number | undefined;
}

/**
 * An erasure or a merge that is not done. An organisation has at most one: two at once could merge workers into each
 * other. An instance or a command carries it on, its runner; if that dies, another one takes it over.
 */
export interface JobDocument {
  /** The organisation. */
  _id: string;
  /** `ers_` and a ULID. */
  jobId: string;
  kind: "erase" | "merge";
  /** The worker that goes. */
  workerId: string;
  /** The worker that takes its place. */
  into?: string;
  by: string;
  startedAt: Date;
  /** Who carries it on now; absent while it waits for one. */
  runner?: string;
  /** When its runner last said so, by the server's clock. 1970 while it waits for one. */
  aliveAt: Date;
  counts: JobCounts;
  progress?: JobProgress;
  /** Rows of the worker before the first one went. */
  rows?: number;
  /** Present after a try that failed. */
  failure?: JobFailure;
}

/** A job with a runner, as that one knows it. */
export type ClaimedJob = JobDocument & { readonly runner: string };

export interface JobFailure {
  readonly times: number;
  /** Of the last time, without personal data. */
  readonly message: string;
  /** No instance tries again before this time. A command may. */
  readonly retryAt: Date;
}

/** The receipt of an erasure, without names. */
export interface ErasureDocument {
  /** `ers_` and a ULID. */
  _id: string;
  organizationId: string;
  by: string;
  startedAt: Date;
  finishedAt: Date;
  counts: JobCounts;
}

export const workerJobs: CollectionDefinition = { name: "workerJobs", indexes: [] };
export const erasures: CollectionDefinition = { name: "erasures", indexes: [] };

const jobs = (db: Db) => db.collection<JobDocument>(workerJobs.name);
export const erasureCollection = (db: Db) => db.collection<ErasureDocument>(erasures.name);

/** A runner without a sign of life for this many milliseconds counts as gone. */
export const takeOverAfterMs = 15_000;
/** `aliveAt` of a job without a runner. */
export const neverAlive = new Date(0);

/** The job of the organisation, as the transaction of the session sees it. */
export const findJob = async (
  db: Db,
  organizationId: string,
  session?: ClientSession,
): Promise<JobDocument | undefined> =>
  (await bounded(jobs(db).findOne({ _id: organizationId }, session === undefined ? {} : { session }))) ?? undefined;

export const findJobOfWorker = async (db: Db, workerId: string): Promise<JobDocument | undefined> =>
  (await bounded(jobs(db).findOne({ workerId }))) ?? undefined;

/** In a transaction that has seen that the organisation has no job. */
export async function insertJob(db: Db, job: JobDocument, session: ClientSession): Promise<void> {
  await bounded(jobs(db).insertOne(job, { session }));
}

const isWaiting = { $lt: ["$aliveAt", { $subtract: ["$$NOW", takeOverAfterMs] }] };

/** All jobs, and whether their runners live. */
export const allJobs = (db: Db) =>
  jobs(db)
    .aggregate<JobDocument & { readonly isRunning: boolean }>([{ $addFields: { isRunning: { $not: [isWaiting] } } }])
    .toArray();

/** Jobs that an instance should carry on now, oldest first. */
export function findWaitingJobs(db: Db): Promise<JobDocument[]> {
  const isDue = { $lte: [{ $ifNull: ["$failure.retryAt", neverAlive] }, "$$NOW"] };
  const finding = jobs(db).find({ $expr: { $and: [isWaiting, isDue] } });
  return bounded(finding.sort({ startedAt: 1 }).limit(100).toArray());
}

/** Makes the caller the runner of a job that waits for one. @returns undefined if it has one, or is done. */
export async function claimJob(
  db: Db,
  { _id, jobId }: Pick<JobDocument, "_id" | "jobId">,
  runner: string,
): Promise<ClaimedJob | undefined> {
  const change = [{ $set: { aliveAt: "$$NOW", runner: { $literal: runner } } }];
  const options = { returnDocument: "after", writeConcern: durable } as const;
  const claiming = jobs(db).findOneAndUpdate({ _id, jobId, $expr: isWaiting }, change, options);
  return ((await bounded(claiming)) as ClaimedJob | null) ?? undefined;
}

const owned = ({ _id, jobId, runner }: ClaimedJob) => ({ _id, jobId, runner });

/** Says that the runner lives. @returns false if the job is done, or another runner has it. */
export async function keepJob(db: Db, job: ClaimedJob): Promise<boolean> {
  const { matchedCount } = await bounded(jobs(db).updateOne(owned(job), [{ $set: { aliveAt: "$$NOW" } }]));
  return matchedCount === 1;
}

/** Says how far the job is, and adds to its counts. @returns false if the job is done, or another runner has it. */
export async function reportJob(
  db: Db,
  job: ClaimedJob,
  progress: JobProgress,
  { rows, ...counts }: Partial<JobCounts> & { readonly rows?: number | undefined } = {},
): Promise<boolean> {
  const added = Object.fromEntries(Object.entries(counts).map(([name, count]) => [`counts.${name}`, count]));
  const set = { progress, ...(rows === undefined ? {} : { rows }) };
  const change = { $set: set, ...(Object.keys(added).length === 0 ? {} : { $inc: added }) };
  return (await bounded(jobs(db).updateOne(owned(job), change))).matchedCount === 1;
}

/** Lets others carry the job on. Does nothing if they do already. */
export async function releaseJob(db: Db, job: ClaimedJob): Promise<void> {
  await bounded(jobs(db).updateOne(owned(job), { $set: { aliveAt: neverAlive }, $unset: { runner: "" } }));
}

const retryMsMin = takeOverAfterMs;
const retryMsMax = 600_000;

/** Releases a job that failed. The longer it fails, the longer instances wait until they try again. */
export async function failJob(db: Db, job: ClaimedJob, message: string): Promise<void> {
  const times = { $add: [{ $ifNull: ["$failure.times", 0] }, 1] };
  const waitMs = { $min: [retryMsMax, { $multiply: [retryMsMin, { $pow: [2, { $ifNull: ["$failure.times", 0] }] }] }] };
  const failure = { times, message: { $literal: message }, retryAt: { $add: ["$$NOW", waitMs] } };
  const change = [{ $set: { failure, aliveAt: neverAlive } }, { $unset: "runner" }];
  await bounded(jobs(db).updateOne(owned(job), change, { writeConcern: durable }));
}

/** The job's last write: whoever asks from now on finds nothing of it. @returns it as it was. */
export async function endJob(db: Db, job: ClaimedJob): Promise<JobDocument | undefined> {
  return (await bounded(jobs(db).findOneAndDelete(owned(job), { writeConcern: durable }))) ?? undefined;
}

/** Writes the receipt of an erasure, unless there is one. */
export async function insertReceipt(db: Db, job: JobDocument, finishedAt: Date): Promise<void> {
  const { jobId, _id: organizationId, by, startedAt, counts } = job;
  const $setOnInsert = { organizationId, by, startedAt, finishedAt, counts };
  const options = { upsert: true, writeConcern: durable };
  await bounded(erasureCollection(db).updateOne({ _id: jobId }, { $setOnInsert }, options));
}

export interface Erasure {
  /** `ers_` and a ULID. */
  readonly id: string;
  readonly organizationId: string;
  readonly state: "running" | "done";
  readonly by: string;
  readonly startedAt: Date;
  /** Absent while it runs. */
  readonly completedAt?: Date;
  readonly counts: JobCounts;
  /** Only while it runs. */
  readonly progress?: JobProgress | undefined;
  readonly rows?: number | undefined;
  readonly failure?: JobFailure | undefined;
}

/** The receipt is written before the job goes. So it reads the job first, and one of the two is always there. */
export async function findErasure(db: Db, id: string): Promise<Erasure | undefined> {
  const job = await bounded(jobs(db).findOne({ jobId: id, kind: "erase" }));
  if (job !== null) return runningErasure(job);
  const receipt = await bounded(erasureCollection(db).findOne({ _id: id }));
  if (receipt === null) return undefined;
  const { organizationId, by, startedAt, finishedAt: completedAt, counts } = receipt;
  return { id, organizationId, state: "done", by, startedAt, completedAt, counts };
}

export function runningErasure({ jobId: id, _id: organizationId, ...job }: JobDocument): Erasure {
  const { by, startedAt, counts, progress, rows, failure } = job;
  return { id, organizationId, state: "running", by, startedAt, counts, progress, rows, failure };
}
