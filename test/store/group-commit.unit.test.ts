import { setImmediate as turnOfLoop } from "node:timers/promises";
import { expect, test } from "vitest";
import { GroupCommit, isNotBegun } from "../../src/store/group-commit.ts";

interface Item {
  readonly owner: string;
  readonly weight: number;
}

/** A group commit whose batches end on command. */
function held(options: { concurrencyMax?: number; fullConcurrencyMax?: number; queueWeightMax?: number } = {}) {
  const batches: { items: readonly Item[]; end: () => void }[] = [];
  const group = new GroupCommit<Item, void>({
    name: "held",
    ownerOf: ({ owner }) => owner,
    concurrencyMax: 2,
    fullConcurrencyMax: 6,
    batchWeightMax: 100,
    queueWeightMax: 10_000,
    ...options,
    run: (items) =>
      new Promise((resolve) => batches.push({ items, end: () => resolve(items.map(() => ({ value: undefined }))) })),
  });
  const submit = (owner: string, weight: number, count = 1) =>
    Array.from({ length: count }, () => group.submit({ owner, weight }, weight).catch((error: unknown) => error));
  const owners = () => batches.map(({ items }) => [...new Set(items.map(({ owner }) => owner))].join("+"));
  return { group, batches, submit, owners };
}

test("a single owner runs as many batches as allowed", async () => {
  const { submit, owners } = held();
  void submit("a", 100, 10);
  await turnOfLoop();
  expect(owners()).toEqual(["a", "a", "a", "a", "a", "a"]);
});

test("a light item does not wait for another owner's heavy ones", async () => {
  const { submit, batches, owners } = held();
  void submit("greedy", 100, 20);
  await turnOfLoop();
  const before = batches.length;
  const [done] = submit("light", 1);
  await turnOfLoop();
  expect(owners().slice(before)).toEqual(["light"]);
  batches.at(-1)?.end();
  expect(await done).toBeUndefined();
});

test("heavy items of several owners take turns, and each owner runs one batch while others wait", async () => {
  const { submit, batches, owners } = held();
  void submit("a", 100, 3);
  void submit("b", 100, 3);
  await turnOfLoop();
  expect(owners()).toEqual(["a", "b"]);
  for (let i = 0; i < 4; i++) {
    batches[i]?.end();
    await turnOfLoop();
  }
  expect(owners()).toEqual(["a", "b", "a", "b", "a", "b"]);
});

test("light items of all owners share a batch, and one owner with many leaves room for the others", async () => {
  const { submit, batches, owners } = held({ concurrencyMax: 1, fullConcurrencyMax: 1 });
  void submit("first", 1);
  await turnOfLoop();
  void submit("many", 1, 1_000);
  void submit("few", 1, 3);
  batches[0]?.end();
  await turnOfLoop();
  expect(owners()).toEqual(["first", "many+few"]);
  expect(batches[1]?.items.filter(({ owner }) => owner === "few")).toHaveLength(3);
  expect(batches[1]?.items).toHaveLength(100);
});

test("one owner fills at most half of the queue, and others still find room", async () => {
  const { group, submit } = held({ concurrencyMax: 1, fullConcurrencyMax: 1, queueWeightMax: 100 });
  void submit("a", 1);
  await turnOfLoop();
  const greedy = submit("greedy", 1, 80);
  expect(group.queueWeight).toBe(50);
  expect(isNotBegun(await greedy[50])).toBe(true);
  void submit("light", 1, 20);
  expect(group.queueWeight).toBe(70);
});
