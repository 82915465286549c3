import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";
import { seedOf } from "../support/seed.ts";
import { runSchemathesis, schemathesis } from "./schemathesis.ts";

/** `npm run test:schema [SEED]`: schemathesis with all its checks over the OpenAPI document. */
const examplesPerOperation = 300;
if (schemathesis === undefined) {
  console.error("schemathesis is not installed: run .ci/tools first");
  process.exitCode = 1;
} else {
  const seed = seedOf(process.argv[2]);
  console.log(`seed ${seed}`);
  const dataDir = await mkdtemp(join(tmpdir(), "ingest-schema-"));
  const database = await openEmbeddedDatabase({ dataDir, env: process.env, report: console.log });
  try {
    const options = { examples: examplesPerOperation, seed };
    const { passed, output } = await runSchemathesis(schemathesis, database.uri, options);
    console.log(output);
    process.exitCode = passed ? 0 : 1;
  } finally {
    await database.close();
    await rm(dataDir, { recursive: true, force: true });
  }
}
