import { expect, inject, test } from "vitest";
import { runSchemathesis, schemathesis } from "../schema/schemathesis.ts";

test.skipIf(schemathesis === undefined)(
  "the service does what openapi/v1.yaml says, by all checks of schemathesis (skipped where .ci/tools has not run)",
  async () => {
    const { passed, output } = await runSchemathesis(schemathesis as string, inject("mongodbUri"), {
      examples: 1,
      phases: "examples,coverage",
    });
    expect(passed, output).toBe(true);
  },
  240_000,
);
