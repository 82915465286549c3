import { MongoServerError } from "mongodb";
import { expect, test, vi } from "vitest";
import { Fault } from "../../src/errors.ts";
import { bounded, databaseTimeouts, isPassing, retried } from "../../src/store/database.ts";

test("a command that the driver never settles counts as lost, and the answer is unavailable", async () => {
  vi.useFakeTimers();
  try {
    let calls = 0;
    const failed = retried(() => (calls++, new Promise<never>(() => {}))).catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(databaseTimeouts.operationMs);
    const fault = await failed;
    expect(fault).toBeInstanceOf(Fault);
    expect(fault).toMatchObject({ code: "internal_error", retryAfterSeconds: expect.any(Number) });
    expect(calls).toBe(1);
    expect(await bounded(Promise.resolve(7))).toBe(7);
    expect(vi.getTimerCount()).toBe(0);
  } finally {
    vi.useRealTimers();
  }
});

test.each([
  [43, "cursor id 1 not found"],
  [134, "read concern majority is not available yet"],
  [175, "Executor error during getMore :: caused by :: the catalog was closed and reopened"],
  [237, "cursor was killed"],
])("an error after a failover or a rollback is passing: code %i", (code, message) => {
  expect(isPassing(new MongoServerError({ code, message }))).toBe(true);
  expect(isPassing(new MongoServerError({ code: 2, message: "bad value" }))).toBe(false);
});
