import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { expect, test } from "vitest";

const root = resolve(import.meta.dirname, "../..");
const read = (path: string) => readFileSync(resolve(root, path), "utf8");
const { scripts, engines, devDependencies } = JSON.parse(read("package.json"));

test("`npm run dev` runs and watches the command of `npm start`", () => {
  expect(scripts.dev).toBe(scripts.start.replace("exec node ", "exec node --watch "));
});

test("the scripts run existing files", () => {
  const paths = Object.values<string>(scripts).flatMap(
    (script) => script.match(/(?<= )(src|test)\/[\w/.-]+\.ts\b/g) ?? [],
  );
  expect(paths).toContain("src/openapi/write.ts");
  expect(paths.filter((path) => !existsSync(resolve(root, path)))).toEqual([]);
});

test("`engines` allows the versions of Node that tests run on, and no other", () => {
  const tested = (text: string, pattern: RegExp) => pattern.exec(text)?.[1]?.split(/[ ,]+/);
  const versions = engines.node.split(" || ").map((range: string) => /^\^(\d+)\./.exec(range)?.[1]);
  expect(tested(scripts["test:node"], /for major in ([\d ]+);/)).toEqual(versions);
  expect(tested(read(".github/workflows/test.yml"), /node: \[([\d, ]+)\]/)).toEqual(versions);
  for (const used of [read(".nvmrc"), /FROM node:(\d+)/.exec(read("Dockerfile"))?.[1], devDependencies.node]) {
    expect(versions).toContain(/\d+/.exec(used ?? "")?.[0]);
  }
});
