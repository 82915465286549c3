import { create } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { Fault, type Issue } from "../../src/errors.ts";
import { EventsRequestSchema } from "../../src/gen/ingest/v1/ingest_pb.js";
import { parseDryRun } from "../../src/ingest/dry-run.ts";
import { parseEvents, parseSnapshot } from "../../src/ingest/schema.ts";
import { limits } from "../../src/limits.ts";
import { checkedJson } from "../../src/transport/rpc/json-check.ts";
import { spelledFor } from "../../src/transport/rpc/spelling.ts";
import { event, snapshot } from "../support/requests.ts";

function faultOf(work: () => unknown): Fault | undefined {
  try {
    work();
  } catch (error) {
    if (error instanceof Fault) return error;
    throw error;
  }
  return undefined;
}
const issuesOf = (work: () => unknown): readonly Issue[] => faultOf(work)?.issues ?? [];
const options = { receivedAt: new Date("2026-04-19T12:05:00.123Z") };
const ofEvent = (change: object) => issuesOf(() => parseEvents({ events: [{ ...event(), ...change }] }, options));

test.each([
  ["alex chen", "must be an email address; it has 9 characters, 0 of them '@'; character 5 is U+0020"],
  ["alex@chen@example.org", "must be an email address; it has 21 characters, 2 of them '@'"],
  ["@", "must be an email address; it has 1 character, 1 of them '@'"],
  [`alex@${"x".repeat(300)}`, "must have at most 254 characters; it has 305"],
  ["alex\ud800@example.org", "must be well-formed Unicode, without lone surrogates; character 5 is U+D800"],
  ['"alex"@example.org', "must be an email address; it has 18 characters, 1 of them '@'; character 1 is U+0022 ('\"')"],
  [4_917_012_345_678, "must be a string; it is a number"],
])("the error for the malformed email %j describes only its form", (email, message) => {
  expect(ofEvent({ actor: { email } })).toEqual([{ path: "events[0].actor.email", message }]);
});

test("a timestamp may be at most 24 hours after the time of receipt, and the message says so", () => {
  const late = "2026-04-20T12:05:00.123Z";
  const tooLate = "2026-04-20T12:05:00.124Z";
  const message = `must be at most 24 hours after the time of receipt (the server's clock says 2026-04-19T12:05:00.123Z); it is '${tooLate}'`;
  expect(ofEvent({ timestamp: late })).toEqual([]);
  expect(ofEvent({ timestamp: tooLate })).toEqual([{ path: "events[0].timestamp", message }]);
  const ofSnapshot = (timestamp: string) => issuesOf(() => parseSnapshot({ ...snapshot(), timestamp }, options));
  expect(ofSnapshot(late)).toEqual([]);
  expect(ofSnapshot(tooLate)).toEqual([{ path: "timestamp", message }]);
});

test("an issue within metadata has its path", () => {
  const of = (metadata: object) => ofEvent({ metadata }).map(({ path, message }) => `${path}: ${message}`);
  expect(of({ a: [1, { b: Number.NaN }] })).toEqual(["events[0].metadata.a[1].b: must be a finite number; it is NaN"]);
  expect(of({ a: { "b\0": 1 } })).toEqual(["events[0].metadata.a: must not have a NUL in a key"]);
  expect(of({ a: ["\ud800"] })).toEqual([
    "events[0].metadata.a[0]: must be well-formed Unicode, without lone surrogates; character 1 is U+D800",
  ]);
});

test("an issue within metrics names the member of a measure", () => {
  const of = (metric: unknown) =>
    issuesOf(() => parseSnapshot({ ...snapshot(), metrics: { open: metric } }, options)).map(({ path }) => path);
  expect(of({ value: 1, unit: "days" })).toEqual(["metrics.open.unit"]);
  expect(of({ value: "1", label: "" })).toEqual(["metrics.open.value", "metrics.open.label"]);
  expect(of({})).toEqual(["metrics.open.value"]);
});

describe("an issue says where it is, what is allowed and what was given", () => {
  test.each([
    [null, "body: must be an object; it is null"],
    ["text", "body: must be an object; it is 'text'"],
    [{}, "events: must be an array; it is missing"],
    [{ events: {} }, "events: must be an array; it is an object"],
    [{ events: [] }, "events: must have at least 1 entry; it has 0"],
    [{ events: [7] }, "events[0]: must be an object; it is 7"],
  ])("for the body %j", (body, expected) => {
    expect(issuesOf(() => parseEvents(body, options)).map(({ path, message }) => `${path}: ${message}`)).toEqual([
      expected,
    ]);
  });

  test.each([
    [
      { eventType: "no spaces" },
      "eventType",
      "must have 3 to 64 characters of A-Z a-z 0-9 _ . -, the first and the last a letter or digit; it is 'no spaces'; character 3 is U+0020",
    ],
    [
      { category: "none" },
      "category",
      expect.stringMatching(/^must be one of communication, .*, other; it is 'none'$/),
    ],
    [{ actor: undefined }, "actor", "must be an object; it is missing"],
    [{ actor: { externalId: "" } }, "actor.externalId", "must not be empty; it is ''"],
    [{ duration: Number.NaN }, "duration", "must be a whole number; it is NaN"],
    [{ actor: 7 }, "actor", "must be an object; it is 7"],
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
  ])("for an event with %j", (change, path, message) => {
    expect(ofEvent(change)).toEqual([{ path: `events[0].${path}`, message }]);
  });

  test("for a metric and for X-Dry-Run", () => {
    expect(issuesOf(() => parseSnapshot({ ...snapshot(), metrics: { open: null } }, options))).toEqual([
      { path: "metrics.open", message: expect.stringMatching(/^must be a finite number, .*; it is null$/) },
    ]);
    const many = Object.fromEntries(Array.from({ length: 5_000 }, (_, i) => [i, null]));
    expect(issuesOf(() => parseSnapshot({ ...snapshot(), metrics: many }, options))).toEqual([
      {
        path: "metrics",
        message: expect.stringMatching(/^must have at most \d+ bytes as compact JSON; it has 5\d{4}$/),
      },
    ]);
    expect(issuesOf(() => parseDryRun("yes"))).toEqual([
      { path: "X-Dry-Run", message: "must be true or false; it is 'yes'" },
    ]);
  });
});

test("an issue shows the beginning of a long text, only the hint of a key, and no lone surrogate", () => {
  const long = ofEvent({ actor: { externalId: "🙂".repeat(300) } });
  expect(long[0]?.message).toBe(`must have at most 200 characters; it is '${"🙂".repeat(4)}…' (300 characters)`);
  const key = ofEvent({ timestamp: `wp_live_${"0123456789abcdef".repeat(2)}` });
  expect(key[0]?.message).toMatch(/; it is 'wp_live_0123…'/);
  const lone = ofEvent({ actor: { externalId: "\ud800" } });
  expect(lone[0]?.message.isWellFormed()).toBe(true);
});

test("a refusal keeps its first issues only, because it lives until its answer has left, and counts all", () => {
  const events = Array<number>(480).fill(1);
  for (const fault of [
    faultOf(() => parseEvents({ events }, {})),
    faultOf(() => checkedJson(EventsRequestSchema, { events })),
  ] as Fault[]) {
    expect(fault.issues).toHaveLength(limits.issuesMax);
    expect(fault.issuesTotal).toBe(480);
    expect(fault.message).toMatch(/… and 460 more$/);
    expect(spelledFor(fault, EventsRequestSchema, create(EventsRequestSchema), "json").message).toBe(fault.message);
  }
});
