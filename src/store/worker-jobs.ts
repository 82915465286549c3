import type { Db } from "mongodb";
import { bounded, type CollectionDefinition, durable, isDuplicateKey } from "./database.ts";

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

/**
 * An erasure or a merge that runs, or that a crash has interrupted. An organisation has at most one: two at once could
 * merge workers into each other.
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
  /** When the command that runs it last said so, by the server's clock. */
  aliveAt: Date;
  counts: JobCounts;
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

/** Another command may take over a job without a sign of life for this many milliseconds. */
export const takeOverAfterMs = 15_000;

/** Begins the job. @returns the one that the organisation has already, if any. */
export async function beginJob(db: Db, job: JobDocument): Promise<JobDocument | undefined> {
  for (;;) {
    try {
      await bounded(jobs(db).insertOne(job, { writeConcern: durable }));
      return undefined;
    } catch (error) {
      if (!isDuplicateKey(error)) throw error;
    }
    const found = await findJob(db, job._id);
    if (found !== undefined) return found;
  }
}

export const findJob = async (db: Db, organizationId: string): Promise<JobDocument | undefined> =>
  (await bounded(jobs(db).findOne({ _id: organizationId }))) ?? undefined;

export const findJobOfWorker = async (db: Db, workerId: string): Promise<JobDocument | undefined> =>
  (await bounded(jobs(db).findOne({ workerId }))) ?? undefined;

const isGone = { $lt: ["$aliveAt", { $subtract: ["$$NOW", takeOverAfterMs] }] };

/** All jobs, and whether their commands run. */
export const allJobs = (db: Db) =>
  jobs(db)
    .aggregate<JobDocument & { readonly isRunning: boolean }>([{ $addFields: { isRunning: { $not: [isGone] } } }])
    .toArray();

/** Takes over a job whose command is gone. @returns false if the command lives, or another one was faster. */
export async function takeOverJob(db: Db, { _id, jobId, aliveAt }: JobDocument): Promise<boolean> {
  const { modifiedCount } = await bounded(
    jobs(db).updateOne({ _id, jobId, aliveAt, $expr: isGone }, [{ $set: { aliveAt: "$$NOW" } }], {
      writeConcern: durable,
    }),
  );
  return modifiedCount === 1;
}

/** Says that the job's command lives. */
export async function keepJob(db: Db, { _id, jobId }: JobDocument): Promise<void> {
  await bounded(jobs(db).updateOne({ _id, jobId }, [{ $set: { aliveAt: "$$NOW" } }]));
}

export async function countInJob(db: Db, { _id, jobId }: JobDocument, name: keyof JobCounts, by: number) {
  if (by > 0) await bounded(jobs(db).updateOne({ _id, jobId }, { $inc: { [`counts.${name}`]: by } }));
}

/** The job's last write: whoever asks from now on finds nothing of it. */
export async function endJob(db: Db, { _id, jobId }: JobDocument): Promise<void> {
  await bounded(jobs(db).deleteOne({ _id, jobId }, { writeConcern: durable }));
}
