import { type ErrorCode, Fault } from "../errors.ts";
import { limits } from "../limits.ts";
import { Failure, type Outcome, type Rejection } from "../exchange.ts";
import type { EventRow, NewRow, StoredRows } from "../store/events.ts";
import type { QuotaRequest } from "../store/usage.ts";
import { quotaOf } from "./quota.ts";
import { type ActorIds, erasedWorkerId, namesOf, type WorkerDocument } from "../store/workers.ts";
import { actorIdsOf, missingActor, quotaExceeded, workerErased, workerNotFound } from "./actor.ts";
import { type Call, ownerOf, type Services } from "./services.ts";
import { canonicalJson, fingerprint } from "./fingerprint.ts";
import { type Decision, doOnce, type Work } from "./idempotency.ts";
import type { EventsRequest, IngestEvent } from "./schema.ts";

export interface EventsAnswer {
  readonly requestId: string;
  /** In request order. */
  readonly accepted: readonly AcceptedEvent[];
  /** In request order. */
  readonly rejected: readonly Rejection[];
}

export interface AcceptedEvent {
  readonly eventType: string;
  readonly timestamp: Date;
  /** The other members belong to events with one. */
  readonly eventId?: string;
  /** An event with this id was stored before, so this one was not. */
  readonly duplicate?: true;
  /** The stored event has other content. */
  readonly conflict?: true;
}

/** Each event is in exactly one of the lists `accepted` and `rejected`, in request order. */
interface EventsOutcome {
  /** Indices of accepted events that cost no quota: an event with the same id was accepted before. */
  readonly free?: ReadonlySet<number>;
  readonly accepted: readonly (readonly [index: number, workerId: string])[];
  readonly rejected: readonly Rejection[];
}

/** Why an event is rejected, each with the letter that stands for it in a claim. */
const rejectionLetters = {
  missing_actor: "M",
  forbidden_event_type: "F",
  forbidden_to_key: "K",
  worker_not_found: "W",
  worker_erased: "E",
  quota_exceeded: "Q",
} as const satisfies Partial<Record<ErrorCode | "worker_erased" | "forbidden_to_key", string>>;
type Reason = keyof typeof rejectionLetters;

const reasonOfLetter = new Map<string, Reason>(
  Object.entries(rejectionLetters).map(([reason, letter]) => [letter, reason as Reason]),
);

function letterOf({ code, message }: Rejection) {
  if (message === workerErased) return rejectionLetters.worker_erased;
  if (code === "forbidden_event_type" && message.endsWith(notOfKey)) return rejectionLetters.forbidden_to_key;
  return rejectionLetters[code as Reason];
}

/**
 * The claim of an Idempotency-Key stores this: at most 16 KB for 500 accepted events. Texts of the caller are not in
 * it.
 */
interface KeptOutcome {
  /** A letter for each event: A if it is accepted, D if it is accepted without a charge. */
  readonly verdicts: string;
  /** Of the accepted events, with spaces between them. */
  readonly workerIds: string;
  /** The quota that the message of `quota_exceeded` names. */
  readonly quotaEvents: number;
}

function keep({ accepted, rejected, free = noneFree }: EventsOutcome, quotaEvents: number): KeptOutcome {
  const verdicts = Array<string>(accepted.length + rejected.length).fill("A");
  for (const index of free) verdicts[index] = "D";
  for (const rejection of rejected) verdicts[rejection.index] = letterOf(rejection);
  return { verdicts: verdicts.join(""), workerIds: accepted.map(([, workerId]) => workerId).join(" "), quotaEvents };
}

function recall(kept: KeptOutcome | EventsOutcome, request: EventsRequest): EventsOutcome {
  // Of the version before, beside which this one may run.
  if ("accepted" in kept) return kept;
  const { verdicts, workerIds, quotaEvents } = kept;
  const ids = workerIds.split(" ");
  const accepted: [number, string][] = [];
  const rejected: Rejection[] = [];
  const free = new Set<number>();
  [...verdicts].forEach((letter, index) => {
    if (letter === "D") free.add(index);
    const reason = reasonOfLetter.get(letter);
    if (reason === undefined) accepted.push([index, ids[accepted.length] as string]);
    else rejected.push(rejectionOf(reason, index, request, quotaEvents));
  });
  return { accepted, rejected, free };
}

