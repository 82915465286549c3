import { readFileSync } from "node:fs";
import type { Document } from "mongodb";
import { describe, expect, test } from "vitest";
import { collections, shardedCollections, unshardedCollections } from "../../src/store/collections.ts";
import { refusalOf } from "../support/sharding.ts";

const organizationId = "org_1";
const refused = (command: Document) => refusalOf({ command, commandName: Object.keys(command)[0] as string });
const update = (q: Document, u: Document | Document[], more: Document = {}) => ({
  update: "snapshots",
  updates: [{ q, u, ...more }],
});

describe("the watcher of every test's commands", () => {
  test.each<[string, Document]>([
    ["a read without the shard key", { find: "snapshots", filter: { _id: "evt_1" } }],
    [
      "a read with the key in only one alternative",
      { find: "snapshots", filter: { $or: [{ organizationId }, { _id: 1 }] } },
    ],
    ["a read of a range of keys", { find: "snapshots", filter: { organizationId: { $gt: "" } } }],
    ["an aggregation that matches late", { aggregate: "snapshots", pipeline: [{ $sort: { _id: 1 } }] }],
    ["a count of all", { aggregate: "snapshots", pipeline: [{ $group: { _id: 1 } }] }],
    ["a look-up of sharded rows", { aggregate: "keys", pipeline: [{ $lookup: { from: "snapshots" } }] }],
    [
      "rows of every organisation added",
      { aggregate: "keys", pipeline: [{ $unionWith: { coll: "snapshots", pipeline: [] } }] },
    ],
    ["a result written to a collection", { aggregate: "keys", pipeline: [{ $match: {} }, { $out: "copy" }] }],
    ["an update by id alone", update({ _id: "evt_1" }, { $set: { type: "a" } })],
    ["an update of one of two keys", update({ organizationId: { $in: ["a", "b"] } }, { $set: { type: "a" } })],
    ["an update of one document with a comment", { ...update({}, { $set: { a: 1 } }), comment: "every shard: no" }],
    ["an upsert without the key", update({ _id: "evt_1" }, { $set: { organizationId } }, { upsert: true })],
    ["an update that changes the key", update({ organizationId }, { $set: { organizationId: "org_2" } })],
    ["a pipeline that changes the key", update({ organizationId }, [{ $set: { organizationId: "$other" } }])],
    ["a pipeline that drops the key", update({ organizationId }, [{ $unset: ["a", "organizationId"] }])],
    ["an update that drops the key", update({ organizationId }, { $unset: { organizationId: "" } })],
    ["an update that renames to the key", update({ organizationId }, { $rename: { a: "organizationId" } })],
    ["a replacement without the key", update({ organizationId }, { type: "a" })],
    ["a delete by id alone", { delete: "snapshots", deletes: [{ q: { _id: "evt_1" }, limit: 1 }] }],
    ["a delete of many without the key", { delete: "snapshots", deletes: [{ q: {}, limit: 0 }] }],
    ["a find-and-modify by id alone", { findAndModify: "usage", query: { _id: "a" }, update: { $inc: { n: 1 } } }],
    ["an insert without the key", { insert: "snapshots", documents: [{ _id: "a", organizationId }, { _id: "b" }] }],
    ["a unique index on other fields", { createIndexes: "snapshots", indexes: [{ key: { a: 1 }, unique: true }] }],
    ["a transaction of rows", { insert: "usage", documents: [], startTransaction: true }],
  ])("refuses %s", (_, command) => expect(refused(command)).toMatch(/^\w+ of \w+ /));

  test.each<[string, Document]>([
    ["a read of one organisation", { find: "snapshots", filter: { organizationId, _id: "evt_1" } }],
    [
      "a read of several",
      { find: "snapshots", filter: { $or: [{ organizationId }, { organizationId: { $in: ["b"] } }] } },
    ],
    ["a read that says why it asks every shard", { find: "snapshots", filter: {}, comment: "every shard: it must" }],
    ["an aggregation of one organisation", { aggregate: "snapshots", pipeline: [{ $match: { organizationId } }] }],
    [
      "rows of one organisation added",
      {
        aggregate: "keys",
        pipeline: [{ $unionWith: { coll: "snapshots", pipeline: [{ $match: { organizationId } }] } }],
      },
    ],
    ["a change stream", { aggregate: "snapshots", pipeline: [{ $changeStream: {} }] }],
    ["an upsert with the key", update({ organizationId, _id: 1 }, { $inc: { n: 1 } }, { upsert: true })],
    ["a replacement with the same key", update({ organizationId }, { organizationId, type: "a" })],
    [
      "a unique index that begins with the key",
      { createIndexes: "snapshots", indexes: [{ key: { organizationId: 1 } }] },
    ],
    ["whatever is done to a collection of one shard", { find: "keys", filter: {} }],
  ])("lets pass %s", (_, command) => expect(refused(command)).toBeUndefined());
});

test("every unique index of a sharded collection begins with the shard key", () => {
  for (const { definition, key: shardKey } of shardedCollections)
    for (const { key, options } of definition.indexes) if (options?.unique) expect(Object.keys(key)[0]).toBe(shardKey);
});

test("docs/operations.md says of every collection whether it is sharded", () => {
  const page = readFileSync(new URL("../../docs/operations.md", import.meta.url), "utf8");
  const [, sharded = "", rest = ""] = /\n## Past one machine\n(.*?)\n### One shard\n(.*?)\n## /s.exec(page) ?? [];
  const named = (text: string) => [...text.matchAll(/^\| `(\w+)` \|/gm)].map(([, name]) => name as string).sort();
  expect(named(sharded)).toEqual(shardedCollections.map(({ definition: { name } }) => name).sort());
  expect(named(rest)).toEqual(unshardedCollections.map(({ definition: { name } }) => name).sort());
  expect(collections).toHaveLength(shardedCollections.length + unshardedCollections.length);
});
