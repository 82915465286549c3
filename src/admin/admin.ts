import type { Collection, Db, Filter } from "mongodb";
import { hashOfKey, hintOfKey, newSecret } from "../access/principal.ts";
import type { Scope } from "../access/scopes.ts";
import type { IdSource } from "../ids.ts";
import { limits, typePattern } from "../limits.ts";
import { type AppDocument, appCollection } from "../store/apps.ts";
import { cardCollection, cardId, cardOf, cardsOfWorker } from "../store/snapshots.ts";
import { everyShard, isDuplicateKey } from "../store/database.ts";
import { settleOnInstances } from "../store/instances.ts";
import { findKeyUses } from "../store/key-uses.ts";
import { type KeyDocument, type KeyRestrictions, keyCollection, restrictionsOf } from "../store/keys.ts";
import { type OrganizationDocument, organizationCollection } from "../store/organizations.ts";
import { recount } from "../store/recount.ts";
import { sumOfDays, type UsageGroup } from "../store/usage-days.ts";
import { usageCollection } from "../store/usage.ts";
import { monthOf } from "../time.ts";
import { hasOldRows } from "../store/version-2.ts";
import { displayNameOf, isListed, isLive, linksOf, type WorkerDocument, workerCollection } from "../store/workers.ts";

/** The message says what was given and what is allowed. */
export class AdminError extends Error {}

export interface OrganizationSettings {
  readonly name?: string | undefined;
  readonly quotaEventsPerMonth?: number | undefined;
  readonly api?: boolean | undefined;
  readonly keyRequestsPerSecond?: number | undefined;
  readonly organizationRequestsPerSecond?: number | undefined;
  /** Days; 0 for ever. "default": the installation's. */
  readonly retainDays?: number | "default" | undefined;
}

/** Every list of data that callers create comes in pages. */
export interface PageRequest {
  /** The most rows. Default: 100. */
  readonly limit?: number | undefined;
  /** Id of the last row before the page. Default: the first page. */
  readonly after?: string | undefined;
}

export interface Page<Row> {
  readonly rows: readonly Row[];
  /** Undefined on the last page. */
  readonly next: { readonly after: string } | undefined;
}

export const pageRows = { default: 100, max: 1_000 } as const;
/** The most cards that `worker show` returns. */
const cardsMax = 100;

const defaultQuotaEvents = 1_000_000;
const recountPatience = { quietMs: 3_000, patienceMs: 60_000 };
const settleSecondsMax = 30;
const slugPattern = /^[a-z0-9][a-z0-9-]{0,62}$/;

export const newOrganization = (
  _id: string,
  settings: OrganizationSettings & { readonly name: string },
  createdAt: Date,
): OrganizationDocument => ({
  _id,
  name: settings.name,
  api: settings.api ?? true,
  quotaEventsPerMonth: settings.quotaEventsPerMonth ?? defaultQuotaEvents,
  keyRequestsPerSecond: settings.keyRequestsPerSecond ?? limits.keyRequestsPerSecond,
  organizationRequestsPerSecond: settings.organizationRequestsPerSecond ?? limits.organizationRequestsPerSecond,
  ...(typeof settings.retainDays === "number" ? { retainDays: settings.retainDays } : {}),
  createdAt,
});

export const newApp = (
  _id: string,
  settings: Pick<AppDocument, "organizationId" | "slug" | "name" | "allow">,
  createdAt: Date,
): AppDocument => ({ _id, ...settings, createdAt });

export const newKey = (
  _id: string,
  settings: Pick<KeyDocument, "organizationId" | "appId" | "hash" | "hint" | "scope"> &
    KeyRestrictions & {
      readonly expiresAt?: Date | undefined;
    },
  createdAt: Date,
): KeyDocument => ({ _id, ...settings, expiresAt: settings.expiresAt ?? null, revokedAt: null, createdAt });

/** Commands for operators. Every change acts on the running instances within a second. */
export class Admin {
  readonly #db: Db;
  readonly #ids: IdSource;
  readonly #now: () => number;
  readonly #remark: (sentence: string) => void;