/** End of the message if the app's whitelist allows the type but the key's own list does not. */
const notOfKey = "is whitelisted, but is not among the event types of this API key.";

/** Whether the app's whitelist refused the event, and not the key's own list. */
export const isNotWhitelisted = ({ code, message }: Rejection): boolean =>
  code === "forbidden_event_type" && !message.endsWith(notOfKey);

/** The message follows from the reason, the event and the quota, so that a claim need not store it. */
function rejectionOf(reason: Reason, index: number, request: EventsRequest, quotaEvents: number): Rejection {
  const { eventType, actor } = eventAt(request, index);
  switch (reason) {
    case "missing_actor":
      return { index, code: reason, message: missingActor };
    case "forbidden_event_type":
      return { index, code: reason, message: `eventType '${eventType}' is not whitelisted.` };
    case "forbidden_to_key":
      return { index, code: "forbidden_event_type", message: `eventType '${eventType}' ${notOfKey}` };
    case "worker_not_found":
      return { index, code: reason, message: workerNotFound(actor.workerId ?? "") };
    case "worker_erased":
      return { index, code: "worker_not_found", message: workerErased };
    case "quota_exceeded":
      return { index, code: reason, message: quotaExceeded(quotaEvents) };
  }
}

/** An event that is neither accepted nor rejected yet. */
interface Candidate {
  readonly index: number;
  readonly actor: ActorIds;
  worker: WorkerDocument | undefined;
  /** Whether the cached worker has everything that the actor names: no look-up and no write is needed. */
  readonly isComplete: boolean;
}

const isComplete = (candidate: Candidate) => candidate.isComplete;

/**
 * Accepts or rejects each event on its own and stores the accepted ones durably.
 * @throws Fault when all events are rejected with the same code, or when the whole request fails.
 */
export function ingestEvents(services: Services, call: Call, request: EventsRequest): Promise<Outcome<EventsAnswer>> {
  const { idempotencyKey } = call;
  const batch = new Batch(services, call, request);
  const claimed =
    idempotencyKey === undefined ? undefined : { key: idempotencyKey, fingerprint: fingerprint("Events", request) };
  return doOnce(services, call, claimed, batch).then((done) => answerOf(request, batch.taken, done));
}

function answerOf(
  request: EventsRequest,
  taken: StoredRows["taken"],
  { answer: decision, facts }: Outcome<Decision<EventsOutcome>>,
): Outcome<EventsAnswer> {
  const { requestId, receivedAt, outcome } = decision;
  const { accepted, rejected } = outcome;
  const answer: EventsAnswer = {
    requestId,
    accepted: accepted.map(([index, workerId]) => {
      const event = eventAt(request, index);
      const { eventType, timestamp = receivedAt, eventId } = event;
      if (eventId === undefined) return { eventType, timestamp };
      const holder = taken.get(index);
      if (holder === undefined) return { eventType, timestamp, eventId };
      const known = { eventType, timestamp: event.timestamp ?? holder.timestamp, eventId, duplicate: true } as const;
      return isSame(event, workerId, holder) ? known : { ...known, conflict: true };
    }),
    rejected,
  };
  return {
    answer,
    facts: { ...facts, accepted: accepted.length, duplicates: [...taken.keys()], rejections: rejected },
  };
}

const noneFree: ReadonlySet<number> = new Set();
const noneTaken: StoredRows["taken"] = new Map();

/** The work of one request, for `doOnce`. */
class Batch implements Work<EventsOutcome> {
  /** The rows that have the ids of this request's events, by the event's index. */
  taken = noneTaken;
  readonly #services: Services;
  readonly #call: Call;
  readonly #request: EventsRequest;
  readonly #judged: Judged;
  readonly #quota: QuotaRequest;

  constructor(services: Services, call: Call, request: EventsRequest) {
    this.#services = services;
    this.#call = call;
    this.#request = request;
    this.#judged = judge(services, call.principal, request);
    this.#quota = quotaOf(call, this.#judged.candidates.length);
  }

  isAtHand(): boolean {
    return this.#judged.candidates.every(isComplete) && this.#services.usage.isReserved(this.#quota);
  }

