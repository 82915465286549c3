import { createHash } from "node:crypto";
import type { Db } from "mongodb";
import { z } from "zod";
import { ConfigError } from "../config.ts";
import { idOf, liveOrganizationOf } from "../ids.ts";
import { accessTokenCollection } from "../store/access-tokens.ts";
import { appCollection } from "../store/apps.ts";
import { collections } from "../store/collections.ts";
import { everyShard } from "../store/database.ts";
import { eventCollection, events, rowsBetween, rowsInOrder } from "../store/events.ts";
import { claims } from "../store/idempotency.ts";
import { instanceSigns } from "../store/instances.ts";
import { findKeyUses } from "../store/key-uses.ts";
import { type KeyDocument, keyCollection, scopesOf } from "../store/keys.ts";
import { prepareDatabase, SchemaError } from "../store/migrations.ts";
import { type OrganizationDocument, organizationCollection } from "../store/organizations.ts";
import { isExact } from "../store/recount.ts";
import { requests } from "../store/requests.ts";
import { type SecretDocument, secrets } from "../store/secrets.ts";
import { monthOf } from "../time.ts";
import { hasOldRows } from "../store/version-2.ts";
import { allJobs } from "../store/worker-jobs.ts";
import {
  erasedNameCollection,
  erasedNameId,
  erasedNameSecret,
  namesOfWorker,
  workerCollection,
} from "../store/workers.ts";

export interface Finding {
  /** A note needs no action. */
  readonly level: "attention" | "note";
  /** The thing, mostly its id. */
  readonly about: string;
  readonly text: string;
  /** What to do about it. */
  readonly remedy: string | null;
}

const attention = (about: string, text: string, remedy: string): Finding => ({
  ...{ level: "attention", about, text, remedy },
});
const noteOf = (about: string, text: string, remedy: string | null = null): Finding => ({
  ...{ level: "note", about, text, remedy },
});

const time = z.coerce.date();
const credentialSchema = z.object({ id: z.string(), revokedAt: time.nullable(), expiresAt: time.nullable() });
const settings = z.record(z.string(), z.unknown());
type Credential = z.infer<typeof credentialSchema>;
/** A file of an older version lacks the optional members. */
const stateSchema = z.object({
  version: z.literal(1),
  takenAt: time,
  organizations: z.array(z.object({ id: z.string(), settings })),
  apps: z.array(z.object({ id: z.string(), allow: z.array(z.string()), deletedAt: time.nullable().default(null) })),
  keys: z.array(credentialSchema.extend({ appId: z.string().optional(), limits: settings.optional() })),
  tokens: z.array(credentialSchema).optional(),
  /** Ids of erased workers, as keyed hashes. */
  erasedNames: z.array(z.object({ id: z.string(), erasure: z.string() })),
  merged: z.array(z.object({ id: z.string(), into: z.string() })),
  /** Only hashes of the secrets. */
  secrets: z.array(z.object({ id: z.string(), hash: z.string() })),
});

/** What a restore would undo. It names nobody, and has no secret. */
export type State = z.infer<typeof stateSchema>;

/** @throws ConfigError for a text that no `--record` wrote. */
export function parseState(text: string): State {
  try {
    return stateSchema.parse(JSON.parse(text));
  } catch {
    throw new ConfigError("--against: this is no file of `ingest check --record`.");
  }
}

const areErased = { _id: { $gt: "erased_", $lt: "erased`" } };
const credentialOf = ({ _id: id, revokedAt, expiresAt }: Omit<Credential, "id"> & { readonly _id: string }) => ({
  ...{ id, revokedAt, expiresAt },
});
/** Sorted: the order means nothing. */
const limitsOf = ({ eventTypes = [], cidrs = [], ...key }: KeyDocument) => ({
  scopes: scopesOf(key).toSorted(),
  eventTypes: eventTypes.toSorted(),
  cidrs: cidrs.toSorted(),
});
const settingsOf = ({ _id, name, createdAt, ...settings }: OrganizationDocument) => settings;
const allWorkers = everyShard("a check looks at the workers of every organisation");

