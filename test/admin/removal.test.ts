import { Collection, type Db, type Document } from "mongodb";
import { expect, inject, onTestFinished, test, vi } from "vitest";
import { check } from "../../src/admin/check.ts";
import { JobKeeper, waitForJob } from "../../src/admin/job-keeper.ts";
import { findErasureOf, type JobPlan, type WorkerName } from "../../src/admin/worker-changes.ts";
import { createIdSource, testOrganizationOf, ulidOf } from "../../src/ids.ts";
import { type AuditDocument, auditCollection } from "../../src/store/audit.ts";
import { createClient } from "../../src/store/database.ts";
import {
  type EventDocument,
  eventCollection,
  events as eventsDefinition,
  EventStore,
  findRowsOfRequest,
  placesOf,
} from "../../src/store/events.ts";
import { type InstanceDocument, instances, isFirstInstance } from "../../src/store/instances.ts";
import { Retention } from "../../src/store/retention.ts";
import { removeRowsBefore, removeRowsOfWorker, removeRowsReceivedBefore } from "../../src/store/row-removal.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { removeTestData } from "../../src/store/test-data.ts";
import { usageDayCollection } from "../../src/store/usage-days.ts";
import { usageCollection } from "../../src/store/usage.ts";
import {
  erasureCollection,
  findErasure,
  findJob,
  type JobDocument,
  type JobProgress,
  neverAlive,
  takeOverAfterMs,
  workerJobs,
} from "../../src/store/worker-jobs.ts";
import { type WorkerDocument, workerCollection } from "../../src/store/workers.ts";
import { showRequest } from "../support/admin.ts";
import { startChild } from "../support/child-service.ts";
import type { Role } from "../../src/store/access-tokens.ts";
import { adminRest, insertToken } from "../support/admin.ts";
import { eventually } from "../support/processes.ts";
import { event, snapshot, unique } from "../support/requests.ts";
import { storedRows, sumOf } from "../support/rows.ts";
import {
  type Answer,
  bearer,
  createTenant,
  insertKey,
  protocols,
  type Rpc,
  type Send,
  startService,
  type Tenant,
  useService,
} from "../support/service.ts";
import { begin as beginJob } from "../support/worker-changes.ts";

const suite = useService();
const newId = createIdSource().next;
const doer = (instanceId: string) => () => isFirstInstance(suite.service.app.db, instanceId);
const by = "operator@host";

const send = (tenant: Tenant, rpc: Rpc, body: unknown, headers = {}): Promise<Answer> =>
  (protocols.REST as Send)(suite.url, rpc, body, { ...bearer(tenant.key), ...headers });
/** Calls of the administration API by an operator. */
async function operator() {
  const { token } = await insertToken(suite.service, "operator");
  const { adminUrl } = suite.service.app;
  return (method: "GET" | "POST", path: string, body?: object) => adminRest(adminUrl, token, method, path, body);
}
const about = (...actors: object[]) => ({ events: actors.map((actor) => event({ actor })) });
const workerOf = async (tenant: Tenant, actor: object): Promise<{ id: string; displayName: string }> =>
  (await send(tenant, "snapshots", snapshot({ actor }))).body.worker;
const once = (key: string) => ({ "idempotency-key": key });

/** The rows that a reader sees, or the error. */
async function timeline(
  tenant: Tenant,
  query: Record<string, string> = {},
): Promise<{ events: any[]; error?: object }> {
  const { key } = await suite.service.admin.createKey(tenant.appId, undefined, "read");
  const events = [];
  for (let pageToken = ""; ;) {
    const parameters = new URLSearchParams({ ...query, pageSize: "500", ...(pageToken && { pageToken }) });
    const page = await fetch(`${suite.url}/api/v1/timeline/events?${parameters}`, { headers: bearer(key) });
    const body = (await page.json()) as any;
    if (body.error !== undefined) return { events, error: body.error };
    events.push(...body.events);
    pageToken = body.nextPageToken;
    if (!pageToken) return { events };
  }
}

/** The collections whose bytes have one of the texts. */
async function naming(texts: readonly (string | Buffer)[]): Promise<string[]> {
  const { db } = suite.service.app;
  const found: string[] = [];
  for (const { name } of await db.listCollections().toArray()) {
    const documents = await db.collection<Uint8Array>(name).find({}, { raw: true }).toArray();
    const bytes = documents.map((one) => Buffer.from(one as unknown as Uint8Array));
    for (const text of texts) {
      if (bytes.some((one) => one.includes(text))) found.push(`${name}: ${String(text)}`);
    }
  }
  return found;
}

/** The audit entry of a change of the worker's name. */
const renamed = ({ organizationId }: Tenant, target: string, displayName: string): AuditDocument => ({
  _id: createIdSource().next("aud"),
  at: new Date(),
  actor: { kind: "cli", id: by, name: by, role: "operator" },
  peer: "",
  requestId: createIdSource().next("req"),
  action: "UpdateWorker",
  organizationId,
  target,
  before: JSON.stringify({ displayName }),
  after: "{}",
});

/** Sends events about the actor until `work` is done. @returns the answers. */
async function during(tenant: Tenant, actor: object, work: () => Promise<unknown>): Promise<Answer[]> {
  const answers: Answer[] = [];
  let isDone = false;
  const senders = Array.from({ length: 4 }, async () => {
    while (!isDone) answers.push(await send(tenant, "events", about(actor)));
  });
  await eventually(() => Promise.resolve(answers.length > 3), "events arrive");
  await work().finally(() => (isDone = true));
  await Promise.all(senders);
  return answers;
}

const jobsOf = (db: Db) => db.collection<JobDocument>(workerJobs.name);

/** Makes the job look as if its runner, which has failed or was killed, died a while ago. `retryAt`: for instances. */
const killed = (tenant: Pick<Tenant, "organizationId">, retryAt: Date, db = suite.service.app.db) =>
  jobsOf(db).updateOne(
    { _id: tenant.organizationId },
    {
      $set: {
        runner: "killed",
        aliveAt: new Date(Date.now() - 2 * takeOverAfterMs),
        failure: { times: 1, message: "killed", retryAt },
      },
    },
  );
const begin = (plan: JobPlan, afterwards?: () => Promise<void>, db = suite.service.app.db) =>
  beginJob(db, plan, by, afterwards);

/** Only the test's own runners carry the job on. */
const never = new Date(Date.now() + 86_400_000);

