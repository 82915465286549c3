import { LRUCache } from "lru-cache";
import type { Db, Filter } from "mongodb";
import { type CollectionDefinition, insertDurably, retried, type UpdateStatement, updateDurably } from "./database.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";

/** How a worker is known in one app. */
export interface WorkerLink {
  /** `custom:<app slug>`. */
  connection: string;
  /** `<app id>/<external id>`: unique, so that an external id names one worker of the app. */
  key: string;
  appId: string;
  externalId: string;
}

export interface WorkerDocument {
  /** `wrk_` and a ULID. */
  _id: string;
  organizationId: string;
  /** As a caller gave it; absent while none has. */
  displayName?: string;
  /** Lower case. */
  email?: string;
  links: WorkerLink[];
  createdAt: Date;
}

export const workers: CollectionDefinition = {
  name: "workers",
  indexes: [
    {
      key: { organizationId: 1, email: 1 },
      options: { unique: true, partialFilterExpression: { email: { $exists: true } } },
      why: "an email names one worker of the organisation; lists the workers of an organisation",
    },
    {
      key: { "links.key": 1 },
      options: { unique: true, partialFilterExpression: { "links.key": { $exists: true } } },
      why: "an external id names one worker of the app",
    },
    { key: { organizationId: 1 }, why: "the workers of an organisation are listed" },
  ],
};

export const workerCollection = (db: Db) => db.collection<WorkerDocument>(workers.name);

/** The name to show: the given one, or the email's local part, or the external id. */
export function displayNameOf(worker: WorkerDocument): string {
  return worker.displayName ?? worker.email?.split("@")[0] ?? worker.links[0]?.externalId ?? worker._id;
}

/** The names to show of the organisation's workers with these ids, by id. */
export async function displayNamesOf(
  db: Db,
  organizationId: string,
  workerIds: readonly string[],
): Promise<Map<string, string>> {
  if (workerIds.length === 0) return new Map();
  const found = await retried(() =>
    workerCollection(db)
      .find({ _id: { $in: [...new Set(workerIds)] }, organizationId })
      .toArray(),
  );
  return new Map(found.map((worker) => [worker._id, displayNameOf(worker)]));
}

/** Whether the organisation has a worker with this id. */
export async function hasWorker(db: Db, organizationId: string, workerId: string): Promise<boolean> {
  const filter = { _id: workerId, organizationId };
  return (await retried(() => workerCollection(db).findOne(filter, { projection: { _id: 1 } }))) !== null;
}

/** A validated actor with at least one id. `email` is in lower case. */
export interface ActorIds {
  readonly organizationId: string;
  readonly app: { readonly id: string; readonly slug: string };
  readonly workerId?: string;
  readonly externalId?: string;
  readonly email?: string;
  readonly displayName?: string;
}

const linkKey = (actor: ActorIds) => `${actor.app.id}/${actor.externalId}`;

/** The names of the ids by which an actor is known, in the order in which they decide: unique over all organisations. */
export function namesOf(actor: ActorIds): string[] {
  if (actor.workerId !== undefined) return [`${actor.organizationId}|id|${actor.workerId}`];
  const names: string[] = [];
  if (actor.externalId !== undefined) names.push(`link|${linkKey(actor)}`);
  if (actor.email !== undefined) names.push(`${actor.organizationId}|email|${actor.email}`);
  return names;
}

function namesOfWorker(worker: WorkerDocument): string[] {
  const names = [`${worker.organizationId}|id|${worker._id}`];
  for (const link of worker.links) names.push(`link|${link.key}`);
  if (worker.email !== undefined) names.push(`${worker.organizationId}|email|${worker.email}`);
  return names;
}

/**
 * External ids that one worker gains, over all apps. A caller that sends one email with ever new external ids would make
 * a document grow until the database refuses it; past the bound the email goes on deciding, and nothing is added.
 */
export const linksMax = 100;

/** Whether the actor tells something about the worker that is not stored yet. */
function adds(actor: ActorIds, worker: WorkerDocument): boolean {
  if (actor.displayName !== undefined && worker.displayName === undefined) return true;
  if (actor.workerId !== undefined || actor.externalId === undefined || worker.links.length >= linksMax) return false;
  const key = linkKey(actor);
  return !worker.links.some((link) => link.key === key);
}

const cachedWorkersMax = 50_000;
const cachedWorkersBytesMax = 67_108_864;
/** Roughly what a worker takes in memory. */
const bytesOf = (worker: WorkerDocument) => 500 + 300 * worker.links.length;
/** A worker has about two names beside its id. */
const cachedNamesMax = 2 * cachedWorkersMax;

