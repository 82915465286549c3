import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";

declare module "vitest" {
  export interface ProvidedContext {
    mongodbUri: string;
  }
}

/** One real mongod for the whole run, in a directory of its own; every test file has a database of its own in it. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const dataDir = await mkdtemp(join(tmpdir(), "ingest-test-"));
  const database = await openEmbeddedDatabase({ dataDir, env: process.env, report: (line) => console.log(line) });
  project.provide("mongodbUri", database.uri);
  return async () => {
    await database.close();
    await rm(dataDir, { recursive: true, force: true });
  };
}
