import { expect, onTestFinished, test, vi } from "vitest";
import { cards, CardStore } from "../../src/store/snapshots.ts";
import { claims } from "../../src/store/idempotency.ts";
import { collections } from "../../src/store/collections.ts";
import { eventCollection, events, EventStore } from "../../src/store/events.ts";
import { GroupCommit } from "../../src/store/group-commit.ts";
import { workers } from "../../src/store/workers.ts";
import { event, snapshot, unique } from "../support/requests.ts";
import { bearer, createTenant, protocols, type Send, useService } from "../support/service.ts";

const suite = useService();

const rest = protocols.REST as Send;

test("acknowledged data was written with majority write concern and journalled: events, claims, workers, cards", async () => {
  const { db } = suite.service.app;
  const lines = new Set<string>();
  /**
   * The server logs every command that takes longer than slowms. Its log is short and other tests write to it, too, so
   * read it after each call; it may miss some.
   */
  const logged = async (rpc: "events" | "snapshots", body: object, headers: Record<string, string>) => {
    expect((await rest(suite.url, rpc, body, headers)).status).toBe(202);
    const { log } = await db.admin().command({ getLog: "global" });
    for (const line of log as string[]) if (line.includes(db.databaseName)) lines.add(line);
  };
  const writesTo = ({ name }: { name: string }) => {
    const command = new RegExp(`"command":\\{"(insert|update)":"${name}"`);
    return [...lines].filter((line) => command.test(line));
  };
  const written = [events, claims, workers, cards];
  await db.command({ profile: 0, slowms: -1 });
  try {
    for (let round = 1; round <= 5 && written.some((collection) => writesTo(collection).length === 0); round++) {
      const name = unique("durable");
      const actor = { externalId: name, email: `${name}@x.org` };
      const plain = bearer(suite.tenant.key);
      await logged("events", { events: [event({ actor })] }, { ...plain, "idempotency-key": unique("key") });
      await logged("snapshots", snapshot({ actor }), plain);
      await logged("snapshots", snapshot({ actor: { ...actor, externalId: unique("later") } }), plain);
    }
  } finally {
    await db.command({ profile: 0, slowms: 1000 });
  }
  for (const collection of written) {
    const writes = writesTo(collection);
    expect(writes.length, collection.name).toBeGreaterThan(0);
    for (const write of writes) expect(write).toContain('"writeConcern":{"w":"majority","j":true');
  }
});

test("a partly begun snapshot keeps its cost; only one that never began is free", async () => {
  const { db } = suite.service.app;
  const full = new GroupCommit<object, never>({
    name: "full",
    concurrencyMax: 1,
    batchWeightMax: 1,
    queueWeightMax: 3,
    run: () => new Promise<never>(() => {}),
  });
  const refused = () => full.submit({}, 2);
  // One runs for ever, and one waits.
  for (let i = 0; i < 2; i++) void full.submit({});
  const put = vi.spyOn(CardStore.prototype, "put").mockImplementation(refused);
  const insert = vi.spyOn(EventStore.prototype, "insert");
  onTestFinished(() => void vi.restoreAllMocks());
  for (const [stores, charged] of [
    ["the row", 1],
    ["nothing", 0],
  ] as const) {
    if (stores === "nothing") insert.mockImplementation(refused);
    const tenant = await createTenant(suite.service.admin, { name: "Small", quotaEventsPerMonth: 10 });
    const snapshotType = unique("half");
    const answer = await rest(suite.url, "snapshots", snapshot({ snapshotType }), bearer(tenant.key));
    expect(answer.status).toBe(500);
    expect(await eventCollection(db).countDocuments({ type: snapshotType })).toBe(charged);
    const [month] = await suite.service.admin.usageOf(tenant.organizationId);
    expect(month?.events).toBe(charged);
  }
  expect(put).toHaveBeenCalledTimes(2);
});

test("every collection has exactly the indexes it declares", async () => {
  for (const { name, indexes } of collections) {
    const keysOf = (list: readonly { key: unknown }[]) => list.map(({ key }) => JSON.stringify(key)).sort();
    const present = await suite.service.app.db
      .collection(name)
      .indexes()
      .catch(() => [{ key: { _id: 1 } }]);
    expect(keysOf(present), name).toEqual(keysOf([{ key: { _id: 1 } }, ...indexes]));
  }
});

test("each declared index has a reason", () => {
  for (const { indexes } of collections) for (const { why } of indexes) expect(why.length).toBeGreaterThan(10);
});
