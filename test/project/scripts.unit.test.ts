import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { expect, test } from "vitest";

const read = (path: string) => readFileSync(resolve(import.meta.dirname, "../..", path), "utf8");
const { scripts, engines, devDependencies } = JSON.parse(read("package.json"));

test("`npm run dev` runs and watches the command of `npm start`", () => {
  expect(scripts.dev).toBe(scripts.start.replace("exec node ", "exec node --watch "));
});

test("`engines` allows the versions of Node that tests run on, and no other", () => {
  const tested = (text: string, pattern: RegExp) => pattern.exec(text)?.[1]?.split(/[ ,]+/);
  const versions = engines.node.split(" || ");
  expect(tested(scripts["test:node"], /for major in ([\d ]+);/)).toEqual(versions);
  expect(tested(read(".github/workflows/test.yml"), /node: \[([\d, ]+)\]/)).toEqual(versions);
  for (const used of [read(".nvmrc"), /FROM node:(\d+)/.exec(read("Dockerfile"))?.[1], devDependencies.node]) {
    expect(versions).toContain(/\d+/.exec(used ?? "")?.[0]);
  }
});
