import { expect, test } from "vitest";
import { crash } from "./crash.ts";

test("instances and mongod are killed under load, and every acknowledged event is stored exactly once", async () => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  console.log(`seed ${seed}`);
  const result = await crash({
    ...{ seed, instances: 2, clients: 6, instanceKills: 3, databaseKills: 1, pauseMsMax: 500 },
    report: () => {},
  });
  expect(result.problems).toEqual([]);
  expect(result).toMatchObject({ lost: 0, doubled: 0, unasked: 0, wrongCards: 0 });
  expect(result.rows).toBeGreaterThanOrEqual(result.acknowledgedEvents);
  expect(result.acknowledgedEvents).toBeGreaterThan(0);
  expect(result.quotaAfter).toBe(result.rows);
  console.log(`${result.answered} requests, ${result.acknowledgedEvents} events: lost 0, doubled 0`);
}, 240_000);
