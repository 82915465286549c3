import { parseTime, timeDescription } from "../time.ts";
import { given, kindOf, type JsonSchema, type Shape, type TypeOf } from "./validate.ts";

/**
 * A shape defines the valid form of a value from outside: `read` validates it, and OpenAPI shows its `schema`.
 *
 * The project has its own shapes because a request has up to 500 events. zod takes ten times as long for them, and a
 * fast validator beside zod would be a second definition.
 */

/** Makes a shape from a rule. @param problemOf returns what is wrong with a value, or undefined if it is valid. */
function leaf<T>(schema: JsonSchema, problemOf: (value: unknown) => string | undefined): Shape<T> {
  return {
    schema,
    definitions: {},
    read(value, reading) {
      const problem = problemOf(value);
      return problem === undefined ? (value as T) : reading.refuse(problem);
    },
  };
}

const mustBe = (what: string, value: unknown) => `must be ${what}${given(value)}`;

/** Counts Unicode code points, as JSON Schema and protobuf do: an emoji is one, but two of JavaScript's units. */
const isAtMost = (value: string, charactersMax: number) =>
  value.length <= charactersMax || (value.length <= 2 * charactersMax && [...value].length <= charactersMax);

/**
 * Names the first character that is not allowed, and its place; empty if there is none.
 * @param quoted what the message says before: it need not name a character that it shows, because gRPC sends twenty issues
 * in headers.
 */
function nameStranger(value: string, notAllowed: RegExp, quoted = ""): string {
  const found = notAllowed.exec(value);
  if (found === null) return "";
  const [character] = found;
  const place = [...value.slice(0, found.index)].length + 1;
  const code = `U+${character.codePointAt(0)?.toString(16).toUpperCase().padStart(4, "0")}`;
  const isVisible = !/[\p{C}\p{Z}]/u.test(character);
  if (isVisible && quoted.includes(character)) return "";
  return `; character ${place} is ${code}${isVisible ? ` ('${character}')` : ""}`;
}

export const notUnicode = (value: string) =>
  `must be well-formed Unicode, without lone surrogates${nameStranger(value, /\p{Cs}/u)}`;

export const text = (charactersMax: number): Shape<string> =>
  leaf({ type: "string", minLength: 1, maxLength: charactersMax }, (value) => {
    if (typeof value !== "string") return mustBe("a string", value);
    if (value === "") return `must not be empty${given(value)}`;
    if (!isAtMost(value, charactersMax)) return `must have at most ${charactersMax} characters${given(value)}`;
    return value.isWellFormed() ? undefined : notUnicode(value);
  });

export const printable = (charactersMax: number): Shape<string> =>
  leaf({ type: "string", minLength: 1, maxLength: charactersMax, pattern: "^[ -~]+$" }, (value) => {
    if (typeof value !== "string") return mustBe("a string", value);
    if (value.length <= charactersMax && /^[ -~]+$/.test(value)) return undefined;
    const problem = nameStranger(value, /[^ -~]/u) || `; it has ${value.length}`;
    return `must have 1 to ${charactersMax} printable ASCII characters${problem}`;
  });

/**
 * @param notAllowed finds a character that no match has; it has the flag `u`.
 * @param means the pattern in words; the message puts it after "must".
 */
export const matching = (pattern: RegExp, notAllowed: RegExp, means: string): Shape<string> =>
  leaf({ type: "string", pattern: pattern.source }, (value) => {
    if (typeof value !== "string") return mustBe("a string", value);
    if (pattern.test(value)) return undefined;
    const quoted = given(value);
    return `must ${means}${quoted}${nameStranger(value, notAllowed, quoted)}`;
  });

/** An email address, in lower case. Issues never quote it, because it is personal data. */
export const email = (pattern: RegExp, charactersMax: number): Shape<string> => ({
  schema: { type: "string", minLength: 1, maxLength: charactersMax, pattern: pattern.source },
  definitions: {},
  read(value, reading) {
    if (typeof value !== "string") return reading.refuse(`must be a string; it is ${kindOf(value)}`);
    if (!isAtMost(value, charactersMax)) {
      return reading.refuse(`must have at most ${charactersMax} characters; it has ${[...value].length}`);
    }
    if (!value.isWellFormed()) return reading.refuse(notUnicode(value));
    return pattern.test(value) ? value.toLowerCase() : reading.refuse(`must be an email address; ${form(value)}`);
  },
});

