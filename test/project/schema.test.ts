import { expect, inject, test } from "vitest";
import { findSchemathesis, runSchemathesis } from "../schema/schemathesis.ts";

const command = findSchemathesis();
if (command === undefined) console.log("schemathesis is not installed: npm run test:schema installs it");

test.skipIf(command === undefined)(
  "the service does what openapi/v1.yaml says, by all checks of schemathesis",
  async () => {
    const { passed, output } = await runSchemathesis(command as string, inject("mongodbUri"), {
      examples: 1,
      phases: "examples,coverage",
    });
    expect(passed, output).toBe(true);
  },
  240_000,
);
