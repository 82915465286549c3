import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CreateCollectionOptions, Db, Document, IndexDescription } from "mongodb";
import { expect, inject, onTestFinished, test } from "vitest";
import { CommandError } from "../../src/serve/exit.ts";
import { check, type Finding, parseState } from "../../src/admin/check.ts";
import { createIdSource, ulidOf } from "../../src/ids.ts";
import { createClient } from "../../src/store/database.ts";
import { instances } from "../../src/store/instances.ts";
import { events, EventStore } from "../../src/store/events.ts";
import { secrets } from "../../src/store/secrets.ts";
import { workerJobs } from "../../src/store/worker-jobs.ts";
import { workerCollection, workers } from "../../src/store/workers.ts";
import { sumOfDays } from "../../src/store/usage-days.ts";
import { monthOf } from "../../src/time.ts";
import { adminRest, insertToken } from "../support/admin.ts";
import { runInProcess } from "../support/command.ts";
import { eventually, runIngest } from "../support/processes.ts";
import { event, snapshot, unique } from "../support/requests.ts";
import { ShardWatch } from "../support/sharding.ts";
import { bearer, createTenant, protocols, type Send, useService } from "../support/service.ts";

const suite = useService();
const send = (key: string, rpc: "events" | "snapshots", body: unknown) =>
  (protocols.REST as Send)(suite.url, rpc, body, bearer(key));

interface Dump {
  readonly name: string;
  readonly options: CreateCollectionOptions;
  readonly indexes: readonly IndexDescription[];
  readonly documents: readonly Document[];
}

/** Reads everything, as mongodump does. */
async function dump(db: Db): Promise<Dump[]> {
  const found = await db.listCollections().toArray();
  return Promise.all(
    found.map(async ({ name, ...one }) => ({
      name,
      options: (one as { options?: CreateCollectionOptions }).options ?? {},
      indexes: (await db.collection(name).indexes()).filter((index) => index.name !== "_id_") as IndexDescription[],
      documents: await db.collection(name).find({}, { promoteValues: false }).toArray(),
    })),
  );
}

/** Puts it into a new database, as mongorestore does. */
async function restore(dumps: readonly Dump[]): Promise<Db> {
  const db = suite.service.app.db.client.db(unique("restored"));
  onTestFinished(async () => void (await db.dropDatabase()));
  for (const { name, options, indexes, documents } of dumps) {
    const collection = await db.createCollection(name, options);
    const others = indexes.filter(({ clustered }: Document) => clustered !== true);
    if (others.length > 0) await collection.createIndexes(others);
    if (documents.length > 0) await collection.insertMany([...documents]);
  }
  return db;
}

const ofLevel = (findings: readonly Finding[], level: Finding["level"]) =>
  findings.filter((one) => one.level === level).map(({ about }) => about);

