import { expect, test } from "vitest";
import { Repeatable } from "../../console/src/repeatable.ts";

test("the same input repeats the whole request, and another one makes a new request", () => {
  const repeatable = new Repeatable();
  const form = new FormData();
  form.set("name", "laptop");
  const first = repeatable.of(form, { name: "laptop", expiresAt: 1 });
  expect(first).toEqual({ name: "laptop", expiresAt: 1, idempotencyKey: expect.stringMatching(/^[0-9a-f]{32}$/) });
  expect(repeatable.of(form, { name: "laptop", expiresAt: 2 })).toEqual(first);
  form.set("name", "desktop");
  const second = repeatable.of(form, { name: "desktop", expiresAt: 3 });
  expect(second).toMatchObject({ name: "desktop", expiresAt: 3 });
  expect(second.idempotencyKey).not.toBe(first.idempotencyKey);
});

test("the same input after an answer makes a new request", () => {
  const repeatable = new Repeatable();
  const { idempotencyKey } = repeatable.of(["send"], {});
  repeatable.answered();
  expect(repeatable.of(["send"], {}).idempotencyKey).not.toBe(idempotencyKey);
});
