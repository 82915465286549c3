import { Fault } from "../errors.ts";
import { eventIds } from "../ids.ts";
import { limits } from "../limits.ts";
import type { Rejection } from "../exchange.ts";
import type { EventDocument } from "../store/events.ts";
import { monthOfRequest } from "../store/usage.ts";
import { type ActorIds, namesOf, type WorkerDocument } from "../store/workers.ts";
import { actorIdsOf, missingActor, quotaExceeded, workerNotFound } from "./actor.ts";
import type { Call, Services } from "./services.ts";
import { fingerprint } from "./fingerprint.ts";
import { type Decision, doOnce } from "./idempotency.ts";
import type { EventsRequest } from "./schema.ts";

/** What became of a batch. */
export interface EventsAnswer {
  readonly requestId: string;
  /** In request order. */
  readonly accepted: readonly { readonly eventType: string; readonly timestamp: Date }[];
  /** In request order. */
  readonly rejected: readonly Rejection[];
}

/** Recorded with an Idempotency-Key. Every event is in exactly one of the two, in request order. */
interface EventsOutcome {
  /** Index in the request and the worker's id. */
  readonly accepted: readonly (readonly [index: number, workerId: string])[];
  readonly rejected: readonly Rejection[];
}

/** An event on its way to a verdict. */
interface Candidate {
  readonly index: number;
  readonly actor: ActorIds;
  worker: WorkerDocument | undefined;
  /** Whether the worker is known with all that the actor tells: nothing is left to look up or to store. */
  readonly isComplete: boolean;
}

/**
 * Judges each event on its own and stores the accepted ones; durable when it returns.
 * @throws Fault when all events are rejected with the same code, or the request cannot be done as a whole.
 */
export async function ingestEvents(
  services: Services,
  call: Call,
  idempotencyKey: string | undefined,
  request: EventsRequest,
): Promise<EventsAnswer> {
  const { exchange, principal } = call;
  const month = monthOfRequest(exchange.requestId);
  const judged = judge(services, principal, request);
  const quota = quotaOf(call, month, judged.candidates.length);
  const decision = await doOnce<EventsOutcome>(
    services,
    call,
    idempotencyKey === undefined ? undefined : { key: idempotencyKey, fingerprint: fingerprint("Events", request) },
    {
      isAtHand: judged.candidates.every(({ isComplete }) => isComplete) && services.usage.isReserved(quota),
      decide: () => decide(services, call, request, month, judged),
      sizeOf: ({ accepted, rejected }) => accepted.length + rejected.length,
      shortageOf({ accepted, rejected }) {
        if (!rejected.some(({ code }) => code === "quota_exceeded")) return undefined;
        return accepted.length === 0 ? "all" : "some";
      },
      undo: ({ accepted }) => services.usage.giveBack(quota, accepted.length),
      doubt: () => services.usage.doubt(quota),
      // Never dropped, whoever still waits: a decision that was recorded is carried out.
      store: (decision) => services.events.insert(rowsOf(call, request, decision)),
      isStored: ({ requestId, outcome }) => {
        const idOf = eventIds(requestId);
        return services.events.has(outcome.accepted.map(([index]) => idOf(index)));
      },
    },
  );
  const { accepted, rejected } = decision.outcome;
  exchange.accepted = accepted.length;
  exchange.rejections = rejected;
  return {
    requestId: decision.requestId,
    accepted: accepted.map(([index]) => {
      const event = eventAt(request, index);
      return { eventType: event.eventType, timestamp: event.timestamp ?? decision.receivedAt };
    }),
    rejected,
  };
}

/** What the request itself and memory say about its events. */
interface Judged {
  readonly candidates: readonly Candidate[];
  readonly rejected: readonly Rejection[];
}

function judge({ workers }: Services, principal: Call["principal"], request: EventsRequest): Judged {
  const rejected: Rejection[] = [];
  const candidates: Candidate[] = [];
  request.events.forEach((event, index) => {
    const actor = actorIdsOf(event.actor, principal);
    if (actor === undefined) {
      rejected.push({ index, code: "missing_actor", message: missingActor });
      return;
    }
    if (!principal.allows(event.eventType)) {
      const message = `eventType '${event.eventType}' is not whitelisted.`;
      rejected.push({ index, code: "forbidden_event_type", message });
      return;
    }
    const worker = workers.cached(actor);
    candidates.push({ index, actor, worker, isComplete: worker !== undefined });
  });
  return { candidates, rejected };
}

const quotaOf = ({ principal: { organizationId, quotaEvents } }: Call, month: string, events: number) => ({
  organizationId,
  month,
  events,
  quotaEvents,
});