test("an erased worker is in no byte of the database, its next events are rejected, and others stay", async () => {
  const { changes, app } = suite.service;
  const [tenant, stranger] = [await createTenant(suite.service.admin), await createTenant(suite.service.admin)];
  const email = `${unique("ada")}@example.com`;
  const [other, externalId] = [`${unique("a.l")}@example.com`, unique("crm/Ада-Лавлейс")];
  const ada = { email, externalId, displayName: "Ada Lovelace" };
  const { id } = await workerOf(tenant, ada);
  const { id: alias } = await workerOf(tenant, { email: other });
  await changes.merge(id, alias, { by });
  const mixed = {
    events: [ada, { email: `${unique("bob")}@example.com` }].map((actor, i) =>
      event({ actor, timestamp: `2026-04-19T12:0${i}:00Z` }),
    ),
  };
  const first = await send(tenant, "events", mixed, once("mixed"));
  const card = snapshot({ actor: ada });
  expect((await send(tenant, "snapshots", card, once("card"))).body.worker.displayName).toBe("Ada Lovelace");
  // Their records keep what was sent.
  for (const [sender, workerId] of [
    [tenant, email],
    [tenant, externalId],
    [stranger, id],
  ] as const) {
    expect((await send(sender, "events", about({ workerId }))).error?.code).toBe("worker_not_found");
  }
  await auditCollection(app.db).insertMany([id, alias].map((target) => renamed(tenant, target, "Ada Lovelace")));
  // A message shows only the beginning of a long text.
  const names = [id, alias, email, other, externalId, "'crm/Ада", "Lovelace"];
  const ids = [ulidOf(id), ulidOf(alias)];
  await eventually(
    async () => (await naming([email, "'crm/Ада", id])).filter((one) => one.startsWith("requests")).length === 3,
    "records",
  );

  let receipt: Awaited<ReturnType<typeof changes.erase>> | undefined;
  const steps = new Set<string>();
  const answers = await during(tenant, { email }, async () => {
    receipt = await changes.erase(id, { by, onProgress: ({ step }) => steps.add(step) });
  });
  expect(await naming([...names, ...ids])).toEqual([]);
  const stored = answers.filter(({ status }) => status === 202).length;
  const codes = new Set(answers.flatMap(({ error }) => error?.code ?? []));
  expect([...codes].filter((code) => code !== "worker_not_found")).toEqual([]);
  expect(receipt).toMatchObject({
    organizationId: tenant.organizationId,
    by,
    state: "done",
    completedAt: expect.any(Date),
  });
  // The snapshots that made the two workers, the one with a key, the batch's event, and those of meanwhile.
  expect(receipt?.counts).toMatchObject({ events: 4 + stored, cards: 1, workers: 2, requests: 3, idempotency: 2 });
  expect(await erasureCollection(app.db).countDocuments({ _id: receipt?.id as string })).toBe(1);
  const audit = await auditCollection(app.db)
    .find({ target: receipt?.id as string })
    .toArray();
  expect(audit).toMatchObject([{ action: "UpdateWorker" }, { action: "UpdateWorker" }]);
  expect([...steps]).toContain("removing events");

  const again = await send(tenant, "events", mixed, once("mixed"));
  expect([again.status, again.body, again.headers.get("idempotency-replayed")]).toEqual([202, first.body, "true"]);
  expect((await send(tenant, "snapshots", card, once("card"))).error?.message).toMatch(/was erased/);
  for (const actor of [{ email }, { externalId }, { workerId: id }, { workerId: alias }, { email: other }, ada]) {
    const { error } = await send(tenant, "events", about(actor), once(unique("next")));
    expect(error, JSON.stringify(actor)).toMatchObject({ code: "worker_not_found" });
    expect(error?.message).toContain("was erased");
  }
  expect((await send(tenant, "snapshots", snapshot({ actor: { email } }))).error?.message).toMatch(/was erased/);
  expect((await timeline(tenant, { workerId: id })).error).toMatchObject({ code: "worker_not_found" });
  expect(await naming([...names, ...ids])).toEqual([]);
  expect((await timeline(tenant)).events).toHaveLength(1);
  expect((await showRequest(app.db, first.body.requestId)).eventIds).toHaveLength(1);

  const { organizationId } = tenant;
  expect(await changes.allowAgain(organizationId, { case: "workerId", value: alias })).toBe(5);
  expect((await workerOf(tenant, { email })).id).not.toBe(id);
  const allowing = changes.allowAgain(organizationId, { case: "workerId", value: id });
  await expect(allowing).rejects.toThrow("No worker was erased with this id");
});

test("an erasure that failed says so, and goes on with the same command; its receipt counts everything once", async () => {
  const { changes, app } = suite.service;
  const tenant = await createTenant(suite.service.admin);
  const actor = { email: `${unique("long")}@example.com` };
  const { id } = await workerOf(tenant, actor);
  const { id: other } = await workerOf(tenant, { externalId: "other" });
  for (const count of [500, 200]) {
    expect((await send(tenant, "events", about(...Array.from({ length: count }, () => actor)))).status).toBe(202);
  }
  const die = ({ step, done }: { step: string; done: number }) => {
    if (step === "removing events" && done > 0) throw new Error(`failed at ${actor.email}`);
  };
  await expect(changes.erase(id, { by, onProgress: die })).rejects.toThrow("failed");
  await killed(tenant, never);
  const name: WorkerName = { case: "email", value: actor.email.toUpperCase() };
  const erasure = await findErasureOf(app.db, tenant.organizationId, name);
  expect(erasure).toMatchObject({ state: "running", by, counts: { events: 12 }, progress: { done: 12, total: 701 } });
  const { token } = await insertToken(suite.service, "operator");
  const overApi = await adminRest(app.adminUrl, token, "GET", `/erasures/${erasure?.id}`);
  expect(overApi.body).toMatchObject({ step: "removing events", eventsTotal: 701, trouble: "killed" });
  const allow = await adminRest(app.adminUrl, token, "POST", `/erasures/${erasure?.id}:allowAgain`, {});
  expect([allow.status, allow.body.error.code]).toEqual([409, "failed_precondition"]);
  const plan = { kind: "erase", organizationId: tenant.organizationId } as const;
  expect(await begin({ ...plan, workerId: id })).toMatchObject({ isNew: false, job: { jobId: erasure?.id } });
  await expect(begin({ ...plan, workerId: other })).rejects.toThrow(`erases a worker already (${erasure?.id})`);
  expect(await changes.erase(id, { by: "another" })).toMatchObject({
    id: erasure?.id,
    by,
    state: "done",
    counts: { events: 701, cards: 1, workers: 1 },
  });
  expect(await findJob(app.db, tenant.organizationId)).toBeUndefined();
  expect(await naming([id, actor.email, ulidOf(id)])).toEqual([]);
});

