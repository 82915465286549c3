import { z } from "zod";
import { Fault } from "../errors.ts";
import { emailPattern, eventCategories, limits, metricUnits, typePattern } from "../limits.ts";
import { storable } from "../store/documents.ts";
import { plainEvents, plainSnapshot } from "./fast-validate.ts";
import { invalidBody, validate } from "./validate.ts";

/**
 * What a request must look like, whatever the protocol: the JSON of the API reference. Everything else that says what is
 * allowed (OpenAPI, documentation) derives from these schemas and from the table of limits.
 */

export { eventCategories };

const wellFormed = (text: string) => text.isWellFormed();
const notUnicode = "must be well-formed Unicode (it has a lone surrogate)";

/** Characters are Unicode code points, as in JSON Schema and protobuf: an emoji is one, though two of JavaScript's units. */
const isAtMost = (value: string, charactersMax: number) =>
  value.length <= charactersMax || (value.length <= 2 * charactersMax && [...value].length <= charactersMax);

const text = (charactersMax: number) =>
  z
    .string()
    .min(1, "must not be empty")
    .refine((value) => isAtMost(value, charactersMax), `must have at most ${charactersMax} characters`)
    .refine(wellFormed, notUnicode)
    .meta({ override: { type: "string", minLength: 1, maxLength: charactersMax } });

const reportedType = z
  .string()
  .regex(typePattern, "must have 3 to 64 characters of A-Z a-z 0-9 _ . -, the first and the last a letter or digit");

const timestamp = z.iso
  .datetime({ offset: true, error: "must be an ISO 8601 time with an offset, such as 2026-04-19T12:05:00Z" })
  .transform((value) => new Date(value))
  .refine((date) => !Number.isNaN(date.getTime()), "must be a time that exists")
  // What google.protobuf.Timestamp can say; an offset can lead out of it.
  .refine(
    (date) => !(date.getUTCFullYear() < 1 || date.getUTCFullYear() > 9999),
    "must be in the years 1 to 9999, UTC",
  );

/**
 * What is wrong with a value that is kept as it came, or undefined. Bounds depth first: nothing below may recurse freely.
 * Looks at no more members than fit `bytesMax`.
 */
function problemOfJson(value: unknown, bytesMax: number): string | undefined {
  const open: { value: unknown; depth: number }[] = [{ value, depth: 1 }];
  let members = 0;
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { value, depth } = next;
    if (typeof value === "string") {
      if (!value.isWellFormed()) return notUnicode;
    } else if (typeof value === "number") {
      if (!Number.isFinite(value)) return "must hold finite numbers only";
    } else if (typeof value === "object" && value !== null) {
      if (depth > limits.metadataDepthMax) return `must be at most ${limits.metadataDepthMax} levels deep`;
      const keys = Array.isArray(value) ? undefined : Object.keys(value);
      members += (keys ?? (value as unknown[])).length;
      if (members * memberBytesMin > bytesMax) return tooLarge(bytesMax);
      for (const key of keys ?? []) {
        if (key.includes("\0")) return "must not have a NUL in a key";
        if (!key.isWellFormed()) return notUnicode;
      }
      for (const member of keys === undefined ? (value as unknown[]) : Object.values(value)) {
        if (typeof member !== "boolean" && member !== null) open.push({ value: member, depth: depth + 1 });
      }
    }
  }
  const bytes = Buffer.byteLength(JSON.stringify(value));
  return bytes > bytesMax ? `${tooLarge(bytesMax)}; it has ${bytes}` : undefined;
}

/** Of a member in compact JSON: a digit and a comma. */
const memberBytesMin = 2;
const tooLarge = (bytesMax: number) => `must have at most ${bytesMax} bytes as compact JSON`;

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const anyObject = z
  .custom<Record<string, unknown>>(isRecord, "must be an object")
  .meta({ override: { type: "object", additionalProperties: true } });

/** An object kept as it came: no member is dropped, whatever its name. */
function openObject(bytesMax: number) {
  return anyObject
    .superRefine((value, context) => {
      const problem = problemOfJson(value, bytesMax);
      if (problem !== undefined) context.addIssue({ code: "custom", message: problem });
    })
    .transform(storable);
}

const metadata = openObject(limits.metadataBytesMax).meta({
  override: { type: "object", additionalProperties: true },
  description: `Anything else worth keeping: at most ${limits.metadataBytesMax} bytes as compact JSON in UTF-8, at most ${limits.metadataDepthMax} levels deep, no NUL in a key.`,
});

export const actorSchema = z
  .object({
    workerId: text(limits.externalIdCharactersMax)
      .optional()
      .meta({ description: "The worker's own id: wrk_ and a ULID." }),
    externalId: text(limits.externalIdCharactersMax)
      .optional()
      .meta({ description: "The worker's id in the calling app." }),
    email: text(limits.emailCharactersMax)
      .regex(emailPattern, "must be an email address")
      .transform((address) => address.toLowerCase())
      .optional()
      .meta({ description: "The worker's address; upper and lower case are the same." }),
    displayName: text(limits.displayNameCharactersMax)
      .optional()
      .meta({ description: "Name for people; used when the worker has none yet." }),
  })
  .meta({
    id: "Actor",
    description:
      "Whose event this is: at least one of workerId, externalId and email. The first known one decides, in this order.",
  });

