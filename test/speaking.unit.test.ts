import { Code } from "@connectrpc/connect";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { timelineLimits } from "../src/limits.ts";
import { speaking } from "../src/speaking.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const heartbeatMs = 1_000 * timelineLimits.heartbeatSeconds;

/** Speaks some times, and then is silent until its caller gives up. */
async function* stream(messages: number, signal: AbortSignal): AsyncGenerator<number> {
  for (let i = 0; i < messages; i++) {
    signal.throwIfAborted();
    yield i;
    await vi.advanceTimersByTimeAsync(heartbeatMs);
  }
  await vi.advanceTimersByTimeAsync(3 * heartbeatMs);
  signal.throwIfAborted();
}

test("a stream that becomes silent fails, and one that speaks does not", async () => {
  const heard: number[] = [];
  const listen = async () => {
    for await (const message of speaking((signal) => stream(20, signal), new AbortController().signal)) {
      heard.push(message);
    }
  };
  await expect(listen()).rejects.toMatchObject({ code: Code.Unavailable, message: /silent/ });
  expect(heard).toHaveLength(20);
  expect(vi.getTimerCount()).toBe(0);
});

test("its caller ends a stream, which leaves no timer", async () => {
  const stop = new AbortController();
  const listen = async () => {
    for await (const message of speaking((signal) => stream(2, signal), stop.signal)) {
      expect(message).toBe(0);
      stop.abort(new Error("enough"));
    }
  };
  await expect(listen()).rejects.toThrow("enough");
  expect(vi.getTimerCount()).toBe(0);
});
