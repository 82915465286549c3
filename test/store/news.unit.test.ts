import { expect, test } from "vitest";
import { NewsWatch } from "../support/news.ts";

const commands = (...names: readonly (readonly [name: string, collection?: string])[]) => {
  const watch = new NewsWatch();
  for (const [commandName, collection] of names) {
    const command = { [commandName]: collection, lsid: { id: Buffer.alloc(16) }, txnNumber: 1, autocommit: false };
    watch.hear({ commandName, command });
  }
  return watch;
};

test("the watch of a suite finds a transaction that changes a key and tells no instance", () => {
  const silent = commands(["update", "keys"], ["insert", "auditEntries"], ["commitTransaction"]);
  expect(() => silent.check()).toThrow("no news of changes to:\nkeys, auditEntries");
  commands(["update", "keys"], ["update", "revisions"], ["commitTransaction"]).check();
  commands(["update", "keys"], ["abortTransaction"]).check();
  commands(["insert", "auditEntries"], ["commitTransaction"]).check();
});
