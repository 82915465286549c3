import { Fault } from "../errors.ts";
import { emailPattern, eventCategories, limits, metricUnits, typePattern } from "../limits.ts";
import { type CallerObject, isMisread, JsonText } from "../store/documents.ts";
import {
  arrayOf,
  described,
  email,
  finiteNumber,
  isRecord,
  matching,
  named,
  notUnicode,
  object,
  oneOf,
  optional,
  printable,
  text,
  time,
  wholeNumber,
} from "./shapes.ts";
import { given, invalidMember, Reading, type ReadOptions, type Shape, type TypeOf, validate } from "./validate.ts";

/**
 * The valid form of a request in every protocol: the JSON of the API reference. OpenAPI and the documentation derive
 * from these shapes and from the table of limits.
 */

export { eventCategories };

export const reportedType = matching(
  typePattern,
  /[^A-Za-z0-9_.-]/u,
  "have 3 to 64 characters of A-Z a-z 0-9 _ . -, the first and the last a letter or digit",
);

export const eventCategory = named("EventCategory", "The kind of work.", oneOf(eventCategories));

const timestamp = time(limits.timestampAheadSecondsMax);

export const actorSchema = named(
  "Actor",
  "The worker that the event is about: at least one of workerId, externalId and email. The first known id, in this order, names the worker.",
  object({
    workerId: described("The worker's own id: wrk_ and a ULID.", optional(text(limits.externalIdCharactersMax))),
    externalId: described("The worker's id in the calling app.", optional(text(limits.externalIdCharactersMax))),
    email: described(
      "The worker's email address, case-insensitive.",
      optional(email(emailPattern, limits.emailCharactersMax)),
    ),
    displayName: described(
      "The name to show; stored only while the worker has none.",
      optional(text(limits.displayNameCharactersMax)),
    ),
  }),
);

/** Facts about an object of the caller's that is stored as it is. */
interface Look {
  /** Upper bound of the value's size as compact JSON in UTF-8. */
  bytesMost: number;
  /** Whether the driver misreads the name of a member. */
  isMisread: boolean;
}

/** Longest number that JSON.stringify writes: -1.2345678901234567e-308. */
const numberBytesMax = 24;
/** Longest form of one UTF-16 unit: JSON escapes a control character as \u0000. */
const unitBytesMax = 6;

/** Visits every member down to `depthLeft`. The bound protects all later recursion. */
function lookAt(value: unknown, depthLeft: number, look: Look, reading: Reading): void {
  switch (typeof value) {
    case "string":
      look.bytesMost += 2 + value.length * unitBytesMax;
      if (!value.isWellFormed()) reading.refuse(notUnicode(value));
      return;
    case "number":
      look.bytesMost += numberBytesMax;
      if (!Number.isFinite(value)) reading.refuse(`must be a finite number${given(value)}`);
      return;
    case "object":
      break;
    default:
      look.bytesMost += "false".length;
      return;
  }
  look.bytesMost += "null".length;
  if (value === null) return;
  if (depthLeft === 0) return reading.refuse(`must be at most ${limits.metadataDepthMax} levels deep`);
  const names = Array.isArray(value) ? undefined : Object.keys(value);
  const count = names?.length ?? (value as unknown[]).length;
  for (let i = 0; i < count; i++) {
    const name = names?.[i] ?? i;
    const notes = reading.notes.length;
    look.bytesMost++;
    if (typeof name === "string") {
      look.bytesMost += 3 + name.length * unitBytesMax;
      if (isMisread(name)) look.isMisread = true;
      if (name.includes("\0")) return reading.refuse("must not have a NUL in a key");
      if (!name.isWellFormed()) return reading.refuse(notUnicode(name));
    }
    lookAt((value as Record<PropertyKey, unknown>)[name], depthLeft - 1, look, reading);
    // Stop at the first issue: a hostile object could have one for each of its members.
    if (reading.notes.length !== notes) return reading.below(name, notes);
  }
}

/** What is wrong with the size of a value as compact JSON; undefined if nothing is. */
function tooLong(value: unknown, bytesMax: number): string | undefined {
  const bytes = Buffer.byteLength(JSON.stringify(value));
  return bytes > bytesMax ? `must have at most ${bytesMax} bytes as compact JSON; it has ${bytes}` : undefined;
}

/** Validates an object that is stored as it is, and returns the form to store. */
function keep(value: CallerObject, bytesMax: number, reading: Reading): CallerObject | JsonText {
  const look: Look = { bytesMost: 0, isMisread: false };
  const notes = reading.notes.length;
  lookAt(value, limits.metadataDepthMax, look, reading);
  if (reading.notes.length !== notes) return value;
  if (look.bytesMost > bytesMax) {
    const problem = tooLong(value, bytesMax);
    if (problem !== undefined) return reading.refuse(problem);
  }
  return look.isMisread ? new JsonText(value) : value;
}

export const metadataSchema: Shape<CallerObject | JsonText> = {
  schema: {
    type: "object",
    additionalProperties: true,
    description: `Free-form data of yours: at most ${limits.metadataBytesMax} bytes as compact JSON in UTF-8, at most ${limits.metadataDepthMax} levels deep, no NUL in a key. Numbers are doubles: integers past 2^53 lose digits, so send those as text.`,
  },
  definitions: {},
  read(value, reading) {
    if (!isRecord(value)) return reading.refuse(`must be an object${given(value)}`);
    return keep(value, limits.metadataBytesMax, reading);
  },
};

const label = text(limits.labelCharactersMax);

const measure = named(
  "Measure",
  "A number with its unit and label.",
  object({
    value: finiteNumber,
    unit: optional(named("MetricUnit", "What the number counts.", oneOf(metricUnits))),
    label: optional(label),
  }),
);