export async function readState(db: Db, nowMs: number): Promise<State> {
  const [organizations, apps, keys, tokens, erased, merged, kept] = await Promise.all([
    organizationCollection(db).find().toArray(),
    appCollection(db).find().toArray(),
    keyCollection(db).find().toArray(),
    accessTokenCollection(db).find().toArray(),
    erasedNameCollection(db).find(areErased, allWorkers).toArray(),
    workerCollection(db)
      .find({ mergedInto: { $exists: true } }, { projection: { mergedInto: 1 }, ...allWorkers })
      .toArray(),
    db.collection<SecretDocument>(secrets.name).find().toArray(),
  ]);
  return {
    version: 1,
    takenAt: new Date(nowMs),
    organizations: organizations.map((one) => ({ id: one._id, settings: settingsOf(one) })),
    apps: apps.map(({ _id: id, allow, deletedAt = null }) => ({ id, allow, deletedAt })),
    keys: keys.map((key) => ({ ...credentialOf(key), appId: key.appId, limits: limitsOf(key) })),
    tokens: tokens.map(credentialOf),
    erasedNames: erased.map(({ _id: id, erasure }) => ({ id, erasure })),
    merged: merged.map(({ _id: id, mergedInto }) => ({ id, into: mergedInto as string })),
    secrets: kept.map(({ _id: id, value }) => ({ id, hash: createHash("sha256").update(value.buffer).digest("hex") })),
  };
}

export interface CheckOptions {
  readonly nowMs: number;
  /** When the backup was taken. */
  readonly since?: Date | undefined;
  /** The state before the restore. */
  readonly state?: State | undefined;
}

/** Says what an operator should look at, most of all after a restore. Changes nothing. */
export async function check(db: Db, options: CheckOptions) {
  const { nowMs, since, state } = options;
  const signs = await instanceSigns(db);
  const lastSignAt = signs.reduce<Date | undefined>(
    (last, { seenAt }) => (last && last > seenAt ? last : seenAt),
    undefined,
  );
  const findings = await layout(db);
  const isUsable = findings.every(({ about }) => about !== "schema");
  if (isUsable) {
    const parts = [references(db), jobs(db), expired(db, nowMs), usage(db, nowMs, since)];
    if (since !== undefined) parts.push(credentialsSince(db, nowMs, since));
    if (state !== undefined) parts.push(undone(db, nowMs, state));
    for (const part of await Promise.all(parts)) findings.push(...part);
  }
  if (lastSignAt !== undefined && lastSignAt.getTime() > nowMs + 5_000) {
    const text = `an instance wrote at ${lastSignAt.toISOString()}, but the database's clock says ${new Date(nowMs).toISOString()}`;
    findings.push(attention("clock", text, "Correct the clock of the database's machine before instances start."));
  }
  const running = signs.filter(({ isRunning }) => isRunning).map(({ name }) => name);
  if (running.length > 0) {
    const remedy = "If you have just restored: stop them and start them again, and check again meanwhile.";
    findings.push(noteOf("instances", `${running.join("; ")}: running, so counts may change during the check`, remedy));
  }
  if (isUsable && since === undefined && state === undefined) {
    const remedy = "After a restore, use --since with the time of the backup, or --against with a file of --record.";
    findings.push(noteOf("keys", "the database alone does not show which changes a restore has undone", remedy));
  }
  return { database: db.databaseName, lastInstanceAt: lastSignAt ?? null, findings };
}

async function layout(db: Db): Promise<Finding[]> {
  const found: Finding[] = [];
  try {
    for (const warning of await prepareDatabase(db, collections, "look only")) {
      found.push(attention("layout", warning, "`ingest migrate` brings it up to date."));
    }
  } catch (error) {
    if (!(error instanceof SchemaError)) throw error;
    const isOther = !error.message.includes(" lacks ");
    found.push(attention(isOther ? "schema" : "layout", error.message, "Do this before instances start."));
  }
  const [timeline] = await db.listCollections({ name: events.name }).toArray();
  if (
    timeline !== undefined &&
    (timeline as { options?: { clusteredIndex?: object } }).options?.clusteredIndex === undefined
  ) {
    const text = "is not a clustered collection, so reads and removals would sort and scan all of it";
    found.push(attention(events.name, text, "Drop it, and restore it with its options: without --noOptionsRestore."));
  }
  return found;
}