/** Who is accepted and who is not; takes the quota for the accepted and makes their workers, but stores no event. */
async function decide(
  services: Services,
  call: Call,
  request: EventsRequest,
  month: string,
  { candidates, rejected: judged }: Judged,
): Promise<EventsOutcome> {
  const { workers, usage, ids } = services;
  const { principal, exchange, wanted } = call;
  const rejected = [...judged];

  const unknown = candidates.filter(({ worker }) => worker === undefined);
  if (unknown.length > 0)
    await Promise.all(unknown.map(async (one) => (one.worker = await workers.find(one.actor, wanted))));
  const resolved = candidates.filter(({ index, actor, worker }) => {
    if (worker !== undefined || actor.workerId === undefined) return true;
    rejected.push({ index, code: "worker_not_found", message: workerNotFound(actor.workerId) });
    return false;
  });

  const granted = resolved.length === 0 ? 0 : await usage.take(quotaOf(call, month, resolved.length), wanted);
  for (const { index } of resolved.slice(granted)) {
    rejected.push({ index, code: "quota_exceeded", message: quotaExceeded(principal.quotaEvents) });
  }
  if (granted === 0) {
    exchange.rejections = rejected;
    refuseIfUniform(request, rejected);
  }

  const accepted = resolved.slice(0, granted);
  try {
    const incomplete = accepted.filter(({ isComplete }) => !isComplete);
    if (incomplete.length > 0) await provision(incomplete, services, () => ids.next("wrk"), exchange.receivedAt);
  } catch (error) {
    await usage.giveBack(quotaOf(call, month, granted), granted);
    throw error;
  }
  return {
    accepted: accepted.map(({ index, worker }) => [index, (worker as WorkerDocument)._id] as const),
    rejected: rejected.sort((a, b) => a.index - b.index),
  };
}

/**
 * Completes the candidates' workers; events of one new actor in a batch share one. Actors that may mean one worker follow
 * one another: of two display names for it the first is kept.
 */
async function provision(
  candidates: readonly Candidate[],
  { workers }: Services,
  newId: () => string,
  now: Date,
): Promise<void> {
  const made = new Map<string, Promise<WorkerDocument>>();
  const latest = new Map<string, Promise<WorkerDocument>>();
  await Promise.all(
    candidates.map(async (candidate) => {
      const { actor } = candidate;
      const name = JSON.stringify([actor.workerId, actor.externalId, actor.email, actor.displayName]);
      let worker = made.get(name);
      if (worker === undefined) {
        const known = candidate.worker === undefined ? namesOf(actor) : [candidate.worker._id];
        const earlier = Promise.all(known.flatMap((one) => latest.get(one) ?? []));
        worker = earlier.then(() => workers.provision(actor, newId, now, candidate.worker));
        made.set(name, worker);
        for (const one of known) latest.set(one, worker);
      }
      candidate.worker = await worker;
    }),
  );
}

/** Different reasons in the message of a refusal: the issues have them too, and both must fit the headers of gRPC. */
const messagesMax = 6;

/** Nothing was accepted: when the reason is the same for all, the request fails with it. */
function refuseIfUniform(request: EventsRequest, rejected: readonly Rejection[]): void {
  const first = rejected[0];
  if (first === undefined || rejected.some(({ code }) => code !== first.code)) return;
  const messages = [...new Set(rejected.map(({ message }) => message))];
  const shown = messages.slice(0, messagesMax).join(" ");
  const more = messages.length > messagesMax ? ` … and ${messages.length - messagesMax} more` : "";
  const issues = rejected
    .slice(0, limits.issuesMax)
    .map(({ index, message }) => ({ path: `events[${index}]`, message }));
  const prefix = request.events.length > 1 ? `All ${request.events.length} events were rejected. ` : "";
  throw new Fault(first.code, `${prefix}${shown}${more}`, { issues });
}

function rowsOf({ principal }: Call, request: EventsRequest, decision: Decision<EventsOutcome>): EventDocument[] {
  const { requestId, receivedAt, outcome } = decision;
  const idOf = eventIds(requestId);
  return outcome.accepted.map(([index, workerId]) => {
    const event = eventAt(request, index);
    const row: EventDocument = {
      _id: idOf(index),
      organizationId: principal.organizationId,
      appId: principal.app.id,
      workerId,
      requestId,
      kind: "event",
      type: event.eventType,
      category: event.category,
      timestamp: event.timestamp ?? receivedAt,
      receivedAt,
    };
    if (event.duration !== undefined) row.durationSeconds = event.duration;
    if (event.metadata !== undefined) row.metadata = event.metadata;
    return row;
  });
}

function eventAt(request: EventsRequest, index: number) {
  const event = request.events[index];
  if (event === undefined) throw new Error(`a recorded decision names event ${index}, which the request does not have`);
  return event;
}
