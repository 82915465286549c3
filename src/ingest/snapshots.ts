import { Fault, unavailable } from "../errors.ts";
import type { Outcome } from "../exchange.ts";
import { storedObject } from "../store/documents.ts";
import type { NewRow } from "../store/events.ts";
import { cardId } from "../store/snapshots.ts";
import { isNotBegun } from "../store/group-commit.ts";
import type { QuotaRequest } from "../store/usage.ts";
import { type ActorIds, displayNameOf, erasedWorkerId, type WorkerDocument } from "../store/workers.ts";
import { actorIdsOf, missingActor, quotaExceeded, workerErased, workerNotFound } from "./actor.ts";
import { type Call, ownerOf, type Services } from "./services.ts";
import { fingerprint } from "./fingerprint.ts";
import { quotaOf } from "./quota.ts";
import { type Decision, doOnce } from "./idempotency.ts";
import type { SnapshotRequest } from "./schema.ts";

export interface SnapshotAnswer {
  readonly requestId: string;
  readonly snapshotType: string;
  readonly worker: { readonly id: string; readonly displayName: string };
}

interface SnapshotOutcome {
  readonly workerId: string;
  readonly displayName: string;
  /** Of a claim: the worker that the first answer named, if it was merged into another one since. */
  readonly answeredId?: string;
}

/**
 * Stores the snapshot durably: as a row of history, and on the worker's card unless the card is newer.
 * @throws Fault missing_actor, worker_not_found, quota_exceeded, or as `doOnce`.
 */
export async function ingestSnapshot(
  services: Services,
  call: Call,
  request: SnapshotRequest,
): Promise<Outcome<SnapshotAnswer>> {
  const { idempotencyKey } = call;
  const quota = quotaOf(call, 1);
  const actor = actorIdsOf(request.actor, call.principal);
  const known = actor === undefined ? undefined : services.workers.cached(actor);
  const { answer: decision, facts } = await doOnce<SnapshotOutcome>(
    services,
    call,
    idempotencyKey === undefined ? undefined : { key: idempotencyKey, fingerprint: fingerprint("Snapshots", request) },
    {
      isAtHand: () => known !== undefined && services.usage.isReserved(quota),
      decide: () => decide(services, call, actor, known, quota),
      keep: (outcome) => outcome,
      recall: (kept) => recall(kept as SnapshotOutcome),
      sizeOf: () => 1,
      isShort: () => false,
      isTakenBefore: () => services.usage.isTakenBefore(quota, quota.claimant),
      undo: () => services.usage.giveBack(quota, 1, quota.claimant),
      doubt: () => services.usage.doubt(quota),
      store: (decision) => store(services, call, request, decision),
      isStored: (decision) => services.events.has(ownerOf(call, decision), [rowOf(request, decision)]),
    },
  );
  const { requestId, outcome } = decision;
  const worker = { id: outcome.answeredId ?? outcome.workerId, displayName: outcome.displayName };
  return { answer: { requestId, snapshotType: request.snapshotType, worker }, facts: { ...facts, accepted: 1 } };
}

/** @throws Fault worker_not_found if the worker was erased since. */
function recall(outcome: SnapshotOutcome): SnapshotOutcome {
  if (outcome.workerId === erasedWorkerId) throw new Fault("worker_not_found", workerErased);
  return outcome;
}

/** @param complete the cached worker, if it has everything that the actor names. */
async function decide(
  services: Services,
  { start, wanted }: Call,
  actor: ActorIds | undefined,
  complete: WorkerDocument | undefined,
  quota: QuotaRequest,
): Promise<SnapshotOutcome> {
  const { workers, usage, ids } = services;
  if (actor === undefined)
    throw new Fault("missing_actor", missingActor, { issues: [{ path: "actor", message: missingActor }] });
  const known = complete ?? (await workers.find(actor, wanted));
  if (known === "erased") throw new Fault("worker_not_found", workerErased);
  if (known === undefined && actor.workerId !== undefined) {
    throw new Fault("worker_not_found", workerNotFound(actor.workerId));
  }
  if ((await usage.take(quota, wanted)) === 0) throw new Fault("quota_exceeded", quotaExceeded(quota.quotaEvents));
  try {
    const worker = complete ?? (await workers.provision(actor, () => ids.next("wrk"), start.receivedAt, known));
    return { workerId: worker._id, displayName: displayNameOf(worker) };
  } catch (error) {
    await usage.giveBack(quota, 1, quota.claimant);
    throw error;
  }
}

/** Writes the history row and the card in parallel. A retry may find either of them already stored. */
async function store(
  { events, cards }: Services,
  call: Call,
  request: SnapshotRequest,
  decision: Decision<SnapshotOutcome>,
): Promise<boolean> {
  const { snapshotType } = request;
  const { receivedAt } = decision;
  const owner = ownerOf(call, decision);
  const row = rowOf(request, decision);
  const { workerId, timestamp, metadata } = row;
  const [stored, card] = await Promise.allSettled([
    events.insert(owner, [row]),
    cards.put({
      _id: cardId(workerId, owner.appId, snapshotType),
      ...owner,
      ...{ workerId, snapshotType, timestamp, receivedAt },
      metrics: storedObject(request.metrics),
      ...(metadata === undefined ? {} : { metadata: storedObject(metadata) }),
    }),
  ]);
  if (stored.status === "fulfilled" && card.status === "fulfilled") return stored.value.isNew;
  const errors = [stored, card].flatMap((one) => (one.status === "rejected" ? [one.reason as Error] : []));
  const [first] = errors as [Error];
  // One half may be stored, so this error must not count as never begun: that would give the quota back.
  if (errors.length === 1 && isNotBegun(first))
    throw unavailable(new Error("one half was not begun", { cause: first }));
  throw errors.find((error) => !isNotBegun(error)) ?? first;
}

/** The row of history. */
const rowOf = (
  { snapshotType: type, timestamp, metrics, metadata }: SnapshotRequest,
  { receivedAt, outcome }: Decision<SnapshotOutcome>,
): NewRow => ({
  ...{ index: 0, workerId: outcome.workerId, type, timestamp: timestamp ?? receivedAt },
  ...{ metrics, metadata },
});
