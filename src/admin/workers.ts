import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ClientSession, Filter } from "mongodb";
import { Fault } from "../errors.ts";
import {
  ErasureState,
  type ErasureSchema,
  UpdateWorkerRequestSchema,
  WorkerSchema,
} from "../gen/ingest/admin/v1/admin_pb.js";
import { object, optional, text } from "../ingest/shapes.ts";
import { invalidMember, shown, validate } from "../ingest/validate.ts";
import { limits } from "../limits.ts";
import { type Card, cardCollection, cardId, cardOf, cardsOfWorker } from "../store/snapshots.ts";
import {
  type Erasure,
  findErasure as readErasure,
  findJobOfWorker,
  type JobDocument,
  runningErasure,
} from "../store/worker-jobs.ts";
import { displayNameOf, isListed, linksOf, type WorkerDocument, workerCollection } from "../store/workers.ts";
import { type AdminCall, notFound } from "./call.ts";
import { auditOf, change } from "./change.ts";
import type { Answer, Handler, Request } from "./dispatch.ts";
import { untilMerged } from "./merge-wait.ts";
import { pageOf } from "./pages.ts";
import { displayName } from "./shapes.ts";
import { changesOf, checkEtag, etagOf } from "./update.ts";
import { allowAgain, beginJob, currentWorker, findErasureOf, type JobPlan, type WorkerName } from "./worker-changes.ts";

/** The most cards that a worker is shown with. */
const cardsMax = 100;

const filterSchema = object({
  email: optional(text(254)),
  externalId: optional(text(limits.externalIdCharactersMax)),
  name: optional(text(limits.displayNameCharactersMax)),
});
const updateSchema = object({ displayName: optional(displayName) });

export const listWorkers: Handler<"listWorkers"> = async (request, call) => {
  const { _id: organizationId } = await call.organization(request.organizationId);
  const { email, externalId, name } = validate(filterSchema, {
    email: request.email,
    externalId: request.externalId,
    name: request.name,
  });
  if (email !== undefined || externalId !== undefined) {
    call.checkRole("manager", "a search by email or external id");
  }
  const { _id, ...isCurrent } = isListed;
  const filters: Filter<WorkerDocument>[] = [{ organizationId, _id }];
  const looked: Filter<WorkerDocument>[] = [];
  if (email !== undefined) {
    filters.push(await whoHas(call, organizationId, { email: email.toLowerCase() }));
  }
  if (externalId !== undefined) {
    filters.push(await whoHas(call, organizationId, { "links.externalId": externalId }));
  }
  if (name !== undefined) {
    const pattern = name.replace(/[^\p{L}\p{N}_ -]/gu, "\\$&");
    looked.push({ displayName: { $regex: `^${pattern}`, $options: "i" } });
  }
  const collection = workerCollection(call.db);
  // Few workers are merged or erased, so only a search by name may have to pass many.
  (looked.length > 0 ? looked : filters).push({ ...isCurrent, erasing: { $exists: false } });
  const { documents, nextPageToken } = await pageOf(call, collection, { $and: filters }, request, { looked });
  return { workers: documents.map((worker) => workerOf(call, worker)), nextPageToken };
};

/** The workers with such an id, or those that took their places. */
async function whoHas(
  call: AdminCall,
  organizationId: string,
  filter: Filter<WorkerDocument>,
): Promise<Filter<WorkerDocument>> {
  const found = await workerCollection(call.db)
    .find({ organizationId, ...filter } as Filter<WorkerDocument>, { readConcern: "majority" })
    .toArray();
  const current = await Promise.all(found.map(({ _id }) => currentWorker(call.db, organizationId, _id)));
  return { _id: { $in: current.flatMap((worker) => worker?._id ?? []) } };
}

/**
 * The worker with this id, or the one that took its place.
 * @throws Fault not_found, also for one that is being erased.
 */
async function current(call: AdminCall, id: string, session?: ClientSession): Promise<WorkerDocument> {
  const { _id, organizationId } = await call.worker(id, session);
  const worker = await currentWorker(call.db, organizationId, _id, session);
  if (worker === undefined || worker.erasing) throw notFound("worker", id);
  return worker;
}

