import type { DescField, DescMessage, Message } from "@bufbuild/protobuf";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

/**
 * The path of a google.protobuf.Value without a kind; undefined if there is none. Protobuf forbids such a value, and
 * protobuf-es reads it as null.
 * @param message the bytes, as protobuf-es read them.
 */
export const kindlessValueIn = (desc: DescMessage, message: Message, bytes: Uint8Array): string | undefined =>
  // Reads the bytes a second time only if a null may stand for such a value.
  holdsNull(desc, message) ? findIn(desc, bytes, "") : undefined;

/** Whether a Struct in the message holds null. It looks at nothing else, because every event passes here. */
function holdsNull(desc: DescMessage, message: Message): boolean {
  const values = message as unknown as Record<string, unknown>;
  return structFieldsOf(desc).some(({ localName, message: type, fieldKind, oneof }) => {
    // Elsewhere, as in a Value, it may be: the schema has none there.
    if (fieldKind === "map" || oneof !== undefined) return true;
    const value = values[localName];
    if (value === undefined) return false;
    if (type?.typeName === "google.protobuf.Struct") return jsonHoldsNull(value);
    return (fieldKind === "list" ? (value as Message[]) : [value as Message]).some((one) =>
      holdsNull(type as DescMessage, one),
    );
  });
}

const structFields = new WeakMap<DescMessage, readonly DescField[]>();

/** The fields that are, or whose messages have, a Struct. */
function structFieldsOf(desc: DescMessage): readonly DescField[] {
  let fields = structFields.get(desc);
  if (fields === undefined) {
    structFields.set(desc, []);
    fields = desc.fields.filter(
      ({ message }) =>
        message?.typeName === "google.protobuf.Struct" || (message && structFieldsOf(message).length > 0),
    );
    structFields.set(desc, fields);
  }
  return fields;
}

function jsonHoldsNull(value: unknown): boolean {
  if (typeof value !== "object") return false;
  if (value === null) return true;
  if (Array.isArray(value)) return value.some(jsonHoldsNull);
  // Several times as fast as Object.values.
  for (const name in value) if (jsonHoldsNull((value as Record<string, unknown>)[name])) return true;
  return false;
}

function findIn(desc: DescMessage, bytes: Uint8Array, path: string): string | undefined {
  const reader = new BinaryReader(bytes);
  const seen = new Map<number, number>();
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    const field = desc.fields.find((one) => one.number === number);
    const index = seen.get(number) ?? 0;
    seen.set(number, index + 1);
    if (field?.message === undefined || type !== WireType.LengthDelimited) {
      reader.skip(type, number);
      continue;
    }
    const isMap = field.fieldKind === "map";
    const { key, value } = isMap ? entryOf(reader.bytes()) : { key: "", value: reader.bytes() };
    // Callers do not know the field names of the types of JSON values.
    const name = desc.typeName.startsWith("google.protobuf.") ? "" : field.name;
    const step = [name, isMap ? key : ""].filter((part) => part !== "").join(".");
    const place = [path, step].filter((part) => part !== "").join(".");
    const found = findIn(field.message, value, field.fieldKind === "list" ? `${place}[${index}]` : place);
    if (found !== undefined) return found;
  }
  const hasKind = desc.fields.some(({ number }) => seen.has(number));
  return desc.typeName === "google.protobuf.Value" && !hasKind ? path : undefined;
}

/** Key, and bytes of the value, of a map's entry. */
function entryOf(bytes: Uint8Array): { key: string; value: Uint8Array } {
  const reader = new BinaryReader(bytes);
  let key = "";
  let value: Uint8Array = new Uint8Array();
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    if (number === 1 && type === WireType.LengthDelimited) key = reader.string();
    else if (number === 2 && type === WireType.LengthDelimited) value = reader.bytes();
    else reader.skip(type, number);
  }
  return { key, value };
}