/** A restore of some collections, or of different times, leaves things that belong to nothing. */
async function references(db: Db): Promise<Finding[]> {
  const idsOf = (list: readonly { _id: string }[]) => new Set(list.map(({ _id }) => _id));
  const [organizations, apps, keys, owners] = await Promise.all([
    organizationCollection(db)
      .find({}, { projection: { _id: 1 } })
      .toArray()
      .then(idsOf),
    appCollection(db)
      .find({}, { projection: { organizationId: 1 } })
      .toArray(),
    keyCollection(db)
      .find({}, { projection: { appId: 1 } })
      .toArray(),
    workerCollection(db).distinct("organizationId", {}, allWorkers),
  ]);
  const missing = "Restore all collections from one backup.";
  const found: Finding[] = [];
  const appIds = idsOf(apps);
  for (const { _id, organizationId } of apps) {
    if (!organizations.has(organizationId))
      found.push(attention(_id, `its organisation ${organizationId} is missing`, missing));
  }
  for (const { _id, appId } of keys) {
    if (!appIds.has(appId)) found.push(attention(_id, `its app ${appId} is missing`, missing));
  }
  for (const id of owners) {
    if (!organizations.has(liveOrganizationOf(id)))
      found.push(attention(id, "has workers, but the organisation is missing", missing));
  }
  for await (const id of organizationsWithRows(db)) {
    if (!organizations.has(liveOrganizationOf(id)))
      found.push(attention(id, "has events, but the organisation is missing", missing));
  }
  const erased = await erasedNameCollection(db).findOne(areErased, allWorkers);
  const secret = await db.collection<SecretDocument>(secrets.name).findOne({ _id: erasedNameSecret });
  if (erased !== null && secret === null) {
    found.push(
      attention("secrets", "the key of the erased ids is missing, so erased workers would come back", missing),
    );
  }
  return found;
}

/** The rows lie in the order of organisations, so one read finds each. */
async function* organizationsWithRows(db: Db): AsyncGenerator<string> {
  const options = {
    projection: { _id: 1 },
    sort: { _id: 1 },
    hint: rowsInOrder,
    ...everyShard("a check looks at every organisation"),
  } as const;
  for (let after: Buffer = Buffer.alloc(0); ;) {
    const row = await eventCollection(db).findOne({ _id: { $gte: after } }, options);
    if (row === null) return;
    const id = idOf("org", row._id);
    yield id;
    after = rowsBetween(id)._id.$lt;
  }
}

async function jobs(db: Db): Promise<Finding[]> {
  const found = await allJobs(db);
  const named = new Set(found.map(({ workerId }) => workerId));
  const stuck = await workerCollection(db)
    .find({ erasing: true }, { projection: { _id: 1 }, ...allWorkers })
    .toArray();
  return [
    ...found.map(({ jobId, kind, workerId, into, isRunning, failure }) => {
      const job = `the ${kind === "erase" ? "erasure" : "merge"} of ${workerId}`;
      if (isRunning) return noteOf(jobId, `${job} runs now`);
      const command = kind === "erase" ? `ingest worker erase ${workerId}` : `ingest worker merge ${into} ${workerId}`;
      const why = failure === undefined ? "" : `; it failed ${failure.times} times, at last so: ${failure.message}`;
      const remedy = `A running instance carries it on. Without one, run \`${command}\`.`;
      return attention(jobId, `${job} has begun and did not end${why}`, remedy);
    }),
    ...stuck
      .filter(({ _id }) => !named.has(_id))
      .map(({ _id }) => attention(_id, "its erasure has begun and did not end", `Run \`ingest worker erase ${_id}\`.`)),
  ];
}

const ttlMinutes = 10;

/** The server removes these every minute, unless that is turned off. */
async function expired(db: Db, nowMs: number): Promise<Finding[]> {
  const filter = { expiresAt: { $lt: new Date(nowMs - ttlMinutes * 60_000) } };
  const options = { projection: { _id: 1 }, ...everyShard("a check looks at every organisation") };
  const found: Finding[] = [];
  for (const { name } of [claims, requests]) {
    if ((await db.collection(name).findOne(filter, options)) === null) continue;
    const text = `has documents that expired more than ${ttlMinutes} minutes ago`;
    const remedy = "The server removes them within minutes of a restore. If they stay, set ttlMonitorEnabled to true.";
    found.push(noteOf(name, text, remedy));
  }
  return found;
}

/** The months from the one of the backup on, or this one and the one before. */
function monthsOf(nowMs: number, since: Date | undefined): string[] {
  const months: string[] = [];
  const now = new Date(nowMs);
  const first = monthOf(since ?? new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - 1, 1)));
  for (let back = 0; back < 24; back++) {
    const month = monthOf(new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - back, 1)));
    if (month < first) break;
    months.push(month);
  }
  return months;
}

