import type { z } from "zod";
import { Fault, type Issue } from "../errors.ts";
import { limits } from "../limits.ts";
import { redactCallerText } from "../redact.ts";

/**
 * A value in the valid form of its schema.
 * @throws Fault invalid_body with an issue for everything that does not fit: where, what is allowed, what was given.
 */
export function validate<Schema extends z.ZodType>(schema: Schema, value: unknown): z.infer<Schema> {
  const result = schema.safeParse(value, { error: allowed, reportInput: true });
  if (result.success) return result.data;
  throw invalidBody(
    result.error.issues.flatMap((issue): Issue[] =>
      issue.code === "unrecognized_keys"
        ? issue.keys.map((key) => ({ path: pathOf([...issue.path, key]), message: issue.message }))
        : [{ path: pathOf(issue.path), message: issue.message + given(issue) }],
    ),
  );
}

/** `invalid_body` with its issues; the message lists up to 20 of them. */
export function invalidBody(issues: readonly Issue[]): Fault {
  const listed = issues.slice(0, limits.issuesMax).map(({ path, message }) => `${path}: ${message}`);
  const more = issues.length - listed.length;
  if (more > 0) listed.push(`… and ${more} more`);
  return new Fault("invalid_body", listed.join("; "), { issues: issues.slice(0, limits.issuesMax) });
}

const nouns: Readonly<Record<string, string>> = {
  string: "a string",
  number: "a finite number",
  int: "a whole number",
  boolean: "true or false",
  array: "an array",
  object: "an object",
};

/** What is allowed, where the schema has no words of its own for it. */
function allowed(issue: z.core.$ZodRawIssue): string | undefined {
  switch (issue.code) {
    case "invalid_type":
      return `must be ${nouns[issue.expected] ?? issue.expected}`;
    case "too_small":
      return bound(issue.origin, "at least", issue.minimum);
    case "too_big":
      return bound(issue.origin, "at most", issue.maximum);
    case "unrecognized_keys":
      return "is not a parameter of this call";
    default:
      return undefined;
  }
}

function bound(origin: string, side: string, limit: number | bigint): string {
  if (origin === "array") return `must have ${side} ${limit} ${limit === 1 ? "entry" : "entries"}`;
  if (origin === "string") return `must have ${side} ${limit} characters`;
  return `must be ${side} ${limit}`;
}

function given({ code, input }: z.core.$ZodIssue): string {
  if (input === undefined) return "; it is missing";
  if (Array.isArray(input))
    return code === "too_small" || code === "too_big" ? `; it has ${input.length}` : "; it is an array";
  // What is wrong within an object its message says by itself.
  if (typeof input === "object" && input !== null) return code === "custom" ? "" : "; it is an object";
  return `; it is ${typeof input === "string" ? shown(input) : String(input)}`;
}

/**
 * So much of a text is shown: in characters, and in bytes when percent-encoded, which is how messages travel over gRPC. They
 * are headers there, once more in the details, and twenty issues must stay below the 16 KB of headers that clients such as
 * gRPC for Python take at most.
 */
const shownCharactersMax = 40;
const shownBytesMax = 60;

/** A text as issues show it: quoted, in part when it is long, of a key its hint only. */
export function shown(text: string): string {
  const beginning = beginningOf(text, shownCharactersMax);
  const safe = redactCallerText(beginning, shownCharactersMax).toWellFormed();
  return beginning === text ? `'${safe}'` : `'${safe}…' (${[...text].length} characters)`;
}

function beginningOf(text: string, charactersMax: number): string {
  let characters = 0;
  let bytes = 0;
  let end = 0;
  for (const character of text) {
    const isPlain = character >= " " && character <= "~" && character !== "%";
    bytes += isPlain ? 1 : 3 * Buffer.byteLength(character);
    if (++characters > charactersMax || bytes > shownBytesMax) return text.slice(0, end);
    end += character.length;
  }
  return text;
}

/** The same of a key of the caller's own choice. */
const keyCharactersMax = 64;

function pathOf(path: readonly PropertyKey[]): string {
  let text = "";
  for (const part of path) {
    const key = String(part);
    const beginning = beginningOf(key, keyCharactersMax);
    const name = beginning === key ? key : `${beginning.toWellFormed()}…`;
    if (typeof part === "number") text += `[${part}]`;
    else text += text === "" ? name : `.${name}`;
  }
  return text === "" ? "body" : text;
}
