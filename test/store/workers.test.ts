import { MongoClient } from "mongodb";
import { afterAll, beforeAll, expect, inject, onTestFinished, test, vi } from "vitest";
import { cachedMsMax, trustMs } from "../../src/store/changes.ts";
import { migrate } from "../../src/store/migrations.ts";
import { type ActorIds, workerCollection, workers, WorkerStore } from "../../src/store/workers.ts";
import { createIdSource } from "../../src/ids.ts";

const client = new MongoClient(inject("mongodbUri"), { monitorCommands: true });
const db = client.db(`workers-${process.pid}-${Date.now()}`);
const ids = createIdSource();
const newId = () => ids.next("wrk");
const organizationId = "org_1";
const app = { id: "app_1", slug: "crm" };
const now = new Date();

beforeAll(() => migrate(db, [workers]));
afterAll(async () => {
  await db.dropDatabase();
  await client.close();
});

const newStore = (freshAtMs = () => performance.now()) => new WorkerStore(db, Buffer.alloc(32), freshAtMs);

/** The commands that `work` sends to this database, by name. */
async function commandsOf(work: () => Promise<unknown>): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  const count = ({ commandName, databaseName }: { commandName: string; databaseName: string }) => {
    if (databaseName === db.databaseName) counts[commandName] = (counts[commandName] ?? 0) + 1;
  };
  client.on("commandStarted", count);
  await work();
  client.off("commandStarted", count);
  return counts;
}

test("500 workers known by email gain their external ids with one write and one read", async () => {
  const store = newStore();
  const emails = Array.from({ length: 500 }, (_, i): ActorIds => ({ organizationId, app, email: `p${i}@example.com` }));
  const known = await Promise.all(emails.map((actor) => store.provision(actor, newId, now)));
  const actors = emails.map((actor, i): ActorIds => ({ ...actor, externalId: `p-${i}`, displayName: `Person ${i}` }));
  const counts = await commandsOf(() =>
    Promise.all(actors.map((actor, i) => store.provision(actor, newId, now, known[i]))),
  );
  expect(counts).toEqual({ update: 1, find: 1 });
  const stored = await workerCollection(db).find({ "links.appId": app.id }).toArray();
  expect(
    new Set(
      stored.map(({ email, links, displayName }) =>
        [email, displayName, ...links.map((link) => link.externalId)].join(),
      ),
    ),
  ).toEqual(new Set(actors.map(({ email, externalId, displayName }) => [email, displayName, externalId].join())));
  expect(store.cached(actors[7] as ActorIds)?._id).toBe(known[7]?._id);
});

test("if two workers would gain one external id at once, one gets it, and it decides from then on", async () => {
  const store = newStore();
  const two = ["left@example.com", "right@example.com"].map((email): ActorIds => ({ organizationId, app, email }));
  const known = await Promise.all(two.map((actor) => store.provision(actor, newId, now)));
  const claimed = await Promise.all(
    two.map((actor, i) => store.provision({ ...actor, externalId: "both" }, newId, now, known[i])),
  );
  expect(new Set(claimed.map(({ _id }) => _id)).size).toBe(1);
  expect(await workerCollection(db).countDocuments({ "links.externalId": "both" })).toBe(1);
});

test("an instance that has not seen a worker yet finds it by its id", async () => {
  const made = await newStore().provision({ organizationId, app, externalId: "far" }, newId, now);
  const store = newStore();
  const other = { organizationId, app, workerId: newId() };
  const found = await Promise.all([store.find({ organizationId, app, workerId: made._id }), store.find(other)]);
  expect(found).toEqual([made, undefined]);
});

test("news of one organisation's workers does not keep others from being cached", async () => {
  const maker = newStore();
  const actors = ["org_news", "org_other"].map((id): ActorIds => ({ organizationId: id, app, externalId: id }));
  const [, other] = await Promise.all(actors.map((actor) => maker.provision(actor, newId, now)));
  const store = newStore();
  client.once("commandStarted", () => store.forget("org_news"));
  const reads = actors.map((actor) => store.find(actor));
  await Promise.all(reads);
  expect(store.cached(actors[0] as ActorIds)).toBeUndefined();
  expect(store.cached(actors[1] as ActorIds)?._id).toBe(other?._id);
});

test("a worker that an administrator changes while it is made is not cached", async () => {
  const store = newStore();
  const actors = ["org_made", "org_calm"].map((id): ActorIds => ({ organizationId: id, app, externalId: id }));
  const forget = ({ commandName }: { commandName: string }) => {
    if (commandName === "insert") store.forget("org_made");
  };
  client.on("commandStarted", forget);
  onTestFinished(() => void client.off("commandStarted", forget));
  await Promise.all(actors.map((actor) => store.provision(actor, newId, now)));
  expect(actors.map((actor) => store.cached(actor) !== undefined)).toEqual([false, true]);
});

test("without news for four seconds an instance reads each worker, so it stores nothing about an erased one", async () => {
  let freshAtMs = performance.now();
  const store = newStore(() => freshAtMs);
  const actor: ActorIds = { organizationId, app, externalId: "silent" };
  const made = await store.provision(actor, newId, now);
  expect(store.cached(actor)).toEqual(made);
  freshAtMs -= trustMs;
  expect(store.cached(actor)).toBeUndefined();
  await workerCollection(db).updateOne({ _id: made._id, organizationId }, { $set: { erasing: true } });
  expect(await store.find(actor)).toBe("erased");
});

test("a worker is read again after a minute, so that an instance learns what others added to it", async () => {
  const store = newStore();
  const actor: ActorIds = { organizationId, app, externalId: "aging" };
  const { _id } = await store.provision(actor, newId, now);
  await workerCollection(db).updateOne({ _id }, { $set: { displayName: "Elsewhere" } });
  expect(store.cached(actor)).toMatchObject({ _id });
  const startedMs = performance.now();
  const clock = vi.spyOn(performance, "now").mockImplementation(() => startedMs + cachedMsMax + 1_000);
  onTestFinished(() => clock.mockRestore());
  // The cache reads its clock once a second.
  await expect.poll(() => store.cached(actor), { timeout: 10_000 }).toBeUndefined();
  clock.mockRestore();
  expect(await store.find(actor)).toMatchObject({ displayName: "Elsewhere" });
});
