import { expect, inject, test } from "vitest";
import { attacks } from "./attacks.ts";
import { runHostile } from "./hostile.ts";

test("hostile callers hurt nobody: a good one beside them is always served, and the service stays up and bounded", async () => {
  const scale = { connections: 200, floodMs: 200, untilCut: false, calmMs: 0 };
  const run = await runHostile(inject("mongodbUri"), attacks, scale);
  expect(run.problems).toEqual([]);
  expect(run.attacks).toHaveLength(attacks.length);
}, 240_000);
