import { randomBytes } from "node:crypto";
import { Collection, type Db, type IndexDescriptionInfo, type MongoClient } from "mongodb";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { collections } from "../../src/store/collections.ts";
import { createClient } from "../../src/store/database.ts";
import { createIdSource, eventIds, timeOfId } from "../../src/ids.ts";
import { EventStore, type EventRow, findRowsOfRequest } from "../../src/store/events.ts";
import { migrate, prepareDatabase } from "../../src/store/migrations.ts";
import { recount } from "../../src/store/recount.ts";
import { removeRowsBefore, removeRowsOfWorker } from "../../src/store/row-removal.ts";
import { schemaVersion } from "../../src/store/schema-version.ts";
import { cardCollection, cardOf } from "../../src/store/snapshots.ts";
import { sumOfDays, type UsageGroup } from "../../src/store/usage-days.ts";
import { mendCards } from "../../src/store/version-2.ts";
import { storedRows, sumOf } from "../support/rows.ts";
import { bearer, createTenant, protocols, startService } from "../support/service.ts";

let client: MongoClient;
let db: Db;

beforeAll(() => void (client = createClient(inject("mongodbUri"))));
afterAll(() => client.close());
beforeEach(() => void (db = client.db(`migrations-${randomBytes(6).toString("hex")}`)));
afterEach(() => db.dropDatabase());

const names = async () => (await db.listCollections({}, { nameOnly: true }).toArray()).map(({ name }) => name).sort();
const setVersion = (version: number) => db.collection("schema").updateOne({}, { $set: { version } });
const indexOn = async (collection: string, key: object) =>
  (await db.collection(collection).indexes()).filter((index) => JSON.stringify(index.key) === JSON.stringify(key));

describe("the database's layout", () => {
  test("is created by a service in a database without events, but not by a command that only reads", async () => {
    await expect(prepareDatabase(db, collections, "look only")).rejects.toThrow(
      `The database '${db.databaseName}' is not set up for Ingest: check MONGODB_URI and MONGODB_DB, or run \`ingest migrate\``,
    );
    expect(await names()).toEqual([]);
    expect(await prepareDatabase(db, collections, "set up")).toEqual([]);
    expect(await names()).toEqual(collections.map(({ name }) => name).sort());
    expect(await prepareDatabase(db, collections, "look only")).toEqual([]);
  });

  test("is created once by several processes at the same time", async () => {
    await Promise.all(Array.from({ length: 4 }, () => prepareDatabase(db, collections, "set up")));
    expect(await prepareDatabase(db, collections, "look only")).toEqual([]);
  });

  test("is left alone if there are events but no version: that may take long, so `ingest migrate` does it", async () => {
    await db.collection("timeline").insertOne({});
    const ask = () => prepareDatabase(db, collections, "set up");
    await expect(ask()).rejects.toThrow(`'${db.databaseName}' was never migrated: run \`ingest migrate\``);
    await migrate(db, collections);
    expect(await ask()).toEqual([]);
  });

  test.each([
    [-2, "refused", "run `ingest migrate`"],
    [-1, "refused", "run `ingest migrate`. Instances of the version before may run meanwhile"],
    [1, "served", "update this instance soon"],
    [2, "refused", "run a newer version of Ingest"],
  ])("that is %d versions away is %s, saying: %s", async (steps, outcome, remedy) => {
    await migrate(db, collections);
    await setVersion(schemaVersion + steps);
    const asked = prepareDatabase(db, collections, "set up");
    if (outcome === "refused") await expect(asked).rejects.toThrow(remedy);
    else expect(await asked).toEqual([expect.stringContaining(remedy)]);
  });

  test("that is one version ahead serves events, together with instances of the other version", async () => {
    const settled = await startService({ database: db.databaseName });
    const tenant = await createTenant(settled.admin);
    await setVersion(schemaVersion + 1);
    const other = await startService({ database: db.databaseName });
    try {
      const body = { events: [{ eventType: "ticket.x", category: "other", actor: { email: "a@example.com" } }] };
      for (const { app } of [settled, other]) {
        const answer = await protocols.REST?.(app.url, "events", body, bearer(tenant.key));
        expect(answer).toMatchObject({ status: 202 });
      }
      expect(await db.collection("schema").findOne({})).toMatchObject({ version: schemaVersion + 1 });
    } finally {
      await Promise.all([settled.app.close(), other.app.close()]);
    }
  });

  test("never gets an older version", async () => {
    await migrate(db, collections);
    await setVersion(schemaVersion + 1);
    await migrate(db, collections);
    expect(await db.collection("schema").findOne({})).toMatchObject({ version: schemaVersion + 1 });
  });
});

