import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";
import { findSchemathesis, installSchemathesis, runSchemathesis } from "./schemathesis.ts";

/** `npm run test:schema [SEED]`: schemathesis with all its checks over the OpenAPI document. */
const examplesPerOperation = 300;
const command = findSchemathesis() ?? installSchemathesis();
if (command === undefined) {
  console.log("test:schema skipped: schemathesis is not installed, and there is no python3 to install it with");
} else {
  const seed = process.argv[2] === undefined ? undefined : Number(process.argv[2]);
  const dataDir = await mkdtemp(join(tmpdir(), "ingest-schema-"));
  const database = await openEmbeddedDatabase({ dataDir, env: process.env, report: console.log });
  try {
    const examples = { examples: examplesPerOperation, ...(seed === undefined ? {} : { seed }) };
    const { passed, output } = await runSchemathesis(command, database.uri, examples);
    console.log(output);
    process.exitCode = passed ? 0 : 1;
  } finally {
    await database.close();
    await rm(dataDir, { recursive: true, force: true });
  }
}
