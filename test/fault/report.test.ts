import { expect, test } from "vitest";
import { table, withSection } from "./report.ts";

test("a run replaces its own section of the report and leaves everything else unchanged", () => {
  const first = withSection("# Title\n\nWords.\n", "crash", "old");
  const both = withSection(first, "hostile", "theirs");
  const again = withSection(both, "crash", "new");
  expect(again).toBe(both.replace("old", "new"));
  expect(again).toContain("theirs");
  expect(again.startsWith("# Title\n\nWords.\n\n")).toBe(true);
});

test("a cell cannot break its table", () => {
  expect(table(["a"], [["x|y\nz"]])).toBe("| a |\n| --- |\n| x\\|y z |");
});