describe("rows of schema version 2", () => {
  const ids = createIdSource();
  const [organizationId, appId, workerId] = [ids.next("org"), ids.next("app"), ids.next("wrk")];
  const old = () => db.collection<{ _id: string }>("events");
  const sentAt = new Date("2026-04-19T12:05:00.250Z");

  /** Rows as that version stored them. */
  function oldRows(requestId: string, ...changes: object[]) {
    const receivedAt = timeOfId(requestId);
    const row = { organizationId, appId, workerId, requestId, kind: "event", type: "ticket.x", category: "other" };
    const idOf = eventIds(requestId);
    return changes.map((change, i) => ({ _id: idOf(i), ...row, timestamp: receivedAt, receivedAt, ...change }));
  }

  const byId = (a: EventRow, b: EventRow) => (a.id < b.id ? -1 : 1);
  const expected = (rows: readonly any[]) => rows.map(({ _id: id, ...row }) => ({ id, ...row })).sort(byId);
  const expectCopied = async (rows: readonly object[]) => {
    const copies = (await storedRows(db)).sort(byId);
    expect(copies).toEqual(expected(rows));
    const texts = (some: readonly EventRow[]) => some.map(({ metadata }) => JSON.stringify(metadata));
    expect(texts(copies)).toEqual(texts(expected(rows)));
  };

  test("are copied while instances of that version run, and dropped when none of them is left", async () => {
    await migrate(db, collections);
    await setVersion(2);
    const requestId = ids.next("req");
    const reference = { $ref: "x", $id: 1, _bsontype: "Long" };
    const hostile = { a: [reference], ["__proto__"]: { b: 1 } };
    const rows = [
      ...oldRows(ids.next("req"), {}, { durationSeconds: 5, metadata: { n: 1, "a.b": null } }, { timestamp: sentAt }),
      ...oldRows(requestId, { timestamp: sentAt, metadata: hostile }, { timestamp: new Date(0) }, {}),
      ...oldRows(ids.next("req"), { kind: "snapshot", category: undefined, metrics: { open: 7 } }),
    ];
    // The driver writes a Map as it is.
    const stored = rows.map((row) => {
      const { metadata } = row as { metadata?: unknown };
      return metadata === hostile ? { ...row, metadata: { ...hostile, a: [new Map(Object.entries(reference))] } } : row;
    });
    await old().insertMany(stored as never, { ignoreUndefined: true });
    await expect(prepareDatabase(db, collections, "set up")).rejects.toThrow("run `ingest migrate`");
    // As if the request was repeated on an instance of this version.
    const owner = { organizationId, appId, requestId };
    await new EventStore(db).insert(owner, [
      { index: 2, workerId, type: "ticket.x", category: "other", timestamp: timeOfId(requestId) },
    ]);

    const instances = db.collection<{ _id: string }>("instances");
    await instances.insertOne({ _id: "old", name: "host, process 1", seenAt: new Date(), revision: 0 } as never);
    const said: string[] = [];
    expect(await migrate(db, collections, (line) => void said.push(line))).toEqual([
      `events: ${rows.length - 1} copied to timeline`,
    ]);
    expect(said.join()).toContain("Instances of an older version run (host, process 1)");
    await expectCopied(rows);
    expect((await findRowsOfRequest(db, requestId)).map(({ id }) => id)).toEqual([0, 1, 2].map(eventIds(requestId)));
    expect(await old().countDocuments()).toBe(rows.length);
    expect(await prepareDatabase(db, collections, "set up")).toEqual([
      expect.stringContaining("run `ingest migrate` again"),
    ]);

    const card = {
      _id: "card",
      organizationId,
      metrics: {},
      metadata: { reference: new Map(Object.entries(reference)) },
    };
    await db.collection<{ _id: string }>("snapshots").insertOne(card);
    // The older instance stores some more, and stops.
    rows.push(...oldRows(ids.next("req"), {}));
    await old().insertMany(rows.slice(-1));
    await instances.deleteOne({ _id: "old" });
    expect(await migrate(db, collections)).toEqual(["events: 1 copied to timeline"]);
    await expectCopied(rows);
    expect(await names()).not.toContain("events");
    expect((await cardCollection(db).find().map(cardOf).toArray())[0]).toMatchObject({ metadata: { reference } });
    expect(await prepareDatabase(db, collections, "set up")).toEqual([]);
  });

  test("are copied, but not dropped, if an instance of that version has begun meanwhile", async () => {
    await migrate(db, collections);
    await setVersion(2);
    const [early, late] = [oldRows(ids.next("req"), {}), oldRows(ids.next("req"), {})];
    await old().insertMany(early as never);
    const { find } = Collection.prototype;
    const mending = vi.spyOn(Collection.prototype, "find").mockImplementation(function (
      this: Collection,
      ...args: any
    ) {
      const cursor = find.apply(this, args);
      if (this.collectionName !== "snapshots") return cursor;
      return (async function* () {
        const instance = { _id: "old", name: "host, process 1", seenAt: new Date(), revision: 0 };
        await db.collection<{ _id: string }>("instances").insertOne(instance);
        await old().insertMany(late as never);
        yield* cursor;
      })() as never;
    });
    onTestFinished(() => mending.mockRestore());
    await migrate(db, collections);
    await expectCopied([...early, ...late]);
    expect(await old().countDocuments()).toBe(2);
  });

  test("bring no figures back to a card that changes while it is mended", async () => {
    await migrate(db, collections);
    const cards = db.collection<{ _id: string; metrics: object }>("snapshots");
    const figures = (open: number) => ({ requestId: ids.next("req"), metrics: { open } });
    const metadata = new Map(Object.entries({ $ref: "x", $id: 1 }));
    await cards.insertOne({ _id: "card", organizationId, ...figures(1), metadata } as never);
    const watched = createClient(inject("mongodbUri"), { monitorCommands: true });
    onTestFinished(() => watched.close());
    const updating = new Promise<void>((resolve) => {
      watched.on("commandStarted", ({ commandName }) => void (commandName === "update" && resolve()));
    });
    let mending: Promise<void> | undefined;
    await client.withSession((session) =>
      session.withTransaction(async () => {
        const change = { $set: figures(2), $unset: { metadata: "" } } as const;
        await cards.updateOne({ _id: "card" }, change as object, { session });
        // It has read the card as it was before, and its update waits for this transaction.
        mending ??= mendCards(watched.db(db.databaseName));
        await updating;
      }),
    );
    await mending;
    const [card] = await cards.find().toArray();
    expect(card).toMatchObject({ metrics: { open: 2 } });
    expect(card).not.toHaveProperty("metadata");
  });

  test("have exact counts by day after a recount, even if rows are removed before it", async () => {
    await migrate(db, collections);
    const [gone, other] = [workerId, ids.next("wrk")];
    const received = (day: string) => createIdSource(() => Date.parse(`${day}T12:00:00Z`)).next("req");
    await old().insertMany(
      ["2026-03-30", "2026-04-01", "2026-04-02"].flatMap((day) => [
        ...oldRows(received(day), {}, { workerId: other }, { type: "ticket.y", timestamp: sentAt }),
        ...oldRows(received(day), { type: "ticket.z" }),
      ]),
    );
    await migrate(db, collections);
    const options = { now: new Date() };
    const remove = () => sumOf(removeRowsOfWorker(db, organizationId, gone, options));
    // Two commands at once, of which one may count while the other removes.
    const removed = await Promise.all([remove(), remove()]);
    expect(removed[0] + removed[1]).toBe(9);
    expect(await sumOf(removeRowsBefore(db, organizationId, new Date("2026-04-01"), options))).toBe(1);
    for (const [month, days] of [
      ["2026-03", ["2026-03-30"]],
      ["2026-04", ["2026-04-01", "2026-04-02"]],
    ] as const) {
      const counted = await recount(db, organizationId, month, { quietMs: 10, patienceMs: 5_000 });
      expect(counted).toMatchObject({ before: 0, after: 4 * days.length });
      const sums = (by: UsageGroup) => sumOfDays(db, organizationId, month, by);
      expect(await sums("day")).toMatchObject(days.map((day) => ({ day, accepted: 4 })));
      const accepted = [2, 1, 1].map((count) => count * days.length);
      expect((await sums("type")).map((sum) => sum.accepted)).toEqual(accepted);
    }
  });

  test("that are not rows keep the collection", async () => {
    await migrate(db, collections);
    await db.collection("events").insertOne({});
    await expect(migrate(db, collections)).rejects.toThrow("events: a document has no id of an event");
    expect(await names()).toContain("events");
  });
});

