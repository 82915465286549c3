import { expect, test } from "vitest";
import { ago, moment } from "../../console/src/format.ts";

const hourMs = 3_600_000;

test.each([
  [-34 * hourMs, "1 day ago"],
  [-36 * hourMs, "1 day ago"],
  [-(hourMs - 1_000), "59 minutes ago"],
  [-hourMs, "1 hour ago"],
  [-1_500, "1 second ago"],
  [36 * hourMs, "in 1 day"],
  [14 * 24 * hourMs - 1, "in 13 days"],
])("%d ms from now is %s", (ms, said) => {
  expect(ago(new Date(1_000_000_000_000 + ms), 1_000_000_000_000)).toBe(said);
});

test("an exact time has its seconds and its zone", () => {
  expect(moment(new Date("2026-11-30T14:05:09Z"))).toMatch(/^\d+ Nov 2026, \d\d:\d\d:09 [A-Z]/);
});
