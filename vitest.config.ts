import { availableParallelism } from "node:os";
import { join } from "node:path";
import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

/** The tests start some hundred processes of the service and the command. Each would compile the same files again. */
process.env.NODE_COMPILE_CACHE = join(import.meta.dirname, "node_modules/.cache/compiled");

/** Files that take 15 s and more, the longest first. In a fresh clone vitest would begin with the largest files. */
const longest = [
  ...["embedded/embedded", "project/package", "console/console", "project/docs", "transport/pages/pages", "cli/cli"],
  ...["console/changes", "serve/cluster", "serve/stop", "conformance/conformance", "store/away", "timeline/timeline"],
  ...["transport/http/port", "timeline/watch", "send/send", "observe/requests", "admin/removal"],
  ...["store/migrations", "transport/http/body-budget", "project/deploy", "admin/matrix"],
  ...["fault/hostile", "fault/faults", "fault/failover", "fault/crash", "fault/model"],
];

const rankOf = ({ moduleId }: TestSpecification) => {
  const rank = longest.findIndex((name) => moduleId.endsWith(`/test/${name}.test.ts`));
  return rank === -1 ? longest.length : rank;
};

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return (await super.sort(files)).sort((a, b) => rankOf(a) - rankOf(b));
  }
}

const unit = "test/**/*.unit.test.ts";
const fault = "test/fault/**/*.test.ts";
const globalSetup = ["test/support/mongod.ts"];

export default defineConfig({
  test: {
    reporters: ["default", "./test/support/counts.ts"],
    testTimeout: 30_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 10_000 } },
    // Tests of the service wait for other processes half of their time.
    maxWorkers: availableParallelism() + 1,
    sequence: { sequencer: LongestFirst },
    // Files share processes and loaded modules: loading the service again for each file would cost a third of all CPU.
    isolate: false,
    projects: [
      { extends: true, test: { name: "unit", include: [unit], setupFiles: ["test/support/unit.ts"] } },
      {
        extends: true,
        test: {
          name: "service",
          include: ["test/**/*.test.ts"],
          exclude: [unit, fault, "**/node_modules/**"],
          globalSetup,
        },
      },
      {
        extends: true,
        test: {
          name: "fault",
          include: [fault],
          globalSetup,
          // Their load takes all cores: beside a further file they would miss their time limits.
          maxWorkers: availableParallelism(),
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
