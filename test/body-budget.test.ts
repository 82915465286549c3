import { expect, test } from "vitest";
import { BodyBudget } from "../src/transport/body-budget.ts";

test("bodies beyond the budget are refused as unavailable while none of those that arrive is slow", () => {
  const budget = new BodyBudget({ bodiesBytesMax: 100, slowBodyMs: 60_000 });
  const first = budget.open(() => expect.unreachable("it is not slow"));
  expect(first.take(80)).toBeUndefined();
  const second = budget.open(() => {});
  const refused = second.take(30);
  expect(refused).toMatchObject({ code: "internal_error", unavailable: true, retryAfterSeconds: 1 });
  second.release();
  const third = budget.open(() => {});
  expect(third.take(20)).toBeUndefined();
  first.release();
  expect(third.take(80)).toBeUndefined();
});

test("the body that has been arriving longest makes room, but never one that is here already", () => {
  const budget = new BodyBudget({ bodiesBytesMax: 100, slowBodyMs: -1 });
  const cut: string[] = [];
  const open = (name: string) => budget.open(() => cut.push(name));
  const whole = open("whole");
  whole.take(40);
  whole.arrived();
  const slowest = open("slowest");
  slowest.take(30);
  const slow = open("slow");
  slow.take(30);
  expect(open("newcomer").take(20)).toBeUndefined();
  expect(cut).toEqual(["slowest"]);
  expect(open("large").take(70)?.code).toBe("internal_error");
  expect(cut).not.toContain("whole");
});