  /**
   * `remark` gets a sentence when a command changes nothing, or less than asked: the operator may have meant something
   * else.
   */
  constructor(db: Db, ids: IdSource, now: () => number = Date.now, remark: (sentence: string) => void = () => {}) {
    this.#db = db;
    this.#ids = ids;
    this.#now = now;
    this.#remark = remark;
  }

  async createOrganization(settings: OrganizationSettings & { name: string }) {
    assertName(settings.name);
    const document = newOrganization(this.#ids.next("org"), settings, new Date(this.#now()));
    await organizationCollection(this.#db).insertOne(document);
    return shown(document);
  }

  async updateOrganization(id: string, settings: OrganizationSettings) {
    await this.#organization(id);
    if (settings.name !== undefined) assertName(settings.name);
    const changed = Object.entries(settings).filter(([, value]) => value !== undefined);
    const $set = Object.fromEntries(changed.filter(([, value]) => value !== "default"));
    const $unset = settings.retainDays === "default" ? { retainDays: "" as const } : {};
    if (changed.length === 0) throw new AdminError("Nothing to change: give at least one setting.");
    const updated = await organizationCollection(this.#db).findOneAndUpdate(
      { _id: id },
      { $set, $unset },
      { returnDocument: "after" },
    );
    return shown(known(updated, "organisation", id));
  }

  listOrganizations(page: PageRequest = {}) {
    return pageOf(organizationCollection(this.#db), "organisation", {}, page, shown);
  }

  async #organization(id: string) {
    return known(await organizationCollection(this.#db).findOne({ _id: id }), "organisation", id);
  }

  async #app(id: string) {
    return known(await appCollection(this.#db).findOne({ _id: id }), "app", id);
  }

  async usageOf(id: string) {
    const { quotaEventsPerMonth } = await this.#organization(id);
    const months = await usageCollection(this.#db).find({ organizationId: id }).sort({ month: -1 }).toArray();
    return months.map(({ month, events }) => ({ month, events, quotaEventsPerMonth }));
  }

  /** The outcomes of a month's events by day, app or type. The last seconds are missing. */
  async dailyUsageOf(id: string, by: UsageGroup, month: string = monthOf(new Date(this.#now()))) {
    await this.#organization(id);
    assertMonth(month);
    return sumOfDays(this.#db, id, month, by);
  }

  /**
   * Sets a month's usage, and the counts of its days, to the stored rows. It waits up to a minute until nothing changes
   * for 3 s. Rows that take longer to store may be missing; then recount again.
   * @throws AdminError if the organisation stays too busy.
   */
  async recount(id: string, month: string) {
    await this.#organization(id);
    assertMonth(month);
    if (await hasOldRows(this.#db)) {
      throw new AdminError(
        "Rows of an older version are not copied yet, so a count would miss them: run `ingest migrate`.",
      );
    }
    const counts = await recount(this.#db, id, month, recountPatience);
    if (counts === undefined)
      throw new AdminError("The organisation is too busy for a count; try again when it is quiet.");
    return { organizationId: id, month, ...counts };
  }

  async createApp(organizationId: string, slug: string, name: string, allow: readonly string[]) {
    await this.#organization(organizationId);
    if (!slugPattern.test(slug)) throw new AdminError(`slug is '${slug}'; it must match ${slugPattern.source}.`);
    assertName(name);
    const settings = { organizationId, slug, name, allow: validTypes(allow) };
    const document = newApp(this.#ids.next("app"), settings, new Date(this.#now()));
    try {
      await appCollection(this.#db).insertOne(document);
    } catch (error) {
      if (isDuplicateKey(error)) throw new AdminError(`The organisation has an app with the slug '${slug}' already.`);
      throw error;
    }
    return shown(document);
  }

  async allowTypes(appId: string, types: readonly string[]) {
    const before = await this.#changeApp(appId, { $addToSet: { allow: { $each: validTypes(types) } } });
    for (const type of types) if (before.allow.includes(type)) this.#remark(`'${type}' was on the whitelist already.`);
    return shown(await this.#app(appId));
  }

  /** @throws AdminError if another entry of the whitelist still allows a type. */
  async denyTypes(appId: string, types: readonly string[]) {
    const before = await this.#changeApp(appId, { $pull: { allow: { $in: validTypes(types) } } });
    const after = await this.#app(appId);
    for (const type of types) {
      const wider = after.allow.find((entry) => entry.endsWith("*") && type.startsWith(entry.slice(0, -1)));
      if (wider !== undefined) {
        throw new AdminError(`'${type}' is still allowed: the entry '${wider}' of the whitelist covers it.`);
      }
      if (!before.allow.includes(type)) this.#remark(`'${type}' was not on the whitelist.`);
    }
    return shown(after);
  }

  /** @returns the app as it was before the change. */
  async #changeApp(appId: string, change: object) {
    return known(await appCollection(this.#db).findOneAndUpdate({ _id: appId }, change), "app", appId);
  }

  async listApps(organizationId?: string, page: PageRequest = {}) {
    if (organizationId !== undefined) await this.#organization(organizationId);
    const filter = organizationId === undefined ? {} : { organizationId };
    return pageOf(appCollection(this.#db), "app", filter, page, shown);
  }

  /** The answer has the key itself. Only its hash is stored. @param restrictions are stored without a check. */
  async createKey(appId: string, expiresAt?: Date, scope: Scope = "ingest", restrictions: KeyRestrictions = {}) {
    const app = await this.#app(appId);
    assertAhead(expiresAt, this.#now());
    const key = newSecret(restrictions.test);
    const _id = this.#ids.next("key");
    const settings = {
      organizationId: app.organizationId,
      appId,
      hash: hashOfKey(key),
      hint: hintOfKey(key),
      scope,
      expiresAt,
      ...restrictions,
    };
    await keyCollection(this.#db).insertOne(newKey(_id, settings, new Date(this.#now())));
    return { id: _id, key, appId, organizationId: app.organizationId, scope, expiresAt: expiresAt ?? null };
  }

  async revokeKey(id: string) {
    const collection = keyCollection(this.#db);
    const revokedAt = new Date(this.#now());
    const { modifiedCount } = await collection.updateOne({ _id: id, revokedAt: null }, { $set: { revokedAt } });
    const key = known(await collection.findOne({ _id: id }), "key", id);
    if (modifiedCount === 0) this.#remark(`The key '${id}' was revoked already.`);
    return shownKey(key, this.#now());
  }

  /**
   * Creates a key of the same app, scope and restrictions. The old one expires after the grace, or earlier if it would anyway.
   * @throws AdminError if the old one is revoked or expired, or has a successor.
   */
  async rotateKey(id: string, graceMs: number) {
    const collection = keyCollection(this.#db);
    const old = known(await collection.findOne({ _id: id }), "key", id);
    const nowMs = this.#now();
    assertReplaceable(old, nowMs);
    const created = await this.createKey(old.appId, undefined, old.scope, restrictionsOf(old));
    const expiresAt = new Date(Math.min(nowMs + graceMs, old.expiresAt?.getTime() ?? Number.POSITIVE_INFINITY));
    const { modifiedCount } = await collection.updateOne(
      { _id: id, revokedAt: null, replacedBy: { $exists: false } },
      { $set: { expiresAt, replacedBy: created.id } },
    );
    if (modifiedCount === 0) {
      // Another command was faster. The new key was not shown to anyone, so delete it.
      await collection.deleteOne({ _id: created.id });
      assertReplaceable(known(await collection.findOne({ _id: id }), "key", id), nowMs);
    }
    if (expiresAt.getTime() < nowMs + graceMs) {
      this.#remark(`The old key expires at ${expiresAt.toISOString()}, before the grace is over: it had to anyway.`);
    }
    return { ...created, replaces: { id, expiresAt } };
  }

  /**
   * Waits until every running instance acts on the earlier changes.
   * @throws AdminError that names the instances that did not confirm it within half a minute.
   */
  async settle(): Promise<void> {
    const behind = await settleOnInstances(this.#db, settleSecondsMax);
    if (behind.length === 0) return;
    throw new AdminError(`It is done, but not every running instance has confirmed it. Missing: ${behind.join("; ")}.`);
  }

  async listKeys(appId: string, page: PageRequest = {}) {
    await this.#app(appId);
    const nowMs = this.#now();
    const { rows, next } = await pageOf(keyCollection(this.#db), "key", { appId }, page, (key) => shownKey(key, nowMs));
    const ids = rows.map(({ id }) => id);
    const uses = await findKeyUses(this.#db, ids);
    return { rows: rows.map((key) => ({ ...key, lastUsedAt: uses.get(key.id) ?? null })), next };
  }

  async listWorkers(organizationId: string, page: PageRequest = {}) {
    await this.#organization(organizationId);
    return pageOf(workerCollection(this.#db), "worker", { organizationId, ...isListed }, page, shownWorker);
  }

  /** The worker, or the one that took its place. */
  async #worker(id: string): Promise<WorkerDocument> {
    const options = everyShard("an operator may know the worker's id alone");
    const worker = known(await workerCollection(this.#db).findOne({ _id: id, ...isLive }, options), "worker", id);
    if (worker.mergedInto === undefined) return worker;
    this.#remark(`'${id}' was merged into '${worker.mergedInto}'.`);
    return this.#worker(worker.mergedInto);
  }

  /** Replaces any name. Callers cannot change it, because their names count only for a worker without one. */
  async renameWorker(id: string, displayName: string) {
    assertName(displayName, limits.displayNameCharactersMax);
    const { _id, organizationId } = await this.#worker(id);
    const renamed = await workerCollection(this.#db).findOneAndUpdate(
      { _id, organizationId },
      { $set: { displayName } },
      { returnDocument: "after" },
    );
    return shownWorker(known(renamed, "worker", id));
  }

  /**
   * Removes the card. The history stays, and the next snapshot makes a new card, even if it is older.
   * @throws AdminError if the worker has no such card.
   */
  async dropCard(workerId: string, appId: string, snapshotType: string) {
    const { _id: ownId, organizationId } = await this.#worker(workerId);
    const _id = cardId(ownId, appId, snapshotType);
    const options = { projection: { timestamp: 1 } };
    const card = await cardCollection(this.#db).findOneAndDelete({ _id, organizationId }, options);
    if (card === null) {
      throw new AdminError(
        `The worker '${workerId}' has no card of type '${snapshotType}' of the app '${appId}'. \`ingest worker show\` lists its cards.`,
      );
    }
    return { workerId, appId, snapshotType, timestamp: card.timestamp };
  }

  /** With the newest of its cards. */
  async showWorker(id: string) {
    const worker = await this.#worker(id);
    const { _id: workerId, organizationId } = worker;
    const cards = await cardCollection(this.#db)
      .find({ organizationId, workerId })
      .sort({ timestamp: -1, _id: -1 })
      .hint(cardsOfWorker)
      .limit(cardsMax + 1)
      .map(cardOf)
      .toArray();
    if (cards.length > cardsMax) {
      this.#remark(`These are the newest ${cardsMax} cards. ListSnapshots of the API has all of them.`);
    }
    const shownCards = cards.slice(0, cardsMax).map(({ _id, organizationId, workerId, ...card }) => card);
    return { ...shownWorker(worker), cards: shownCards };
  }
}

/** @throws AdminError for an invalid page. */
async function pageOf<T extends { _id: string }, Row>(
  collection: Collection<T>,
  kind: keyof typeof prefixes,
  filter: Filter<T>,
  { limit = pageRows.default, after }: PageRequest,
  shown: (document: T) => Row,
): Promise<Page<Row>> {
  if (after !== undefined && !after.startsWith(prefixes[kind])) {
    throw new AdminError(`after is '${after}'; it must be the id of a row, which begins with ${prefixes[kind]}.`);
  }
  const rest = after === undefined ? filter : ({ ...filter, _id: { $gt: after } } as Filter<T>);
  const found = (await collection
    .find(rest)
    .sort({ _id: 1 })
    .limit(limit + 1)
    .toArray()) as T[];
  const documents = found.slice(0, limit);
  const last = documents.at(-1);
  const next = found.length > limit && last !== undefined ? { after: last._id } : undefined;
  return { rows: documents.map(shown), next };
}

function assertName(name: string, charactersMax = 200): void {
  if (name.trim() === "") throw new AdminError(`name is '${name}'; it must not be blank.`);
  if (name.length > charactersMax) {
    throw new AdminError(`name has ${name.length} characters; at most ${charactersMax} are allowed.`);
  }
}

function assertMonth(month: string): void {
  if (!/^\d{4}-(0[1-9]|1[0-2])$/.test(month)) throw new AdminError(`month is '${month}'; it must be YYYY-MM.`);
}

/** Kinds of things, and how their ids begin. */
const prefixes = { organisation: "org_", app: "app_", key: "key_", worker: "wrk_" } as const;

function known<T>(document: T | null, kind: keyof typeof prefixes, id: string): T {
  if (document !== null) return document;
  const hint = id.startsWith(prefixes[kind]) ? "" : ` Such an id begins with ${prefixes[kind]}.`;
  throw new AdminError(`There is no ${kind} with the id '${id}'.${hint}`);
}

function assertAhead(expiresAt: Date | undefined, nowMs: number): void {
  if (expiresAt === undefined || expiresAt.getTime() > nowMs) return;
  const now = new Date(nowMs).toISOString();
  throw new AdminError(`The key would be expired from the start: ${expiresAt.toISOString()} is past. It is ${now}.`);
}

function assertReplaceable({ _id, revokedAt, expiresAt, replacedBy }: KeyDocument, nowMs: number): void {
  if (revokedAt !== null) throw new AdminError(`The key '${_id}' was revoked. Create a new one instead.`);
  if (replacedBy !== undefined) {
    throw new AdminError(`The key '${_id}' was rotated already: '${replacedBy}' takes its place. Rotate that one.`);
  }
  if (expiresAt !== null && expiresAt.getTime() <= nowMs) {
    throw new AdminError(`The key '${_id}' expired at ${expiresAt.toISOString()}. Create a new one instead.`);
  }
}

/** @throws AdminError for an invalid event type. `*` may end one. */
function validTypes(types: readonly string[]): string[] {
  for (const type of types) {
    const valid =
      type === "*" ||
      typePattern.test(type) ||
      (type.endsWith("*") && /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\*$/.test(type));
    if (!valid) throw new AdminError(`'${type}' is not an event type such as 'ticket.resolved' or 'ticket.*'.`);
  }
  return [...new Set(types)];
}

const shown = <T extends { _id: string }>({ _id, ...rest }: T) => ({ id: _id, ...rest });

/** An active or rotating key works. A rotating one has a successor, and will expire. */
export type KeyStatus = "active" | "rotating" | "expired" | "revoked";

function statusOf({ revokedAt, expiresAt, replacedBy }: KeyDocument, nowMs: number): KeyStatus {
  if (revokedAt !== null) return "revoked";
  if (expiresAt !== null && expiresAt.getTime() <= nowMs) return "expired";
  return replacedBy === undefined ? "active" : "rotating";
}

function shownKey(key: KeyDocument, nowMs: number) {
  const { _id, hash, scope = "ingest", replacedBy = null, ...rest } = key;
  const status = statusOf(key, nowMs);
  const leftMs = key.expiresAt === null || key.revokedAt !== null ? null : key.expiresAt.getTime() - nowMs;
  const expiresInSeconds = leftMs === null ? null : Math.max(Math.ceil(leftMs / 1000), 0);
  return { id: _id, scope, ...rest, status, expiresInSeconds, replacedBy };
}

const shownWorker = (worker: WorkerDocument) => ({
  id: worker._id,
  organizationId: worker.organizationId,
  displayName: displayNameOf(worker),
  email: worker.email ?? null,
  links: linksOf(worker).map(({ connection, externalId }) => ({ connection, externalId })),
  ...(worker.merged === undefined
    ? {}
    : { merged: worker.merged.map(({ _id, email = null }) => ({ id: _id, email })) }),
  createdAt: worker.createdAt,
});
