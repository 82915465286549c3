import { Fault, type Issue } from "../errors.ts";
import { limits } from "../limits.ts";
import { redactCallerText } from "../redact.ts";

/** What a value from outside must look like; see shapes.ts. */
export interface Shape<T> {
  /**
   * The value in its valid form. When it does not fit, the reading has a further note, and what is returned means nothing.
   */
  read(value: unknown, reading: Reading): T;
  /** As JSON Schema: a reference for a shape that has a name. */
  readonly schema: JsonSchema;
  /** What the schema refers to, by name. */
  readonly definitions: Readonly<Record<string, JsonSchema>>;
}

export type JsonSchema = Readonly<Record<string, unknown>>;
export type TypeOf<S> = S extends Shape<infer T> ? T : never;

export interface ReadOptions {
  /** The time of receipt, which bounds the times that are reported. Default: no bound. */
  readonly receivedAt?: Date;
  /** Gets the paths of up to `ignoredMembersMax` members that no shape has. Default: nobody asks. */
  readonly ignored?: string[];
}

/** More ignored members are not named. */
export const ignoredMembersMax = 20;

/** Something to say about a member: what is wrong with it, or, without a message, that it is ignored. */
interface Note {
  readonly path: PropertyKey[];
  readonly message?: string;
}

/** One validation: what it knows, and what it found. */
export class Reading {
  readonly receivedAt: Date | undefined;
  readonly notesIgnored: boolean;
  readonly notes: Note[] = [];
  #ignored = 0;

  constructor({ receivedAt, ignored }: ReadOptions) {
    this.receivedAt = receivedAt;
    this.notesIgnored = ignored !== undefined;
  }

  /** Notes that the value at hand does not fit. */
  refuse(message: string, key?: PropertyKey): never {
    this.notes.push({ path: key === undefined ? [] : [key], message });
    return undefined as never;
  }

  ignore(key: string): void {
    if (this.#ignored++ < ignoredMembersMax) this.notes.push({ path: [key] });
  }

  /** Says of the notes from `first` on that they are about what is below `key`. */
  below(key: PropertyKey, first: number): void {
    for (let i = first; i < this.notes.length; i++) this.notes[i]?.path.unshift(key);
  }
}

/**
 * A value in its valid form.
 * @throws Fault invalid_body with an issue for everything that does not fit: where, what is allowed, what was given.
 */
export function validate<T>(shape: Shape<T>, value: unknown, options: ReadOptions = {}): T {
  const reading = new Reading(options);
  const result = shape.read(value, reading);
  if (reading.notes.length === 0) return result;
  const issues: Issue[] = [];
  for (const { path, message } of reading.notes) {
    if (message === undefined) options.ignored?.push(pathOf(path));
    else issues.push({ path: issues.length < limits.issuesMax ? pathOf(path) : "", message });
  }
  if (issues.length > 0) throw invalidBody(issues);
  return result;
}

/** `invalid_body` with its issues; the message lists up to 20 of them. */
export function invalidBody(issues: readonly Issue[]): Fault {
  const listed = issues.slice(0, limits.issuesMax).map(({ path, message }) => `${path}: ${message}`);
  const more = issues.length - listed.length;
  if (more > 0) listed.push(`… and ${more} more`);
  return new Fault("invalid_body", listed.join("; "), { issues: issues.slice(0, limits.issuesMax) });
}

/** What was given, for the end of an issue. */
export function given(value: unknown): string {
  if (value === undefined) return "; it is missing";
  if (typeof value === "string") return `; it is ${shown(value)}`;
  return `; it is ${typeof value === "object" && value !== null ? kindOf(value) : String(value)}`;
}

export function kindOf(value: unknown): string {
  if (value === undefined) return "missing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  return `${typeof value === "object" ? "an" : "a"} ${typeof value}`;
}

/**
 * So much of a text is shown: in characters, and in bytes when percent-encoded, which is how messages travel over gRPC. They
 * are headers there, once more in the details, and twenty issues must stay below the 16 KB of headers that clients such as
 * gRPC for Python take at most.
 */
const shownCharactersMax = 32;
const shownBytesMax = 48;

/** A text as issues show it: quoted, in part when it is long, of a key its hint only. */
export function shown(text: string): string {
  const beginning = beginningOf(text, shownCharactersMax, shownBytesMax);
  const safe = redactCallerText(beginning, shownCharactersMax).toWellFormed();
  return beginning === text ? `'${safe}'` : `'${safe.replace(/…$/, "")}…' (${[...text].length} characters)`;
}

function beginningOf(text: string, charactersMax: number, bytesMax: number): string {
  let characters = 0;
  let bytes = 0;
  let end = 0;
  for (const character of text) {
    const isPlain = character >= " " && character <= "~" && character !== "%";
    bytes += isPlain ? 1 : 3 * Buffer.byteLength(character);
    if (++characters > charactersMax || bytes > bytesMax) return text.slice(0, end);
    end += character.length;
  }
  return text;
}

/** The same of a path, in which names may be of the caller's own choice. */
const pathCharactersMax = 34;

function pathOf(path: readonly PropertyKey[]): string {
  let text = "";
  for (const part of path) {
    if (typeof part === "number") text += `[${part}]`;
    else text += text === "" ? String(part) : `.${String(part)}`;
  }
  const beginning = beginningOf(text, pathCharactersMax, pathCharactersMax);
  if (beginning !== text) return `${beginning.toWellFormed()}…`;
  return text === "" ? "body" : text;
}
