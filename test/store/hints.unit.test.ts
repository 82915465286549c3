import type { Document } from "mongodb";
import { describe, expect, test } from "vitest";
import { isUnhinted } from "../support/hints.ts";

const unhinted = (command: Document) => isUnhinted({ command, commandName: Object.keys(command)[0] as string });
const hint = { _id: 1 };
const union = (pipeline: Document[]) => [{ $unionWith: { coll: "timeline", pipeline } }];
const sorted = union([{ $match: {} }, { $sort: { _id: 1 } }]);

describe("the watch over the choice of an index", () => {
  test.each<[string, Document]>([
    ["a read", { find: "timeline", filter: {} }],
    ["a count", { aggregate: "timeline", pipeline: [{ $match: {} }] }],
    [
      "one of two updates",
      {
        update: "timeline",
        updates: [
          { q: {}, u: {}, hint },
          { q: {}, u: {} },
        ],
      },
    ],
    ["a removal", { delete: "timeline", deletes: [{ q: {}, limit: 0 }] }],
    ["rows added to those of another collection", { aggregate: "keys", pipeline: union([{ $match: {} }]) }],
    ["sorted rows added without a hint for the others", { aggregate: "timeline", pipeline: sorted }],
    ["rows looked up", { aggregate: "keys", pipeline: [{ $lookup: { from: "timeline" } }] }],
    ["rows added with a hint for the others", { aggregate: "timeline", pipeline: union([]), hint }],
  ])("notices %s", (_, command) => expect(unhinted(command)).toBe(true));

  test.each<[string, Document]>([
    ["a read with a hint", { find: "timeline", filter: {}, hint }],
    ["an update with a hint", { update: "timeline", updates: [{ q: {}, u: {}, hint }] }],
    ["sorted rows added to those of another collection", { aggregate: "keys", pipeline: sorted }],
    ["a change stream", { aggregate: "timeline", pipeline: [{ $changeStream: {} }] }],
    ["an insert", { insert: "timeline", documents: [] }],
    ["a read of another collection", { find: "keys", filter: {} }],
  ])("lets pass %s", (_, command) => expect(unhinted(command)).toBe(false));
});
