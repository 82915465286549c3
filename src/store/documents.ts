import { BSON } from "mongodb";

/**
 * A caller's object that is stored as JSON text, because the driver would misread one of its names. Such names are
 * rare; all other objects stay queryable.
 */
export class JsonText {
  readonly text: string;
  constructor(value: object) {
    this.text = JSON.stringify(value);
  }
}

export type CallerObject = Readonly<Record<string, unknown>>;

/**
 * Whether the driver misreads a member of this name. It takes `_bsontype` for a mark of its own types, and `$ref` for a
 * reference. Others it finds in plain objects, which inherit them.
 */
export const isMisread = (name: string): boolean =>
  name === "_bsontype" || name.startsWith("$") || name in Object.prototype;

export type StoredObject = CallerObject | string;

export const storedObject = (value: CallerObject | JsonText): StoredObject =>
  value instanceof JsonText ? value.text : value;

export const callerObject = (stored: StoredObject): CallerObject =>
  typeof stored === "string" ? (JSON.parse(stored) as CallerObject) : stored;

/** Option of `find` that returns documents as bytes, so that their size is known. */
export const asBytes = { raw: true } as const;

export const documentOf = <T>(bytes: Uint8Array): T => BSON.deserialize(bytes, { promoteBuffers: true }) as T;
