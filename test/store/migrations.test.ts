import { randomBytes } from "node:crypto";
import type { Db, IndexDescriptionInfo, MongoClient } from "mongodb";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { collections } from "../../src/store/collections.ts";
import { createClient } from "../../src/store/database.ts";
import { migrate, prepareDatabase, schemaVersion } from "../../src/store/migrations.ts";
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
    await db.collection("events").insertOne({});
    const ask = () => prepareDatabase(db, collections, "set up");
    await expect(ask()).rejects.toThrow(`'${db.databaseName}' was never migrated: run \`ingest migrate\``);
    await migrate(db, collections);
    expect(await ask()).toEqual([]);
  });

  test.each([
    [-2, "refused", "run `ingest migrate`"],
    [-1, "served", "run `ingest migrate` when no older instance is left"],
    [1, "served", "update this instance soon"],
    [2, "refused", "run a newer version of Ingest"],
  ])("that is %d versions away is %s, saying: %s", async (steps, outcome, remedy) => {
    await migrate(db, collections);
    await setVersion(schemaVersion + steps);
    const asked = prepareDatabase(db, collections, "set up");
    if (outcome === "refused") await expect(asked).rejects.toThrow(remedy);
    else expect(await asked).toEqual([expect.stringContaining(remedy)]);
  });

  test.each([-1, 1])(
    "that is %d versions away serves events, together with instances of the other version",
    async (steps) => {
      const settled = await startService({ database: db.databaseName });
      const tenant = await createTenant(settled.admin);
      await setVersion(schemaVersion + steps);
      const other = await startService({ database: db.databaseName });
      try {
        const body = { events: [{ eventType: "ticket.x", category: "other", actor: { email: "a@example.com" } }] };
        for (const { app } of [settled, other]) {
          const answer = await protocols.REST?.(app.url, "events", body, bearer(tenant.key));
          expect(answer).toMatchObject({ status: 202 });
        }
        expect(await db.collection("schema").findOne({})).toMatchObject({ version: schemaVersion + steps });
      } finally {
        await Promise.all([settled.app.close(), other.app.close()]);
      }
    },
  );

  test("never gets an older version", async () => {
    await migrate(db, collections);
    await setVersion(schemaVersion + 1);
    await migrate(db, collections);
    expect(await db.collection("schema").findOne({})).toMatchObject({ version: schemaVersion + 1 });
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

  test("with another expiry is changed in place", async () => {
    const change = { collMod: "rateBuckets", index: { name: "at_1", expireAfterSeconds: 7_200 } };
    const name = collections.find(({ indexes }) => indexes.some(({ key }) => JSON.stringify(key) === '{"at":1}'))?.name;
    await db.command({ ...change, collMod: name });
    await expect(prepareDatabase(db, collections, "set up")).rejects.toThrow(refusal);
    await migrate(db, collections);
    expect(await indexOn(name as string, { at: 1 })).toMatchObject([{ name: "at_1", expireAfterSeconds: 3_600 }]);
  });

  test.each([
    ["is not unique", "organizationId_1_links.key_1", {}],
    ["covers other documents", "organizationId_1_links.key_1", { partialFilterExpression: { email: { $gt: "m" } } }],
    ["expires what must stay", "organizationId_1", { expireAfterSeconds: 1 }],
  ])("that %s is replaced", async (_, name, options) => {
    const workers = db.collection("workers");
    const nameless = ({ name: _, ...index }: IndexDescriptionInfo) => index;
    const meant = (await workers.indexes()).find((index) => index.name === name) as IndexDescriptionInfo;
    await workers.dropIndex(name);
    await workers.createIndex(meant.key, options);
    await expect(prepareDatabase(db, collections, "set up")).rejects.toThrow(refusal);
    await migrate(db, collections);
    expect((await indexOn("workers", meant.key)).map(nameless)).toEqual([nameless(meant)]);
    expect(await prepareDatabase(db, collections, "set up")).toEqual([]);
  });

  test("of the operator is left alone", async () => {
    await db.collection("events").createIndex({ own: 1 });
    expect(await prepareDatabase(db, collections, "set up")).toEqual([]);
    expect(await migrate(db, collections)).toEqual([]);
    expect(await indexOn("events", { own: 1 })).toHaveLength(1);
  });
});
