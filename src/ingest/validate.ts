import { Fault, type Issue } from "../errors.ts";
import { limits } from "../limits.ts";
import { redactCallerText } from "../redact.ts";

/** The valid form of a value from outside; see shapes.ts. */
export interface Shape<T> {
  /** Returns the value in its valid form. An invalid value adds a note to `reading`; the result is then meaningless. */
  read(value: unknown, reading: Reading): T;
  /** JSON Schema; a named shape has a reference. */
  readonly schema: JsonSchema;
  /** The schemas that `schema` refers to, by name. */
  readonly definitions: Readonly<Record<string, JsonSchema>>;
}

export type JsonSchema = Readonly<Record<string, unknown>>;
export type TypeOf<S> = S extends Shape<infer T> ? T : never;

export interface ReadOptions {
  /** The time of receipt; it bounds reported times. Default: no bound. */
  readonly receivedAt?: Date | undefined;
  /** Receives the paths of unknown members, up to `ignoredMembersMax`. Default: they are not collected. */
  readonly ignored?: string[] | undefined;
}

export const ignoredMembersMax = 20;

/** A note on a member: what is wrong with it, or, without a message, that it is ignored. */
interface Note {
  readonly path: PropertyKey[];
  readonly message?: string;
}

/** The state of one validation. */
export class Reading {
  readonly receivedAt: Date | undefined;
  readonly notesIgnored: boolean;
  readonly notes: Note[] = [];
  #ignored = 0;

  constructor({ receivedAt, ignored }: ReadOptions) {
    this.receivedAt = receivedAt;
    this.notesIgnored = ignored !== undefined;
  }

  /** Notes that the current value, or its member `key`, is invalid. */
  refuse(message: string, key?: PropertyKey): never {
    this.notes.push({ path: key === undefined ? [] : [key], message });
    return undefined as never;
  }

  ignore(key: string): void {
    if (this.#ignored++ < ignoredMembersMax) this.notes.push({ path: [key] });
  }

  /** Prefixes the paths of the notes from `first` on with `key`. */
  below(key: PropertyKey, first: number): void {
    for (let i = first; i < this.notes.length; i++) this.notes[i]?.path.unshift(key);
  }
}

/**
 * Validates a value.
 * @throws Fault invalid_body with one issue for each problem: where it is, what is allowed and what was given.
 */
export function validate<T>(shape: Shape<T>, value: unknown, options: ReadOptions = {}): T {
  const reading = new Reading(options);
  const result = shape.read(value, reading);
  if (reading.notes.length === 0) return result;
  const issues: Issue[] = [];
  let total = 0;
  for (const { path, message } of reading.notes) {
    if (message === undefined) options.ignored?.push(pathOf(path));
    else if (total++ < limits.issuesMax) issues.push({ path: pathOf(path), message });
  }
  if (total > 0) throw invalidBody(issues, { total });
  return result;
}

/**
 * An `invalid_body` with its first issues: it lives until its answer has left, so a caller that does not read must not
 * make it large.
 * @param cause for the log.
 * @param total number of all issues.
 */
export function invalidBody(
  issues: readonly Issue[],
  { cause, total = issues.length }: { readonly cause?: unknown; readonly total?: number } = {},
): Fault {
  const first = issues.slice(0, limits.issuesMax);
  const listed = first.map(({ path, message }) => `${path}: ${message}`);
  const more = total - listed.length;
  if (more > 0) listed.push(`… and ${more} more`);
  return new Fault("invalid_body", listed.join("; "), { issues: first, issuesTotal: total, cause });
}

/** An `invalid_body` with one issue. @param path names the member or the header. @param cause for the log. */
export const invalidMember = (path: string, message: string, cause?: unknown): Fault =>
  invalidBody([{ path, message }], { cause });

/** Says what was given; for the end of an issue. */
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
 * How much of a text an issue quotes, in characters and in percent-encoded bytes. gRPC sends messages percent-encoded
 * in headers, and again in the details. Twenty issues must stay below the 16 KB of headers that gRPC for Python
 * accepts.
 */
const shownCharactersMax = 32;
const shownBytesMax = 48;

/** What a message shows of a text at least. An erasure finds messages by it. */
export const shownBeginning = (text: string): string => beginningOf(text, shownCharactersMax, shownBytesMax);

/** Quotes a text for an issue: long texts are cut, and a key is reduced to its hint. */
export function shown(text: string): string {
  const beginning = shownBeginning(text);
  const safe = redactCallerText(beginning, shownCharactersMax).toWellFormed();
  return beginning === text ? `'${safe}'` : `'${safe.replace(/…$/, "")}…' (${[...text].length} characters)`;
}

function beginningOf(text: string, charactersMax: number, bytesMax: number): string {
  let characters = 0;
  let bytes = 0;
  let end = 0;
  for (const character of text) {
    const isUnescaped = character >= " " && character <= "~" && character !== "%";
    bytes += isUnescaped ? 1 : 3 * Buffer.byteLength(character);
    if (++characters > charactersMax || bytes > bytesMax) return text.slice(0, end);
    end += character.length;
  }
  return text;
}

/** How much of a path is shown, in characters and in bytes: the caller chooses names of metadata and metrics. */
const pathCharactersMax = 34;

function pathOf(path: readonly PropertyKey[]): string {
  let text = "";
  for (const part of path) {
    if (typeof part === "number") text += `[${part}]`;
    else text += text === "" ? String(part) : `.${String(part)}`;
  }
  return shownPath(text);
}

/** Shows a path: its beginning where it is long. */
export function shownPath(text: string): string {
  const beginning = beginningOf(text, pathCharactersMax, pathCharactersMax);
  if (beginning !== text) return `${beginning.toWellFormed()}…`;
  return text === "" ? "body" : text;
}