  decide(): EventsOutcome | Promise<EventsOutcome> {
    const { candidates, rejected } = this.#judged;
    if (candidates.length === 0 || !this.isAtHand()) {
      return decide(this.#services, this.#call, this.#request, this.#quota, this.#judged);
    }
    // Reserved, so nothing is to wait for.
    void this.#services.usage.take(this.#quota);
    return outcomeOf(candidates, rejected);
  }

  keep(outcome: EventsOutcome): KeptOutcome {
    return keep(outcome, this.#call.principal.quotaEvents);
  }

  recall(kept: unknown): EventsOutcome {
    return recall(kept as KeptOutcome, this.#request);
  }

  sizeOf({ accepted, rejected }: EventsOutcome): number {
    return accepted.length + rejected.length;
  }

  isShort({ rejected }: EventsOutcome): boolean {
    return rejected.some(({ code }) => code === "quota_exceeded");
  }

  isTakenBefore(): Promise<boolean> {
    return this.#services.usage.isTakenBefore(this.#quota, this.#quota.claimant);
  }

  undo({ accepted, free = noneFree }: EventsOutcome): Promise<void> {
    return this.#services.usage.giveBack(this.#quota, accepted.length - free.size, this.#quota.claimant);
  }

  doubt(): void {
    this.#services.usage.doubt(this.#quota);
  }

  /** It ignores `wanted`: a recorded decision is carried out even if the caller has gone away. */
  store(decision: Decision<EventsOutcome>): Promise<boolean> {
    const owner = ownerOf(this.#call, decision);
    return this.#services.events.insert(owner, rowsOf(this.#request, decision)).then(({ isNew, taken }) => {
      this.taken = taken;
      // Only the request that was charged gets it back.
      if (taken.size === 0 || decision.requestId !== this.#call.start.requestId) return isNew;
      return this.#services.usage.giveBack(this.#quota, chargedIn(taken, decision.outcome)).then(() => isNew);
    });
  }

  isStored(decision: Decision<EventsOutcome>): Promise<boolean> {
    return this.#services.events.has(ownerOf(this.#call, decision), rowsOf(this.#request, decision));
  }
}

/** How many of the taken events the request was charged for. */
const chargedIn = (taken: StoredRows["taken"], { free = noneFree }: EventsOutcome): number =>
  [...taken.keys()].filter((index) => !free.has(index)).length;

/** Whether the event says what is stored. Without a timestamp, it says nothing about its time. */
const isSame = (event: IngestEvent, workerId: string, holder: EventRow): boolean =>
  holder.workerId === workerId &&
  holder.type === event.eventType &&
  holder.category === event.category &&
  (event.timestamp === undefined || holder.timestamp.getTime() === event.timestamp.getTime()) &&
  holder.durationSeconds === event.duration &&
  canonicalJson(holder.metadata) === canonicalJson(event.metadata);

/** The verdicts that need no database: from the request and from caches. */
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
      rejected.push(rejectionOf("missing_actor", index, request, principal.quotaEvents));
      return;
    }
    if (!principal.allows(event.eventType)) {
      const reason = principal.appAllows(event.eventType) ? "forbidden_to_key" : "forbidden_event_type";
      rejected.push(rejectionOf(reason, index, request, principal.quotaEvents));
      return;
    }
    const worker = workers.cached(actor);
    candidates.push({ index, actor, worker, isComplete: worker !== undefined });
  });
  return { candidates, rejected };
}

/** Decides each event, takes quota for the accepted ones and creates their workers. It stores no event. */
async function decide(
  services: Services,
  call: Call,
  request: EventsRequest,
  quota: QuotaRequest,
  { candidates, rejected: judged }: Judged,
): Promise<EventsOutcome> {
  const { workers, usage, ids } = services;
  const { principal, start, wanted } = call;
  const rejected = [...judged];
  const reject = (reason: Reason, { index }: Candidate) =>
    void rejected.push(rejectionOf(reason, index, request, principal.quotaEvents));
  const areComplete = candidates.every(isComplete);
  const resolved = areComplete ? candidates : await found(workers, candidates, wanted, reject);

  const taken = resolved.length === 0 ? 0 : await usage.take(forEvents(quota, resolved.length), wanted);
  let granted = taken;
  try {
    const { accepted, free } =
      taken === resolved.length
        ? { accepted: resolved, free: noneFree }
        : await fitting(services, principal, request, resolved, taken);
    granted = accepted.length - free.size;
    if (granted < taken) await usage.giveBack(quota, taken - granted);
    if (accepted.length < resolved.length) {
      const fits = new Set(accepted);
      for (const one of resolved) if (!fits.has(one)) reject("quota_exceeded", one);
    }
    if (accepted.length === 0) refuseIfUniform(request, rejected);
    if (!areComplete) {
      const incomplete = accepted.filter((one) => !isComplete(one));
      await provision(incomplete, services, () => ids.next("wrk"), start.receivedAt);
    }
    return outcomeOf(
      accepted,
      rejected.sort((a, b) => a.index - b.index),
      free,
    );
  } catch (error) {
    await usage.giveBack(quota, granted, quota.claimant);
    throw error;
  }
}

