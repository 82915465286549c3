import { expect, inject, test } from "vitest";
import { runSchemathesis, schemathesis } from "../schema/schemathesis.ts";

test.skipIf(schemathesis === undefined)(
  "the service passes all checks of schemathesis for openapi/v1.yaml (skipped without .ci/tools)",
  async () => {
    const { passed, output } = await runSchemathesis(schemathesis as string, inject("mongodbUri"), {
      examples: 1,
      phases: "examples,coverage",
    });
    expect(passed, output).toBe(true);
  },
  240_000,
);
