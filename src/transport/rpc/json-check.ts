import {
  type DescEnum,
  type DescField,
  type DescMessage,
  type JsonValue,
  type Message,
  ScalarType,
} from "@bufbuild/protobuf";
import {
  isReflectList,
  isReflectMap,
  isReflectMessage,
  reflect,
  type ReflectMessage,
} from "@bufbuild/protobuf/reflect";
import type { Issue } from "../../errors.ts";
import { isRecord, notUnicode } from "../../ingest/shapes.ts";
import { given, ignoredMembersMax, invalidBody, shown, shownPath } from "../../ingest/validate.ts";
import { limits } from "../../limits.ts";
import { parseTime } from "../../time.ts";

/**
 * Checks that protobuf's parser takes the JSON for the message, and gives times the form that the parser takes.
 * @throws Fault invalid_body with one issue, and its path, for each problem that the parser would refuse.
 */
export function checkedJson(desc: DescMessage, json: unknown): JsonValue {
  const issues = new Issues();
  checkMessage(desc, json, "", issues);
  if (issues.total > 0) throw invalidBody(issues.first, issues);
  // It comes from JSON.parse.
  return json as JsonValue;
}

/** Paths of members that the message does not have, so that the parser ignores them; at most `ignoredMembersMax`. */
export function ignoredOfJson(desc: DescMessage, json: unknown): string[] {
  const ignored: string[] = [];
  addIgnored(desc, json, "", ignored);
  return ignored;
}

function addIgnored(desc: DescMessage, value: unknown, path: string, ignored: string[]): void {
  if (!isRecord(value) || isWellKnown(desc)) return;
  for (const name of Object.keys(value)) {
    if (ignored.length === ignoredMembersMax) return;
    const field = fieldOf(desc, name);
    const place = path === "" ? name : `${path}.${name}`;
    if (field === undefined) ignored.push(shownPath(place));
    else if (field.message !== undefined) {
      const message = field.message;
      const member = value[name];
      if (field.fieldKind === "list" && Array.isArray(member)) {
        member.forEach((item: unknown, i) => addIgnored(message, item, `${place}[${i}]`, ignored));
      } else if (field.fieldKind === "map" && isRecord(member)) {
        for (const key of Object.keys(member)) addIgnored(message, member[key], `${place}.${key}`, ignored);
      } else addIgnored(message, member, place, ignored);
    }
  }
}

/** Paths, by number, of fields that the message does not have; at most `ignoredMembersMax`. */
export function ignoredOfMessage(desc: DescMessage, message: Message): string[] {
  const ignored: string[] = [];
  addUnknown(reflect(desc, message), "", ignored);
  return ignored;
}

function addUnknown(node: ReflectMessage, path: string, ignored: string[]): void {
  if (isWellKnown(node.desc)) return;
  const at = (name: string) => shownPath(path === "" ? name : `${path}.${name}`);
  for (const number of new Set(node.getUnknown()?.map(({ no }) => no))) {
    if (ignored.length === ignoredMembersMax) return;
    ignored.push(at(String(number)));
  }
  for (const field of node.fields) {
    if (field.message === undefined || !node.isSet(field)) continue;
    const value: unknown = node.get(field);
    const place = path === "" ? field.name : `${path}.${field.name}`;
    const below = (item: unknown, name: string) => {
      if (isReflectMessage(item)) addUnknown(item, name, ignored);
    };
    if (isReflectList(value)) [...value].forEach((item, i) => below(item, `${place}[${i}]`));
    else if (isReflectMap(value)) for (const [key, item] of value) below(item, `${place}.${String(key)}`);
    else below(value, place);
  }
}

const isWellKnown = ({ typeName }: DescMessage): boolean => typeName.startsWith("google.protobuf.");

/** Format of a message. */
export type Format = "proto" | "json";

/** Keeps the first issues and counts the others: a hostile body has one for each of its members. */
class Issues {
  readonly first: Issue[] = [];
  total = 0;