test("of two erasures that begin at once one waits for the other, and a begin that is undone leaves nothing", async () => {
  const { app } = suite.service;
  const tenant = await createTenant(suite.service.admin);
  const { organizationId } = tenant;
  const actors = [{ externalId: "one" }, { externalId: "two" }];
  const ids = await Promise.all(actors.map(async (actor) => (await workerOf(tenant, actor)).id));
  const [one, two] = ids as [string, string];
  const undone = new Error("undone");
  const undo = begin({ kind: "merge", organizationId, workerId: one, into: two }, () => Promise.reject(undone));
  await expect(undo).rejects.toBe(undone);
  expect(await workerOf(tenant, { externalId: "one" })).toMatchObject({ id: one });

  const begins = ids.map((workerId) => begin({ kind: "erase", organizationId, workerId }));
  const outcomes = await Promise.allSettled(begins);
  const [winner] = outcomes.flatMap((one) => (one.status === "fulfilled" ? [one.value.job] : []));
  const refusals = outcomes.flatMap((one) => (one.status === "rejected" ? [(one.reason as Error).message] : []));
  expect(refusals).toEqual([expect.stringContaining(`erases a worker already (${winner?.jobId})`)]);
  // The service carries it out.
  await waitForJob(app.db, winner as JobDocument);
  expect(await findErasure(app.db, winner?.jobId as string)).toMatchObject({ state: "done", counts: { workers: 1 } });
  const left = new Set((await timeline(tenant)).events.map(({ workerId }) => workerId));
  expect([...left]).toEqual(ids.filter((id) => id !== winner?.workerId));
});

test(
  "an erasure goes on when the service that carries it out is killed or stops, also in a command",
  { timeout: 120_000 },
  async () => {
    const [database, mongodbUri] = [unique("test-jobs"), inject("mongodbUri")];
    const client = createClient(mongodbUri);
    onTestFinished(() => client.close());
    const db = client.db(database);
    const starting = () => startService({ database });
    const first = await starting();
    const tenant = await createTenant(first.admin);
    const email = `${unique("killed")}@example.com`;
    const sent = about(...Array.from({ length: 500 }, () => ({ email })));
    for (let batch = 0; batch < 2; batch++) {
      const { status } = await (protocols.REST as Send)(first.app.url, "events", sent, bearer(tenant.key));
      expect(status).toBe(202);
    }
    await first.app.close();
    const { _id: workerId } = (await workerCollection(db).findOne({ email })) as WorkerDocument;
    const { job } = await begin({ kind: "erase", organizationId: tenant.organizationId, workerId }, undefined, db);
    const is = (what: string, isSo: (current: JobDocument) => boolean) =>
      eventually(async () => isSo((await jobsOf(db).findOne()) as JobDocument), what, 100);

    const child = await startChild({ MONGODB_URI: mongodbUri, MONGODB_DB: database });
    await is("the first rows are removed", ({ counts }) => counts.events > 0);
    process.kill(child.pid, "SIGKILL");
    await eventually(() => child.exit() !== undefined, "the service is dead");
    expect(await jobsOf(db).findOne()).toMatchObject({ runner: expect.any(String) });
    // As if it had died a while ago.
    await jobsOf(db).updateOne({}, { $set: { aliveAt: new Date(Date.now() - 2 * takeOverAfterMs) } });
    const others = db.collection<InstanceDocument>(instances.name);
    await others.deleteMany({});

    // The next one waits for an instance that confirms nothing.
    const seenAt = new Date(Date.now() + 3_600_000);
    await others.insertOne({ _id: "deaf", name: "deaf", seenAt, revision: 0, workersRevision: 0 });
    const second = await starting();
    await is("it goes on", ({ progress }) => progress?.step.startsWith("waiting") === true);
    await second.app.close();
    const left = (await jobsOf(db).findOne()) as JobDocument;
    expect(left).toMatchObject({ jobId: job.jobId, aliveAt: neverAlive });
    expect([left.runner, left.failure]).toEqual([undefined, undefined]);
    await others.deleteMany({});

    // A command without a service: it waits for the runner, which died a moment ago.
    await jobsOf(db).updateOne({}, { $set: { runner: "dead", aliveAt: new Date() } });
    const errors: unknown[] = [];
    const command = new JobKeeper(db, { now: Date.now, onError: (error) => void errors.push(error) });
    onTestFinished(() => command.stop());
    command.begun(job);
    await command.look();
    expect(await jobsOf(db).findOne()).toMatchObject({ runner: "dead" });
    await jobsOf(db).updateOne({}, { $set: { aliveAt: new Date(Date.now() - 2 * takeOverAfterMs) } });
    await waitForJob(db, job);
    expect(errors).toEqual([]);
    const erasure = await findErasure(db, job.jobId);
    expect(erasure).toMatchObject({ state: "done", by, startedAt: job.startedAt });
    expect(erasure?.counts).toEqual({ events: 1_000, cards: 0, idempotency: 0, requests: 0, workers: 1 });
    expect(await storedRows(db, {})).toEqual([]);
  },
);

