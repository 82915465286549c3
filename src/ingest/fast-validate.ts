import { emailPattern, eventCategories, limits, metricUnits, typePattern } from "../limits.ts";

/**
 * The plain valid case of each request, recognised by hand at a tenth of what the schemas cost. The schemas stay the one
 * definition: whatever is not recognised here, valid or not, is theirs to judge, and a test holds that what is recognised
 * comes out as it does from them (but that members which were not sent may be there as `undefined`).
 */

const categories: ReadonlySet<unknown> = new Set(eventCategories);
const units: ReadonlySet<unknown> = new Set([undefined, ...metricUnits]);

/** A member that is there but not plain: the schemas must look. */
const unclear = Symbol("unclear");
type Unclear = typeof unclear;

type PlainObject = Readonly<Record<string, unknown>>;

interface PlainActor {
  workerId: string | undefined;
  externalId: string | undefined;
  email: string | undefined;
  displayName: string | undefined;
}

export interface PlainEvent {
  eventType: string;
  category: (typeof eventCategories)[number];
  actor: PlainActor;
  timestamp: Date | undefined;
  duration: number | undefined;
  metadata: Record<string, unknown> | undefined;
}

type MetricUnit = (typeof metricUnits)[number];
type PlainMetric = number | string | { value: number; unit?: MetricUnit; label?: string };

const isObject = (value: unknown): value is PlainObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The events of a body, or undefined when the schemas must look. */
export function plainEvents(body: unknown): { events: PlainEvent[] } | undefined {
  if (!isObject(body) || !Array.isArray(body.events)) return undefined;
  const given: readonly unknown[] = body.events;
  if (given.length === 0 || given.length > limits.eventsMax) return undefined;
  const events: PlainEvent[] = [];
  for (const one of given) {
    const event = plainEvent(one);
    if (event === undefined) return undefined;
    events.push(event);
  }
  return { events };
}

function plainEvent(value: unknown): PlainEvent | undefined {
  if (!isObject(value)) return undefined;
  const { eventType, category, duration } = value;
  if (!isType(eventType) || !categories.has(category)) return undefined;
  if (duration !== undefined && !isDuration(duration)) return undefined;
  const actor = plainActor(value.actor);
  const timestamp = plainTime(value.timestamp);
  const metadata = plainJsonObject(value.metadata, limits.metadataBytesMax);
  if (actor === undefined || timestamp === unclear || metadata === unclear) return undefined;
  return { eventType, category: category as PlainEvent["category"], actor, timestamp, duration, metadata };
}

export interface PlainSnapshot {
  snapshotType: string;
  actor: PlainActor;
  timestamp: Date | undefined;
  metrics: Record<string, PlainMetric>;
  metadata: Record<string, unknown> | undefined;
}

/** A snapshot, or undefined when the schemas must look. */
export function plainSnapshot(body: unknown): PlainSnapshot | undefined {
  if (!isObject(body) || !isType(body.snapshotType)) return undefined;
  const actor = plainActor(body.actor);
  const timestamp = plainTime(body.timestamp);
  const metrics = plainMetrics(body.metrics);
  const metadata = plainJsonObject(body.metadata, limits.metadataBytesMax);
  if (actor === undefined || timestamp === unclear || metrics === undefined || metadata === unclear) return undefined;
  return { snapshotType: body.snapshotType, actor, timestamp, metrics, metadata };
}

const isType = (value: unknown): value is string => typeof value === "string" && typePattern.test(value);

const isDuration = (value: unknown): value is number =>
  Number.isInteger(value) && (value as number) >= 0 && (value as number) <= limits.durationSecondsMax;

/** UTF-16 units are at least as many as characters, so what fits by them fits. */
const isText = (value: unknown, charactersMax: number): value is string =>
  typeof value === "string" && value.length > 0 && value.length <= charactersMax && value.isWellFormed();

const isOptionalText = (value: unknown, charactersMax: number): value is string | undefined =>
  value === undefined || isText(value, charactersMax);

