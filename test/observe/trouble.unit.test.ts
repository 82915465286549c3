import { expect, test } from "vitest";
import { createLogger } from "../../src/observe/log.ts";
import { TroubleLog } from "../../src/observe/trouble.ts";

function start() {
  const lines: Record<string, unknown>[] = [];
  const logger = createLogger({
    level: "info",
    destination: { write: (line: string) => void lines.push(JSON.parse(line)) },
  });
  const clock = { ms: 0 };
  const trouble = new TroubleLog({ logger, now: () => clock.ms, everyMs: 60_000 });
  return { lines, clock, trouble };
}

test("the log has a background failure once with its cause, then a count, then its end", () => {
  const { lines, clock, trouble } = start();
  for (let i = 0; i < 100; i++) {
    trouble.onError(new Error(`connection ${i} to 10.0.0.1:27017 was lost`));
    clock.ms += 500;
  }
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatchObject({
    msg: "background work failed",
    err: { message: expect.stringContaining("connection 0") },
  });
  trouble.sum();
  expect(lines[1]).toMatchObject({ msg: "background work failed 99 more times", times: 100, seconds: 50 });
  trouble.sum();
  expect(lines).toHaveLength(2);
  clock.ms += 60_000;
  trouble.sum();
  expect(lines[2]).toMatchObject({ msg: "background work no longer fails", times: 100, seconds: 50 });
  trouble.onError(new Error("connection 7 to 10.0.0.1:27017 was lost"));
  expect(lines[3]).toMatchObject({ msg: "background work failed" });
  trouble.stop();
});

test("failures of different kinds have separate counts, and the number of kinds is bounded", () => {
  const { lines, trouble } = start();
  const letters = (i: number) => String.fromCharCode(103 + (i % 20)).repeat(1 + Math.floor(i / 20));
  for (let i = 0; i < 500; i++) trouble.onError(new Error(`failure ${letters(i)}`));
  expect(lines).toHaveLength(51);
  trouble.stop();
});