  /** @param path may have names that the caller chose. */
  add(path: string, message: () => string): void {
    if (this.total++ < limits.issuesMax) this.first.push({ path: shownPath(path), message: message() });
  }
}

/** Adds the problems of a value to the issues. */
type Check<Desc> = (desc: Desc, value: unknown, path: string, issues: Issues) => void;

const checkMessage: Check<DescMessage> = (desc, value, path, issues) => {
  if (isWellKnown(desc)) return checkWellKnown(desc, value, path, issues);
  if (!isRecord(value)) {
    const hint = restForms[desc.typeName]?.(value);
    issues.add(path, () => hint ?? `must be an object${given(value)}`);
    return;
  }
  const seen = new Map<unknown, string>();
  for (const name of Object.keys(value)) {
    const field = fieldOf(desc, name);
    // Unknown members are ignored, and null means absent.
    if (field === undefined || (value[name] === null && !takesNull(field))) continue;
    const place = path === "" ? name : `${path}.${name}`;
    const other = seen.get(field);
    if (other !== undefined) issues.add(place, () => `is the same member as ${other}; send one of them`);
    seen.set(field, name);
    if (field.oneof !== undefined) {
      const rival = seen.get(field.oneof);
      if (rival !== undefined && other === undefined) {
        const hint = rivalHints[desc.typeName] ?? "";
        issues.add(path, () => `has ${rival} and ${name}; send one of them${hint}`);
      }
      seen.set(field.oneof, name);
    }
    if (field.fieldKind === "message" && field.message.typeName === "google.protobuf.Timestamp") {
      value[name] = checkedTime(value[name], place, issues);
    } else checkField(field, value[name], place, issues);
  }
};

/** For a type that REST writes in a shorter form: how to write it over RPC. */
const restForms: Readonly<Record<string, (value: unknown) => string | undefined>> = {
  "ingest.v1.Metric": (value) => {
    if (typeof value === "number") return `over RPC write {"number": ${value}}`;
    return typeof value === "string" ? `over RPC write {"label": …}; it is ${shown(value)}` : undefined;
  },
};

/** For a type with a oneof: where its second value belongs. */
const rivalHints: Readonly<Record<string, string>> = {
  "ingest.v1.Actor": ", and further ids in otherIds",
};

const checkField: Check<DescField> = (field, value, path, issues) => {
  if (field.fieldKind === "list") {
    if (!Array.isArray(value)) {
      issues.add(path, () => `must be an array${given(value)}`);
      return;
    }
    value.forEach((item: unknown, i) => checkItem(field, item, `${path}[${i}]`, issues));
  } else if (field.fieldKind === "map") {
    if (!isRecord(value)) {
      issues.add(path, () => `must be an object${given(value)}`);
      return;
    }
    for (const key of Object.keys(value)) checkItem(field, value[key], `${path}.${key}`, issues);
  } else {
    checkItem(field, value, path, issues);
  }
};

/** Checks a field's value, or one item of its list or map. */
const checkItem: Check<DescField> = ({ message, enum: values, scalar }, value, path, issues) => {
  if (message !== undefined) return checkMessage(message, value, path, issues);
  const problem =
    values !== undefined
      ? problemOfEnum(values, value)
      : scalar === undefined
        ? undefined
        : problemOfScalar(scalar, value);
  if (problem !== undefined) issues.add(path, () => problem);
};

const fieldOf = (desc: DescMessage, name: string): DescField | undefined =>
  desc.fields.find((field) => field.jsonName === name || field.name === name);

const takesNull = ({ message, enum: values }: DescField): boolean =>
  message?.typeName === "google.protobuf.Value" || values?.typeName === "google.protobuf.NullValue";

