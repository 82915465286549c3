import { expect, test } from "vitest";
import { Pace } from "../../src/store/pace.ts";

test.each([
  { hours: 0, rows: 12, restMs: 18 },
  { hours: 2, rows: 12, restMs: 18 },
  { hours: 3, rows: 24, restMs: 16.5 },
  { hours: 6, rows: 60, restMs: 12 },
  { hours: 100, rows: 100, restMs: 3 },
])(
  "after $hours hours, a step changes $rows rows, and $restMs ms of rest follow 3 ms of work",
  ({ hours, ...steps }) => {
    let nowMs = 5_000;
    const pace = new Pace(() => nowMs);
    nowMs += hours * 3_600_000;
    expect({ rows: pace.rows, restMs: pace.restMs(3) }).toEqual(steps);
  },
);

test("no rest takes longer than five seconds, and a signal ends it", async () => {
  const pace = new Pace();
  expect(pace.restMs(60_000)).toBe(5_000);
  await pace.rest(60_000, AbortSignal.abort());
});
