import { expect, test } from "vitest";
import { daysOf, rangeOf } from "../../console/src/figures.ts";

test.each([
  [0, 0, [0, 1]],
  [0, 0.5, [0, 1]],
  [2, 10, [0, 11]],
  [-10, 20, [-11, 22]],
  [-10, -2, [-11, 0]],
  [-0.1, 0.2, [-0.11, 0.22]],
])("an axis from %d to %d shows zero and all values", (min, max, [low, high]) => {
  const range = rangeOf(min, max);
  expect(range[0]).toBeCloseTo(low as number);
  expect(range[1]).toBeCloseTo(high as number);
});

test.each([
  ["until today, although nothing came for days", "2026-11", ["2026-11-02"], "2026-11-05T00:00:00Z", 5],
  ["until the last day that the service counted", "2026-11", ["2026-11-02"], "2026-11-01T23:59:59Z", 2],
  ["of a month that is over", "2026-10", ["2026-10-30"], "2026-11-05T00:00:00Z", 30],
])("the days go %s", (_, month, counted, now, length) => {
  const days = daysOf(month, counted, new Date(now));
  expect(days).toHaveLength(length);
  expect([days[0], days.at(-1)]).toEqual([`${month}-01`, `${month}-${String(length).padStart(2, "0")}`]);
});