test("workers are found, renamed, merged and erased over the API, and the audit keeps no name of an erased one", async () => {
  const { admin, app } = suite.service;
  const tenant = await createTenant(admin);
  const { organizationId, appId } = tenant;
  const as = async (role: Role, own: string | undefined = organizationId) => {
    const { token } = await insertToken(suite.service, role, own);
    return (method: "GET" | "POST" | "PATCH", path: string, body?: unknown) =>
      adminRest(app.adminUrl, token, method, path, body);
  };
  const [call, viewer] = [await as("manager"), await as("viewer")];
  const codeOf = ({ status, body }: { status: number; body: any }) => [status, body.error?.code, body.error?.message];
  const [email, externalId] = [`${unique("grace")}@example.com`, unique("crm/grace")];
  const { id } = await workerOf(tenant, { email });
  const { id: alias } = await workerOf(tenant, { externalId });
  await workerOf(tenant, { email: `${unique("other")}@example.com`, displayName: "Other" });
  const list = `/organizations/${organizationId}/workers`;
  const listed = async (query: string, by = call) =>
    (await by("GET", `${list}?${query}`)).body.workers.map((worker: { id: string }) => worker.id);
  expect(await listed(`email=${email.toUpperCase()}`)).toEqual([id]);
  expect(await listed(`externalId=${encodeURIComponent(externalId)}`)).toEqual([alias]);
  expect(await listed(`externalId=${encodeURIComponent(externalId)}&email=${email}`)).toEqual([]);
  expect(await listed("name=oTh", viewer)).toHaveLength(1);
  expect(await listed("name=.*", viewer)).toEqual([]);
  expect(codeOf(await viewer("GET", `${list}?email=${email}`)).slice(0, 2)).toEqual([403, "forbidden_scope"]);
  const page = await call("GET", `${list}?pageSize=2`);
  expect(page.body.workers).toHaveLength(2);
  expect(await listed(`pageSize=2&pageToken=${page.body.nextPageToken}`)).toEqual([id]);

  const path = `/workers/${id}`;
  const shown = (await call("GET", path)).body;
  expect(shown).toMatchObject({ id, organizationId, email, links: [], displayName: email.split("@")[0] });
  expect(shown.cards).toMatchObject([{ appId, snapshotType: "tickets_open", metrics: expect.any(Object) }]);
  const blind = (await viewer("GET", `/workers/${alias}`)).body;
  expect(blind).toMatchObject({ id: alias, displayName: "", links: [] });
  expect(blind).not.toHaveProperty("email");
  const named = await call("PATCH", path, { displayName: "Grace H.", etag: shown.etag });
  expect(named.body).toMatchObject({ displayName: "Grace H.", email });
  expect((await viewer("GET", path)).body.displayName).toBe("Grace H.");
  expect(codeOf(await call("PATCH", path, { displayName: "x", etag: shown.etag }))).toEqual([
    ...[409, "conflict", `The worker '${id}' has changed since you read it: displayName.`],
  ]);
  expect(codeOf(await viewer("PATCH", path, { displayName: "x" })).slice(0, 2)).toEqual([403, "forbidden_scope"]);
  expect((await call("PATCH", path, { displayName: null })).body.displayName).toBe(email.split("@")[0]);
  expect((await call("PATCH", path, { displayName: "Grace H." })).status).toBe(200);
  const card = { appId, snapshotType: "tickets_open" };
  expect((await call("POST", `${path}:dropCard`, { ...card, idempotencyKey: "drop" })).body).toMatchObject({ id });
  expect(codeOf(await call("POST", `${path}:dropCard`, card)).slice(0, 2)).toEqual([404, "not_found"]);

  const merge = { intoWorkerId: id, idempotencyKey: unique("merge") };
  expect((await call("POST", `/workers/${alias}:merge`, merge)).body).toMatchObject({ id, merged: [{ id: alias }] });
  expect(codeOf(await call("POST", `/workers/${alias}:merge`, { intoWorkerId: id }))[1]).toBe("failed_precondition");
  expect((await call("GET", `/workers/${alias}`)).body).toMatchObject({ id, mergedInto: id, links: [{ externalId }] });
  expect(await listed(`externalId=${encodeURIComponent(externalId)}`)).toEqual([id]);
  const stranger = await as("manager", suite.tenant.organizationId);
  const calls = [
    (by: typeof call, worker: string) => by("GET", `/workers/${worker}`),
    (by: typeof call, worker: string) => by("PATCH", `/workers/${worker}`, { displayName: "x" }),
    (by: typeof call, worker: string) => by("POST", `/workers/${worker}:merge`, { intoWorkerId: id }),
    (by: typeof call, worker: string) => by("POST", `/workers/${worker}:erase`, {}),
    (by: typeof call, worker: string) => by("POST", `/workers/${worker}:dropCard`, card),
  ];
  const nobody = createIdSource().next("wrk");
  for (const [i, ask] of calls.entries()) {
    const message = (worker: string) => `There is no worker with the id '${worker}'.`;
    expect(codeOf(await ask(stranger, id)), `${i}`).toEqual([404, "not_found", message(id)]);
    expect(codeOf(await ask(call, nobody)), `${i}`).toEqual([404, "not_found", message(nobody)]);
  }

  const erase = { idempotencyKey: unique("erase") };
  const begun = await call("POST", `/workers/${alias}:erase`, erase);
  expect(begun.body).toMatchObject({ id: expect.stringMatching(/^ers_/), organizationId, state: "running" });
  expect(begun.body.by).toContain("a manager (tok_");
  expect(codeOf(await call("GET", path)).slice(0, 2)).toEqual([404, "not_found"]);
  expect((await call("POST", `/workers/${alias}:erase`, erase)).body).toEqual(begun.body);
  const erasure = `/erasures/${begun.body.id}`;
  const read = () => call("GET", erasure);
  const done = await eventually(
    async () => ((await read()).body.state === "done" ? (await read()).body : undefined),
    "it is done",
  );
  expect(done).toMatchObject({ counts: { workers: 2, events: 2 }, completedAt: expect.any(String) });
  expect(codeOf(await stranger("GET", erasure)).slice(0, 2)).toEqual([404, "not_found"]);
  expect(await naming([id, alias, email, externalId, "Grace H."])).toEqual([]);
  const entries = await auditCollection(app.db).find({ organizationId }).sort({ _id: 1 }).toArray();
  expect(entries.map(({ action, target }) => [action, target])).toEqual(
    ["UpdateWorker", "UpdateWorker", "UpdateWorker", "DropCard", "MergeWorkers", "EraseWorker"].map((action) => [
      action,
      begun.body.id,
    ]),
  );

  expect((await call("POST", "/erasures:find", { appId, email })).body).toEqual(done);
  expect((await call("POST", "/erasures:find", { appId, workerId: alias })).body).toEqual(done);
  expect(codeOf(await call("POST", "/erasures:find", { appId, email: "x@example.com" }))[1]).toBe("not_found");
  expect(codeOf(await call("POST", "/erasures:find", { appId }))[1]).toBe("invalid_body");
  expect((await send(tenant, "events", about({ email }))).error?.code).toBe("worker_not_found");
  const allowed = { erasureId: begun.body.id, allowedNames: 4 };
  expect((await call("POST", `${erasure}:allowAgain`, {})).body).toEqual(allowed);
  expect((await call("POST", `${erasure}:allowAgain`, {})).body).toEqual({ ...allowed, allowedNames: 0 });
  expect((await workerOf(tenant, { email })).id).not.toBe(id);
});

test("an erasure removes rows only when the requests of every instance have ended", async () => {
  const { changes, app } = suite.service;
  const tenant = await createTenant(suite.service.admin);
  const { id } = await workerOf(tenant, { externalId: unique("flight") });
  // Another instance, which never counts as gone.
  const seenAt = new Date(Date.now() + 3_600_000);
  const others = app.db.collection<InstanceDocument>(instances.name);
  await others.insertOne({ _id: "other", name: "other", seenAt, revision: 0, workersRevision: 0 });
  onTestFinished(async () => void (await others.deleteOne({ _id: "other" })));
  const steps = new Set<string>();
  const erasing = changes.erase(id, { by, onProgress: ({ step }) => steps.add(step) });
  await eventually(() => Promise.resolve(steps.size > 0), "the erasure has begun");
  const owner = { ...tenant, requestId: createIdSource().next("req") };
  const row = { index: 0, workerId: id, type: "ticket.resolved", category: "other", timestamp: new Date() };
  expect((await new EventStore(app.db).insert(owner, [row])).isNew).toBe(true);
  expect([...steps]).toEqual(["waiting for requests in flight"]);
  await others.updateOne({ _id: "other" }, { $set: { workersRevision: Number.MAX_SAFE_INTEGER } });
  expect((await erasing).counts.events).toBe(2);
  expect(await naming([id, ulidOf(id)])).toEqual([]);
});

