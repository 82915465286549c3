import {
  type DescEnum,
  type DescField,
  type DescMessage,
  type JsonValue,
  type Message,
  toJson,
} from "@bufbuild/protobuf";
import {
  isReflectList,
  isReflectMap,
  isReflectMessage,
  reflect,
  type ReflectMessage,
} from "@bufbuild/protobuf/reflect";
import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import { isoTime } from "./time.ts";

/**
 * A message as REST writes it: protobuf's JSON with enums in lower case without their prefix, and times as everywhere in
 * REST. Absent members are left out; empty texts, lists and zeros are not.
 */
export const restJson = (desc: DescMessage, message: Message): Record<string, JsonValue> =>
  objectOf(reflect(desc, message));

function objectOf(node: ReflectMessage): Record<string, JsonValue> {
  const json: Record<string, JsonValue> = {};
  for (const field of node.fields) {
    // A field without presence is written also if it is empty; an enum has no name for that.
    if (!node.isSet(field) && (hasPresence(field) || field.fieldKind === "enum")) continue;
    json[field.jsonName] = valueOf(field, node.get(field));
  }
  return json;
}

const hasPresence = ({ fieldKind, proto, oneof }: DescField): boolean =>
  fieldKind === "message" || proto.proto3Optional || oneof !== undefined;

function valueOf(field: DescField, value: unknown): JsonValue {
  if (isReflectList(value)) return [...value].map((item) => valueOf(field, item));
  if (isReflectMap(value))
    return Object.fromEntries([...value].map(([key, item]) => [String(key), valueOf(field, item)]));
  if (isReflectMessage(value)) return messageOf(value);
  return field.enum === undefined ? (value as JsonValue) : restName(field.enum, value as number);
}

function messageOf(node: ReflectMessage): JsonValue {
  if (node.desc.typeName === "google.protobuf.Timestamp") return isoTime(timestampDate(node.message as Timestamp));
  return node.desc.typeName.startsWith("google.protobuf.") ? toJson(node.desc, node.message) : objectOf(node);
}

/** REST's name of an enum's value; its number if this version does not know it. */
export const restName = (desc: DescEnum, number: number): string => {
  const name = desc.value[number]?.name;
  return name === undefined ? String(number) : name.slice(desc.sharedPrefix?.length ?? 0).toLowerCase();
};

/** REST's names of an enum's values, without the one that means unspecified. */
export const restNames = (desc: DescEnum): string[] =>
  desc.values.filter(({ number }) => number !== 0).map(({ number }) => restName(desc, number));
