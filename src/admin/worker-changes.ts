import type { Db } from "mongodb";
import type { IdSource } from "../ids.ts";
import { limits } from "../limits.ts";
import { appCollection } from "../store/apps.ts";
import { durable, everyShard, insertDurably } from "../store/database.ts";
import { claimCollection } from "../store/idempotency.ts";
import { settleOnInstances } from "../store/instances.ts";
import { organizationCollection } from "../store/organizations.ts";
import { requestCollection } from "../store/requests.ts";
import { countRowsOfWorker, moveRowsOfWorker, removeRowsOfWorker, restAfter } from "../store/row-removal.ts";
import { sharedSecret } from "../store/secrets.ts";
import { CardStore, cardCollection, cardId, cardsOfWorker } from "../store/snapshots.ts";
import { hasOldRows } from "../store/version-2.ts";
import {
  beginJob,
  countInJob,
  endJob,
  type ErasureDocument,
  erasureCollection,
  findJob,
  findJobOfWorker,
  type JobCounts,
  type JobDocument,
  keepJob,
  takeOverAfterMs,
  takeOverJob,
} from "../store/worker-jobs.ts";
import {
  erasedNameCollection,
  erasedNameId,
  erasedNameSecret,
  erasedWorkerId,
  namesOfWorker,
  type WorkerDocument,
  workerCollection,
  workers,
} from "../store/workers.ts";
import { AdminError } from "./admin.ts";

/** How an operator names a worker: by its own id, or by an id that an app knows. */
export type WorkerSelector =
  | { readonly id: string; readonly appId?: string | undefined }
  | { readonly appId: string; readonly email: string }
  | { readonly appId: string; readonly externalId: string };

export interface JobProgress {
  /** Such as "removing events". */
  readonly step: string;
  readonly done: number;
  /** Undefined for a step whose length is not known. */
  readonly total?: number | undefined;
}

export interface JobOptions {
  /** Who asks, for the receipt. */
  readonly by: string;
  readonly onProgress?: (progress: JobProgress) => void;
}

/** A request ends at most this many seconds after it began. */
const settleSecondsMax = 120;
const keepEveryMs = takeOverAfterMs / 5;
const noCounts: JobCounts = { events: 0, cards: 0, idempotency: 0, requests: 0, workers: 0 };