/** Describes a text without quoting it. */
function form(value: string): string {
  const characters = [...value].length;
  const ats = value.split("@").length - 1;
  const stranger = nameStranger(value, /[\s"\0]/u);
  return `it has ${characters} ${characters === 1 ? "character" : "characters"}, ${ats} of them '@'${stranger}`;
}

export const oneOf = <const Value extends string>(values: readonly Value[]): Shape<Value> => {
  const known: ReadonlySet<unknown> = new Set(values);
  return leaf({ type: "string", enum: values }, (value) =>
    known.has(value) ? undefined : mustBe(`one of ${values.join(", ")}`, value),
  );
};

export const wholeNumber = (min: number, max: number): Shape<number> =>
  leaf({ type: "integer", minimum: min, maximum: max }, (value) => {
    if (!Number.isSafeInteger(value)) return mustBe("a whole number", value);
    if ((value as number) < min) return mustBe(`at least ${min}`, value);
    return (value as number) > max ? mustBe(`at most ${max}`, value) : undefined;
  });

export const finiteNumber: Shape<number> = leaf({ type: "number" }, (value) =>
  Number.isFinite(value) ? undefined : mustBe("a finite number", value),
);

/** @param aheadSecondsMax how far a time may lie after the time of receipt, if the reading knows that. */
export const time = (aheadSecondsMax = Number.POSITIVE_INFINITY): Shape<Date> => ({
  schema: { type: "string", format: "date-time", description: timeDescription },
  definitions: {},
  read(value, reading) {
    if (typeof value !== "string") return reading.refuse(mustBe("a string", value));
    const parsed = parseTime(value);
    if (typeof parsed === "string") return reading.refuse(`${parsed}${given(value)}`);
    const { receivedAt } = reading;
    if (receivedAt === undefined || parsed.getTime() - receivedAt.getTime() <= aheadSecondsMax * 1000) return parsed;
    const bound = `must be at most ${aheadSecondsMax / 3600} hours after the time of receipt`;
    return reading.refuse(`${bound} (the server's clock says ${receivedAt.toISOString()})${given(value)}`);
  },
});

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export function arrayOf<T>(items: Shape<T>, min: number, max: number): Shape<T[]> {
  return {
    schema: { type: "array", minItems: min, maxItems: max, items: items.schema },
    definitions: items.definitions,
    read(value, reading) {
      if (!Array.isArray(value)) return reading.refuse(mustBe("an array", value));
      if (value.length < min) return reading.refuse(`must have at least ${count(min)}; it has ${value.length}`);
      if (value.length > max) return reading.refuse(`must have at most ${count(max)}; it has ${value.length}`);
      return value.map((item, i) => {
        const notes = reading.notes.length;
        const result = items.read(item, reading);
        if (reading.notes.length !== notes) reading.below(i, notes);
        return result;
      });
    },
  };
}

const count = (entries: number) => `${entries} ${entries === 1 ? "entry" : "entries"}`;

/** A member that may be left out; `null` counts as left out. */
export interface Optional<T> extends Shape<T | undefined> {
  readonly optional: true;
  readonly fallback: T | undefined;
}

export function optional<T>(shape: Shape<T>): Optional<T> {
  return { ...shape, optional: true, fallback: undefined };
}

export function defaulting<T>(shape: Shape<T>, fallback: T): Shape<T> & { readonly optional: true; fallback: T } {
  return { ...shape, schema: { ...shape.schema, default: fallback }, optional: true, fallback };
}

export type Members = Readonly<Record<string, Shape<unknown>>>;
type OptionalName<M extends Members> = {
  [Name in keyof M]: undefined extends TypeOf<M[Name]> ? Name : never;
}[keyof M];
export type ObjectOf<M extends Members> = { [Name in Exclude<keyof M, OptionalName<M>>]: TypeOf<M[Name]> } & {
  [Name in OptionalName<M>]?: TypeOf<M[Name]>;
};

export interface ObjectShape<M extends Members> extends Shape<ObjectOf<M>> {
  readonly members: M;
}

/**
 * An object with these members. Unknown members are ignored, and noted if the reading asks for that.
 * @param refused if given, unknown members are refused with this message instead.
 */
export function object<M extends Members>(members: M, refused?: string): ObjectShape<M> {
  const all = Object.entries(members).map(([name, shape]) => {
    const { optional: isOptional = false, fallback } = shape as Partial<Optional<unknown>>;
    return { name, shape, isOptional, fallback };
  });
  const names: ReadonlySet<string> = new Set(Object.keys(members));
  return {
    members,
    schema: {
      type: "object",
      properties: Object.fromEntries(all.map(({ name, shape }) => [name, shape.schema])),
      required: all.filter(({ isOptional }) => !isOptional).map(({ name }) => name),
    },
    definitions: Object.assign({}, ...all.map(({ shape }) => shape.definitions)),
    read(value, reading) {
      if (!isRecord(value)) return reading.refuse(mustBe("an object", value));
      const result: Record<string, unknown> = {};
      for (let i = 0; i < all.length; i++) {
        const { name, shape, isOptional, fallback } = all[i] as (typeof all)[number];
        const member = value[name];
        if (isOptional && (member === undefined || member === null)) {
          if (fallback !== undefined) result[name] = fallback;
          continue;
        }
        const notes = reading.notes.length;
        result[name] = shape.read(member, reading);
        if (reading.notes.length !== notes) reading.below(name, notes);
      }
      if (refused !== undefined || reading.notesIgnored) {
        for (const name of Object.keys(value)) {
          if (names.has(name)) continue;
          if (refused === undefined) reading.ignore(name);
          else reading.refuse(refused, name);
        }
      }
      return result as ObjectOf<M>;
    },
  };
}

/** Gives the shape a name in OpenAPI. */
export function named<S extends Shape<unknown>>(name: string, description: string, shape: S): S {
  const definitions = { ...shape.definitions, [name]: { ...shape.schema, description } };
  return { ...shape, schema: { $ref: `#/components/schemas/${name}` }, definitions };
}

/** Puts a member's description before that of its shape. */
export function described<S extends Shape<unknown>>(description: string, shape: S): S {
  const own = shape.schema.description;
  const all = own === undefined ? description : `${description} ${String(own)}`;
  return { ...shape, schema: { ...shape.schema, description: all } };
}