/** @param rejected in request order. */
const outcomeOf = (accepted: readonly Candidate[], rejected: readonly Rejection[], free = noneFree): EventsOutcome => ({
  accepted: accepted.map(({ index, worker }) => [index, (worker as WorkerDocument)._id] as const),
  rejected,
  free,
});

const forEvents = (quota: QuotaRequest, events: number): QuotaRequest =>
  events === quota.events ? quota : { ...quota, events };

/** Looks up the workers that are not cached. Returns the candidates without those that have to name a known worker. */
async function found(
  workers: Services["workers"],
  candidates: readonly Candidate[],
  wanted: () => boolean,
  reject: (reason: Reason, candidate: Candidate) => void,
): Promise<readonly Candidate[]> {
  const looked = await Promise.all(candidates.map(async ({ worker, actor }) => worker ?? workers.find(actor, wanted)));
  return candidates.filter((one, i) => {
    const worker = looked[i];
    if (worker === "erased") reject("worker_erased", one);
    else if (worker === undefined && one.actor.workerId !== undefined) reject("worker_not_found", one);
    else {
      one.worker = worker;
      return true;
    }
    return false;
  });
}

/**
 * The candidates that are accepted while quota is left for `granted` events only. An event whose id is stored, or is that
 * of an earlier one which is accepted, costs nothing.
 */
async function fitting(
  { events }: Services,
  { organizationId, app }: Call["principal"],
  request: EventsRequest,
  candidates: readonly Candidate[],
  granted: number,
): Promise<{ accepted: readonly Candidate[]; free: ReadonlySet<number> }> {
  const ids = candidates.flatMap(({ index }) => eventAt(request, index).eventId ?? []);
  const known = new Set((await events.findByEventId({ organizationId, appId: app.id }, ids)).keys());
  const free = new Set<number>();
  let left = granted;
  const accepted = candidates.filter(({ index }) => {
    const { eventId } = eventAt(request, index);
    if (eventId !== undefined && known.has(eventId)) {
      free.add(index);
      return true;
    }
    if (left === 0) return false;
    left--;
    if (eventId !== undefined) known.add(eventId);
    return true;
  });
  return { accepted, free };
}

/**
 * Completes the candidates' workers. Events of the same new actor share one worker. Actors that may mean the same
 * worker are provisioned in order, so that the first of two display names wins.
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

/** Distinct reasons in a refusal's message. The issues repeat them, and gRPC sends both in its headers. */
const messagesMax = 6;

/** Fails the request when all its events were rejected with the same code. */
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
  throw new Failure(new Fault(first.code, `${prefix}${shown}${more}`, { issues }), { rejections: rejected });
}

/** Leaves out events of workers that were erased after the claim. */
function rowsOf(request: EventsRequest, { receivedAt, outcome }: Decision<EventsOutcome>): NewRow[] {
  const stored = outcome.accepted.filter(([, workerId]) => workerId !== erasedWorkerId);
  return stored.map(([index, workerId]) => {
    const { eventType, category, timestamp = receivedAt, duration, metadata, eventId } = eventAt(request, index);
    return { index, workerId, type: eventType, category, timestamp, durationSeconds: duration, metadata, eventId };
  });
}

function eventAt(request: EventsRequest, index: number) {
  const event = request.events[index];
  if (event === undefined) throw new Error(`a recorded decision names event ${index}, which the request does not have`);
  return event;
}