async function usage(db: Db, nowMs: number, since: Date | undefined): Promise<Finding[]> {
  // They are not rows of the timeline yet, so a count would miss them.
  if (await hasOldRows(db)) return [];
  const found: Finding[] = [];
  for (const { _id: organizationId } of await organizationCollection(db)
    .find({}, { projection: { _id: 1 } })
    .toArray()) {
    for (const month of monthsOf(nowMs, since)) {
      if (await isExact(db, organizationId, month)) continue;
      const text = `its usage of ${month} differs from its stored events`;
      const remedy = `Run \`ingest quota recount --org ${organizationId} --month ${month}\`.`;
      found.push(attention(organizationId, text, remedy));
    }
  }
  return found;
}

const worksAt = ({ revokedAt, expiresAt }: Pick<Credential, "revokedAt" | "expiresAt">, ms: number) =>
  revokedAt === null && (expiresAt === null || expiresAt.getTime() > ms);

async function credentialsSince(db: Db, nowMs: number, since: Date): Promise<Finding[]> {
  const isOld = { createdAt: { $lte: since } };
  // A deleted app's keys do not work, and say nothing of it.
  const deleted = await appCollection(db).distinct("_id", { deletedAt: { $exists: true } });
  const [keys, tokens] = await Promise.all([
    keyCollection(db)
      .find({ ...isOld, appId: { $nin: deleted } })
      .sort({ _id: 1 })
      .toArray(),
    accessTokenCollection(db).find(isOld).sort({ _id: 1 }).toArray(),
  ]);
  const working = [
    ...keys.map((key) => ({ ...key, kind: "key", whose: key.appId })),
    ...tokens.map((token) => ({ ...token, kind: "token", whose: `role ${token.role}` })),
  ].filter((one) => worksAt(one, nowMs));
  const ids = working.map(({ _id }) => _id);
  const uses = await findKeyUses(db, ids);
  return working.map(({ _id, kind, hint, whose }) => {
    const used = uses.get(_id)?.toISOString() ?? "never";
    const text = `${hint} of ${whose} worked at the time of the backup and works now; last used: ${used}`;
    return attention(_id, text, `If it was revoked or rotated since, run \`ingest ${kind} revoke ${_id}\`.`);
  });
}

type Settings = Readonly<Record<string, unknown>>;

const differs = (a: unknown, b: unknown) => JSON.stringify(a) !== JSON.stringify(b);

/** Says of each setting that differs what it is and what it was. */
function differences(was: Settings, own: Settings): string[] {
  const names = Object.keys({ ...was, ...own }).filter((name) => differs(was[name], own[name]));
  const textOf = (value: unknown) => JSON.stringify(value) ?? "not set";
  return names.map((name) => `${name} is ${textOf(own[name])}, and was ${textOf(was[name])}`);
}