test("an erasure finds what came late about a worker that was merged, and names of many merged workers", async () => {
  const { changes, admin, app } = suite.service;
  const { db } = app;
  const tenant = await createTenant(admin);
  const { organizationId } = tenant;
  const merged = await workerOf(tenant, { externalId: unique("merged") });
  const { id } = await workerOf(tenant, { externalId: unique("kept") });
  await changes.merge(id, merged.id, { by });
  const row = { index: 0, workerId: merged.id, type: "ticket.late", category: "other", timestamp: new Date() };
  await new EventStore(db).insert({ ...tenant, requestId: newId("req") }, [row]);
  // More than fit one pattern of MongoDB.
  const many = Array.from({ length: 600 }, (_, i) => {
    const [externalId, email] = [unique(`many-external-${i}`), `${unique("somebody")}@example.com`];
    return {
      _id: newId("wrk"),
      email,
      links: [{ connection: "custom:crm", externalId, key: "", appId: tenant.appId }],
    };
  });
  await workerCollection(db).updateOne({ _id: id, organizationId }, { $push: { merged: { $each: many } } } as Document);
  const last = many.at(-1) as (typeof many)[number];
  const named = { ...tenant, _id: newId("rec"), requestId: newId("req"), reason: `unknown worker '${last._id}'` };
  const fields = { protocol: "rest", rpc: "Events", keyHint: "", accepted: 0, receivedAt: new Date() };
  const expiresAt = new Date(Date.now() + 3_600_000);
  await db.collection<Document>("requests").insertOne({ ...named, ...fields, expiresAt } as never);
  expect((await changes.erase(id, { by })).counts).toMatchObject({ events: 3, requests: 1 });
  expect(await naming([id, ulidOf(id), merged.id, ulidOf(merged.id), last._id, last.email])).toEqual([]);
});

test("several removals at once keep the list of each request, and look at few rows to find who lists the others", async () => {
  const { app } = suite.service;
  const monitored = createClient(inject("mongodbUri"), { monitorCommands: true });
  onTestFinished(() => monitored.close());
  // A removal's commands are as many as its steps.
  let looks = 0;
  monitored.on("commandStarted", ({ commandName }) => void (looks += commandName === "delete" ? 0 : 1));
  const db = monitored.db(app.db.databaseName);
  const ids = createIdSource();
  const dayMs = 86_400_000;
  const startMs = Date.now() - 40 * dayMs;
  const [organizationId, appId, leaver, stayer] = [ids.next("org"), ids.next("app"), ids.next("wrk"), ids.next("wrk")];
  const [requests, size] = [6, 300];
  const requestIds: string[] = [];
  const cut = new Date(startMs + 100 * 60_000);
  let staying = 0;
  for (let i = 0; i < requests; i++) {
    const requestId = ids.next("req");
    requestIds.push(requestId);
    // Out of order, and the last request has only rows of the worker who leaves.
    const rows = Array.from({ length: size }, (_, index) => ({
      index,
      workerId: index % 3 === 0 && i < requests - 1 ? stayer : leaver,
      type: "ticket.resolved",
      timestamp: new Date(startMs + ((index * 131 + i * 37) % size) * 60_000),
    }));
    staying += rows.filter(({ workerId, timestamp }) => workerId === stayer && timestamp >= cut).length;
    await new EventStore(db).insert({ organizationId, appId, requestId }, rows);
  }
  const last = requestIds.at(-1) as string;
  // What a crash leaves between the two steps of passing a list on.
  const [first] = await eventCollection(db)
    .find({ request: ulidOf(last) })
    .toArray();
  const [, second] = placesOf(first as EventDocument);
  await eventCollection(db).updateOne(second as Document, {
    $set: { request: ulidOf(last), places: first?.places as Buffer },
  });
  expect(await findRowsOfRequest(db, last)).toHaveLength(size);

  const later = { now: new Date(Date.now() + dayMs) };
  // Others of its request might still come.
  expect(await sumOf(removeRowsBefore(db, organizationId, cut, { now: new Date() }))).toBe(0);
  looks = 0;
  await Promise.all([
    sumOf(removeRowsOfWorker(db, organizationId, leaver, later)),
    sumOf(removeRowsOfWorker(db, organizationId, leaver, later)),
    sumOf(removeRowsBefore(db, organizationId, cut, later)),
    sumOf(removeRowsBefore(db, organizationId, cut, later)),
  ]);

  expect(looks).toBeLessThan(200);
  const left = await storedRows(db, { org: ulidOf(organizationId) });
  expect(left).toHaveLength(staying);
  for (const requestId of requestIds) {
    const own = left.filter((row) => row.requestId === requestId).map(({ id }) => id);
    expect((await findRowsOfRequest(db, requestId)).map(({ id }) => id)).toEqual(own.sort());
  }
  expect(await eventCollection(db).countDocuments({ request: ulidOf(last) })).toBe(0);
});

test("no read or change of single rows looks among the rows of other workers", async () => {
  const { db } = suite.service.app;
  const ids = createIdSource();
  const dayMs = 86_400_000;
  const startMs = Date.now() - 40 * dayMs;
  const [organizationId, appId, requestId] = [ids.next("org"), ids.next("app"), ids.next("req")];
  const owner = { organizationId, appId, requestId };
  const [size, gone] = [300, 120];
  const rows = Array.from({ length: size }, (_, index) => ({
    ...{ index, workerId: ids.next("wrk"), type: "ticket.resolved" },
    timestamp: new Date(startMs + index * 60_000),
  }));
  const store = new EventStore(db);
  await store.insert(owner, rows);
  await db.command({ profile: 2 });
  onTestFinished(() => db.command({ profile: 0 }).then(() => {}));
  expect(await store.has(owner, rows.slice(0, 20))).toBe(true);
  const later = { now: new Date(Date.now() + dayMs) };
  const cut = rows[gone]?.timestamp as Date;
  expect(await sumOf(removeRowsBefore(db, organizationId, cut, later))).toBe(gone);
  expect(await findRowsOfRequest(db, requestId)).toHaveLength(size - gone);
  await db.command({ profile: 0 });

  // An update reports the rows that it matched, other commands those that they returned.
  const commands = await db
    .collection("system.profile")
    .find({ ns: `${db.databaseName}.timeline`, op: { $in: ["query", "command", "update"] } })
    .toArray();
  expect(commands.some(({ op }) => op === "update")).toBe(true);
  expect(commands.some(({ command }) => command.aggregate !== undefined)).toBe(true);
  for (const { keysExamined = 0, docsExamined = 0, nreturned = 0, nMatched = 0 } of commands) {
    expect(keysExamined + docsExamined).toBeLessThanOrEqual(2 * (nreturned + nMatched) + 2);
  }
});

