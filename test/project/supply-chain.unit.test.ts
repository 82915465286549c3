import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { permissive, productionDependencies } from "../support/licences.ts";

const dependencies = productionDependencies();

test("no dependency of production runs a script when it is installed", () => {
  expect(dependencies.length).toBeGreaterThan(10);
  expect(dependencies.filter(({ hasInstallScript }) => hasInstallScript)).toEqual([]);
});

test("every dependency of production has a licence that asks for nothing but its notice", () => {
  // Of an expression, every part.
  const partsOf = (licence: string) => licence.split(/[()\s]+|\b(?:AND|OR)\b/).filter((part) => part !== "");
  const others = dependencies.filter(({ licence }) => !partsOf(licence).every((part) => permissive.includes(part)));
  expect(others).toEqual([]);
});

test("CI installs what the lock file says", () => {
  expect(readFileSync(".ci/run", "utf8")).toMatch(/^npm ci\b/m);
});
