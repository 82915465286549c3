import { BSON } from "mongodb";

/**
 * An object of a caller that is stored as JSON text, because the driver would misread one of its names. Such names are
 * rare, so all other objects are stored as they are and can be queried.
 */
export class JsonText {
  readonly text: string;
  constructor(value: object) {
    this.text = JSON.stringify(value);
  }
}

export type CallerObject = Readonly<Record<string, unknown>>;

/**
 * Whether the driver misreads a member of this name. It takes `_bsontype` for the mark of its own types, `$ref` for a
 * reference, and looks others up in plain objects, which inherit them.
 */
export const isMisread = (name: string): boolean =>
  name === "_bsontype" || name.startsWith("$") || name in Object.prototype;

/** The form in which a caller's object is stored. */
export type StoredObject = CallerObject | string;

export const storedObject = (value: CallerObject | JsonText): StoredObject =>
  value instanceof JsonText ? value.text : value;

export const callerObject = (stored: StoredObject): CallerObject =>
  typeof stored === "string" ? (JSON.parse(stored) as CallerObject) : stored;

/** The option of a `find` that yields documents as bytes, so that their size is known. */
export const asBytes = { raw: true } as const;

/** The document in these bytes of BSON. */
export const documentOf = <T>(bytes: Uint8Array): T => BSON.deserialize(bytes, { promoteBuffers: true }) as T;
