import { createHmac } from "node:crypto";
import { LRUCache } from "lru-cache";
import type { Db, Filter } from "mongodb";
import { unavailable } from "../errors.ts";
import { isTestOrganization, liveOrganizationOf } from "../ids.ts";
import { limits } from "../limits.ts";
import { cachedMsMax, trustMs } from "./changes.ts";
import { type CollectionDefinition, insertDurably, retried, type UpdateStatement, updateDurably } from "./database.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";

export interface WorkerLink {
  /** `custom:<app slug>`. */
  connection: string;
  /** `<app id>/<external id>`. Unique, so an external id names one worker of the app. */
  key: string;
  appId: string;
  externalId: string;
}

export interface WorkerDocument {
  /** `wrk_` and a ULID. */
  _id: string;
  organizationId: string;
  displayName?: string;
  /** Lower case. */
  email?: string;
  links: WorkerLink[];
  createdAt: Date;
  /** The workers that were merged into this one, with the ids by which callers still name them. */
  merged?: MergedWorker[];
  /** The worker that took this one's place. Its ids name that worker; rows and cards move there. */
  mergedInto?: string;
  /** An erasure runs. The ids stay until it ends, so that no new worker takes them. */
  erasing?: true;
}

export type MergedWorker = Pick<WorkerDocument, "_id" | "email" | "links">;

/** An id of an erased worker, as a keyed hash. It lies among the workers, so that one read finds either. */
export interface ErasedNameDocument {
  /** `erased_` and the hash. */
  _id: string;
  organizationId: string;
  /** `ers_` and a ULID. */
  erasure: string;
}

export const workers: CollectionDefinition = {
  name: "workers",
  indexes: [
    {
      key: { organizationId: 1, email: 1 },
      options: { unique: true, partialFilterExpression: { email: { $exists: true } } },
      why: "an email names one worker of the organisation",
    },
    {
      key: { organizationId: 1, "links.key": 1 },
      options: { unique: true, partialFilterExpression: { "links.key": { $exists: true } } },
      why: "an external id names one worker of the app",
    },
    {
      key: { organizationId: 1, "links.externalId": 1 },
      options: { partialFilterExpression: { "links.externalId": { $exists: true } } },
      why: "administration finds workers by the id of any app, however many apps there are",
    },
    { key: { organizationId: 1, _id: 1 }, why: "commands list the workers of an organisation by id, a page at a time" },
  ],
};

/** Matches no worker of test data: these go by themselves, and no command reaches them. */
export const isLive = { organizationId: { $not: /^org_[4-7]/ } };

export const workerCollection = (db: Db) => db.collection<WorkerDocument>(workers.name);
export const erasedNameCollection = (db: Db) => db.collection<ErasedNameDocument>(workers.name);

/** Stands in a claim for a worker that was erased: its rows are not stored. */
export const erasedWorkerId = `wrk_${"0".repeat(26)}`;

/** Leaves out the ids of erased workers, and workers that were merged into others. */
export const isListed = { _id: { $gt: "wrk_" }, mergedInto: { $exists: false } };

/** The hash is keyed with a secret of the installation. Emails can be guessed, so a plain hash would reveal people. */
export const erasedNameSecret = "erased-workers";

export const erasedNameId = (secret: Buffer, name: string): string =>
  `erased_${createHmac("sha256", secret).update(name).digest("base64url")}`;

/** The display name, or else the email's local part, or the external id. */
export function displayNameOf(worker: WorkerDocument): string {
  return worker.displayName ?? worker.email?.split("@")[0] ?? worker.links[0]?.externalId ?? worker._id;
}

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

/** "erased" if an erased worker had the id. */
export type Found = WorkerDocument | "erased" | undefined;

