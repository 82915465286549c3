import { expect, test, vi } from "vitest";
import { Fault } from "../../src/errors.ts";
import { bounded, databaseTimeouts, retried } from "../../src/store/database.ts";

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
