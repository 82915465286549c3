import { expect, test } from "vitest";
import { seedOf } from "./seed.ts";

test("a seed is the given integer, or a random one", () => {
  expect([seedOf("0"), seedOf("4294967295")]).toEqual([0, 4294967295]);
  expect(seedOf(String(seedOf(undefined)))).toBeTypeOf("number");
});

test.each(["--help", "", "-1", "1.5", "4294967296"])("the seed %j is refused", (argument) => {
  expect(() => seedOf(argument)).toThrow(`The seed is ${JSON.stringify(argument)}. Give an integer from 0`);
});
