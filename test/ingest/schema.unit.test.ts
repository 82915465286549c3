import { Ajv2020 } from "ajv/dist/2020.js";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Fault } from "../../src/errors.ts";
import { metricUnits } from "../../src/limits.ts";
import { eventCategories, parseEvents, parseSnapshot } from "../../src/ingest/schema.ts";
import type { ReadOptions } from "../../src/ingest/validate.ts";
import { openapiDocument } from "../../src/openapi/document.ts";
import { JsonText } from "../../src/store/documents.ts";

/** Requests of all kinds, most of them nearly valid: at their limits, one beyond, and of wrong types. */
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

// Formats are annotations. Generators need date-time, but Ingest accepts more than RFC 3339, as the description says.
const ajv = new Ajv2020({ strict: false, validateFormats: false });
ajv.addSchema(openapiDocument(), "v1");
const documented = (name: string) => ajv.compile({ $ref: `v1#/components/schemas/${name}` });
const isEventBatch = documented("IngestEventBatch");
const isSnapshot = documented("IngestSnapshot");

const options: ReadOptions = { receivedAt: new Date("2026-04-19T12:05:00Z") };
const taken = <T>(parse: () => T): T | undefined => {
  try {
    return parse();
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
};
/** The schema reads objects that the driver would misread into JSON text. */
const written = (value: unknown) =>
  JSON.stringify(value, (_key, member: unknown) => (member instanceof JsonText ? JSON.parse(member.text) : member));
/** As JSON, because the schema is about JSON. */
const sent = (value: unknown) => JSON.parse(written(value) ?? "null") as unknown;

test("an accepted value fits the OpenAPI schema, and reading it again changes nothing", () => {
  fc.assert(
    fc.property(often(fc.record({ events: often(fc.array(event, { maxLength: 3 })) })), (one) => {
      const body = sent(one);
      const read = taken(() => parseEvents(body, options));
      if (read === undefined) return;
      expect(isEventBatch(withoutNulls(body)), JSON.stringify(isEventBatch.errors)).toBe(true);
      expect(parseEvents(sent(read), options)).toEqual(read);
    }),
    { numRuns: 3_000 },
  );
  fc.assert(
    fc.property(often(snapshot), (one) => {
      const body = sent(one);
      const read = taken(() => parseSnapshot(body, options));
      if (read === undefined) return;
      expect(isSnapshot(withoutNulls(body)), JSON.stringify(isSnapshot.errors)).toBe(true);
      // The order of members counts, too.
      expect(written(parseSnapshot(sent(read), options))).toBe(written(read));
    }),
    { numRuns: 3_000 },
  );
});

/** Removes optional members that are null, which count as absent. The schema does not say so. */
function withoutNulls(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value), function (_key, member: unknown) {
    return member === null && !Array.isArray(this) ? undefined : member;
  });
}

test("usual requests are taken unchanged", () => {
  const actor = { externalId: "crm-user-42", email: "Alex@example.org", displayName: "Alex Chen" };
  const metadata = { ticket_id: "SUP-431", tags: ["a", "b"], nested: { ok: true, size: 1.5, none: null } };
  const events = [
    { eventType: "ticket.resolved", category: "project_management", actor, duration: 240, metadata },
    { eventType: "ticket.resolved", category: "other", actor, timestamp: "2026-04-19T12:05Z" },
  ];
  const known = { ...actor, email: "alex@example.org" };
  expect(parseEvents({ events }, options).events).toEqual([
    { ...events[0], actor: known },
    { ...events[1], actor: known, timestamp: new Date("2026-04-19T12:05:00Z") },
  ]);
  const metrics = { open: 7, state: "busy", response: { value: 1.5, unit: "minutes", label: "First response" } };
  const body = { snapshotType: "tickets_open", actor, metrics, timestamp: "2026-04-19T12:05:00.250Z" };
  const timestamp = new Date("2026-04-19T12:05:00.250Z");
  expect(parseSnapshot(body, options)).toEqual({ ...body, actor: known, timestamp });
});

test("every optional member that is null counts as absent, and no other member may be null", () => {
  const none = { workerId: null, email: null, displayName: null };
  const actor = { externalId: "n1" };
  const event = { eventType: "ticket.opened", category: "other", actor };
  const nulls = { ...event, actor: { ...actor, ...none }, timestamp: null, duration: null, metadata: null };
  expect(parseEvents({ events: [nulls] }, options)).toEqual({ events: [event] });
  const shot = { snapshotType: "tickets_open", actor, metrics: { a: { value: 1 } } };
  const nullShot = { ...shot, metrics: { a: { value: 1, unit: null, label: null } }, timestamp: null, metadata: null };
  expect(parseSnapshot(nullShot, options)).toEqual(shot);
  for (const name of ["eventType", "category", "actor"]) {
    expect(taken(() => parseEvents({ events: [{ ...event, [name]: null }] }, options))).toBeUndefined();
  }
  for (const metrics of [null, { a: null }, { a: { value: null } }]) {
    expect(taken(() => parseSnapshot({ ...shot, metrics }, options))).toBeUndefined();
  }
});

test("unknown members are ignored, and named on request: at most 20, and none of metadata", () => {
  const event = {
    eventType: "ticket.opened",
    category: "other",
    actor: { externalId: "n1", mail: 1 },
    metdata: { a: 1 },
  };
  const ignored: string[] = [];
  const body = {
    events: [
      { ...event, metadata: { any: 1 } },
      { ...event, "x, y": 1 },
    ],
    more: true,
  };
  parseEvents(body, { ...options, ignored });
  expect(ignored).toEqual([
    "events[0].actor.mail",
    "events[0].metdata",
    "events[1].actor.mail",
    "events[1].metdata",
    "events[1].x, y",
    "more",
  ]);
  const many: string[] = [];
  const names = Array.from({ length: 1_000 }, (_, i) => [`${i}${"x".repeat(500)}`, 1]);
  parseEvents({ events: [{ ...event, ...Object.fromEntries(names) }] }, { ...options, ignored: many });
  expect(many).toHaveLength(20);
  expect(Math.max(...many.map(({ length }) => length))).toBeLessThan(100);
  const ofMeasure: string[] = [];
  const metrics = { a: { value: 1, unti: "count" } };
  const shot = { snapshotType: "tickets_open", actor: { externalId: "n1" }, metrics };
  expect(parseSnapshot(shot, { ...options, ignored: ofMeasure }).metrics).toEqual({ a: { value: 1 } });
  expect(ofMeasure).toEqual(["metrics.a.unti"]);
});
