import { expect, test } from "vitest";
import { runSuite } from "./run.ts";
import { prepareSuite } from "./tools.ts";

/** The first run fetches and builds the suite. */
const timeoutMs = 600_000;

test("every case of connectconformance passes, over every protocol", { timeout: timeoutMs }, async ({ skip }) => {
  const suite = prepareSuite();
  if ("missing" in suite) return skip(suite.missing);
  const { passed, output } = await runSuite(suite.command);
  expect(passed, output).toBe(true);
  const [, passedCases, failedCases] = /(\d+) passed, (\d+) failed/.exec(output) ?? [];
  expect(Number(failedCases)).toBe(0);
  // A configuration without some protocols would pass, too.
  expect(Number(passedCases)).toBeGreaterThan(3_000);
});