/** The worker with this id, or the one that took its place. */
export async function findWorker(db: Db, secret: Buffer, organizationId: string, workerId: string): Promise<Found> {
  const name = erasedNameId(secret, `${organizationId}|id|${workerId}`);
  for (let id = workerId; ;) {
    const _id = { $in: [id, name] };
    const [found] = await retried(() => workerCollection(db).find({ _id, organizationId }).toArray());
    if (found?._id === name || found?.erasing) return "erased";
    if (found?.mergedInto === undefined) return found;
    id = found.mergedInto;
  }
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

/** An app belongs to one organisation. Only its test data has workers of the same external ids beside the live ones. */
const linkName = (organizationId: string, key: string) =>
  isTestOrganization(organizationId) ? `${organizationId}|link|${key}` : `link|${key}`;

/** Cache keys for the actor's ids, in the order in which they decide; unique over all organisations. */
export function namesOf(actor: ActorIds): string[] {
  if (actor.workerId !== undefined) return [`${actor.organizationId}|id|${actor.workerId}`];
  const names = actor.externalId === undefined ? [] : [linkName(actor.organizationId, linkKey(actor))];
  if (actor.email !== undefined) names.push(`${actor.organizationId}|email|${actor.email}`);
  return names;
}

/** Also those of the workers that were merged into it. */
export function namesOfWorker({ organizationId, merged = [], ...worker }: WorkerDocument): string[] {
  const names: string[] = [];
  for (const { _id, email, links } of [worker, ...merged]) {
    names.push(`${organizationId}|id|${_id}`);
    for (const link of links) names.push(linkName(organizationId, link.key));
    if (email !== undefined) names.push(`${organizationId}|email|${email}`);
  }
  return names;
}

export const linksOf = ({ links, merged = [] }: WorkerDocument): WorkerLink[] => [
  ...links,
  ...merged.flatMap((one) => one.links),
];

function adds(actor: ActorIds, worker: WorkerDocument): boolean {
  if (actor.displayName !== undefined && worker.displayName === undefined) return true;
  if (actor.workerId !== undefined || actor.externalId === undefined) return false;
  // A caller that sends one email with ever new external ids must not grow the document until the database refuses it.
  if (worker.links.length >= limits.externalIdsMax) return false;
  const key = linkKey(actor);
  const hasKey = ({ links }: Pick<WorkerDocument, "links">) => links.some((link) => link.key === key);
  return !hasKey(worker) && !worker.merged?.some(hasKey);
}

const cachedWorkersMax = 50_000;
const cachedWorkersBytesMax = 67_108_864;
const bytesOf = (worker: WorkerDocument) => 500 + 300 * linksOf(worker).length;
/** A worker has about two names, apart from its id. */
const cachedNamesMax = 2 * cachedWorkersMax;

/** Reads only workers that no failover can undo: rows must not name a worker that is gone. */
const readConcern = "majority";

/** One reply has all workers; the driver's default would cost another round trip from 102 on. */
const batchSize = 5_000;

/** Finds and creates workers, and caches them. */
export class WorkerStore {
  readonly #db: Db;
  readonly #secret: Buffer;
  readonly #freshAtMs: () => number;
  readonly #cache = new LRUCache<string, WorkerDocument>({
    max: cachedWorkersMax,
    maxSize: cachedWorkersBytesMax,
    sizeCalculation: bytesOf,
    // Other instances also give workers ids and names, of which nobody tells.
    ttl: cachedMsMax,
    ttlResolution: 1_000,
  });
  /** Worker ids by name. An entry may name a worker that was merged or erased: it is not in the cache, so is read again. */
  readonly #names = new LRUCache<string, string>({ max: cachedNamesMax });
  /** For each command under way, the organisations of workers that have changed since it began. */
  readonly #underWay = new Set<{ readonly changed: Set<string>; isAnyChanged: boolean }>();
  readonly #reads: GroupCommit<ActorIds, Found>;
  readonly #inserts: GroupCommit<WorkerDocument, "written" | "duplicate">;
  readonly #completions: GroupCommit<Completion, WorkerDocument | undefined>;
  readonly counts = { hits: 0, misses: 0 };

  /**
   * @param secret of `erasedNameSecret`.
   * @param freshAtMs `forget` was called for every change from before this time of `performance.now()`.
   */
  constructor(db: Db, secret: Buffer, freshAtMs: () => number, hooks: BatchHooks = {}) {
    this.#db = db;
    this.#secret = secret;
    this.#freshAtMs = freshAtMs;
    this.#reads = new GroupCommit({
      name: "worker reads",
      ownerOf: ({ organizationId }) => liveOrganizationOf(organizationId),
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax: 50_000,
      ...hooks,
      run: (actors) => this.#read(actors),
    });
    this.#inserts = new GroupCommit({
      name: "workers",
      ownerOf: ({ organizationId }) => liveOrganizationOf(organizationId),
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax: 20_000,
      ...hooks,
      run: (batch) => insertDurably(db, workers.name, batch),
    });
    this.#completions = new GroupCommit({
      name: "worker completions",
      ownerOf: ({ worker }) => liveOrganizationOf(worker.organizationId),
      concurrencyMax: 2,
      batchWeightMax: 500,
      queueWeightMax: 20_000,
      ...hooks,
      run: (batch) => this.#complete(batch),
    });
  }

  /** Undefined also if the actor adds something to the worker. */
  cached(actor: ActorIds): WorkerDocument | undefined {
    const worker = this.#cached(actor);
    if (worker === undefined) this.counts.misses++;
    else this.counts.hits++;
    return worker;
  }

  #cached(actor: ActorIds): WorkerDocument | undefined {
    // Without news, an erasure may have ended that did not wait for this instance.
    if (performance.now() - this.#freshAtMs() >= trustMs) return undefined;
    // Use only the first id: a later one must not decide before the earlier one was looked up.
    const [name] = namesOf(actor);
    const id = name === undefined ? undefined : this.#names.get(name);
    const worker = id === undefined ? undefined : this.#cache.get(id);
    return worker === undefined || adds(actor, worker) ? undefined : worker;
  }

  /** An administrator has changed workers of the organisation. */
  forget(organizationId: string): void {
    for (const { changed } of this.#underWay) changed.add(organizationId);
    for (const [id, worker] of this.#cache.entries()) {
      if (worker.organizationId === organizationId) this.#cache.delete(id);
    }
  }

  /** Changes may have been missed. */
  forgetAll(): void {
    for (const command of this.#underWay) command.isAnyChanged = true;
    this.#cache.clear();
  }

  async find(actor: ActorIds, wanted?: () => boolean): Promise<Found> {
    return this.#cached(actor) ?? (await this.#reads.submit(actor, 1, wanted));
  }

  /**
   * Returns the actor's worker with the actor's additions, and creates it if no id is known. Concurrent calls for one
   * actor, on any number of instances, return one worker: the unique indexes let one call create it, and the others
   * find it.
   * @param found the worker that `find` returned for the actor.
   * @throws Error if the actor has only an unknown worker id; Fault unavailable if the worker has just been erased.
   */
  async provision(actor: ActorIds, newId: () => string, now: Date, found?: WorkerDocument): Promise<WorkerDocument> {
    let known: Found = found;
    for (let attempt = 0; attempt < 10; attempt++) {
      known ??= await this.find(actor);
      if (known === "erased") throw unavailable(new Error("the worker was erased meanwhile"));
      if (known !== undefined) {
        const worker = known;
        const completed = adds(actor, worker) ? await this.#completions.submit({ actor, worker }) : worker;
        if (completed !== undefined) return completed;
        known = undefined;
        continue;
      }
      if (actor.workerId !== undefined) throw new Error(`worker ${actor.workerId} is not known`);
      const worker = newWorker(actor, newId(), now);
      const isNew = await this.#watched(async (isUnchanged) => {
        const outcome = await this.#inserts.submit(worker);
        if (outcome === "written" && isUnchanged(worker)) this.#remember(worker);
        return outcome === "written";
      });
      if (isNew) return worker;
    }
    throw new Error("an actor's worker could neither be found nor made");
  }

  /** Undefined if the external id now belongs to another worker. */
  async #complete(batch: readonly Completion[]): Promise<Settled<WorkerDocument | undefined>[]> {
    const statements: UpdateStatement[] = [];
    const ownStatements = batch.map((completion) => {
      const own = statementsOf(completion);
      statements.push(...own);
      return own.length;
    });
    const outcomes = await updateDurably(this.#db, workers.name, statements);
    const ids = [...new Set(batch.map(({ worker }) => worker._id))];
    const organizationIds = [...new Set(batch.map(({ worker }) => worker.organizationId))];
    const { found } = await this.#load({ organizationId: { $in: organizationIds }, _id: { $in: ids } });
    const current = new Map(found.map((worker) => [worker._id, worker]));
    let offset = 0;
    return batch.map(({ worker }, i) => {
      const own = outcomes.slice(offset, (offset += ownStatements[i] as number));
      const failed = own.find((outcome) => "error" in outcome);
      if (failed !== undefined) return failed as { error: unknown };
      const isTaken = own.some((outcome) => "value" in outcome && outcome.value === "duplicate");
      const completed = current.get(worker._id);
      return { value: isTaken || completed?.erasing ? undefined : completed };
    });
  }

  async #read(actors: readonly ActorIds[]): Promise<Settled<Found>[]> {
    const either: Filter<WorkerDocument>[] = [];
    const hashes = actors.map((actor) => namesOf(actor).map((name) => erasedNameId(this.#secret, name)));
    for (const [organizationId, own] of Map.groupBy(actors.entries(), ([, actor]) => actor.organizationId)) {
      const ids = own.flatMap(([i, { workerId }]) => [...(hashes[i] as string[]), workerId ?? []].flat());
      const named = own.map(([, actor]) => actor).filter(({ workerId }) => workerId === undefined);
      const linkKeys = named.filter(({ externalId }) => externalId !== undefined).map(linkKey);
      const emails = named.flatMap(({ email }) => email ?? []);
      either.push({ organizationId, _id: { $in: ids } });
      if (linkKeys.length > 0) either.push({ organizationId, "links.key": { $in: linkKeys } });
      if (emails.length > 0) either.push({ organizationId, email: { $in: emails } });
    }
    const byName = new Map<string, WorkerDocument>();
    const { found, moved, erased } = await this.#load({ $or: either });
    for (const worker of found) for (const name of namesOfWorker(worker)) byName.set(name, worker);
    for (const [from, worker] of moved) for (const name of namesOfWorker(from)) byName.set(name, worker);
    return actors.map((actor, i) => {
      for (const [k, name] of namesOf(actor).entries()) {
        const worker = byName.get(name);
        if (worker?.erasing || erased.has(hashes[i]?.[k] as string)) return { value: "erased" };
        if (worker !== undefined) return { value: worker };
      }
      return { value: undefined };
    });
  }

  /**
   * Reads workers, and caches those that did not change during the read. A worker that was merged into another comes with
   * that one, as `moved`.
   */
  #load(filter: Filter<WorkerDocument>) {
    return this.#watched(async (isUnchanged) => {
      const byId = new Map<string, WorkerDocument>();
      for (let next: Filter<WorkerDocument> | undefined = filter; next !== undefined;) {
        const wanted: Filter<WorkerDocument> = next;
        const documents = await retried(() =>
          workerCollection(this.#db).find(wanted, { readConcern, batchSize }).toArray(),
        );
        for (const one of documents) byId.set(one._id, one);
        const moved = documents.filter(({ mergedInto }) => mergedInto !== undefined && !byId.has(mergedInto));
        const organizationIds = [...new Set(moved.map(({ organizationId }) => organizationId))];
        const ids = moved.map(({ mergedInto }) => mergedInto as string);
        next = ids.length === 0 ? undefined : { organizationId: { $in: organizationIds }, _id: { $in: ids } };
      }
      const erased = new Set([...byId.keys()].filter((id) => id.startsWith("erased_")));
      const found = [...byId.values()].filter(({ _id, mergedInto }) => mergedInto === undefined && !erased.has(_id));
      for (const worker of found) {
        if (isUnchanged(worker) && !worker.erasing) this.#remember(worker);
      }
      const moved = [...byId.values()].flatMap((from): [WorkerDocument, WorkerDocument][] => {
        let to: WorkerDocument | undefined = from;
        while (to?.mergedInto !== undefined) to = byId.get(to.mergedInto);
        return to === undefined || to === from ? [] : [[from, to]];
      });
      return { found, moved, erased };
    });
  }

  /** Tells the work whether an administrator may have changed a worker since it began. */
  async #watched<T>(work: (isUnchanged: (worker: WorkerDocument) => boolean) => Promise<T>): Promise<T> {
    const command = { changed: new Set<string>(), isAnyChanged: false };
    this.#underWay.add(command);
    try {
      return await work(({ organizationId }) => !command.isAnyChanged && !command.changed.has(organizationId));
    } finally {
      this.#underWay.delete(command);
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

interface Completion {
  readonly actor: ActorIds;
  readonly worker: WorkerDocument;
}

/** The ids of a worker that is merged or erased must not change any more. */
const isInPlace = { mergedInto: { $exists: false }, erasing: { $exists: false } };

/** The statements are idempotent. */
function statementsOf({ actor, worker: { _id, organizationId } }: Completion): UpdateStatement[] {
  const statements: UpdateStatement[] = [];
  if (actor.workerId === undefined && actor.externalId !== undefined) {
    const link = linkOf(actor, actor.externalId);
    const hasRoom = {
      _id,
      organizationId,
      ...isInPlace,
      "links.key": { $ne: link.key },
      [`links.${limits.externalIdsMax - 1}`]: { $exists: false },
    };
    statements.push({ q: hasRoom, u: { $push: { links: link } }, upsert: false });
  }
  if (actor.displayName !== undefined) {
    const isNameless = { _id, organizationId, ...isInPlace, displayName: { $exists: false } };
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
