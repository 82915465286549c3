import type { Reporter, TestModule } from "vitest/node";

/**
 * Ends the run with one machine-readable line: how many tests passed, failed and were skipped. CI has every tool, so a
 * skipped test fails the run there.
 */
export default class Counts implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): void {
    let passed = 0;
    let skipped = 0;
    // A file that does not load, or an error outside a test, is a failure, too.
    let failed = errors.length;
    for (const module of modules) {
      failed += module.errors().length;
      // A failed hook leaves its tests unrun. That is a failure, too.
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