export const getWorker: Handler<"getWorker"> = async ({ workerId }, call) => {
  const worker = await current(call, workerId);
  const { _id, organizationId } = worker;
  const cards = await cardCollection(call.db)
    .find({ organizationId, workerId: _id }, { readConcern: "majority" })
    .sort({ timestamp: -1, _id: -1 })
    .hint(cardsOfWorker)
    .limit(cardsMax)
    .map(cardOf)
    .toArray();
  return workerOf(call, worker, workerId, cards);
};

export const updateWorker: Handler<"updateWorker"> = (request, call) =>
  change(call, request, async (session) => {
    const before = await current(call, request.workerId, session);
    const changes = changesOf(UpdateWorkerRequestSchema, request);
    checkEtag(request.etag, versionOf(before), "worker", before._id);
    const { displayName } = validate(updateSchema, changes);
    const { displayName: _, ...rest } = before;
    const after: WorkerDocument = displayName === undefined ? rest : { ...rest, displayName };
    // Not the shown names: those may be a part of an email.
    const audit = auditOf(WorkerSchema, idsOf(before), versionOf(before), versionOf(after));
    if (audit !== undefined) {
      const update = displayName === undefined ? { $unset: { displayName: "" } } : { $set: { displayName } };
      const { _id, organizationId } = before;
      await workerCollection(call.db).updateOne({ _id, organizationId }, update as object, { session });
    }
    return { answer: workerOf(call, after, request.workerId), audit };
  });

export const dropCard: Handler<"dropCard"> = (request, call) =>
  change(call, request, async (session) => {
    const { workerId, appId, snapshotType } = request;
    const worker = await current(call, workerId, session);
    const { _id, organizationId } = worker;
    const filter = { _id: cardId(_id, appId, snapshotType), organizationId };
    const card = await cardCollection(call.db).findOneAndDelete(filter, { session });
    if (card === null) {
      const what = `no card of type ${shown(snapshotType)} of the app ${shown(appId)}`;
      throw new Fault("not_found", `The worker '${workerId}' has ${what}.`);
    }
    const before = { cards: [{ appId, snapshotType, timestamp: timestampFromDate(card.timestamp) }] };
    return { answer: workerOf(call, worker, workerId), audit: auditOf(WorkerSchema, idsOf(worker), before, {}) };
  });

export const mergeWorkers: Handler<"mergeWorkers"> = async (request, call) => {
  const { workerId, intoWorkerId } = request;
  const { organizationId, id } = await begin(call, request, async (session) => {
    const { organizationId } = await call.worker(workerId, session);
    const { _id: into } = await current(call, intoWorkerId, session);
    return {
      plan: { kind: "merge", organizationId, workerId, into },
      answerOf: async () => workerOf(call, await current(call, into, session)),
      // The caller may have named a worker that this one took the place of.
      audit: ({ workerId: target }) => ({ target, after: { mergedInto: into } }),
    };
  });
  await untilMerged(call, organizationId as string, id as string);
  return workerOf(call, await current(call, intoWorkerId));
};

export const eraseWorker: Handler<"eraseWorker"> = (request, call) =>
  begin(call, request, async (session) => {
    const { workerId } = request;
    // The last step but one removes the worker itself.
    const job = await findJobOfWorker(call.db, workerId);
    const { organizationId } =
      job?.kind === "erase"
        ? { organizationId: call.visible("worker", workerId, job, job._id)._id }
        : await call.worker(workerId, session);
    return {
      plan: { kind: "erase", organizationId, workerId },
      answerOf: async (job) => erasureOf(runningErasure(job)),
      // The worker's id must not stay.
      audit: () => ({}),
    };
  });

interface Beginning<Answered> {
  readonly plan: JobPlan;
  readonly answerOf: (job: JobDocument) => Promise<Answered>;
  readonly audit: (job: JobDocument) => { readonly target?: string; readonly after?: JsonObject };
}

/** Begins a job in the transaction of its audit entry. Afterwards this process carries it out, if nobody else does. */
async function begin<Answered extends object>(
  call: AdminCall,
  request: Request<"mergeWorkers"> | Request<"eraseWorker">,
  prepare: (session: ClientSession) => Promise<Beginning<Answered>>,
): Promise<Answered> {
  const { db, ids, jobs } = call.services;
  let begun: JobDocument | undefined;
  const answer = await change(call, request, async (session) => {
    const { plan, answerOf, audit } = await prepare(session);
    const { name, id } = call.identity;
    const by = name === "" || name === id ? id : `${name} (${id})`;
    const { job, isNew } = await beginJob(db, plan, { ids, nowDate: call.nowDate, by, session });
    begun = job;
    const entry = { organizationId: plan.organizationId, target: job.jobId, ...audit(job) };
    return { answer: await answerOf(job), audit: isNew ? entry : undefined };
  });
  if (begun !== undefined) jobs.begun(begun);
  return answer;
}