/**
 * Erases and merges workers. Both are jobs with a record in the database, whose steps change nothing when they are done
 * again. So after a crash the same command goes on.
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
   * Removes everything about a worker, and remembers its ids as keyed hashes, so that its next event is rejected.
   * @returns the receipt.
   * @throws AdminError if there is no such worker.
   */
  async erase(selector: WorkerSelector, options: JobOptions) {
    const { organizationId, names } = await this.#named(selector);
    const resumed = organizationId === undefined ? undefined : await this.#resume(organizationId, options);
    const worker = await this.#find(selector);
    if (worker === undefined) {
      const [erased] = await this.#erasedNames(names);
      // The command that was interrupted was the same.
      if (erased !== undefined && erased.erasure === resumed?.jobId) return this.#receipt(erased.erasure);
      throw new AdminError(
        erased === undefined ? unknown(selector) : `This worker was erased already (${erased.erasure}).`,
      );
    }
    return this.#receipt((await this.#run({ kind: "erase", worker }, options)).jobId);
  }

  /** Lets callers name an erased worker again: its next event makes a new one. @throws AdminError if none was erased. */
  async allowAgain(selector: WorkerSelector) {
    const { names } = await this.#named(selector);
    const [erased] = await this.#erasedNames(names);
    if (erased === undefined) throw new AdminError(`No worker was erased with this id. ${unknown(selector)}`);
    const { organizationId, erasure } = erased;
    const filter = { _id: { $gt: "erased_", $lt: "erased`" }, organizationId, erasure };
    const { deletedCount } = await erasedNameCollection(this.#db).deleteMany(filter, { writeConcern: durable });
    return { erasure, allowedNames: deletedCount };
  }

  /**
   * Gives the rows, cards and ids of the worker `from` to the worker `into`. The ids of both name it from then on.
   *
   * The record of `from` stays, with its ids, and says who took its place: so one write moves all ids, and no event in
   * between can create a worker. Rows are rewritten: the timeline of a worker stays one range of one index, and an erasure
   * finds everything under one id. That changes no shard key, which is the organisation.
   */
  async merge(into: string, from: string, options: JobOptions) {
    const organizationId = (await this.#find({ id: from }))?.organizationId;
    const resumed = organizationId === undefined ? undefined : await this.#resume(organizationId, options);
    const [target, worker] = [await this.#find({ id: into }), await this.#find({ id: from })];
    if (target === undefined) throw new AdminError(unknown({ id: into }));
    if (worker === undefined) throw new AdminError(unknown({ id: from }));
    // The command that was interrupted was the same.
    if (target._id === worker._id && resumed?.into === target._id) return answerOfMerge(resumed);
    if (target._id === worker._id) throw new AdminError(`'${into}' and '${from}' are one worker already.`);
    if (target.organizationId !== worker.organizationId) {
      throw new AdminError(`'${into}' and '${from}' belong to different organisations.`);
    }
    return answerOfMerge(await this.#run({ kind: "merge", worker, into: target._id }, options));
  }

  /** @returns the job's last record. */
  async #run({ kind, worker, into }: Plan, options: JobOptions): Promise<JobDocument> {
    if (await hasOldRows(this.#db)) throw new AdminError("Rows of an older version wait: run `ingest migrate` first.");
    const nowDate = new Date(this.#now());
    const job: JobDocument = {
      _id: worker.organizationId,
      jobId: this.#ids.next("ers"),
      kind,
      workerId: worker._id,
      ...(into === undefined ? {} : { into }),
      by: options.by,
      startedAt: nowDate,
      aliveAt: nowDate,
      counts: noCounts,
    };
    if ((await beginJob(this.#db, job)) !== undefined) throw busy(job);
    return this.#carryOut(job, options);
  }

  /** Finishes the job that an earlier command of this organisation has left. @throws AdminError if that command runs. */
  async #resume(organizationId: string, options: JobOptions): Promise<JobDocument | undefined> {
    const job = await findJob(this.#db, organizationId);
    if (job === undefined) return undefined;
    if (!(await takeOverJob(this.#db, job))) throw busy(job);
    return this.#carryOut(job, options);
  }

  async #carryOut(job: JobDocument, { onProgress = () => {} }: JobOptions): Promise<JobDocument> {
    const timer = setInterval(() => void keepJob(this.#db, job).catch(() => {}), keepEveryMs);
    try {
      if (job.kind === "erase") await this.#doErase(job, onProgress);
      else await this.#doMerge(job, onProgress);
      const last = (await findJob(this.#db, job._id)) ?? job;
      if (job.kind === "erase") await this.#keepReceipt(last);
      await endJob(this.#db, job);
      return last;
    } finally {
      clearInterval(timer);
    }
  }

  async #doErase(job: JobDocument, onProgress: (progress: JobProgress) => void): Promise<void> {
    const { _id: organizationId, workerId, jobId } = job;
    const secret = await sharedSecret(this.#db, erasedNameSecret);
    // From now on its ids do not change. Absent if the last run came this far.
    const worker = await workerCollection(this.#db).findOneAndUpdate(
      { _id: workerId, organizationId },
      { $set: { erasing: true } },
      { returnDocument: "after", writeConcern: durable },
    );
    if (worker !== null) {
      const names = namesOfWorker(worker).map((name) => ({
        _id: erasedNameId(secret, name),
        organizationId,
        erasure: jobId,
      }));
      const failed = (await insertDurably(this.#db, workers.name, names)).find((one) => "error" in one);
      if (failed !== undefined) throw failed.error;
    }
    await this.#settle(onProgress);
    await this.#rewriteClaims(job, erasedWorkerId, onProgress);
    // A retry may have read its kept decision before.
    await this.#settle(onProgress);
    await this.#eachRow(
      job,
      "removing events",
      removeRowsOfWorker(this.#db, organizationId, workerId, { now: new Date(this.#now()) }),
      onProgress,
    );
    const { deletedCount } = await cardCollection(this.#db).deleteMany(
      { organizationId, workerId },
      { hint: cardsOfWorker, writeConcern: durable },
    );
    await countInJob(this.#db, job, "cards", deletedCount);
    if (worker === null) return;
    await this.#forgetInRecords(job, worker, onProgress);
    const ids = [...(worker.merged ?? []).map(({ _id }) => _id), workerId];
    for (const _id of ids) {
      const gone = await workerCollection(this.#db).deleteOne({ _id, organizationId }, { writeConcern: durable });
      await countInJob(this.#db, job, "workers", gone.deletedCount);
    }
  }

  async #doMerge(job: JobDocument, onProgress: (progress: JobProgress) => void): Promise<void> {
    const { _id: organizationId, workerId, into } = job;
    if (into === undefined) throw new Error("a merge names no worker to merge into");
    const options = { writeConcern: durable };
    // From now on its ids do not change.
    const worker = await workerCollection(this.#db).findOneAndUpdate(
      { _id: workerId, organizationId },
      { $set: { mergedInto: into } },
      { returnDocument: "after", ...options },
    );
    if (worker === null) throw new AdminError(unknown({ id: workerId }));
    const { _id, email, links, merged = [], displayName } = worker;
    const own = { _id, ...(email === undefined ? {} : { email }), links };
    const target = { _id: into, organizationId };
    await workerCollection(this.#db).updateOne(
      { ...target, "merged._id": { $ne: _id } },
      { $push: { merged: { $each: [own, ...merged] } } },
      options,
    );
    if (displayName !== undefined) {
      const isNameless = { ...target, displayName: { $exists: false } };
      await workerCollection(this.#db).updateOne(isNameless, { $set: { displayName } }, options);
    }
    const earlier = { organizationId, _id: { $in: merged.map((one) => one._id) } };
    if (merged.length > 0)
      await workerCollection(this.#db).updateMany(earlier, { $set: { mergedInto: into } }, options);
    await this.#settle(onProgress);
    await this.#rewriteClaims(job, into, onProgress);
    // A retry may have read its kept decision before.
    await this.#settle(onProgress);
    const moves = moveRowsOfWorker(this.#db, organizationId, workerId, into);
    await this.#eachRow(job, "moving events", moves, onProgress);
    const store = new CardStore(this.#db);
    let moved = 0;
    for await (const card of cardCollection(this.#db).find({ organizationId, workerId }, { hint: cardsOfWorker })) {
      await store.put({ ...card, _id: cardId(into, card.appId, card.snapshotType), workerId: into });
      const gone = await cardCollection(this.#db).deleteOne({ _id: card._id, organizationId }, options);
      await countInJob(this.#db, job, "cards", gone.deletedCount);
      onProgress({ step: "moving cards", done: (moved += gone.deletedCount) });
    }
  }

  /** Waits until no request that saw the worker as it was can store anything more. */
  async #settle(onProgress: (progress: JobProgress) => void): Promise<void> {
    onProgress({ step: "waiting for requests in flight", done: 0 });
    const behind = await settleOnInstances(this.#db, settleSecondsMax, "workersRevision");
    if (behind.length === 0) return;
    throw new AdminError(
      `These instances have not confirmed it: ${behind.join("; ")}. Update or stop them, then run the command again.`,
    );
  }

  async #eachRow(
    job: JobDocument,
    step: string,
    steps: AsyncIterable<number>,
    onProgress: (progress: JobProgress) => void,
  ): Promise<void> {
    const total = await countRowsOfWorker(this.#db, job._id, job.workerId);
    let done = 0;
    onProgress({ step, done, total });
    let startedMs = performance.now();
    for await (const count of steps) {
      await countInJob(this.#db, job, "events", count);
      done += count;
      onProgress({ step, done, total });
      await restAfter(performance.now() - startedMs);
      startedMs = performance.now();
    }
  }

  /** Names another worker in kept decisions, so that a retry stores no rows of this one. */
  async #rewriteClaims(job: JobDocument, to: string, onProgress: (progress: JobProgress) => void): Promise<void> {
    const { _id: organizationId, workerId, kind } = job;
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
      const { modifiedCount } = await claimCollection(this.#db).updateMany(
        { organizationId, expiresAt, ...isNamed },
        [{ $set: { outcome: change } }],
        { hint: { expiresAt: 1 }, writeConcern: durable },
      );
      await countInJob(this.#db, job, "idempotency", modifiedCount);
      onProgress({ step: "reading kept decisions", done: 0 });
    }
  }

  /** Removes messages that name the worker from the records of requests. */
  async #forgetInRecords(
    job: JobDocument,
    worker: WorkerDocument,
    onProgress: (progress: JobProgress) => void,
  ): Promise<void> {
    const [ofAnybody, ofOrganization] = textsOf(worker);
    const names = (input: unknown) => ({
      $or: [
        { $regexMatch: { input, regex: ofAnybody, options: "i" } },
        {
          $and: [
            { $eq: ["$organizationId", job._id] },
            { $regexMatch: { input, regex: ofOrganization, options: "i" } },
          ],
        },
      ],
    });
    const message = { $cond: [names("$$this.message"), forgotten, "$$this.message"] };
    const rejections = { $map: { input: "$rejections", in: { $mergeObjects: ["$$this", { message }] } } };
    const change = {
      reason: { $cond: [names({ $ifNull: ["$reason", ""] }), forgotten, "$reason"] },
      rejections: { $cond: [{ $isArray: "$rejections" }, rejections, "$rejections"] },
    };
    const inEither = ($regex: string) => ({
      $or: [{ reason: { $regex, $options: "i" } }, { "rejections.message": { $regex, $options: "i" } }],
    });
    const isNamed = { $or: [inEither(ofAnybody), { organizationId: job._id, ...inEither(ofOrganization) }] };
    const records = requestCollection(this.#db);
    for (let last = ""; ;) {
      onProgress({ step: "reading records of requests", done: 0 });
      const [next] = await records
        .find({ _id: { $gt: last } }, { projection: { _id: 1 } })
        .sort({ _id: 1 })
        .skip(recordsMax)
        .limit(1)
        .toArray();
      const _id = { $gt: last, ...(next === undefined ? {} : { $lte: next._id }) };
      const { modifiedCount } = await records.updateMany({ _id, ...isNamed }, [{ $set: change }]);
      await countInJob(this.#db, job, "requests", modifiedCount);
      if (next === undefined) return;
      last = next._id;
    }
  }

  async #keepReceipt({ jobId, _id: organizationId, by, startedAt, counts }: JobDocument): Promise<void> {
    const $setOnInsert = { organizationId, by, startedAt, finishedAt: new Date(this.#now()), counts };
    const options = { upsert: true, writeConcern: durable };
    await erasureCollection(this.#db).updateOne({ _id: jobId }, { $setOnInsert }, options);
  }

  async #receipt(jobId: string) {
    const { _id: erasure, ...rest } = (await erasureCollection(this.#db).findOne({ _id: jobId })) as ErasureDocument;
    return { erasure, ...rest };
  }

  /** The worker, or the one that took its place. */
  async #find(selector: WorkerSelector): Promise<WorkerDocument | undefined> {
    let filter: object;
    if ("id" in selector) filter = { _id: selector.id, ...(await this.#organizationOf(selector.appId)) };
    else {
      const { organizationId } = await this.#app(selector.appId);
      filter =
        "email" in selector
          ? { organizationId, email: selector.email.toLowerCase() }
          : { organizationId, "links.key": `${selector.appId}/${selector.externalId}` };
    }
    for (;;) {
      const found = await workerCollection(this.#db).findOne(filter, everyShard("an operator may know the id alone"));
      if (found?.mergedInto === undefined) return found ?? undefined;
      filter = { _id: found.mergedInto, organizationId: found.organizationId };
    }
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
    if (app === null) throw new AdminError(`There is no app with the id '${id}'.`);
    return app;
  }
}

const answerOfMerge = ({ into, workerId, counts: { events, cards } }: JobDocument) => ({
  workerId: into as string,
  merged: workerId,
  events,
  cards,
});

interface Plan {
  readonly kind: JobDocument["kind"];
  readonly worker: WorkerDocument;
  readonly into?: string;
}

/** Milliseconds of claims that one command reads. */
const claimWindowMs = 60_000;
/** Records that one command reads. */
const recordsMax = 5_000;
const forgotten = "(It named a worker who was erased.)";

/** A message shows at least this much of a text. */
const shownCharacters = 30;

/** Patterns of the worker's ids: of those that mean nobody else, and of those that do so in the organisation only. */
function textsOf({ _id, merged = [], displayName, ...worker }: WorkerDocument): [string, string] {
  const all = [{ _id, ...worker }, ...merged];
  const pattern = (texts: readonly string[]) =>
    texts.map((text) => text.replace(/[^\p{L}\p{N}_ -]/gu, "\\$&")).join("|");
  const emails = all.flatMap(({ email }) => (email === undefined ? [] : [email.slice(0, shownCharacters)]));
  const quoted = [
    ...all.flatMap(({ links }) => links.map(({ externalId }) => externalId)),
    ...(displayName === undefined ? [] : [displayName]),
  ];
  const texts = [...emails, ...quoted.map((text) => `'${text.slice(0, shownCharacters)}`)];
  return [pattern(all.map((one) => one._id)), texts.length === 0 ? "(?!)" : pattern(texts)];
}

const unknown = (selector: WorkerSelector): string =>
  "id" in selector
    ? `There is no worker with the id '${selector.id}'.`
    : "email" in selector
      ? `There is no worker with the email '${selector.email}' in the organisation of this app.`
      : `There is no worker with the external id '${selector.externalId}' in this app.`;

const busy = ({ _id, kind }: Pick<JobDocument, "_id" | "kind">) =>
  new AdminError(
    `Another command ${kind === "erase" ? "erases" : "merges"} a worker of the organisation '${_id}'. If it is dead, run this one again in ${takeOverAfterMs / 1000} s: it goes on.`,
  );