export type Metric = number | string | TypeOf<typeof measure>;

export const metricSchema: Shape<Metric> = named<Shape<Metric>>(
  "Metric",
  "A number, a label, or a number with its unit and label.",
  {
    schema: { anyOf: [finiteNumber.schema, label.schema, measure.schema] },
    definitions: measure.definitions,
    read(value, reading) {
      if (isRecord(value)) return measure.read(value, reading);
      if (typeof value === "number" && Number.isFinite(value)) return value;
      const notes = reading.notes.length;
      if (typeof value === "string") label.read(value, reading);
      if (typeof value === "string" && reading.notes.length === notes) return value;
      reading.notes.length = notes;
      const form = `a label of 1 to ${limits.labelCharactersMax} characters, or {value, unit, label}`;
      return reading.refuse(`must be a finite number, ${form}${given(value)}`);
    },
  },
);

const metrics: Shape<CallerObject | JsonText> = {
  schema: {
    type: "object",
    minProperties: 1,
    additionalProperties: metricSchema.schema,
    description: `The figures by name; at most ${limits.metricsBytesMax} bytes as compact JSON.`,
  },
  definitions: metricSchema.definitions,
  read(value, reading) {
    if (!isRecord(value)) return reading.refuse(`must be an object${given(value)}`);
    const names = Object.keys(value);
    if (names.length === 0) return reading.refuse("must have at least one metric");
    // Each takes at least five bytes, so that many do not fit. Each could have an issue of its own.
    const problem = 5 * names.length > limits.metricsBytesMax ? tooLong(value, limits.metricsBytesMax) : undefined;
    if (problem !== undefined) return reading.refuse(problem);
    const before = reading.notes.length;
    const kept: Record<string, unknown> = {};
    for (const name of names) {
      const notes = reading.notes.length;
      const metric = metricSchema.read(value[name], reading);
      if (reading.notes.length !== notes) reading.below(name, notes);
      // A plain assignment would set the prototype.
      if (name === "__proto__") Object.defineProperty(kept, name, { value: metric, ...ownMember });
      else kept[name] = metric;
    }
    // A note without a message is an ignored member, which is no issue.
    const fits = reading.notes.slice(before).every(({ message }) => message === undefined);
    return fits ? keep(kept, limits.metricsBytesMax, reading) : kept;
  },
};

const ownMember = { enumerable: true, configurable: true, writable: true } as const;

export const eventSchema = named(
  "IngestEvent",
  "Something that a worker did.",
  object({
    eventType: described("What happened. Must be whitelisted for the app.", reportedType),
    category: eventCategory,
    actor: actorSchema,
    timestamp: described("When the event happened. Default: the time of receipt.", optional(timestamp)),
    duration: described("How long it took, in whole seconds.", optional(wholeNumber(0, limits.durationSecondsMax))),
    metadata: optional(metadataSchema),
    eventId: described(
      "Your name for the event, unique per app for as long as the event is stored. An event that is sent again with it is accepted, but stored and charged only once.",
      optional(printable(limits.eventIdCharactersMax)),
    ),
  }),
);

export const eventsSchema = named(
  "IngestEventBatch",
  "A batch of events. Each one is accepted or rejected on its own.",
  object({ events: arrayOf(eventSchema, 1, limits.eventsMax) }),
);

export const snapshotSchema = named(
  "IngestSnapshot",
  "The current figures of a worker.",
  object({
    snapshotType: described("A stable id for this kind of snapshot.", reportedType),
    actor: actorSchema,
    timestamp: described("When the figures were true. Default: the time of receipt.", optional(timestamp)),
    metrics,
    metadata: optional(metadataSchema),
  }),
);

export type Actor = TypeOf<typeof actorSchema>;
export type IngestEvent = TypeOf<typeof eventSchema>;
declare const validated: unique symbol;
/** Only `parseEvents` makes it, so the type proves the validation. */
export type EventsRequest = TypeOf<typeof eventsSchema> & { readonly [validated]: true };
/** Only `parseSnapshot` makes it. */
export type SnapshotRequest = TypeOf<typeof snapshotSchema> & { readonly [validated]: true };

/**
 * Comes before any check of the events, so that the answer is the same over every protocol.
 * @throws Fault batch_too_large.
 */
export function checkEventCount(body: unknown): void {
  const events = isRecord(body) ? body.events : undefined;
  if (Array.isArray(events) && events.length > limits.eventsMax) {
    throw new Fault("batch_too_large", `events has ${events.length} entries; at most ${limits.eventsMax} are allowed.`);
  }
}

/**
 * Validates a batch.
 * @throws Fault batch_too_large above 500 events; invalid_body with one issue for each problem.
 */
export function parseEvents(body: unknown, options: ReadOptions): EventsRequest {
  checkEventCount(body);
  return validate(eventsSchema, body, options) as EventsRequest;
}

/** Validates a snapshot. @throws Fault invalid_body with one issue for each problem. */
export function parseSnapshot(body: unknown, options: ReadOptions): SnapshotRequest {
  return validate(snapshotSchema, body, options) as SnapshotRequest;
}

const idempotencyKey = printable(limits.idempotencyKeyCharactersMax);
export const idempotencyKeySchema = idempotencyKey.schema;

/** Validates an Idempotency-Key; undefined stays undefined. @throws Fault invalid_body. */
export function parseIdempotencyKey(value: string | undefined): string | undefined {
  if (value === undefined) return undefined;
  const reading = new Reading({});
  idempotencyKey.read(value, reading);
  const [problem] = reading.notes;
  if (problem?.message === undefined) return value;
  throw invalidMember("Idempotency-Key", problem.message);
}
