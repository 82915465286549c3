import type { Db } from "mongodb";
import { Fault } from "../errors.ts";
import { shownBeginning } from "../ingest/validate.ts";
import { limits } from "../limits.ts";
import { adminAnswerCollection } from "../store/admin-answers.ts";
import { bounded, durable, insertDurably, isPassing } from "../store/database.ts";
import { auditCollection } from "../store/audit.ts";
import { claimCollection } from "../store/idempotency.ts";
import { settleOnInstances } from "../store/instances.ts";
import { requestCollection } from "../store/requests.ts";
import { Pace } from "../store/pace.ts";
import { countRowsOfWorker, moveRowsOfWorker, removeRowsOfWorker } from "../store/row-removal.ts";
import { sharedSecret } from "../store/secrets.ts";
import { CardStore, cardCollection, cardId, cardsOfWorker } from "../store/snapshots.ts";
import {
  type ClaimedJob,
  endJob,
  failJob,
  findJob,
  insertReceipt,
  type JobDocument,
  type JobProgress,
  keepJob,
  releaseJob,
  reportJob,
  takeOverAfterMs,
} from "../store/worker-jobs.ts";
import {
  erasedNameId,
  erasedNameSecret,
  erasedWorkerId,
  namesOfWorker,
  type WorkerDocument,
  workerCollection,
  workers,
} from "../store/workers.ts";

export interface RunOptions {
  /** The database server's clock, in milliseconds since 1970. */
  readonly now: () => number;
  /** Ends the run between two steps. Another runner then carries the job on. */
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: JobProgress) => void) | undefined;
}

/** Another runner has the job, or it is done. */
export class JobLost extends Error {}

/** A request ends at most this many seconds after it began. */
const settleSecondsMax = 120;
const keepEveryMs = takeOverAfterMs / 5;
const reportEveryMs = 1_000;

/**
 * Carries out a job that the caller has claimed. Its steps change nothing when they are done again, so any runner can
 * carry it on after a crash.
 * @returns the job's last record.
 * @throws if it could not be completed. The job then waits for the next runner, and says why.
 */
export async function runJob(db: Db, job: ClaimedJob, options: RunOptions): Promise<JobDocument> {
  const lost = new AbortController();
  const signal = AbortSignal.any([lost.signal, ...(options.signal === undefined ? [] : [options.signal])]);
  const keep = async () => {
    if (!(await keepJob(db, job))) lost.abort(new JobLost("Another process carries the job on."));
  };
  // A sign that fails is no reason to stop: others wait for several.
  const timer = setInterval(() => void keep().catch(() => {}), keepEveryMs);
  try {
    return await new JobRun(db, job, { ...options, signal }).run();
  } catch (error) {
    if (options.signal?.aborted === true) await releaseJob(db, job).catch(() => {});
    else if (!(error instanceof JobLost)) await failJob(db, job, reasonOf(error)).catch(() => {});
    throw error;
  } finally {
    clearInterval(timer);
  }
}

/** Says why a job failed, without personal data: an error of the database may quote a document. */
function reasonOf(error: unknown): string {
  if (error instanceof Fault) return error.message;
  if (isPassing(error)) return "The database did not answer in time.";
  const { name, code } = error as { name?: string; code?: unknown };
  return `${name ?? "Error"}${code === undefined ? "" : ` ${String(code)}`}; the log of the process says more.`;
}

class JobRun {
  readonly #db: Db;
  readonly #job: ClaimedJob;
  readonly #now: () => number;
  readonly #signal: AbortSignal;
  readonly #onProgress: (progress: JobProgress) => void;
  readonly #pace = new Pace();

  constructor(db: Db, job: ClaimedJob, options: RunOptions & { readonly signal: AbortSignal }) {
    this.#db = db;
    this.#job = job;
    this.#now = options.now;
    this.#signal = options.signal;
    this.#onProgress = options.onProgress ?? (() => {});
  }