/** What the state says, and the database does not know any more. */
async function undone(db: Db, nowMs: number, state: State): Promise<Finding[]> {
  const now = await readState(db, nowMs);
  const found: Finding[] = [];
  const byId = <T extends { id: string }>(list: readonly T[]) => new Map(list.map((one) => [one.id, one]));
  const lost = (id: string) => attention(id, "was created after the backup, and is unknown now", "Create it again.");

  /** Says what is wrong unless both work. */
  const bothWork = <T extends Credential>(kind: "key" | "token", was: Credential, own: T | undefined): own is T => {
    const { id, revokedAt, expiresAt } = was;
    const worked = worksAt(was, nowMs);
    if (own === undefined && worked) found.push(lost(id));
    if (own === undefined || !worksAt(own, nowMs)) return false;
    if (worked) return true;
    const ended =
      revokedAt === null ? `expired at ${expiresAt?.toISOString()}` : `was revoked at ${revokedAt.toISOString()}`;
    found.push(attention(id, `${ended}, and works again`, `Run \`ingest ${kind} revoke ${id}\`.`));
    return false;
  };

  const organizations = byId(now.organizations);
  for (const { id, settings } of state.organizations) {
    const own = organizations.get(id)?.settings;
    if (own === undefined) found.push(lost(id));
    for (const text of own === undefined ? [] : differences(settings, own)) {
      found.push(attention(id, text, `Set it again with \`ingest org update ${id}\`.`));
    }
  }
  const apps = byId(now.apps);
  for (const { id, allow, deletedAt } of state.apps) {
    const own = apps.get(id);
    if (deletedAt !== null) {
      if (own === undefined || own.deletedAt !== null) continue;
      const text = `was deleted at ${deletedAt.toISOString()}, and is back; its keys work again`;
      found.push(attention(id, text, `Run \`ingest app delete ${id}\`.`));
    } else if (own === undefined) found.push(lost(id));
    else if (differs(own.allow.toSorted(), allow.toSorted())) {
      const text = `may send ${own.allow.join(" ")}, and could send ${allow.join(" ")}`;
      found.push(attention(id, text, "Change its whitelist with `ingest app allow` and `ingest app deny`."));
    }
  }
  // The deletion of the app ends its keys too.
  const deleted = new Set(state.apps.filter(({ deletedAt }) => deletedAt !== null).map(({ id }) => id));
  const keys = byId(now.keys);
  for (const was of state.keys.filter(({ appId = "" }) => !deleted.has(appId))) {
    const { id, expiresAt, limits } = was;
    const own = keys.get(id);
    if (!bothWork("key", was, own)) continue;
    if (differs(own.expiresAt, expiresAt)) {
      const text = `expires ${own.expiresAt?.toISOString() ?? "never"}, and would have expired ${expiresAt?.toISOString() ?? "never"}`;
      found.push(attention(id, text, `Rotate it again, or run \`ingest key revoke ${id}\`.`));
    }
    for (const text of limits === undefined ? [] : differences(limits, own.limits as Settings)) {
      found.push(attention(id, text, `Set it again with \`ingest key update ${id}\`.`));
    }
  }
  const tokens = byId(now.tokens ?? []);
  for (const was of state.tokens ?? []) bothWork("token", was, tokens.get(was.id));
  const kept = byId(now.secrets);
  for (const { id, hash } of state.secrets) {
    if (kept.get(id)?.hash === hash) continue;
    const text = `'${id}' is another one: tokens are invalid${id === erasedNameSecret ? ", and erased workers would come back" : ""}`;
    found.push(attention("secrets", text, "Restore the collection `secrets`."));
  }
  const merged = byId(now.merged);
  for (const { id, into } of state.merged) {
    if (merged.has(id) || (await workerCollection(db).findOne({ _id: id }, allWorkers)) === null) continue;
    found.push(
      attention(id, `was merged into ${into}, and is separate again`, `Run \`ingest worker merge ${into} ${id}\`.`),
    );
  }
  found.push(...(await erasuresUndone(db, now, state)));
  const text = `the file is of ${state.takenAt.toISOString()}: it has no later change`;
  found.push(noteOf("--against", text));
  if (state.tokens === undefined) {
    const older = "the file is of an older version: it has no access tokens, deleted apps and limits of keys";
    found.push(noteOf("--against", older, "Compare these with your own notes."));
  }
  return found;
}

/** The hashes in the state tell which workers are back, because the restored secret is the same. */
async function erasuresUndone(db: Db, now: State, state: State): Promise<Finding[]> {
  const known = new Set(now.erasedNames.map(({ id }) => id));
  const erasures = new Map(
    state.erasedNames.filter(({ id }) => !known.has(id)).map(({ id, erasure }) => [id, erasure]),
  );
  if (erasures.size === 0) return [];
  const found: Finding[] = [];
  const back = new Set<string>();
  const secret = await db.collection<SecretDocument>(secrets.name).findOne({ _id: erasedNameSecret });
  if (secret !== null) {
    const key = Buffer.from(secret.value.buffer);
    for await (const worker of workerCollection(db).find({ _id: { $gt: "wrk_" } }, allWorkers)) {
      const hits = namesOfWorker(worker).flatMap((name) => erasures.get(erasedNameId(key, name)) ?? []);
      const [erasure] = hits;
      if (erasure === undefined || worker.mergedInto !== undefined) continue;
      hits.forEach((one) => back.add(one));
      found.push(
        attention(worker._id, `was erased (${erasure}), and is back`, `Run \`ingest worker erase ${worker._id}\`.`),
      );
    }
  }
  for (const erasure of new Set(erasures.values())) {
    if (back.has(erasure)) continue;
    const text = "is unknown now: nothing of the worker is stored, but its next event would make it anew";
    found.push(attention(erasure, text, "If that happens, erase it again."));
  }
  return found;
}
