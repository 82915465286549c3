import { Fault } from "../errors.ts";
import { findJob, type JobDocument } from "../store/worker-jobs.ts";
import type { AdminCall } from "./call.ts";
import { waitForJob } from "./job-keeper.ts";

/**
 * Waits while the organisation merges a worker into this one. Of calls with one idempotency key, only one has begun the job.
 * @throws Fault if a try fails meanwhile.
 */
export async function untilMerged(call: AdminCall, organizationId: string, into: string): Promise<void> {
  const job = await findJob(call.db, organizationId);
  if (job?.kind !== "merge" || job.into !== into) return;
  call.services.jobs.begun(job);
  await waitForJob(call.db, job, { signal: call.facts.signal, onJob: (now) => checkMerge(job, now) });
}

/** @throws Fault if a try has failed since the call: the caller must not wait for every one. */
function checkMerge(before: JobDocument, { failure }: JobDocument): void {
  if (failure === undefined || failure.times === before.failure?.times) return;
  const message = `The merge has begun and goes on, but the last try failed: ${failure.message}`;
  throw new Fault("failed_precondition", message);
}
