import { describe, expect, test } from "vitest";
import { Fault, type Issue } from "../../src/errors.ts";
import { parseDryRun } from "../../src/ingest/dry-run.ts";
import { parseEvents, parseSnapshot } from "../../src/ingest/schema.ts";
import { event, snapshot } from "../support/requests.ts";

function issuesOf(work: () => unknown): readonly Issue[] {
  try {
    work();
  } catch (error) {
    if (error instanceof Fault) return error.issues;
    throw error;
  }
  return [];
}
const ofEvent = (change: object) => issuesOf(() => parseEvents({ events: [{ ...event(), ...change }] }));

describe("an issue says where, what is allowed and what was given", () => {
  test.each([
    [null, "body: must be an object; it is null"],
    ["text", "body: must be an object; it is 'text'"],
    [{}, "events: must be an array; it is missing"],
    [{ events: {} }, "events: must be an array; it is an object"],
    [{ events: [] }, "events: must have at least 1 entry; it has 0"],
    [{ events: [7] }, "events[0]: must be an object; it is 7"],
  ])("of the body %j", (body, expected) => {
    expect(issuesOf(() => parseEvents(body)).map(({ path, message }) => `${path}: ${message}`)).toEqual([expected]);
  });

  test.each([
    [
      { eventType: "no spaces" },
      "eventType",
      "must have 3 to 64 characters of A-Z a-z 0-9 _ . -, the first and the last a letter or digit; it is 'no spaces'",
    ],
    [
      { category: "none" },
      "category",
      expect.stringMatching(/^must be one of communication, .*, other; it is 'none'$/),
    ],
    [{ actor: undefined }, "actor", "must be an object; it is missing"],
    [{ actor: { externalId: "" } }, "actor.externalId", "must not be empty; it is ''"],
    [{ actor: { email: "nobody" } }, "actor.email", "must be an email address; it is 'nobody'"],
    [{ duration: -1 }, "duration", "must be at least 0; it is -1"],
    [{ duration: 86_401 }, "duration", "must be at most 86400; it is 86401"],
    [{ duration: 1.5 }, "duration", "must be a whole number; it is 1.5"],
    [{ duration: "1" }, "duration", "must be a whole number; it is '1'"],
    [
      { timestamp: "noon" },
      "timestamp",
      "must be an ISO 8601 time with an offset, such as 2026-04-19T12:05:00Z; it is 'noon'",
    ],
    [{ metadata: [] }, "metadata", "must be an object; it is an array"],
    [
      { metadata: { a: "x".repeat(20_000) } },
      "metadata",
      "must have at most 16384 bytes as compact JSON; it has 20008",
    ],
  ])("of an event with %j", (change, path, message) => {
    expect(ofEvent(change)).toEqual([{ path: `events[0].${path}`, message }]);
  });

  test("of a metric and of X-Dry-Run", () => {
    expect(issuesOf(() => parseSnapshot({ ...snapshot(), metrics: { open: null } }))).toEqual([
      { path: "metrics.open", message: expect.stringMatching(/^must be a finite number, .*; it is null$/) },
    ]);
    expect(issuesOf(() => parseDryRun("yes"))).toEqual([
      { path: "X-Dry-Run", message: "must be true or false; it is 'yes'" },
    ]);
  });
});

test("of a long text the beginning is shown, of a key nothing but its hint, of a lone surrogate nothing that is no Unicode", () => {
  const long = ofEvent({ actor: { externalId: "🙂".repeat(300) } });
  expect(long[0]?.message).toBe(`must have at most 200 characters; it is '${"🙂".repeat(5)}…' (300 characters)`);
  const key = ofEvent({ timestamp: `wp_live_${"0123456789abcdef".repeat(2)}` });
  expect(key[0]?.message).toMatch(/; it is 'wp_live_0123…'/);
  const lone = ofEvent({ actor: { externalId: "\ud800" } });
  expect(lone[0]?.message.isWellFormed()).toBe(true);
});
