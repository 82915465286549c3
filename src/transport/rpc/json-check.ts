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
 * JSON that protobuf's own parser takes for the message. Changes its times to the form that the parser takes.
 * @throws Fault invalid_body with an issue for everything that it would refuse, in our words and with its path.
 */
export function checkedJson(desc: DescMessage, json: unknown): JsonValue {
  const issues: Issue[] = [];
  checkMessage(desc, json, "", issues);
  if (issues.length > 0) {
    // Names in a path may be of the caller's own.
    throw invalidBody(
      issues.map((issue, i) => (i < limits.issuesMax ? { ...issue, path: shownPath(issue.path) } : issue)),
    );
  }
  // Values of JSON.parse.
  return json as JsonValue;
}

/** Paths of members that the message does not have, which its parser leaves out; at most `ignoredMembersMax`. */
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

/** Numbers of fields that the message does not have, as paths; at most `ignoredMembersMax`. */
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

/** Of messages on the wire. */
export type Format = "proto" | "json";

/** Looks for what is wrong with a value, and adds it to the issues. */
type Check<Desc> = (desc: Desc, value: unknown, path: string, issues: Issue[]) => void;

const checkMessage: Check<DescMessage> = (desc, value, path, issues) => {
  if (isWellKnown(desc)) return checkWellKnown(desc, value, path, issues);
  if (!isRecord(value)) {
    const hint = restForms[desc.typeName]?.(value);
    issues.push({ path: path || "body", message: hint ?? `must be an object${given(value)}` });
    return;
  }
  const seen = new Map<unknown, string>();
  for (const name of Object.keys(value)) {
    const field = fieldOf(desc, name);
    // Members that are not ours are ignored, and null is the same as nothing.
    if (field === undefined || (value[name] === null && !takesNull(field))) continue;
    const place = path === "" ? name : `${path}.${name}`;
    const other = seen.get(field);
    if (other !== undefined) issues.push({ path: place, message: `is the same member as ${other}; send one of them` });
    seen.set(field, name);
    if (field.oneof !== undefined) {
      const rival = seen.get(field.oneof);
      if (rival !== undefined && other === undefined) {
        issues.push({
          path: path || "body",
          message: `has ${rival} and ${name}; send one of them${rivalHints[desc.typeName] ?? ""}`,
        });
      }
      seen.set(field.oneof, name);
    }
    if (field.fieldKind === "message" && field.message.typeName === "google.protobuf.Timestamp") {
      value[name] = checkedTime(value[name], place, issues);
    } else checkField(field, value[name], place, issues);
  }
};

/** How to write what REST's JSON writes in a shorter form, by the message's type. */
const restForms: Readonly<Record<string, (value: unknown) => string | undefined>> = {
  "ingest.v1.Metric": (value) => {
    if (typeof value === "number") return `over RPC write {"number": ${value}}`;
    return typeof value === "string" ? `over RPC write {"label": …}; it is ${shown(value)}` : undefined;
  },
};

/** Where the second of two rivals belongs, by the message's type. */
const rivalHints: Readonly<Record<string, string>> = {
  "ingest.v1.Actor": ", and further ids in otherIds",
};

const checkField: Check<DescField> = (field, value, path, issues) => {
  if (field.fieldKind === "list") {
    if (!Array.isArray(value)) {
      issues.push({ path, message: `must be an array${given(value)}` });
      return;
    }
    value.forEach((item: unknown, i) => checkItem(field, item, `${path}[${i}]`, issues));
  } else if (field.fieldKind === "map") {
    if (!isRecord(value)) {
      issues.push({ path, message: `must be an object${given(value)}` });
      return;
    }
    for (const key of Object.keys(value)) checkItem(field, value[key], `${path}.${key}`, issues);
  } else {
    checkItem(field, value, path, issues);
  }
};

/** Checks a field's value, or one of those in its list or map. */
const checkItem: Check<DescField> = ({ message, enum: values, scalar }, value, path, issues) => {
  if (message !== undefined) return checkMessage(message, value, path, issues);
  const problem =
    values !== undefined
      ? problemOfEnum(values, value)
      : scalar === undefined
        ? undefined
        : problemOfScalar(scalar, value);
  if (problem !== undefined) issues.push({ path, message: problem });
};

const fieldOf = (desc: DescMessage, name: string): DescField | undefined =>
  desc.fields.find((field) => field.jsonName === name || field.name === name);

const takesNull = ({ message, enum: values }: DescField): boolean =>
  message?.typeName === "google.protobuf.Value" || values?.typeName === "google.protobuf.NullValue";

/** A time in the form that protobuf's parser takes. By itself it makes February 30 March 2, and wants seconds. */
function checkedTime(value: unknown, path: string, issues: Issue[]): unknown {
  const time = typeof value === "string" ? parseTime(value) : "must be a time such as 2026-04-19T12:05:00Z";
  if (time instanceof Date) return time.toISOString();
  issues.push({ path, message: `${time}${given(value)}` });
  return value;
}

/** Messages that JSON writes in a form of their own. */
const checkWellKnown: Check<DescMessage> = ({ typeName }, value, path, issues) => {
  if (typeName === "google.protobuf.Struct" && !isRecord(value)) {
    issues.push({ path, message: `must be an object${given(value)}` });
  } else if (typeName === "google.protobuf.ListValue" && !Array.isArray(value)) {
    issues.push({ path, message: `must be an array${given(value)}` });
  }
};

/** The enum's names that mean something, as a caller writes them. */
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
      return value.isWellFormed() ? undefined : notUnicode;
    case ScalarType.BOOL:
      return typeof value === "boolean" ? undefined : `must be true or false${given(value)}`;
    case ScalarType.DOUBLE:
    case ScalarType.FLOAT:
      return isNumeric(value) ? undefined : `must be a number${given(value)}`;
    default:
      break;
  }
  // The parser itself has the rules for bytes and 64 bits, which no message of ours has.
  if (!wholeNumbers.has(type)) return undefined;
  const number = isNumeric(value) ? Number(value) : Number.NaN;
  const [min, max] = unsigned.has(type) ? [0, 2 ** 32 - 1] : [-(2 ** 31), 2 ** 31 - 1];
  const fits = Number.isInteger(number) && number >= min && number <= max;
  return fits ? undefined : `must be a whole number of ${min} to ${max}${given(value)}`;
}

/** Protobuf's JSON takes numbers as text too, and has three that JSON itself does not. */
const isNumeric = (value: unknown): boolean =>
  typeof value === "string"
    ? /^(?:NaN|-?Infinity)$/.test(value) || (/^-?\d[\d.eE+-]*$/.test(value) && Number.isFinite(Number(value)))
    : Number.isFinite(value);
