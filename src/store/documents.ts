import type { Document } from "mongodb";

/*
 * What callers name their members is theirs to choose. The driver takes some names for its own: on the way in
 * `_bsontype`, on the way out `$ref` with `$id` (a DBRef, which it also splits at a dot). Here is how documents that hold
 * callers' objects are written and read so that they come back as they were given.
 */

/** The member by which the driver knows its own types, and which a caller's object may have too. */
const typeMember = "_bsontype";

/**
 * The object in a form that is stored as it is. The driver takes a plain object with a member `_bsontype` for one of its
 * own types and refuses the whole batch, or stores something else; a Map it writes member by member, whatever their
 * names. Everything else is answered as it came.
 */
export function storable(value: Record<string, unknown>): Record<string, unknown> {
  return hasTypeMember(value) ? (withMaps(value) as Record<string, unknown>) : value;
}

function hasTypeMember(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  if (Array.isArray(value)) return value.some(hasTypeMember);
  if (Object.hasOwn(value, typeMember)) return true;
  for (const key of Object.keys(value)) if (hasTypeMember((value as Record<string, unknown>)[key])) return true;
  return false;
}

function withMaps(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(withMaps);
  return new Map(Object.entries(value).map(([key, member]) => [key, withMaps(member)]));
}

/** Option of a `find` whose documents are bytes, for `documentOf`. */
export const asBytes = { raw: true } as const;

/** The same for a change stream: a last stage and options by which `fullDocument` is bytes, for `fullDocumentOf`. */
export const fullDocumentAsBytes = {
  // The driver leaves as bytes what is an object in an array of a given name.
  stage: { $set: { fullDocument: ["$fullDocument"] } },
  options: { fieldsAsRaw: { fullDocument: true } as Document },
} as const;

export const fullDocumentOf = (change: Document): Uint8Array => change.fullDocument[0];

/**
 * The document in these bytes of BSON. Of its types those that JSON has, and dates: what this service writes.
 * @throws TypeError for another type.
 */
export function documentOf<T>(bytes: Uint8Array): T {
  return members(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0, {}) as T;
}

/** Adds what the document at `start` holds to `target`. See bsonspec.org. */
function members(bytes: Buffer, start: number, target: Record<string, unknown> | unknown[]): typeof target {
  // Behind the document's size.
  let at = start + 4;
  for (let type = bytes[at]; type !== 0; type = bytes[at]) {
    const nameEnd = bytes.indexOf(0, at + 1);
    const name = bytes.toString("utf8", at + 1, nameEnd);
    at = nameEnd + 1;
    let value: unknown;
    switch (type) {
      case 0x01:
        value = bytes.readDoubleLE(at);
        at += 8;
        break;
      case 0x02: {
        const size = bytes.readInt32LE(at);
        value = bytes.toString("utf8", at + 4, at + 4 + size - 1);
        at += 4 + size;
        break;
      }
      case 0x03:
      case 0x04:
        value = members(bytes, at, type === 0x03 ? {} : []);
        at += bytes.readInt32LE(at);
        break;
      case 0x08:
        value = bytes[at++] === 1;
        break;
      case 0x09:
        value = new Date(Number(bytes.readBigInt64LE(at)));
        at += 8;
        break;
      case 0x0a:
        value = null;
        break;
      case 0x10:
        value = bytes.readInt32LE(at);
        at += 4;
        break;
      case 0x12:
        value = Number(bytes.readBigInt64LE(at));
        at += 8;
        break;
      default:
        throw new TypeError(`'${name}' is of BSON type ${type}, which this service does not write`);
    }
    if (Array.isArray(target)) target.push(value);
    // An assignment would set the object's prototype.
    else if (name === "__proto__") Object.defineProperty(target, name, { value, ...ownMember });
    else target[name] = value;
  }
  return target;
}

const ownMember = { enumerable: true, configurable: true, writable: true } as const;
