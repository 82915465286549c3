import { setImmediate as turnOfLoop } from "node:timers/promises";
import { expect, test, vi } from "vitest";
import type { Fault } from "../../src/errors.ts";
import { Activity, FairTurns, type FairTurnsOptions } from "../../src/access/fair-turns.ts";

const none = Number.POSITIVE_INFINITY;

function turnsOf(active: readonly string[], options: Partial<FairTurnsOptions> = {}) {
  const activity = new Activity();
  for (const name of active) activity.note(name);
  const bounds = { sharedCostMax: 10, aloneCostMax: none, heavyCost: none, restTimes: 1, largeCost: none, largeMax: 0 };
  const turns = new FairTurns(activity, { ...bounds, waitMs: 60_000, ...options });
  const begun: string[] = [];
  const enter = (name: string, cost = 10) => turns.enter(name, cost, () => begun.push(name));
  return { turns, begun, enter };
}

test("an organisation that is alone runs as much as it likes", () => {
  const { begun, enter } = turnsOf(["a"]);
  for (let i = 0; i < 5; i++) enter("a");
  expect(begun).toHaveLength(5);
});

test("while another is active, an organisation runs its share, and the rest waits in order", () => {
  const { begun, enter } = turnsOf(["a", "b"]);
  const [first, second] = [enter("a"), enter("a"), enter("a")];
  expect(begun).toEqual(["a"]);
  enter("b", 1);
  expect(begun).toEqual(["a", "b"]);
  first.leave();
  first.leave();
  expect(begun).toEqual(["a", "b", "a"]);
  second.leave();
  expect(begun).toEqual(["a", "b", "a", "a"]);
});

test("small pieces share the place of one large piece; a piece above the share runs alone", () => {
  const { begun, enter } = turnsOf(["a", "b"]);
  const small = Array.from({ length: 12 }, () => enter("a", 1));
  expect(begun).toHaveLength(10);
  const above = enter("b", 100);
  enter("b", 1);
  expect(begun.slice(10)).toEqual(["b"]);
  above.leave();
  expect(begun.slice(10)).toEqual(["b", "b"]);
  small[0]?.leave();
  expect(begun.slice(12)).toEqual(["a"]);
});

test("heavy pieces of two organisations begin in turn, one in each event-loop tick", async () => {
  const { begun, enter } = turnsOf(["a", "b"], { heavyCost: 5, sharedCostMax: 20 });
  for (const name of ["a", "a", "a", "b", "b"]) enter(name, 5);
  const counts = [begun.length];
  while (begun.length < 5) {
    await turnOfLoop();
    counts.push(begun.length);
  }
  expect(begun).toEqual(["a", "a", "b", "a", "b"]);
  expect(counts.every((count, i) => i === 0 || count - (counts[i - 1] as number) <= 1)).toBe(true);
});

test("after heavy work an organisation rests for as long as the work took; others need not wait", async () => {
  const { begun, enter } = turnsOf(["a", "b"], { heavyCost: 5 });
  const first = enter("a");
  await new Promise((resolve) => setTimeout(resolve, 20));
  first.leave();
  enter("a");
  expect(begun).toEqual(["a"]);
  await vi.waitFor(() => expect(begun).toEqual(["a", "a"]));
});

test("a caller that waits too long is refused as unavailable, and one that leaves never begins", async () => {
  const { turns, begun, enter } = turnsOf(["a", "b"], { waitMs: 5 });
  const first = enter("a");
  const refusals: (Fault | undefined)[] = [];
  turns.enter("a", 10, (refusal) => refusals.push(refusal));
  const left = enter("a");
  left.leave();
  await vi.waitFor(() => expect(refusals).toHaveLength(1));
  expect(refusals[0]).toMatchObject({ code: "internal_error", unavailable: true });
  first.leave();
  expect(begun).toEqual(["a"]);
  enter("a");
  expect(begun).toEqual(["a", "a"]);
});

test("failed work gives its turn to the next", async () => {
  const { turns } = turnsOf(["a", "b"]);
  const failed = turns.run("a", 10, () => Promise.reject(new Error("no")));
  const next = turns.run("a", 10, () => Promise.resolve("done"));
  await expect(failed).rejects.toThrow("no");
  expect(await next).toBe("done");
});
