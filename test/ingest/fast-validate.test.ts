import fc from "fast-check";
import { expect, test } from "vitest";
import { plainEvents, plainSnapshot } from "../../src/ingest/fast-validate.ts";
import { metricUnits } from "../../src/limits.ts";
import { eventCategories, eventsSchema, parseEvents, parseSnapshot, snapshotSchema } from "../../src/ingest/schema.ts";

/** Requests of all kinds, most of them nearly valid: at their bounds, one beyond, and of the wrong type. */
const anything = fc.anything({ maxDepth: 2, withNullPrototype: false });
const often = <T>(valid: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 40, arbitrary: valid }, { weight: 1, arbitrary: anything });
const optional = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(often(arbitrary), { nil: undefined });
const text = fc.oneof(
  { weight: 20, arbitrary: fc.string({ unit: "grapheme", minLength: 1, maxLength: 12 }) },
  fc.string({ unit: "binary", maxLength: 12 }),
  fc.emailAddress(),
  fc.constantFrom("", "a".repeat(200), "a".repeat(201), "😀".repeat(200), "\ud800", "nul\0", "a@b.c", "A@B.C", "a@b@c"),
);
const type = fc.oneof(
  { weight: 40, arbitrary: fc.constantFrom("ticket.resolved", "abc", "a".repeat(64)) },
  fc.constantFrom("ab", "a".repeat(65), ".abc", "abc.", "abc\n"),
);
const time = fc.oneof(
  {
    weight: 20,
    arbitrary: fc
      .date({ min: new Date(-6.3e13), max: new Date(2.6e14), noInvalidDate: true })
      .map((date) => date.toISOString()),
  },
  fc.constantFrom(
    "2026-04-19T12:05:00Z",
    "2026-04-19T12:05:00.5Z",
    "2026-04-19T12:05:00.000Z",
    "2026-02-30T12:05:00Z",
    "2026-04-19T24:00:00Z",
    "2026-04-19T12:05:60Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999Z",
    "2026-04-19T12:05:00+02:00",
    "2026-04-19T12:05Z",
    "2026-04-19 12:05:00Z",
    "Sun Apr 19 12:05:00Z",
  ),
);
const name = fc.oneof(
  { weight: 40, arbitrary: fc.string({ maxLength: 8 }) },
  fc.constantFrom("__proto__", "_bsontype", "toJSON", "a.b", "$set", "", "\ud800", "nul\0", "constructor"),
);
const duration = fc.oneof(
  { weight: 20, arbitrary: fc.integer({ min: 0, max: 86_400 }) },
  fc.double(),
  fc.constantFrom(-0, 86_401, -1, 0.5),
);
const number = fc.oneof(
  { weight: 20, arbitrary: fc.integer() },
  fc.double(),
  fc.constantFrom(0, -0, 86_400, 86_401, -1, 0.5),
);
const json = fc.letrec<{ value: unknown; object: object }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    fc.constantFrom(null, true, false),
    number,
    text,
    fc.array(tie("value"), { maxLength: 3 }),
    tie("object"),
  ),
  object: fc.array(fc.tuple(name, tie("value")), { maxLength: 4 }).map((members) => Object.fromEntries(members)),
}));
const deep = fc.integer({ min: 1, max: 34 }).map((levels) => {
  let value: object = {};
  for (let level = 1; level < levels; level++) value = level % 2 === 0 ? { value } : [value];
  return { value };
});
const large = fc.integer({ min: 2_600, max: 17_000 }).map((length) => ({ text: "x".repeat(length) }));
const metadata = fc.oneof({ weight: 8, arbitrary: json.object }, deep, large);
const actor = fc.record({
  workerId: optional(text),
  externalId: optional(text),
  email: optional(fc.oneof({ weight: 10, arbitrary: fc.constantFrom("a@b.c", "A@B.C", "ß@É.org") }, text)),
  displayName: optional(text),
});
const event = fc.record(
  {
    eventType: often(type),
    category: often(fc.constantFrom(...eventCategories)),
    actor: often(actor),
    timestamp: optional(time),
    duration: optional(duration),
    metadata: optional(metadata),
    unknown: anything,
  },
  { requiredKeys: ["eventType", "category", "actor"] },
);
const metric = fc.oneof(
  number,
  text,
  fc.record(
    {
      value: often(number),
      unit: optional(often(fc.constantFrom(...metricUnits))),
      label: optional(text),
      unknown: anything,
    },
    { requiredKeys: ["value"] },
  ),
);
const snapshot = fc.record(
  {
    snapshotType: often(type),
    actor: often(actor),
    timestamp: optional(time),
    metrics: often(
      fc.array(fc.tuple(name, often(metric)), { maxLength: 3 }).map((members) => Object.fromEntries(members)),
    ),
    metadata: optional(metadata),
  },
  { requiredKeys: ["snapshotType", "actor", "metrics"] },
);

test("events recognised as the plain case come out as they do from the schema", () => {
  fc.assert(
    fc.property(often(fc.record({ events: often(fc.array(event, { maxLength: 3 })) })), (body) => {
      const plain = plainEvents(body);
      if (plain !== undefined) expect(plain).toEqual(eventsSchema.parse(body));
    }),
    { numRuns: 5_000 },
  );
});

test("a snapshot recognised as the plain case comes out as it does from the schema", () => {
  fc.assert(
    fc.property(often(snapshot), (body) => {
      const plain = plainSnapshot(body);
      if (plain === undefined) return;
      expect(plain).toEqual(snapshotSchema.parse(body));
      // Stored as it comes: the order of members is part of it.
      expect(JSON.stringify(plain.metrics)).toBe(JSON.stringify(snapshotSchema.parse(body).metrics));
    }),
    { numRuns: 5_000 },
  );
});

test("what callers usually send is recognised", () => {
  const actor = { externalId: "crm-user-42", email: "Alex@example.org", displayName: "Alex Chen" };
  const metadata = { ticket_id: "SUP-431", tags: ["a", "b"], nested: { ok: true, size: 1.5, none: null } };
  const events = [
    { eventType: "ticket.resolved", category: "project_management", actor, duration: 240, metadata },
    { eventType: "ticket.resolved", category: "other", actor, timestamp: "2026-04-19T12:05:00Z" },
  ];
  expect(plainEvents({ events })).toBeDefined();
  expect(parseEvents({ events })).toEqual(eventsSchema.parse({ events }));
  const metrics = { open: 7, state: "busy", response: { value: 1.5, unit: "minutes", label: "First response" } };
  const body = { snapshotType: "tickets_open", actor, metrics, timestamp: "2026-04-19T12:05:00.250Z" };
  expect(plainSnapshot(body)).toBeDefined();
  expect(parseSnapshot(body)).toEqual(snapshotSchema.parse(body));
});