test("a merge that is asked for again with the same idempotency key answers when it is done", async () => {
  const { app, admin, changes } = suite.service;
  const { db } = app;
  const tenant = await createTenant(admin);
  const [from, into] = [await workerOf(tenant, { externalId: "from" }), await workerOf(tenant, { externalId: "into" })];
  // The calls name the worker by one that it took the place of.
  const old = await workerOf(tenant, { externalId: "old" });
  await changes.merge(from.id, old.id, { by });
  // The job waits for an instance that never confirms the change.
  const others = db.collection<InstanceDocument>(instances.name);
  const name = unique("mute");
  const leave = () => others.deleteOne({ _id: name });
  const seenAt = new Date(Date.now() + 3_600_000);
  await others.insertOne({ _id: name, name, seenAt, revision: Number.MAX_SAFE_INTEGER, workersRevision: 0 });
  onTestFinished(async () => void (await leave()));
  const call = await operator();
  const body = { intoWorkerId: into.id, idempotencyKey: unique("merge") };
  const merge = async () => {
    const { body: merged } = await call("POST", `/workers/${old.id}:merge`, body);
    return [merged.id, await findJob(db, tenant.organizationId)];
  };
  const atOnce = [merge(), merge()];
  await eventually(() => findJob(db, tenant.organizationId), "the merge has begun");
  const later = merge();
  // A kept answer would come before this one.
  expect((await call("GET", `/workers/${from.id}`)).body.mergedInto).toBe(into.id);
  await leave();
  expect(await Promise.all([...atOnce, later])).toEqual(Array(3).fill([into.id, undefined]));
  const [entry] = (await call("GET", `/audit?organizationId=${tenant.organizationId}`)).body.entries;
  expect(entry).toMatchObject({ action: "MergeWorkers", target: from.id, after: { mergedInto: into.id } });
});

test("a merged worker's ids name the other one, which gets its rows, its newer cards and those of retries", async () => {
  const { changes, admin } = suite.service;
  const tenant = await createTenant(admin);
  const [email, externalId] = [`${unique("one")}@example.com`, unique("two")];
  const one = await workerOf(tenant, { email });
  const newer = snapshot({ actor: { externalId, displayName: "Given" }, metrics: { open: 8 } });
  const first = await send(tenant, "snapshots", newer, once("newer"));
  const { id } = first.body.worker;
  const batch = about({ externalId }, { email });
  const kept = await send(tenant, "events", batch, once("both"));

  const answers = await during(tenant, { externalId }, () => changes.merge(one.id, id, { by }));
  expect(answers.map(({ status }) => status).filter((status) => status !== 202)).toEqual([]);
  expect((await send(tenant, "events", batch, once("both"))).body).toEqual(kept.body);
  expect((await send(tenant, "snapshots", newer, once("newer"))).body).toEqual(first.body);
  const { events } = await timeline(tenant, { workerId: id });
  expect(events).toHaveLength(4 + answers.length);
  expect(new Set(events.map(({ workerId }: { workerId: string }) => workerId))).toEqual(new Set([one.id]));
  for (const actor of [{ workerId: id }, { externalId }, { email }, { externalId, email }]) {
    expect(await workerOf(tenant, actor), JSON.stringify(actor)).toEqual({ id: one.id, displayName: "Given" });
  }
  const call = await operator();
  const { workers } = (await call("GET", `/organizations/${tenant.organizationId}/workers`)).body;
  expect(workers.map((worker: { id: string }) => worker.id)).toEqual([one.id]);
  const shown = (await call("GET", `/workers/${id}`)).body;
  expect(shown).toMatchObject({ id: one.id, links: [{ externalId }], cards: [{ snapshotType: "tickets_open" }] });
  await expect(changes.merge(id, one.id, { by })).rejects.toThrow("are one worker already");

  // A third one takes the place of both.
  const third = await workerOf(tenant, { email: `${unique("three")}@example.com` });
  await changes.merge(third.id, one.id, { by });
  expect((await workerOf(tenant, { externalId })).id).toBe(third.id);
  expect((await timeline(tenant, { workerId: id })).events).toHaveLength(4 + answers.length + 6);
});

test("a merge that was killed between any two steps goes on with the same command; no row or card is lost or doubled", async () => {
  const { app, changes } = suite.service;
  const tenant = await createTenant(suite.service.admin);
  const [stays, goes] = [{ email: `${unique("stays")}@example.com` }, { externalId: unique("goes") }];
  const card = (actor: object, snapshotType: string, open: number) =>
    send(tenant, "snapshots", snapshot({ actor, snapshotType, metrics: { open } }), once(unique("card")));
  const { id: into } = (await card(stays, "ticket.shared", 1)).body.worker;
  const first = await card(goes, "ticket.shared", 2);
  const { id: from } = first.body.worker;
  await card(goes, "ticket.own", 3);
  const kept = about(...Array<object>(400).fill(goes), ...Array<object>(100).fill(stays));
  const answer = await send(tenant, "events", kept, once("kept"));
  expect((await send(tenant, "events", about(...Array<object>(300).fill(goes)))).status).toBe(202);

  let merged: JobDocument | undefined;
  const deaths = new Set<string>();
  const answers = await during(tenant, goes, async () => {
    while (merged === undefined) {
      const heard = new Map<string, number>();
      const die = ({ step, done }: JobProgress) => {
        const times = (heard.get(step) ?? 0) + 1;
        heard.set(step, times);
        const moment = `${step} ${done > 0 ? "some" : "none"}${step.startsWith("waiting") ? ` ${times}` : ""}`;
        if (deaths.has(moment)) return;
        deaths.add(moment);
        throw new Error("killed");
      };
      try {
        merged = await changes.merge(into, from, { by, onProgress: die });
      } catch (error) {
        expect((error as Error).message).toBe("killed");
        await killed(tenant, never);
      }
    }
  });
  expect([...deaths]).toEqual([
    "waiting for requests in flight none 1",
    "reading kept decisions none",
    "waiting for requests in flight none 2",
    "moving events none",
    "moving events some",
    "moving cards some",
  ]);
  expect(answers.map(({ status }) => status).filter((status) => status !== 202)).toEqual([]);
  expect((await send(tenant, "events", kept, once("kept"))).body).toEqual(answer.body);
  const rows = await storedRows(app.db, { org: ulidOf(tenant.organizationId) });
  expect(rows).toHaveLength(3 + 500 + 300 + answers.length);
  expect(new Set(rows.map(({ workerId }) => workerId))).toEqual(new Set([into]));
  expect((await timeline(tenant, { workerId: from })).events).toHaveLength(rows.length);
  expect(merged).toMatchObject({ workerId: from, into, counts: { cards: 2 } });
  // Events that came after the first step name the other worker from the start.
  expect(merged?.counts.events).toBeGreaterThanOrEqual(702);
  const cards = await cardCollection(app.db).find({ organizationId: tenant.organizationId }).toArray();
  const shown = cards.map(({ workerId, snapshotType, metrics }) => ({ workerId, snapshotType, metrics }));
  expect(shown).toHaveLength(2);
  expect(shown).toContainEqual({ workerId: into, snapshotType: "ticket.shared", metrics: { open: 2 } });
  expect(shown).toContainEqual({ workerId: into, snapshotType: "ticket.own", metrics: { open: 3 } });
});