function plainActor(value: unknown): PlainActor | undefined {
  if (!isObject(value)) return undefined;
  const { workerId, externalId, email, displayName } = value;
  if (!isOptionalText(workerId, limits.externalIdCharactersMax)) return undefined;
  if (!isOptionalText(externalId, limits.externalIdCharactersMax)) return undefined;
  if (!isOptionalText(displayName, limits.displayNameCharactersMax)) return undefined;
  if (email === undefined) return { workerId, externalId, email, displayName };
  if (!isText(email, limits.emailCharactersMax) || !emailPattern.test(email)) return undefined;
  return { workerId, externalId, email: email.toLowerCase(), displayName };
}

/** Times as `toISOString` writes them, with or without milliseconds: what reads back the same exists. */
function plainTime(value: unknown): Date | undefined | Unclear {
  if (value === undefined) return undefined;
  if (typeof value !== "string" || (value.length !== 20 && value.length !== 24)) return unclear;
  const date = new Date(value);
  if (Number.isNaN(date.getTime()) || date.getUTCFullYear() < 1) return unclear;
  const written = date.toISOString();
  return written === value || (value.length === 20 && `${value.slice(0, 19)}.000Z` === written) ? date : unclear;
}

function plainMetrics(value: unknown): Record<string, PlainMetric> | undefined {
  if (!isObject(value) || !fits(value, limits.metricsBytesMax)) return undefined;
  const metrics: Record<string, PlainMetric> = {};
  let count = 0;
  for (const name of Object.keys(value)) {
    // An assignment would set the prototype.
    if (name === "__proto__") return undefined;
    const metric = plainMetric(value[name]);
    if (metric === undefined) return undefined;
    metrics[name] = metric;
    count++;
  }
  return count === 0 ? undefined : metrics;
}

function plainMetric(value: unknown): PlainMetric | undefined {
  if (Number.isFinite(value)) return value as number;
  if (isText(value, limits.labelCharactersMax)) return value;
  if (!isObject(value) || !Number.isFinite(value.value)) return undefined;
  const { unit, label } = value;
  if (!units.has(unit) || !isOptionalText(label, limits.labelCharactersMax)) return undefined;
  const measure: Exclude<PlainMetric, number | string> = { value: value.value as number };
  if (unit !== undefined) measure.unit = unit as MetricUnit;
  if (label !== undefined) measure.label = label;
  return measure;
}

function plainJsonObject(value: unknown, bytesMax: number): Record<string, unknown> | undefined | Unclear {
  if (value === undefined) return undefined;
  return isObject(value) && fits(value, bytesMax) ? (value as Record<string, unknown>) : unclear;
}

/** Whether the value has at most so many bytes as compact JSON, surely. */
const fits = (value: unknown, bytesMax: number) => boundOfJson(value, limits.metadataDepthMax, bytesMax) <= bytesMax;

/** Of a number, written by JSON.stringify: -1.2345678901234567e-308. */
const numberBytesMax = 24;
/** Of one UTF-16 unit: a control character is written \u0000, and no other needs more in UTF-8. */
const unitBytesMax = 6;

/**
 * At least as many bytes as the value has as compact JSON, without writing it; infinity for what is not plain: too deep,
 * not well-formed, with a name that BSON or its driver treats specially. Looks no further once above `bytesMax`.
 */
function boundOfJson(value: unknown, depthLeft: number, bytesMax: number): number {
  switch (typeof value) {
    case "string":
      return value.isWellFormed() ? 2 + value.length * unitBytesMax : Number.POSITIVE_INFINITY;
    case "number":
      return Number.isFinite(value) ? numberBytesMax : Number.POSITIVE_INFINITY;
    case "boolean":
      return 5;
    case "object":
      break;
    default:
      return Number.POSITIVE_INFINITY;
  }
  if (value === null) return 4;
  if (depthLeft === 0) return Number.POSITIVE_INFINITY;
  // A bracket, and one or a comma behind each member.
  let bytes = 1;
  if (Array.isArray(value)) {
    for (const member of value) {
      bytes += 1 + boundOfJson(member, depthLeft - 1, bytesMax);
      if (bytes > bytesMax) break;
    }
    return Math.max(bytes, 2);
  }
  for (const name of Object.keys(value)) {
    if (name === "_bsontype" || name.includes("\0") || !name.isWellFormed()) return Number.POSITIVE_INFINITY;
    bytes += 4 + name.length * unitBytesMax + boundOfJson((value as PlainObject)[name], depthLeft - 1, bytesMax);
    if (bytes > bytesMax) break;
  }
  return Math.max(bytes, 2);
}
