import { create } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { fatesOf, isOther, readBody, refusalsOf } from "../../console/src/body.ts";
import { jsonLines } from "../../console/src/json-lines.ts";
import { type RecordedRequest, RecordedRequestSchema, RequestOutcome } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { createIdSource, eventIds } from "../../src/ids.ts";

const requestId = createIdSource().next("req");
const rowId = eventIds(requestId);
const record = (members: Partial<RecordedRequest>) =>
  create(RecordedRequestSchema, { requestId, rpc: "Events", ...members } as never);
const rejection = (index: number, code = "forbidden_event_type") => ({ index, code, message: `because of ${code}` });

describe("the body of a request", () => {
  test.each([
    ['{"events": [{"a": 1}, 2]}', "Events", [{ a: 1 }, 2], true],
    ['[{"a": 1}]', "Events", [{ a: 1 }], true],
    ['{"a": 1}\n\n{"a": 2}\n', "Events", [{ a: 1 }, { a: 2 }], true],
    ['{"eventType": "x"}', "Events", [{ eventType: "x" }], false],
    ['{"snapshotType": "x", "events": []}', "Snapshots", [{ snapshotType: "x", events: [] }], false],
  ])("is read as people have it: %s", (given, rpc, items, isBatch) => {
    expect(readBody(given, rpc)).toEqual({ items, isBatch });
  });

  test.each([
    ["", /Paste the body first/],
    ['{"events": [', /This is not JSON \(.+\)\. Paste the body alone: \{"events": /],
    ["curl https://…", /This is not JSON/],
    ['{"a": 1}\n{"a": \n', /Line 2 is not JSON/],
    ["7", /not an object or an array/],
    [" ".repeat(9) + "x".repeat(10_000_001), /10,000,010 characters; this page reads up to 10,000,000/],
  ])("is refused with what is allowed: %.20s", (given, message) => {
    expect(() => readBody(given, "Events")).toThrow(message);
  });

  test("has each refusal at its event, and the accepted events with their rows", () => {
    const partly = record({
      ...{ outcome: RequestOutcome.PARTLY_ACCEPTED, accepted: 2, rejected: 2 },
      ...{ rejections: [rejection(1), rejection(3, "missing_actor")] as never, eventIds: [rowId(0)] },
    });
    const body = { items: [{}, {}, {}, {}], isBatch: true };
    expect(fatesOf(partly, body)).toMatchObject([
      { kind: "accepted", rowId: rowId(0) },
      { kind: "refused", refusals: [{ path: "eventType" }] },
      { kind: "accepted", rowId: undefined },
      { kind: "refused", refusals: [{ path: "actor" }] },
    ]);
    expect(isOther(partly, body)).toBe(false);
    expect(isOther(partly, { items: [{}], isBatch: true })).toBe(true);
  });

  test("leaves open what became of events after the last refusal that the record keeps", () => {
    const many = record({ accepted: 1, rejected: 40, rejections: [rejection(1)] as never, eventIds: [rowId(3)] });
    const fates = fatesOf(many, { items: Array(5).fill({}), isBatch: true }).map(({ kind }) => kind);
    expect(fates).toEqual(["accepted", "refused", "uncertain", "accepted", "uncertain"]);
  });

  test("has what the message of a whole refusal says about its members", () => {
    const refused = record({
      outcome: RequestOutcome.REFUSED,
      code: "invalid_body",
      reason:
        "events[1].actor.email: must be an email address; it has 4 characters; events[1].eventType: must be a string; " +
        "it is missing; events[2].metadata.my key: must be short; it is 'a; b'; … and 3 more",
    });
    expect(refusalsOf(refused).map(({ index, path, message }) => [index, path, message])).toEqual([
      [1, "actor.email", "must be an email address; it has 4 characters"],
      [1, "eventType", "must be a string; it is missing"],
      [2, "metadata.my key", "must be short; it is 'a; b'; … and 3 more"],
    ]);
    const body = { items: [{}, {}, {}], isBatch: true };
    expect(fatesOf(refused, body).map(({ kind }) => kind)).toEqual(["unstored", "refused", "refused"]);
    expect(isOther(refused, body)).toBe(false);
    expect(isOther(refused, { items: [{}, {}], isBatch: true })).toBe(true);
    const snapshot = record({ rpc: "Snapshots", code: "forbidden_event_type", reason: "snapshotType 'x' is …" });
    expect(fatesOf(snapshot, { items: [{}], isBatch: false })).toMatchObject([
      { kind: "refused", refusals: [{ path: "snapshotType" }] },
    ]);
  });
});

describe("the lines of an event", () => {
  const marked = (value: unknown, path: string, isMissing = false) =>
    jsonLines(value, [{ path, isMissing }])
      .filter(({ isMarked }) => isMarked)
      .map(({ text }) => text.trim());

  test.each([
    [{ event_type: "x", a: 1 }, "eventType", ['"event_type": "x",']],
    [{ actor: { email: "x" } }, "actor.email", ['"email": "x"']],
    [{ metadata: { "a.b": [1, { c: 2 }] } }, "metadata.a.b[1].c", ['"c": 2']],
    [{ metadata: { "a rather long name": 1 } }, "metadata.a rather l…", ['"a rather long name": 1']],
    [{ tags: [0, 1] }, "tags[1]", ["1"]],
    [{ actor: { email: "x" } }, "actor", ['"actor": {', '"email": "x"', "}"]],
    [{ a: { b: 1 } }, "a.gone", ['"a": {', "}"]],
  ])("mark the member that a refusal names: %j %s", (value, path, lines) => {
    expect(marked(value, path)).toEqual(lines);
  });

  test("say what is missing", () => {
    expect(marked({ a: 1 }, "eventType", true)).toEqual(['"eventType" is missing']);
    expect(marked({}, "actor.email", true)).toEqual(['"actor" is missing']);
  });

  test("are few and short, whatever the event is, and have what is marked", () => {
    const wide = Object.fromEntries(Array.from({ length: 5_000 }, (_, i) => [`member${i}`, "x".repeat(5_000)]));
    let deep: unknown = 1;
    for (let i = 0; i < 1_000; i++) deep = { deep, other: Array(50).fill({}) };
    const lines = jsonLines({ deep, metadata: wide }, [{ path: "metadata.member4999", isMissing: false }]);
    expect(lines.length).toBeLessThan(300);
    expect(Math.max(...lines.map(({ text }) => text.length))).toBeLessThan(700);
    expect(lines.filter(({ isMarked }) => isMarked).map(({ text }) => text.trim().slice(0, 12))).toEqual([
      '"member4999"',
    ]);
  });

  test("show control and direction characters as escapes", () => {
    expect(jsonLines({ "a\u202e": "\u0000\u2066" }, []).map(({ text }) => text)).toContain(
      '  "a\\u202e": "\\u0000\\u2066"',
    );
  });
});
