import type { Reporter, TestModule } from "vitest/node";

/**
 * Ends the run with one line that machines can read: how many tests passed, failed and were skipped. CI has every tool that
 * a test uses, so there a skipped test fails the run.
 */
export default class Counts implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): void {
    let passed = 0;
    let skipped = 0;
    // A file that does not load, or an error outside any test, is a failure too.
    let failed = errors.length;
    for (const module of modules) {
      failed += module.errors().length;
      // A hook that fails leaves its tests unrun: that is a failure, not an absence.
      for (const suite of module.children.allSuites()) failed += suite.errors().length;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        if (state === "passed") passed++;
        if (state === "failed") failed++;
        if (state === "skipped") skipped++;
      }
    }
    if (skipped > 0 && process.env.CI !== undefined) process.exitCode = 1;
    process.on("exit", () => process.stdout.write(`\n${passed} passed, ${failed} failed, ${skipped} skipped\n`));
  }
}