/** Gives a time the form that protobuf's parser takes. The parser requires seconds, and reads February 30 as March 2. */
function checkedTime(value: unknown, path: string, issues: Issues): unknown {
  const time = typeof value === "string" ? parseTime(value) : "must be a time such as 2026-04-19T12:05:00Z";
  if (time instanceof Date) return time.toISOString();
  issues.add(path, () => `${time}${given(value)}`);
  return value;
}

/** Checks messages that have a JSON form of their own. */
const checkWellKnown: Check<DescMessage> = ({ typeName }, value, path, issues) => {
  if (typeName === "google.protobuf.Struct" && !isRecord(value)) {
    issues.add(path, () => `must be an object${given(value)}`);
  } else if (typeName === "google.protobuf.ListValue" && !Array.isArray(value)) {
    issues.add(path, () => `must be an array${given(value)}`);
  } else if (typeName === "google.protobuf.Duration" && !isDuration(value)) {
    issues.add(path, () => `must be seconds followed by s, such as "86400s"${given(value)}`);
  } else if (typeName === "google.protobuf.FieldMask" && !(typeof value === "string" && !value.includes("_"))) {
    const form = `must be names of members as JSON writes them, separated by commas, such as "name,expiresAt"`;
    issues.add(path, () => `${form}${given(value)}`);
  }
};

/** Protobuf's parser takes more than that, and overflows at long fractions. */
const isDuration = (value: unknown): boolean => typeof value === "string" && /^-?\d{1,11}(?:\.\d{1,9})?s$/.test(value);

/** The enum's names, without that of 0, which means unspecified. */
export const namesOf = ({ values }: DescEnum): string =>
  values
    .filter(({ number }) => number !== 0)
    .map(({ name }) => name)
    .join(", ");

function problemOfEnum(desc: DescEnum, value: unknown): string | undefined {
  const { values, sharedPrefix = "" } = desc;
  if (values.some(({ name, number }) => value === name || value === number)) return undefined;
  const rest = typeof value === "string" && values.find(({ name }) => name === `${sharedPrefix}${value}`.toUpperCase());
  const suffix = rest ? `; '${String(value)}' is how REST spells ${rest.name}` : given(value);
  return `must be one of ${namesOf(desc)}${suffix}`;
}

const wholeNumbers: ReadonlySet<ScalarType> = new Set([
  ScalarType.INT32,
  ScalarType.SINT32,
  ScalarType.SFIXED32,
  ScalarType.UINT32,
  ScalarType.FIXED32,
]);
const unsigned: ReadonlySet<ScalarType> = new Set([ScalarType.UINT32, ScalarType.FIXED32]);

function problemOfScalar(type: ScalarType, value: unknown): string | undefined {
  switch (type) {
    case ScalarType.STRING:
      if (typeof value !== "string") return `must be a string${given(value)}`;
      return value.isWellFormed() ? undefined : notUnicode(value);
    case ScalarType.BOOL:
      return typeof value === "boolean" ? undefined : `must be true or false${given(value)}`;
    case ScalarType.DOUBLE:
    case ScalarType.FLOAT:
      return isNumeric(value) ? undefined : `must be a number${given(value)}`;
    default:
      break;
  }
  // Our messages have no bytes and no 64-bit numbers, so the parser's own checks are enough.
  if (!wholeNumbers.has(type)) return undefined;
  const number = isNumeric(value) ? Number(value) : Number.NaN;
  const [min, max] = unsigned.has(type) ? [0, 2 ** 32 - 1] : [-(2 ** 31), 2 ** 31 - 1];
  const fits = Number.isInteger(number) && number >= min && number <= max;
  return fits ? undefined : `must be a whole number of ${min} to ${max}${given(value)}`;
}

/** Protobuf's JSON also takes numbers as text, and NaN, Infinity and -Infinity. */
const isNumeric = (value: unknown): boolean =>
  typeof value === "string"
    ? /^(?:NaN|-?Infinity)$/.test(value) || (/^-?\d[\d.eE+-]*$/.test(value) && Number.isFinite(Number(value)))
    : Number.isFinite(value);