test("a check tells what a restore has undone, and its remedies lead to one that finds nothing", async () => {
  const { admin, changes, app } = suite.service;
  const { organizationId, appId, key, keyId } = await createTenant(admin);
  const revoked = await admin.createKey(appId);
  const [shortened, limited] = [await admin.createKey(appId), await admin.createKey(appId)];
  const gone = await admin.createApp(organizationId, unique("gone"), "Gone", ["*"]);
  const ofGone = await admin.createKey(gone.id);
  const [operator, token] = [
    await insertToken(suite.service, "operator"),
    await insertToken(suite.service, "operator"),
  ];
  const worker = async (actor: object) => (await send(key, "snapshots", snapshot({ actor }))).body.worker.id as string;
  const email = `${unique("leaver")}@example.com`;
  const [leaver, one, two] = [
    await worker({ email }),
    await worker({ externalId: "1" }),
    await worker({ externalId: "2" }),
  ];
  expect((await send(key, "events", { events: [event({ actor: { email } })] })).status).toBe(202);
  const isCounted = async () =>
    (await sumOfDays(app.db, organizationId, monthOf(new Date()), "app"))[0]?.accepted === 4;
  await eventually(isCounted, "the events are counted");
  const backup = await dump(app.db);
  const backupAt = new Date();

  await admin.revokeKey(revoked.id);
  await admin.rotateKey(shortened.id, 3_600_000);
  const call = (method: "POST" | "PATCH" | "DELETE", path: string, body?: object) =>
    adminRest(app.adminUrl, operator.token, method, path, body);
  expect((await call("PATCH", `/keys/${limited.id}`, { cidrs: ["10.0.0.0/8"] })).status).toBe(200);
  expect((await call("DELETE", `/apps/${gone.id}`)).status).toBe(200);
  expect((await call("POST", `/tokens/${token.id}:revoke`, {})).status).toBe(200);
  // A restore loses these, but nobody needs them back.
  await admin.revokeKey((await admin.createKey(appId)).id);
  await insertToken(suite.service, "operator", undefined, { revokedAt: new Date() });
  const short = await admin.createApp(organizationId, unique("short"), "Short", ["*"]);
  expect((await call("DELETE", `/apps/${short.id}`)).status).toBe(200);
  await changes.erase(leaver, { by: "operator" });
  await changes.merge(one, two, { by: "operator" });
  await admin.updateOrganization(organizationId, { quotaEventsPerMonth: 77 });
  await admin.denyTypes(appId, ["ticket.*"]).catch(() => {});
  await admin.allowTypes(appId, ["ticket.*"]);
  const directory = await mkdtemp(join(tmpdir(), "ingest-check-"));
  onTestFinished(() => rm(directory, { recursive: true }));
  const file = join(directory, "state.json");
  const run = async (database: string, ...args: readonly string[]): Promise<string> => {
    const { printed, error } = await runInProcess(database, args);
    if (error === undefined) return printed;
    if (!(error instanceof CommandError) || !/needs? attention/.test(error.message)) throw error;
    return `${printed}refused: ${error.message}`;
  };
  await run(app.db.databaseName, "check", "--record", file);
  const written = await readFile(file, "utf8");
  for (const flags of [
    ["--against", file],
    ["--since", "2026-01-01"],
  ]) {
    const refused = runIngest(["check", "--record", file, ...flags], { MONGODB_URI: inject("mongodbUri") });
    expect(await refused).toMatchObject({ code: 2, stderr: expect.stringContaining("cannot be used with") });
    expect(await readFile(file, "utf8")).toBe(written);
  }
  for (const secret of [email, key, "crm-user", leaver]) expect(written).not.toContain(secret);

  const db = await restore(backup);
  const name = db.databaseName;
  // Instances of the backup do not run on the restored database.
  await db.collection(instances.name).updateMany({}, { $set: { seenAt: new Date(0) } });
  const against = async () =>
    JSON.parse((await run(name, "check", "--against", file, "--json")).split("\n")[0] as string);
  const { findings } = await against();
  const wanted = [organizationId, revoked.id, shortened.id, limited.id, gone.id, token.id, leaver, two];
  expect(new Set(ofLevel(findings, "attention"))).toEqual(new Set([...wanted, expect.stringMatching(/^key_/)]));
  expect(findings).toHaveLength(wanted.length + 2);
  expect(ofLevel(findings, "note")).toEqual(["--against"]);
  const command = await runIngest(["check", "--against", file], {
    MONGODB_URI: inject("mongodbUri"),
    MONGODB_DB: name,
  });
  expect(command.code).toBe(1);
  expect(command.stdout).toContain(`- ${leaver}: was erased (ers_`);
  expect(command.stderr).toMatch(/\d things need attention\.$/m);

  const nowMs = Date.now();
  const watch = new ShardWatch();
  const watched = createClient(inject("mongodbUri"), { monitorCommands: true }).on("commandStarted", watch.hear);
  onTestFinished(() => watched.close());
  await check(watched.db(name), { nowMs, since: backupAt, state: parseState(written) });
  watch.check();
  const since = await check(db, { nowMs, since: backupAt });
  const listed = ofLevel(since.findings, "attention").filter((about) => /^(key|tok)_/.test(about));
  const credentials = [suite.tenant.keyId, keyId, revoked.id, shortened.id, limited.id, ofGone.id];
  expect(new Set(listed)).toEqual(new Set([...credentials, operator.id, token.id]));
  const plain = await check(db, { nowMs });
  expect(ofLevel(plain.findings, "note")).toEqual(["keys"]);

  // As an older version wrote it.
  const { tokens: _, apps, keys, ...rest } = JSON.parse(written);
  const older = parseState(
    JSON.stringify({
      ...rest,
      apps: apps.map(({ id, allow }: any) => ({ id, allow })),
      keys: keys.map(({ id, revokedAt, expiresAt }: any) => ({ id, revokedAt, expiresAt })),
    }),
  );
  const fewer = (await check(db, { nowMs, state: older })).findings;
  expect(ofLevel(fewer, "attention")).toEqual(expect.arrayContaining([organizationId, revoked.id, shortened.id]));
  for (const id of [limited.id, gone.id, token.id]) expect(ofLevel(fewer, "attention")).not.toContain(id);
  expect(fewer.at(-1)).toMatchObject({ about: "--against", text: expect.stringContaining("access tokens") });

  const settings = { "org update": ["--quota", "77"], "key update": ["--cidr", "10.0.0.0/8"] };
  for (const { remedy } of findings as Finding[]) {
    const [, words] = /`ingest ([^`]+)`/.exec(remedy ?? "") ?? [];
    if (words === undefined) continue;
    const [, more = []] = Object.entries(settings).find(([command]) => words.startsWith(command)) ?? [];
    await run(name, ...words.split(" "), ...more);
  }
  // The successor of the rotated key cannot come back.
  const left = (await against()).findings as Finding[];
  expect(left.filter(({ level }) => level === "attention").map(({ text }) => text)).toEqual([
    expect.stringContaining("was created after the backup"),
  ]);
  expect(await workerCollection(db).countDocuments({ email })).toBe(0);
  expect(ofLevel((await check(db, { nowMs })).findings, "attention")).toEqual([]);
});

test("a check finds what an incomplete restore lacks, and work that a backup caught in the middle", async () => {
  const { admin, changes, app } = suite.service;
  const { organizationId, appId, key, keyId } = await createTenant(admin);
  const actor = { externalId: unique("erased") };
  const { body } = await send(key, "snapshots", snapshot({ actor }));
  expect((await send(key, "events", { events: [event()] })).status).toBe(202);
  await changes.erase(body.worker.id, { by: "operator" });
  const db = await restore(await dump(app.db));
  const abouts = async () => {
    const { findings } = await check(db, { nowMs: Date.now() });
    return findings.filter(({ level }) => level === "attention");
  };
  const nothing = (name: string) => db.collection(name).deleteMany({});
  await db.collection(events.name).deleteMany({ org: ulidOf(organizationId) });
  await nothing(secrets.name);
  await db.collection(workers.name).dropIndexes();
  const job = { _id: organizationId, jobId: "ers_1", kind: "erase", workerId: "wrk_1", aliveAt: new Date(0) };
  await db.collection<{ _id: string }>(workerJobs.name).insertOne(job);
  const found = await abouts();
  expect(found).toEqual(
    expect.arrayContaining([
      expect.objectContaining({ about: "layout", text: expect.stringContaining("workers has no index") }),
      expect.objectContaining({ about: "secrets" }),
      expect.objectContaining({
        about: organizationId,
        text: expect.stringContaining("differs from its stored events"),
      }),
      expect.objectContaining({ about: "ers_1", remedy: expect.stringContaining("`ingest worker erase wrk_1`") }),
    ]),
  );
  const strays = [createIdSource().next("org"), createIdSource().next("org")];
  for (const id of strays) {
    const owner = { organizationId: id, appId, requestId: createIdSource().next("req") };
    await new EventStore(db).insert(owner, [
      { index: 0, workerId: createIdSource().next("wrk"), type: "a", timestamp: new Date() },
    ]);
  }
  await nothing("organizations");
  const orphans = (await abouts()).map(({ about }) => about);
  expect(orphans).toEqual(expect.arrayContaining([appId, organizationId, ...strays]));
  await db.collection(events.name).drop();
  await db.createCollection(events.name);
  expect((await abouts()).map(({ about }) => about)).toContain(events.name);
  await nothing("apps");
  expect((await abouts()).map(({ about }) => about)).toContain(keyId);
  await nothing("schema");
  expect((await abouts()).map(({ about }) => about)).toContain("schema");
});