test("test data goes a week after its receipt, with its cards and workers, and no command or count has seen it", async () => {
  const { admin, app, changes } = suite.service;
  const { db } = app;
  const live = await createTenant(admin, { name: "Ever", retainDays: 0 });
  const { organizationId, appId } = live;
  const test = { ...live, key: (await insertKey(suite.service, live, { test: true })).key };
  const testOrganization = testOrganizationOf(organizationId);
  const actor = { externalId: unique("both") };
  const [dayMs, hourMs] = [86_400_000, 3_600_000];
  const ago = (ms: number) => new Date(Date.now() - ms);
  const backdated = event({ actor, timestamp: ago(300 * dayMs).toISOString() });
  for (const one of [live, test]) {
    expect((await send(one, "events", { events: [backdated, event({ actor })] })).status).toBe(202);
    await workerOf(one, { externalId: "idle" });
  }
  const [worker, idle] = [await workerOf(test, actor), await workerOf(test, { externalId: "idle" })];
  const fresh = await workerOf(test, { externalId: "fresh" });
  const inLive = await workerOf(live, actor);

  // Neither by its id nor by the ids that it shares with a live one.
  const unknown = `There is no worker with the id '${worker.id}'`;
  const call = await operator();
  expect((await call("GET", `/workers/${worker.id}`)).body.error.message).toContain(unknown);
  for (const [path, body] of [
    [`${worker.id}:erase`, {}],
    [`${worker.id}:merge`, { intoWorkerId: inLive.id }],
    [`${inLive.id}:merge`, { intoWorkerId: worker.id }],
  ] as const) {
    expect((await call("POST", `/workers/${path}`, body)).body.error.message).toContain(unknown);
  }
  const { workers } = (await call("GET", `/organizations/${organizationId}/workers`)).body;
  const listed = workers.map(({ id }: { id: string }) => id);
  expect(listed).toHaveLength(2);
  expect(listed).not.toContain(worker.id);
  await changes.erase(inLive.id, { by });
  expect((await send(live, "events", about(actor))).error?.code).toBe("worker_not_found");
  expect((await send(test, "events", about({ workerId: worker.id }))).error).toBeUndefined();
  const rows = () => storedRows(db, { org: ulidOf(testOrganization) });
  expect(await rows()).toHaveLength(7);
  const { findings } = await check(db, { nowMs: Date.now() });
  expect(findings.filter(({ about: what }) => what === testOrganization)).toEqual([]);

  // What was received more than a week ago, whatever its timestamp says; a removal reads 100 rows at a time.
  const requestId = createIdSource(() => Date.now() - 7 * dayMs - hourMs).next("req");
  const timestamps = [ago(400 * dayMs), ago(7 * dayMs + hourMs), ago(6.1 * dayMs)];
  const old = Array.from({ length: 240 }, (_, index) => {
    return { index, workerId: worker.id, type: "ticket.old", timestamp: timestamps[index % 3] as Date };
  });
  await new EventStore(db).insert({ organizationId: testOrganization, appId, requestId }, old);
  const since = { $set: { createdAt: ago(8 * dayMs) } };
  await workerCollection(db).updateMany({ organizationId: testOrganization, _id: { $ne: fresh.id } }, since);
  const received = { $set: { receivedAt: ago(8 * dayMs) } };
  await cardCollection(db).updateMany({ organizationId: testOrganization, workerId: { $ne: fresh.id } }, received);
  await eventCollection(db).deleteMany({
    org: ulidOf(testOrganization),
    worker: { $in: [idle, fresh].map(({ id }) => ulidOf(id)) },
  });

  const running = db.collection<InstanceDocument>(instances.name);
  const seenAt = new Date(Date.now() + hourMs);
  await running.insertOne({ _id: " first", name: "first", seenAt, revision: 0, workersRevision: 0 });
  onTestFinished(async () => void (await running.deleteOne({ _id: " first" })));
  const errors: unknown[] = [];
  const lookAt = (instanceId: string, now: () => number) =>
    new Retention(db, {
      isDoer: doer(instanceId),
      retainDays: 0,
      now,
      onError: (error) => void errors.push(error),
    }).look();
  await lookAt("another", Date.now);
  expect(await rows()).toHaveLength(4 + 240);
  await lookAt(" first", Date.now);
  const left = async () => ({
    rows: (await rows()).map(({ type }) => type).sort(),
    cards: await cardCollection(db).countDocuments({ organizationId: testOrganization }),
    workers: (await workerCollection(db).find({ organizationId: testOrganization }).toArray()).map(({ _id }) => _id),
  });
  expect(await left()).toEqual({
    rows: [...Array<string>(3).fill("ticket.resolved"), "tickets_open"],
    cards: 1,
    workers: [worker.id, fresh.id],
  });
  // The next event of a worker that went makes it anew, as soon as the instance has heard of it.
  const again = async () => (await workerOf(test, { externalId: "idle" })).id;
  await expect.poll(again, { timeout: 10_000 }).not.toBe(idle.id);
  await lookAt(" first", () => Date.now() + 8 * dayMs);
  expect(await left()).toEqual({ rows: [], cards: 0, workers: [] });
  expect(errors).toEqual([]);

  // The live side is as it was.
  expect((await timeline(live)).events.length).toBeGreaterThan(0);
  expect(await cardCollection(db).countDocuments({ organizationId })).toBe(1);
  for (const collection of [usageDayCollection(db), usageCollection(db)] as const) {
    expect(await collection.countDocuments({ organizationId: testOrganization } as object)).toBe(0);
  }
});