export const getErasure: Handler<"getErasure"> = async ({ erasureId }, call) =>
  erasureOf(await erasureBy(call, erasureId));

async function erasureBy(call: AdminCall, id: string): Promise<Erasure> {
  const found = await readErasure(call.db, id);
  return call.visible("erasure", id, found, found?.organizationId);
}

export const findErasure: Handler<"findErasure"> = async (request, call) => {
  const { _id: appId, organizationId } = await call.app(request.appId);
  const found = await findErasureOf(call.db, organizationId, nameOf(request.id, appId));
  if (found === undefined) throw new Fault("not_found", "No worker with this id was erased.");
  return erasureOf(found);
};

function nameOf(id: Request<"findErasure">["id"], appId: string): WorkerName {
  if (id.case === undefined) {
    throw invalidMember("body", "must have one of email, externalId and workerId; it has none");
  }
  return id.case === "externalId" ? { ...id, appId } : id;
}

export const allowWorkerAgain: Handler<"allowWorkerAgain"> = (request, call) =>
  change(call, request, async (session) => {
    const erasure = await erasureBy(call, request.erasureId);
    const allowedNames = await allowAgain(call.db, erasure, session);
    const { id, organizationId } = erasure;
    const audit = allowedNames === 0 ? undefined : { organizationId, target: id };
    return { answer: { erasureId: id, allowedNames }, audit };
  });

const idsOf = ({ _id: target, organizationId }: WorkerDocument) => ({ organizationId, target });

/** The members whose change makes an etag stale. */
const versionOf = ({ displayName = "" }: WorkerDocument) => ({ displayName });

/** @param askedFor the id that the caller gave. */
function workerOf(
  call: AdminCall,
  worker: WorkerDocument,
  askedFor = worker._id,
  cards: readonly Card[] = [],
): Answer<"getWorker"> {
  const { _id: id, organizationId, email, merged = [], createdAt } = worker;
  const sees = call.seesPersonalData;
  return {
    id,
    organizationId,
    displayName: sees ? displayNameOf(worker) : (worker.displayName ?? ""),
    ...(sees && email !== undefined ? { email } : {}),
    links: sees ? linksOf(worker).map(({ connection, externalId, appId }) => ({ connection, externalId, appId })) : [],
    ...(askedFor === id ? {} : { mergedInto: id }),
    merged: merged.map((one) => ({ id: one._id, ...(sees && one.email !== undefined ? { email: one.email } : {}) })),
    createdAt: timestampFromDate(createdAt),
    cards: cards.map((card) => shownCard(call, card)),
    etag: etagOf(versionOf(worker)),
  };
}

const shownCard = (call: AdminCall, { appId, snapshotType, requestId, ...card }: Card) => ({
  ...{ appId, snapshotType, requestId },
  timestamp: timestampFromDate(card.timestamp),
  receivedAt: timestampFromDate(card.receivedAt),
  metrics: card.metrics as JsonObject,
  ...(call.seesPersonalData && card.metadata !== undefined ? { metadata: card.metadata as JsonObject } : {}),
});

function erasureOf(erasure: Erasure): MessageInitShape<typeof ErasureSchema> {
  const { startedAt, completedAt, progress, rows, failure } = erasure;
  return {
    id: erasure.id,
    organizationId: erasure.organizationId,
    state: erasure.state === "done" ? ErasureState.DONE : ErasureState.RUNNING,
    startedAt: timestampFromDate(startedAt),
    ...(completedAt === undefined ? {} : { completedAt: timestampFromDate(completedAt) }),
    counts: { ...erasure.counts },
    by: erasure.by,
    ...(progress === undefined ? {} : { step: progress.step }),
    ...(rows === undefined ? {} : { eventsTotal: rows }),
    ...(failure === undefined ? {} : { trouble: failure.message }),
  };
}
