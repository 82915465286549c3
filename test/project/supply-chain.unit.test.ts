import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { permissive, productionDependencies } from "../support/licences.ts";

const dependencies = productionDependencies();

test("no dependency for production runs an install script", () => {
  expect(dependencies.length).toBeGreaterThan(10);
  expect(dependencies.filter(({ hasInstallScript }) => hasInstallScript)).toEqual([]);
});

test("every dependency for production has a licence that requires only its notice", () => {
  // Every part of a licence expression.
  const partsOf = (licence: string) => licence.split(/[()\s]+|\b(?:AND|OR)\b/).filter((part) => part !== "");
  const others = dependencies.filter(({ licence }) => !partsOf(licence).every((part) => permissive.includes(part)));
  expect(others).toEqual([]);
});

test("CI installs the versions of the lock file", () => {
  expect(readFileSync(".ci/run", "utf8")).toMatch(/^npm ci\b/m);
});
