import { createHash } from "node:crypto";
import type { Db } from "mongodb";
import { z } from "zod";
import { ConfigError } from "../config.ts";
import { idOf, liveOrganizationOf } from "../ids.ts";
import { appCollection } from "../store/apps.ts";
import { collections } from "../store/collections.ts";
import { everyShard } from "../store/database.ts";
import { eventCollection, events, rowsBetween, rowsInOrder } from "../store/events.ts";
import { claims } from "../store/idempotency.ts";
import { instanceSigns } from "../store/instances.ts";
import { findKeyUses } from "../store/key-uses.ts";
import { type KeyDocument, keyCollection } from "../store/keys.ts";
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
const stateSchema = z.object({
  version: z.literal(1),
  takenAt: time,
  organizations: z.array(z.object({ id: z.string(), settings: z.record(z.string(), z.unknown()) })),
  apps: z.array(z.object({ id: z.string(), allow: z.array(z.string()) })),
  keys: z.array(z.object({ id: z.string(), revokedAt: time.nullable(), expiresAt: time.nullable() })),
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
const settingsOf = ({ _id, name, createdAt, ...settings }: OrganizationDocument) => settings;
const allWorkers = everyShard("a check looks at the workers of every organisation");

export async function readState(db: Db, nowMs: number): Promise<State> {
  const [organizations, apps, keys, erased, merged, kept] = await Promise.all([
    organizationCollection(db).find().toArray(),
    appCollection(db).find().toArray(),
    keyCollection(db).find().toArray(),
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
    apps: apps.map(({ _id: id, allow }) => ({ id, allow })),
    keys: keys.map(({ _id: id, revokedAt, expiresAt }) => ({ id, revokedAt, expiresAt })),
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
    if (since !== undefined) parts.push(keysSince(db, nowMs, since));
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

const worksAt = ({ revokedAt, expiresAt }: Pick<KeyDocument, "revokedAt" | "expiresAt">, ms: number) =>
  revokedAt === null && (expiresAt === null || expiresAt.getTime() > ms);

async function keysSince(db: Db, nowMs: number, since: Date): Promise<Finding[]> {
  const all = await keyCollection(db)
    .find({ createdAt: { $lte: since } })
    .sort({ _id: 1 })
    .toArray();
  const working = all.filter((key) => worksAt(key, nowMs));
  const ids = working.map(({ _id }) => _id);
  const uses = await findKeyUses(db, ids);
  return working.map(({ _id, appId, hint }) => {
    const used = uses.get(_id)?.toISOString() ?? "never";
    const text = `${hint} of ${appId} worked at the time of the backup and works now; last used: ${used}`;
    return attention(_id, text, `If it was revoked or rotated since, run \`ingest key revoke ${_id}\`.`);
  });
}

/** What the state says, and the database does not know any more. */
async function undone(db: Db, nowMs: number, state: State): Promise<Finding[]> {
  const now = await readState(db, nowMs);
  const found: Finding[] = [];
  const byId = <T extends { id: string }>(list: readonly T[]) => new Map(list.map((one) => [one.id, one]));
  const lost = (id: string) => attention(id, "was created after the backup, and is unknown now", "Create it again.");
  const differs = (a: unknown, b: unknown) => JSON.stringify(a) !== JSON.stringify(b);

  const organizations = byId(now.organizations);
  for (const { id, settings } of state.organizations) {
    const own = organizations.get(id)?.settings;
    if (own === undefined) found.push(lost(id));
    const names = Object.keys({ ...settings, ...own }).filter((name) => own && differs(settings[name], own[name]));
    for (const name of names) {
      const text = `${name} is ${JSON.stringify(own?.[name]) ?? "not set"}, and was ${JSON.stringify(settings[name]) ?? "not set"}`;
      found.push(attention(id, text, `Set it again with \`ingest org update ${id}\`.`));
    }
  }
  const apps = byId(now.apps);
  for (const { id, allow } of state.apps) {
    const own = apps.get(id)?.allow;
    if (own === undefined) found.push(lost(id));
    else if (differs(own.toSorted(), allow.toSorted())) {
      const text = `may send ${own.join(" ")}, and could send ${allow.join(" ")}`;
      found.push(attention(id, text, "Change its whitelist with `ingest app allow` and `ingest app deny`."));
    }
  }
  const keys = byId(now.keys);
  for (const { id, revokedAt, expiresAt } of state.keys) {
    const own = keys.get(id);
    if (own === undefined) found.push(lost(id));
    else if (worksAt(own, nowMs) && !worksAt({ revokedAt, expiresAt }, nowMs)) {
      const ended =
        revokedAt === null ? `expired at ${expiresAt?.toISOString()}` : `was revoked at ${revokedAt.toISOString()}`;
      found.push(attention(id, `${ended}, and works again`, `Run \`ingest key revoke ${id}\`.`));
    } else if (worksAt(own, nowMs) && differs(own.expiresAt, expiresAt)) {
      const text = `expires ${own.expiresAt?.toISOString() ?? "never"}, and would have expired ${expiresAt?.toISOString() ?? "never"}`;
      found.push(attention(id, text, `Rotate it again, or run \`ingest key revoke ${id}\`.`));
    }
  }
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
  return [...found, noteOf("--against", text)];
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