  async run(): Promise<JobDocument> {
    const isErasure = this.#job.kind === "erase";
    await (isErasure ? this.#erase() : this.#merge());
    if (isErasure) {
      const last = await findJob(this.#db, this.#job._id);
      if (last?.jobId === this.#job.jobId) await insertReceipt(this.#db, last, new Date(this.#now()));
    }
    const last = await endJob(this.#db, this.#job);
    if (last === undefined) throw new JobLost("Another process has completed the job.");
    return last;
  }

  /** Each step reports at least once, so each ends when the job is lost or the process stops. */
  async #report(progress: JobProgress, counts: Parameters<typeof reportJob>[3] = {}): Promise<void> {
    if (!(await reportJob(this.#db, this.#job, progress, counts))) throw new JobLost("Another process has the job.");
    // Only now, so that the counts of what was done are kept.
    this.#signal.throwIfAborted();
    this.#onProgress(progress);
  }

  async #erase(): Promise<void> {
    const { _id: organizationId, workerId, jobId } = this.#job;
    const secret = await sharedSecret(this.#db, erasedNameSecret);
    // Its ids do not change any more, because it is marked. Absent if the last run came this far.
    const worker = await bounded(workerCollection(this.#db).findOne({ _id: workerId, organizationId }));
    if (worker !== null) {
      const names = namesOfWorker(worker).map((name) => ({
        _id: erasedNameId(secret, name),
        organizationId,
        erasure: jobId,
      }));
      const failed = (await insertDurably(this.#db, workers.name, names)).find((one) => "error" in one);
      if (failed !== undefined) throw failed.error;
    }
    await this.#settle();
    await this.#rewriteClaims(erasedWorkerId);
    // A retry may have read its kept decision before.
    await this.#settle();
    const now = new Date(this.#now());
    // Rows and cards of the workers that were merged into it are its own by now. An instance that stood still may have
    // stored one later.
    const ids = [...(worker?.merged ?? []).map(({ _id }) => _id), workerId];
    await this.#eachRow("removing events", this.#removeRowsOf(ids, now));
    const ofWorkers = { organizationId, workerId: { $in: ids } };
    const { deletedCount } = await bounded(
      cardCollection(this.#db).deleteMany(ofWorkers, { hint: cardsOfWorker, writeConcern: durable }),
    );
    await this.#report({ step: "removing cards", done: deletedCount }, { cards: deletedCount });
    if (worker === null) return;
    await this.#forgetInRecords(worker);
    await this.#forgetInAudit(ids);
    for (const _id of ids) {
      const removal = workerCollection(this.#db).deleteOne({ _id, organizationId }, { writeConcern: durable });
      await this.#report({ step: "removing ids", done: 0 }, { workers: (await bounded(removal)).deletedCount });
    }
  }

  async *#removeRowsOf(ids: readonly string[], now: Date): AsyncGenerator<number, void> {
    const options = { now, signal: this.#signal, pace: this.#pace };
    for (const id of ids) yield* removeRowsOfWorker(this.#db, this.#job._id, id, options);
  }

  async #merge(): Promise<void> {
    const { _id: organizationId, workerId, into } = this.#job;
    if (into === undefined) throw new Error("a merge names no worker to merge into");
    await this.#settle();
    await this.#rewriteClaims(into);
    // A retry may have read its kept decision before.
    await this.#settle();
    await this.#eachRow("moving events", moveRowsOfWorker(this.#db, organizationId, workerId, into, this.#pace));
    const store = new CardStore(this.#db);
    let done = 0;
    for await (const card of cardCollection(this.#db).find({ organizationId, workerId }, { hint: cardsOfWorker })) {
      await store.put({ ...card, _id: cardId(into, card.appId, card.snapshotType), workerId: into });
      const removal = cardCollection(this.#db).deleteOne({ _id: card._id, organizationId }, { writeConcern: durable });
      const { deletedCount: cards } = await bounded(removal);
      await this.#report({ step: "moving cards", done: (done += cards) }, { cards });
    }
  }

  /** Waits until no request that saw the worker as it was can store anything more. */
  async #settle(): Promise<void> {
    await this.#report({ step: "waiting for requests in flight", done: 0 });
    const behind = await settleOnInstances(this.#db, settleSecondsMax, "workersRevision", this.#signal);
    if (behind.length === 0) return;
    throw new Fault(
      "failed_precondition",
      `These instances have not confirmed it: ${behind.join("; ")}. Update or stop them. Then the job goes on.`,
    );
  }

  async #eachRow(step: string, steps: AsyncIterable<number>): Promise<void> {
    const { _id: organizationId, workerId, rows } = this.#job;
    // Most of all for display, and a count of many millions may take too long.
    const counting = rows ?? bounded(countRowsOfWorker(this.#db, organizationId, workerId)).catch(() => undefined);
    const total = await counting;
    let done = this.#job.counts.events;
    await this.#report({ step, done, total }, { rows: total });
    let [startedMs, reportedMs, unreported] = [performance.now(), Number.NEGATIVE_INFINITY, 0];
    const report = (events: number) => this.#report({ step, done: (done += events), total }, { events });
    for await (const events of steps) {
      const nowMs = performance.now();
      unreported += events;
      if (nowMs - reportedMs >= reportEveryMs || this.#signal.aborted) {
        await report(unreported);
        [reportedMs, unreported] = [nowMs, 0];
      }
      await this.#pace.rest(nowMs - startedMs, this.#signal);
      startedMs = performance.now();
    }
    // A runner that was killed did not count its last steps.
    await report(Math.max(unreported, (rows ?? 0) - done));
  }

  /** Names another worker in kept decisions, so that a retry stores no rows of this one. */
  async #rewriteClaims(to: string): Promise<void> {
    const { _id: organizationId, workerId, kind } = this.#job;
    const isNamed = { $or: [{ "outcome.workerId": workerId }, { "outcome.workerIds": { $regex: workerId } }] };
    const workerIds = { $replaceAll: { input: "$outcome.workerIds", find: workerId, replacement: to } };
    // A replay answers what the first answer was, except for an erased worker.
    const answered = { answeredId: { $ifNull: ["$outcome.answeredId", workerId] } };
    const ofSnapshot = { workerId: to, ...(kind === "erase" ? { displayName: "", answeredId: "" } : answered) };
    const isEvents = { $eq: [{ $type: "$outcome.workerIds" }, "string"] };
    const change = { $mergeObjects: ["$outcome", { $cond: [isEvents, { workerIds }, ofSnapshot] }] };
    const endMs = this.#now() + limits.idempotencyWindowSeconds * 1000 + 60_000;
    for (let ms = this.#now() - claimWindowMs; ms < endMs; ms += claimWindowMs) {
      const untilMs = ms + claimWindowMs;
      const expiresAt = { $gte: new Date(ms), ...(untilMs < endMs ? { $lt: new Date(untilMs) } : {}) };
      const rewriting = claimCollection(this.#db).updateMany(
        { organizationId, expiresAt, ...isNamed },
        [{ $set: { outcome: change } }],
        { hint: { expiresAt: 1 }, writeConcern: durable },
      );
      const idempotency = (await bounded(rewriting)).modifiedCount;
      await this.#report({ step: "reading kept decisions", done: 0 }, { idempotency });
    }
  }

  /**
   * Removes names and ids of the worker from the audit, and its answers to idempotency keys. Who changed something, and
   * when, stays.
   */
  async #forgetInAudit(ids: readonly string[]): Promise<void> {
    const change = { $set: { target: this.#job.jobId }, $unset: { before: "" as const, after: "" as const } };
    const entries = auditCollection(this.#db);
    await bounded(entries.updateMany({ target: { $in: ids } }, change, { writeConcern: durable }));
    await bounded(adminAnswerCollection(this.#db).deleteMany({ subject: { $in: ids } }, { writeConcern: durable }));
    await this.#report({ step: "reading the audit", done: 0 });
  }

  /** Removes messages that name the worker from the records of requests. */
  async #forgetInRecords(worker: WorkerDocument): Promise<void> {
    const { _id: organizationId } = this.#job;
    const changes = patternsOf(worker).map((patterns) => forgetting(organizationId, patterns));
    const records = requestCollection(this.#db);
    for (let [last, done] = ["", 0]; ;) {
      const finding = records.find({ _id: { $gt: last } }, { projection: { _id: 1 } }).sort({ _id: 1 });
      const [next] = await bounded(finding.skip(recordsMax).limit(1).toArray());
      const _id = { $gt: last, ...(next === undefined ? {} : { $lte: next._id }) };
      for (const { isNamed, change } of changes) {
        const requests = (await bounded(records.updateMany({ _id, ...isNamed }, [{ $set: change }]))).modifiedCount;
        await this.#report({ step: "reading records of requests", done }, { requests });
      }
      done += recordsMax;
      if (next === undefined) return;
      last = next._id;
    }
  }
}

/** Milliseconds of claims that one command reads. */
const claimWindowMs = 60_000;
/** Records that one command reads. */
const recordsMax = 5_000;
const forgotten = "(It named a worker who was erased.)";

/** Texts in one pattern. MongoDB refuses one of more than 16 KB. */
const textsMax = 100;

/** Patterns of texts that name the worker and nobody else, and of those that do so in its organisation. */
type Patterns = readonly [ofAnybody: string, ofOrganization: string];

function patternsOf({ _id, merged = [], displayName, ...worker }: WorkerDocument): Patterns[] {
  const all = [{ _id, ...worker }, ...merged];
  const ids = all.map((one) => one._id);
  const emails = all.flatMap(({ email }) => (email === undefined ? [] : [shownBeginning(email)]));
  const quoted = [
    ...all.flatMap(({ links }) => links.map(({ externalId }) => externalId)),
    ...(displayName === undefined ? [] : [displayName]),
  ];
  const texts = [...emails, ...quoted.map((text) => `'${shownBeginning(text)}`)];
  const count = Math.ceil(Math.max(ids.length, texts.length) / textsMax);
  return Array.from({ length: count }, (_, i) => {
    const [from, to] = [i * textsMax, (i + 1) * textsMax];
    return [patternOf(ids.slice(from, to)), patternOf(texts.slice(from, to))];
  });
}

/** Fits nothing if there is no text. */
const patternOf = (texts: readonly string[]): string =>
  texts.map((text) => text.replace(/[^\p{L}\p{N}_ -]/gu, "\\$&")).join("|") || "(?!)";

/** The records whose messages fit a pattern, and their change. */
function forgetting(organizationId: string, [ofAnybody, ofOrganization]: Patterns) {
  const names = (input: unknown) => ({
    $or: [
      { $regexMatch: { input, regex: ofAnybody, options: "i" } },
      {
        $and: [
          { $eq: ["$organizationId", organizationId] },
          { $regexMatch: { input, regex: ofOrganization, options: "i" } },
        ],
      },
    ],
  });
  const message = { $cond: [names("$$this.message"), forgotten, "$$this.message"] };
  const rejections = { $map: { input: "$rejections", in: { $mergeObjects: ["$$this", { message }] } } };
  const inEither = ($regex: string) => ({
    $or: [{ reason: { $regex, $options: "i" } }, { "rejections.message": { $regex, $options: "i" } }],
  });
  return {
    isNamed: { $or: [inEither(ofAnybody), { organizationId, ...inEither(ofOrganization) }] },
    change: {
      reason: { $cond: [names({ $ifNull: ["$reason", ""] }), forgotten, "$reason"] },
      rejections: { $cond: [{ $isArray: "$rejections" }, rejections, "$rejections"] },
    },
  };
}
