import type { DescMessage } from "@bufbuild/protobuf";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

/** An empty Value as a map's value in a Struct, and as an item of a ListValue. */
const empties = [Buffer.from([0x12, 0]), Buffer.from([0x0a, 0])];

/**
 * The path of a google.protobuf.Value without a kind in a message that protobuf-es has decoded; undefined when there is none.
 * Protobuf forbids such a value, and protobuf-es reads it as null.
 */
export function kindlessValueIn(desc: DescMessage, bytes: Uint8Array): string | undefined {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  // Few messages hold these bytes, so that few are read twice.
  return empties.some((empty) => view.includes(empty)) ? findIn(desc, bytes, "") : undefined;
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
    // The types of JSON values have field names of their own, which are no part of what a caller knows.
    const name = desc.typeName.startsWith("google.protobuf.") ? "" : field.name;
    const step = [name, isMap ? key : ""].filter((part) => part !== "").join(".");
    const place = [path, step].filter((part) => part !== "").join(".");
    const found = findIn(field.message, value, field.fieldKind === "list" ? `${place}[${index}]` : place);
    if (found !== undefined) return found;
  }
  const hasKind = desc.fields.some(({ number }) => seen.has(number));
  return desc.typeName === "google.protobuf.Value" && !hasKind ? path : undefined;
}

/** A map's entry: its key as text, and the bytes of its value. */
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
