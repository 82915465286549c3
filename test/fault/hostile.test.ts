import { expect, inject, test } from "vitest";
import { attacks } from "./attacks.ts";
import { runHostile } from "./hostile.ts";

test("hostile callers harm no one: the service always serves a good caller, and stays up and bounded", async () => {
  const scale = { connections: 200, floodMs: 200, untilCut: false, calmMs: 0 };
  const run = await runHostile(inject("mongodbUri"), attacks, scale);
  expect(run.problems).toEqual([]);
  expect(run.attacks).toHaveLength(attacks.length);
}, 240_000);
