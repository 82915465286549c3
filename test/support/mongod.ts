import type { TestProject } from "vitest/node";
import { TestMongod } from "../fault/mongod.ts";

declare module "vitest" {
  export interface ProvidedContext {
    mongodbUri: string;
  }
}

/** One real mongod for the whole run. Each test file has its own database in it. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const mongod = await TestMongod.start();
  project.provide("mongodbUri", mongod.uri);
  return () => mongod.stop();
}