describe("an index", () => {
  beforeEach(() => migrate(db, collections));

  const refusal = /lacks what this version needs: .*Run `ingest migrate`/;

  test("that is missing keeps a service from starting, until `ingest migrate` builds it", async () => {
    await db.collection("workers").dropIndex("organizationId_1_links.key_1");
    await expect(prepareDatabase(db, collections, "set up")).rejects.toThrow(refusal);
    const said: string[] = [];
    const changes = await migrate(db, collections, (line) => void said.push(line));
    expect(changes).toEqual(['workers has no index {"organizationId":1,"links.key":1}']);
    expect(said).toHaveLength(1);
    expect(await indexOn("workers", { organizationId: 1, "links.key": 1 })).toMatchObject([{ unique: true }]);
    expect(await prepareDatabase(db, collections, "set up")).toEqual([]);
  });

  test("of a new collection is built by `ingest migrate`, and the version before goes on with it", async () => {
    const ofBefore = collections.filter(({ name }) => name !== "accessTokens");
    await db.dropCollection("accessTokens");
    expect(await prepareDatabase(db, ofBefore, "set up")).toEqual([]);
    await expect(prepareDatabase(db, collections, "set up")).rejects.toThrow(refusal);
    // The embedded database migrates itself.
    expect(await prepareDatabase(db, collections, "migrate")).toEqual([]);
    expect(await indexOn("accessTokens", { hash: 1 })).toMatchObject([{ unique: true }]);
    for (const known of [ofBefore, collections]) expect(await prepareDatabase(db, known, "set up")).toEqual([]);
  });

  test("with another expiry is changed in place", async () => {
    const change = { collMod: "rateBuckets", index: { name: "at_1", expireAfterSeconds: 7_200 } };
    const name = collections.find(({ indexes }) => indexes.some(({ key }) => JSON.stringify(key) === '{"at":1}'))?.name;
    await db.command({ ...change, collMod: name });
    await expect(prepareDatabase(db, collections, "set up")).rejects.toThrow(refusal);
    await migrate(db, collections);
    expect(await indexOn(name as string, { at: 1 })).toMatchObject([{ name: "at_1", expireAfterSeconds: 3_600 }]);
  });

  test.each([
    ["is not unique", "workers", "organizationId_1_links.key_1", {}],
    [
      "covers other documents",
      "workers",
      "organizationId_1_links.key_1",
      { partialFilterExpression: { email: { $gt: "m" } } },
    ],
    ["expires what must stay", "keys", "hash_1", { expireAfterSeconds: 1 }],
  ])("that %s is replaced", async (_, of, name, options) => {
    const collection = db.collection(of);
    const nameless = ({ name: _, ...index }: IndexDescriptionInfo) => index;
    const meant = (await collection.indexes()).find((index) => index.name === name) as IndexDescriptionInfo;
    await collection.dropIndex(name);
    await collection.createIndex(meant.key, options);
    await expect(prepareDatabase(db, collections, "set up")).rejects.toThrow(refusal);
    await migrate(db, collections);
    expect((await indexOn(of, meant.key)).map(nameless)).toEqual([nameless(meant)]);
    expect(await prepareDatabase(db, collections, "set up")).toEqual([]);
  });

  test("of the operator is left alone", async () => {
    await db.collection("timeline").createIndex({ own: 1 });
    expect(await prepareDatabase(db, collections, "set up")).toEqual([]);
    expect(await migrate(db, collections)).toEqual([]);
    expect(await indexOn("timeline", { own: 1 })).toHaveLength(1);
  });
});