/** Only workers that no failover can take back: rows must not name one that is gone. */
const readConcern = "majority";

/** A read of many workers is answered at once. The driver's default would cost another round trip from 102 on. */
const batchSize = 5_000;

/** Finds and makes workers. Known ones are cached: a worker is never removed, and its ids are never given to another. */
export class WorkerStore {
  readonly #db: Db;
  readonly #cache = new LRUCache<string, WorkerDocument>({
    max: cachedWorkersMax,
    maxSize: cachedWorkersBytesMax,
    sizeCalculation: bytesOf,
  });
  /** Worker ids by name. A name never goes to another worker, so these need not be forgotten with it. */
  readonly #names = new LRUCache<string, string>({ max: cachedNamesMax });
  /** For each read under way, the workers that news has come about since it began. */
  readonly #reading = new Set<{ readonly changed: Set<string>; isAnyChanged: boolean }>();
  readonly #reads: GroupCommit<ActorIds, WorkerDocument | undefined>;
  readonly #inserts: GroupCommit<WorkerDocument, "written" | "duplicate">;
  readonly #completions: GroupCommit<Completion, WorkerDocument | undefined>;
  readonly counts = { hits: 0, misses: 0 };

  constructor(db: Db, hooks: BatchHooks = {}) {
    this.#db = db;
    this.#reads = new GroupCommit({
      name: "worker reads",
      ownerOf: ({ organizationId }) => organizationId,
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax: 50_000,
      ...hooks,
      run: (actors) => this.#read(actors),
    });
    this.#inserts = new GroupCommit({
      name: "workers",
      ownerOf: ({ organizationId }) => organizationId,
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax: 20_000,
      ...hooks,
      run: (batch) => insertDurably(db, workers.name, batch),
    });
    this.#completions = new GroupCommit({
      name: "worker completions",
      ownerOf: ({ worker }) => worker.organizationId,
      concurrencyMax: 2,
      batchWeightMax: 500,
      queueWeightMax: 20_000,
      ...hooks,
      run: (batch) => this.#complete(batch),
    });
  }

  /** The known worker that the actor names, if it is in the cache and the actor adds nothing to it. */
  cached(actor: ActorIds): WorkerDocument | undefined {
    const worker = this.#cached(actor);
    if (worker === undefined) this.counts.misses++;
    else this.counts.hits++;
    return worker;
  }

  #cached(actor: ActorIds): WorkerDocument | undefined {
    // The first id alone: a later one must not decide while an earlier one has not been looked up.
    const [name] = namesOf(actor);
    const id = name === undefined ? undefined : this.#names.get(name);
    const worker = id === undefined ? undefined : this.#cache.get(id);
    return worker === undefined || adds(actor, worker) ? undefined : worker;
  }

  /** Forgets a worker that another instance has changed. */
  forget(workerId: string): void {
    for (const { changed } of this.#reading) changed.add(workerId);
    this.#cache.delete(workerId);
  }

  /** Forgets all workers: news of changes may have been missed. */
  forgetAll(): void {
    for (const read of this.#reading) read.isAnyChanged = true;
    this.#cache.clear();
  }

  /** The known worker that the actor names, or undefined. Changes nothing. */
  async find(actor: ActorIds, wanted?: () => boolean): Promise<WorkerDocument | undefined> {
    return this.#cached(actor) ?? (await this.#reads.submit(actor, 1, wanted));
  }

  /**
   * The actor's worker, made if none of its external id and email is known, and with what the actor adds to it. Any
   * number of concurrent calls for one actor, on any number of instances, answer one worker: the unique indexes let one
   * of them make it, and the others find it.
   * @param found the worker that `find` has answered for the actor.
   * @throws Error when the actor has an unknown worker id only.
   */
  async provision(actor: ActorIds, newId: () => string, now: Date, found?: WorkerDocument): Promise<WorkerDocument> {
    let known = found;
    for (let attempt = 0; attempt < 10; attempt++) {
      known ??= await this.find(actor);
      if (known !== undefined) {
        const worker = known;
        const completed = adds(actor, worker) ? await this.#completions.submit({ actor, worker }) : worker;
        if (completed !== undefined) return completed;
        known = undefined;
        continue;
      }
      if (actor.workerId !== undefined) throw new Error(`worker ${actor.workerId} is not known`);
      const worker = newWorker(actor, newId(), now);
      if ((await this.#inserts.submit(worker)) === "written") {
        this.#remember(worker);
        return worker;
      }
    }
    throw new Error("an actor's worker could neither be found nor made");
  }

  /**
   * Adds what the actors tell, in one write, and reads the workers as they then are. Undefined where the external id
   * belongs to another worker by now.
   */
  async #complete(batch: readonly Completion[]): Promise<Settled<WorkerDocument | undefined>[]> {
    const statements: UpdateStatement[] = [];
    const ownStatements = batch.map((completion) => {
      const own = statementsOf(completion);
      statements.push(...own);
      return own.length;
    });
    const outcomes = await updateDurably(this.#db, workers.name, statements);
    const ids = [...new Set(batch.map(({ worker }) => worker._id))];
    const current = new Map((await this.#load({ _id: { $in: ids } })).map((worker) => [worker._id, worker]));
    let offset = 0;
    return batch.map(({ worker }, i) => {
      const own = outcomes.slice(offset, (offset += ownStatements[i] as number));
      const failed = own.find((outcome) => "error" in outcome);
      if (failed !== undefined) return failed as { error: unknown };
      const isTaken = own.some((outcome) => "value" in outcome && outcome.value === "duplicate");
      return { value: isTaken ? undefined : current.get(worker._id) };
    });
  }

  async #read(actors: readonly ActorIds[]): Promise<Settled<WorkerDocument | undefined>[]> {
    const ids: string[] = [];
    const linkKeys: string[] = [];
    const emails = new Map<string, string[]>();
    for (const actor of actors) {
      if (actor.workerId !== undefined) {
        ids.push(actor.workerId);
        continue;
      }
      if (actor.externalId !== undefined) linkKeys.push(linkKey(actor));
      if (actor.email !== undefined) {
        const ofOrganization = emails.get(actor.organizationId);
        if (ofOrganization === undefined) emails.set(actor.organizationId, [actor.email]);
        else ofOrganization.push(actor.email);
      }
    }
    const either: Filter<WorkerDocument>[] = [];
    if (ids.length > 0) either.push({ _id: { $in: ids } });
    if (linkKeys.length > 0) either.push({ "links.key": { $in: linkKeys } });
    for (const [organizationId, list] of emails) either.push({ organizationId, email: { $in: list } });
    const byName = new Map<string, WorkerDocument>();
    for (const worker of await this.#load({ $or: either })) {
      for (const name of namesOfWorker(worker)) byName.set(name, worker);
    }
    return actors.map((actor) => {
      for (const name of namesOf(actor)) {
        const worker = byName.get(name);
        if (worker !== undefined) return { value: worker };
      }
      return { value: undefined };
    });
  }

  /** Reads workers and remembers those about which no news has arrived meanwhile. */
  async #load(filter: Filter<WorkerDocument>): Promise<WorkerDocument[]> {
    const read = { changed: new Set<string>(), isAnyChanged: false };
    this.#reading.add(read);
    try {
      const found = await retried(() => workerCollection(this.#db).find(filter, { readConcern, batchSize }).toArray());
      for (const worker of found) if (!read.isAnyChanged && !read.changed.has(worker._id)) this.#remember(worker);
      return found;
    } finally {
      this.#reading.delete(read);
    }
  }

  #remember(worker: WorkerDocument): void {
    this.#cache.set(worker._id, worker);
    for (const name of namesOfWorker(worker)) this.#names.set(name, worker._id);
  }
}

function linkOf(actor: ActorIds, externalId: string): WorkerLink {
  return { connection: `custom:${actor.app.slug}`, key: linkKey(actor), appId: actor.app.id, externalId };
}

/** What an actor tells about a worker that is known already. */
interface Completion {
  readonly actor: ActorIds;
  readonly worker: WorkerDocument;
}

/** Each changes nothing when it is done a second time. */
function statementsOf({ actor, worker: { _id } }: Completion): UpdateStatement[] {
  const statements: UpdateStatement[] = [];
  if (actor.workerId === undefined && actor.externalId !== undefined) {
    const link = linkOf(actor, actor.externalId);
    const hasRoom = { _id, "links.key": { $ne: link.key }, [`links.${linksMax - 1}`]: { $exists: false } };
    statements.push({ q: hasRoom, u: { $push: { links: link } }, upsert: false });
  }
  if (actor.displayName !== undefined) {
    const isNameless = { _id, displayName: { $exists: false } };
    statements.push({ q: isNameless, u: { $set: { displayName: actor.displayName } }, upsert: false });
  }
  return statements;
}

function newWorker(actor: ActorIds, _id: string, createdAt: Date): WorkerDocument {
  return {
    _id,
    organizationId: actor.organizationId,
    ...(actor.displayName === undefined ? {} : { displayName: actor.displayName }),
    ...(actor.email === undefined ? {} : { email: actor.email }),
    links: actor.externalId === undefined ? [] : [linkOf(actor, actor.externalId)],
    createdAt,
  };
}