/** For what requests and answers share: a request may have further members, so its description must not forbid them. */
const additionalMembers = ({ jsonSchema }: { jsonSchema: { additionalProperties?: unknown } }): void => {
  delete jsonSchema.additionalProperties;
};

const metricUnit = z
  .enum(metricUnits, `must be one of ${metricUnits.join(", ")}`)
  .meta({ id: "MetricUnit", description: "What the number counts." });

export const metricSchema = z
  .union(
    [
      z.number(),
      text(limits.labelCharactersMax),
      z
        .object({
          value: z.number(),
          unit: metricUnit.optional(),
          label: text(limits.labelCharactersMax).optional(),
        })
        .meta({ override: additionalMembers }),
    ],
    `must be a finite number, a label of 1 to ${limits.labelCharactersMax} characters, or {value, unit, label}`,
  )
  .meta({ id: "Metric", description: "A number, a label, or a number with its unit and label." });

const metrics = anyObject
  .superRefine((value, context) => {
    const names = Object.keys(value);
    if (names.length === 0) context.addIssue({ code: "custom", message: "must have at least one metric" });
    const problem = problemOfJson(value, limits.metricsBytesMax);
    if (problem !== undefined) {
      context.addIssue({ code: "custom", message: problem });
      return;
    }
    for (const name of names) {
      const parsed = metricSchema.safeParse(value[name]);
      if (parsed.success) continue;
      const message = parsed.error.issues[0]?.message ?? "is not a metric";
      context.addIssue({ code: "custom", path: [name], message, input: value[name] });
    }
  })
  .transform((value) => {
    // Own members only and by definition, so that a metric may have any name; unknown members of a measure are dropped.
    const kept: Record<string, Metric> = {};
    for (const name of Object.keys(value)) {
      Object.defineProperty(kept, name, {
        value: metricSchema.parse(value[name]),
        enumerable: true,
        configurable: true,
        writable: true,
      });
    }
    return storable(kept);
  });

export type Metric = z.infer<typeof metricSchema>;

export const eventSchema = z
  .object({
    eventType: reportedType.meta({ description: "What happened. Must be whitelisted for the app." }),
    category: z
      .enum(eventCategories, `must be one of ${eventCategories.join(", ")}`)
      .meta({ id: "EventCategory", description: "The kind of work." }),
    actor: actorSchema,
    timestamp: timestamp.optional().meta({ description: "When it happened. Default: the time of receipt." }),
    duration: z
      .int({ error: ({ code }) => (code === "invalid_type" ? "must be a whole number" : undefined) })
      .min(0)
      .max(limits.durationSecondsMax)
      .optional()
      .meta({ description: "How long it took, in whole seconds." }),
    metadata: metadata.optional(),
  })
  .meta({ id: "IngestEvent" });

export const eventsSchema = z
  .object({ events: z.array(eventSchema).min(1).max(limits.eventsMax) })
  .meta({ id: "EventsRequest" });

export const snapshotSchema = z
  .object({
    snapshotType: reportedType.meta({ description: "A stable id for this kind of snapshot." }),
    actor: actorSchema,
    timestamp: timestamp.optional().meta({ description: "When the figures held. Default: the time of receipt." }),
    metrics: metrics.meta({
      override: { type: "object", minProperties: 1, additionalProperties: { $ref: "#/components/schemas/Metric" } },
      description: `The figures by name; at most ${limits.metricsBytesMax} bytes as compact JSON.`,
    }),
    metadata: metadata.optional(),
  })
  .meta({ id: "SnapshotRequest" });

export type Actor = z.infer<typeof actorSchema>;
export type IngestEvent = z.infer<typeof eventSchema>;
declare const validated: unique symbol;
/** Made only by `parseEvents`: its type is the proof. */
export type EventsRequest = z.infer<typeof eventsSchema> & { readonly [validated]: true };
/** Made only by `parseSnapshot`. */
export type SnapshotRequest = z.infer<typeof snapshotSchema> & { readonly [validated]: true };

/**
 * A batch in its valid form.
 * @throws Fault batch_too_large above 500 events; invalid_body with an issue for everything that does not fit.
 */
export function parseEvents(body: unknown): EventsRequest {
  const events = isRecord(body) ? body.events : undefined;
  if (Array.isArray(events) && events.length > limits.eventsMax) {
    throw new Fault("batch_too_large", `events has ${events.length} entries; at most ${limits.eventsMax} are allowed.`);
  }
  return (plainEvents(body) ?? validate(eventsSchema, body)) as EventsRequest;
}

/** A snapshot in its valid form. @throws Fault invalid_body with an issue for everything that does not fit. */
export function parseSnapshot(body: unknown): SnapshotRequest {
  return (plainSnapshot(body) ?? validate(snapshotSchema, body)) as SnapshotRequest;
}

const idempotencyKeyPattern = new RegExp(`^[\\x20-\\x7e]{1,${limits.idempotencyKeyCharactersMax}}$`);

/** A valid Idempotency-Key, or undefined when none was sent. @throws Fault invalid_body. */
export function parseIdempotencyKey(value: string | undefined): string | undefined {
  if (value === undefined || idempotencyKeyPattern.test(value)) return value;
  const message = `must have 1 to ${limits.idempotencyKeyCharactersMax} printable ASCII characters; it has ${value.length}`;
  throw invalidBody([{ path: "Idempotency-Key", message }]);
}
