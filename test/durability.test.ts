import { expect, test } from "vitest";
import { cards } from "../src/store/cards.ts";
import { claims } from "../src/store/claims.ts";
import { collections } from "../src/store/collections.ts";
import { events } from "../src/store/events.ts";
import { workers } from "../src/store/workers.ts";
import { event, snapshot, unique } from "./support/requests.ts";
import { bearer, protocols, type Send, useService } from "./support/service.ts";

const suite = useService();

const rest = protocols.REST as Send;

test("what is acknowledged was written with majority write concern and journalled: events, claims, workers, cards", async () => {
  const { db } = suite.service.app;
  const name = unique("durable");
  const actor = { externalId: name, email: `${name}@x.org` };
  const keyed = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
  const lines = new Set<string>();
  /** The server logs every command that takes longer than slowms; its log's memory is short, so it is read after each call. */
  const logged = async (rpc: "events" | "snapshots", body: object, headers: Record<string, string>) => {
    expect((await rest(suite.url, rpc, body, headers)).status).toBe(202);
    const { log } = await db.admin().command({ getLog: "global" });
    for (const line of log as string[]) if (line.includes(db.databaseName)) lines.add(line);
  };
  await db.command({ profile: 0, slowms: -1 });
  try {
    await logged("events", { events: [event({ actor })] }, keyed);
    await logged("snapshots", snapshot({ actor }), bearer(suite.tenant.key));
    await logged("snapshots", snapshot({ actor: { ...actor, externalId: unique("later") } }), bearer(suite.tenant.key));
  } finally {
    await db.command({ profile: 0, slowms: 1000 });
  }
  for (const collection of [events, claims, workers, cards]) {
    const command = new RegExp(`"command":\\{"(insert|update)":"${collection.name}"`);
    const writes = [...lines].filter((line) => command.test(line));
    expect(writes.length, collection.name).toBeGreaterThan(0);
    for (const write of writes) expect(write).toContain('"writeConcern":{"w":"majority","j":true');
  }
});

test("every collection has the indexes it declares, and no other one", async () => {
  for (const { name, indexes } of collections) {
    const keysOf = (list: readonly { key: unknown }[]) => list.map(({ key }) => JSON.stringify(key)).sort();
    const present = await suite.service.app.db
      .collection(name)
      .indexes()
      .catch(() => [{ key: { _id: 1 } }]);
    expect(keysOf(present), name).toEqual(keysOf([{ key: { _id: 1 } }, ...indexes]));
  }
});

test("each declared index says why it is there", () => {
  for (const { indexes } of collections) for (const { why } of indexes) expect(why.length).toBeGreaterThan(10);
});