test("one instance removes rows that are too old, another takes over, and cards and counts stay", async () => {
  const { admin, app } = suite.service;
  const [month, forever, other] = await Promise.all([
    createTenant(admin, { name: "Month" }),
    createTenant(admin, { name: "Ever", retainDays: 0 }),
    createTenant(admin, { name: "Other" }),
  ]);
  const daysAgo = (days: number) => new Date(Date.now() - days * 86_400_000).toISOString();
  for (const tenant of [month, forever, other]) {
    const actor = { externalId: "crm-user-42" };
    const ages = [...Array<number>(300).fill(31), 29, 0];
    const batch = { events: ages.map((days) => event({ actor, timestamp: daysAgo(days) })) };
    expect((await send(tenant, "events", batch)).status).toBe(202);
    expect((await send(tenant, "events", batch)).status).toBe(202);
    expect((await send(tenant, "snapshots", snapshot({ actor, timestamp: daysAgo(400) }))).status).toBe(202);
  }
  const counts = usageDayCollection(app.db);
  const { organizationId } = month;
  const isCounted = async () =>
    (await counts.find({ organizationId }).toArray()).reduce((sum, one) => sum + (one.accepted ?? 0), 0);
  await eventually(async () => (await isCounted()) === 605, "the counts by day are stored");

  const others = app.db.collection<InstanceDocument>(instances.name);
  const seenAt = new Date(Date.now() + 3_600_000);
  await others.insertOne({ _id: " first", name: "first", seenAt, revision: 0, workersRevision: 0 });
  onTestFinished(async () => void (await others.deleteOne({ _id: " first" })));
  // Only now, because the service looks for old rows, too.
  await admin.updateOrganization(organizationId, { retainDays: 30 });
  const own = (await others.findOne({ _id: { $ne: " first" } }))?._id as string;
  const errors: unknown[] = [];
  const onError = (error: unknown) => void errors.push(error);
  // Rows stay until all of their request must have come.
  const now = () => Date.now() + 3_600_000;
  const of = (instanceId: string, retainDays: number) =>
    new Retention(app.db, { isDoer: doer(instanceId), retainDays, now, onError });
  await of(own, 0).look();
  expect((await timeline(month)).events).toHaveLength(605);
  await of(" first", 0).look();
  expect((await timeline(month)).events).toHaveLength(4);
  expect((await timeline(other)).events).toHaveLength(605);
  await others.updateOne({ _id: " first" }, { $set: { seenAt: new Date(0) } });
  await of(own, 365).look();
  expect((await timeline(other)).events).toHaveLength(604);
  expect((await timeline(forever)).events).toHaveLength(605);
  expect(errors).toEqual([]);

  const call = await operator();
  const [worker] = (await call("GET", `/organizations/${organizationId}/workers`)).body.workers;
  expect((await call("GET", `/workers/${worker.id}`)).body.cards).toHaveLength(1);
  const counted = await call("POST", `/organizations/${organizationId}/usage:recount`, {});
  expect(counted.body).toMatchObject({ before: 605, after: 605 });
});

test("a removal respects a setting that changes meanwhile, and one that fails does not keep others from theirs", async () => {
  const { admin, app } = suite.service;
  const tenants = await Promise.all(
    ["One", "Two", "Three"].map((name) => createTenant(admin, { name, retainDays: 0 })),
  );
  const events = Array.from({ length: 300 }, () => event({ timestamp: new Date(0).toISOString() }));
  for (const tenant of tenants) expect((await send(tenant, "events", { events })).status).toBe(202);
  // The service looks for old rows, too, unless another instance is the first one.
  const others = app.db.collection<InstanceDocument>(instances.name);
  const seenAt = new Date(Date.now() + 3_600_000);
  await others.insertOne({ _id: " first", name: "first", seenAt, revision: 0, workersRevision: 0 });
  onTestFinished(async () => void (await others.deleteOne({ _id: " first" })));
  const setAll = (retainDays: number) =>
    Promise.all(tenants.map(({ organizationId }) => admin.updateOrganization(organizationId, { retainDays })));
  const left = async () => {
    const rows = tenants.map(({ organizationId }) => storedRows(app.db, { org: ulidOf(organizationId) }));
    return (await Promise.all(rows)).map(({ length }) => length).sort((a, b) => a - b);
  };
  const errors: unknown[] = [];
  const now = () => Date.now() + 3_600_000;
  const onError = (error: unknown) => void errors.push(error);
  const look = (isDoer: () => Promise<boolean>, isClockSure = () => true) =>
    new Retention(app.db, { isDoer, isClockSure, retainDays: 0, now, onError }).look();

  await setAll(30);
  await look(
    async () => true,
    () => false,
  );
  expect(await left()).toEqual([300, 300, 300]);
  let asked = 0;
  // For the round, for the first one, and for the next one or for the first one again.
  await look(async () => {
    if (++asked === 3) await setAll(0);
    return true;
  });
  expect((await left()).slice(1)).toEqual([300, 300]);
  expect(errors).toEqual([]);

  await setAll(30);
  const { find } = Collection.prototype;
  let hasFailed = false;
  const failing = vi.spyOn(Collection.prototype, "find").mockImplementation(function (this: Collection, ...args: any) {
    if (hasFailed || this.collectionName !== eventsDefinition.name) return find.apply(this, args);
    hasFailed = true;
    throw new Error("of this one only");
  });
  await look(async () => true);
  failing.mockRestore();
  expect((await left()).slice(0, 2)).toEqual([0, 0]);
  expect(errors).toEqual([expect.objectContaining({ message: "of this one only" })]);
});

test("old test cards are found in one pass, however many newer ones there are", async () => {
  const { db } = suite.service.app;
  const organizationId = testOrganizationOf(newId("org"));
  const appId = newId("app");
  const [nowMs, dayMs] = [Date.now(), 86_400_000];
  const cards = Array.from({ length: 1_300 }, (_, i) => {
    const workerId = newId("wrk");
    const receivedAt = new Date(nowMs - (i < 1_000 ? 1 : 9) * dayMs);
    const own = { organizationId, appId, workerId, snapshotType: "x", requestId: newId("req") };
    return { _id: `${workerId}/${appId}/x`, ...own, timestamp: new Date(nowMs - i), receivedAt, metrics: {} };
  });
  await cardCollection(db).insertMany(cards as never);
  await db.command({ profile: 2 });
  const before = new Date(nowMs - 7 * dayMs);
  const removed = await sumOf(removeTestData(db, organizationId, before, { now: new Date(nowMs) }));
  await db.command({ profile: 0 });
  expect(removed).toBe(300);
  expect(await cardCollection(db).countDocuments({ organizationId })).toBe(1_000);
  const profile = db
    .collection("system.profile")
    .find({ op: "query", "command.filter.organizationId": organizationId });
  const examined = (await profile.toArray()).reduce((sum, one) => sum + Number(one.docsExamined), 0);
  expect(examined).toBeGreaterThanOrEqual(1_300);
  expect(examined).toBeLessThan(1_500);
});

test("test data that comes while older data goes stays, even between older rows", async () => {
  const { app } = suite.service;
  const [organizationId, appId, workerId] = [testOrganizationOf(newId("org")), newId("app"), newId("wrk")];
  const dayMs = 86_400_000;
  const requestAt = (ms: number) => ({ organizationId, appId, requestId: createIdSource(() => ms).next("req") });
  const rowsAt = (count: number, ms: number) =>
    Array.from({ length: count }, (_, index) => ({
      index,
      workerId,
      type: "ticket.x",
      timestamp: new Date(ms + index),
    }));
  const store = new EventStore(app.db);
  const [nowMs, oldMs] = [Date.now(), Date.now() - 9 * dayMs];
  await store.insert(requestAt(oldMs), rowsAt(50, oldMs));
  const removing = removeRowsReceivedBefore(app.db, organizationId, new Date(nowMs - 7 * dayMs), { now: new Date() });
  expect((await removing.next()).value).toBe(12);
  const { requestId } = requestAt(nowMs);
  await store.insert({ organizationId, appId, requestId }, rowsAt(50, oldMs));
  await sumOf(removing);
  const left = await storedRows(app.db, { org: ulidOf(organizationId) });
  expect(left.map((row) => row.requestId)).toEqual(Array<string>(50).fill(requestId));
});
