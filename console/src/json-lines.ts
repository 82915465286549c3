import { count, safeText } from "./format.ts";
import { text } from "./text.ts";

/** A member to point at. */
export interface Mark {
  /** Such as `actor.email` or `metadata.tags[2]`; empty for the whole. */
  readonly path: string;
  /** Whether it should be there. */
  readonly isMissing: boolean;
}

export interface Line {
  readonly text: string;
  readonly isMarked: boolean;
}

/** A row of a page stays readable, and drawing it cheap, whatever the value is. */
const linesMax = 150;
const membersMax = 40;
/** Ingest takes 32 levels. */
const indentMax = 2 * 36;
const charactersMax = 300;

/** A value as indented JSON. Long parts without a mark are cut; marked members are always there. */
export function jsonLines(value: unknown, marks: readonly Mark[]): Line[] {
  const lines: Line[] = [];
  write("", value, "", "", marks, false);
  return lines;

  function write(
    name: string,
    value: unknown,
    indent: string,
    end: string,
    marks: readonly Mark[],
    isWithinMark: boolean,
  ): void {
    const isMarked = isWithinMark || marks.some(({ path }) => path === "");
    const add = (line: string, isLineMarked = isMarked) => lines.push({ text: line, isMarked: isLineMarked });
    const within = marks.filter(({ path }) => path !== "");
    if (typeof value !== "object" || value === null) {
      add(`${indent}${name}${shortJson(value)}${end}`);
      return;
    }
    const [open, close] = Array.isArray(value) ? "[]" : "{}";
    const entries = Object.entries(value);
    const isFull = lines.length >= linesMax || indent.length >= indentMax;
    if (isFull && within.length === 0 && entries.length > 0) {
      add(`${indent}${name}${open} ${text.body.more(count(entries.length))} ${close}${end}`);
      return;
    }
    const members = entries.map(([key, member]) => ({
      key,
      member,
      marks: marksOf(key, Array.isArray(value), within),
    }));
    const found = new Set(members.flatMap((one) => one.marks.map(({ of }) => of)));
    const lost = within.filter((mark) => !found.has(mark));
    const missing = lost.filter(({ isMissing }) => isMissing);
    // What a refusal names may not be there under that name: then it is about the part that should have it.
    const isAbout = isMarked || lost.length > missing.length;
    if (entries.length === 0 && missing.length === 0) {
      add(`${indent}${name}${open}${close}${end}`, isAbout);
      return;
    }
    add(`${indent}${name}${open}`, isAbout);
    let left = 0;
    for (const [i, { key, member, marks: inner }] of members.entries()) {
      if (inner.length === 0 && (i >= membersMax || lines.length >= linesMax)) {
        left++;
        continue;
      }
      const label = Array.isArray(value) ? "" : `${shortJson(key)}: `;
      const comma = key === entries.at(-1)?.[0] ? "" : ",";
      write(label, member, `${indent}  `, comma, inner, isMarked);
    }
    if (left > 0) add(`${indent}  ${text.body.more(count(left))}`);
    for (const { path } of missing) add(`${indent}  ${text.body.missing(nameIn(path))}`, true);
    add(`${indent}${close}${end}`, isAbout);
  }
}

/** The marks that lie within a member, seen from there. */
const marksOf = (key: string, isArray: boolean, marks: readonly Mark[]) =>
  marks.flatMap((of) => {
    const rest = restAfter(isArray ? `[${key}]` : key, of.path);
    return rest === undefined ? [] : [{ of, path: rest, isMissing: of.isMissing }];
  });

/** What follows a member's name in a path. Callers of gRPC write `event_type` for `eventType`; long paths end with `…`. */
function restAfter(key: string, path: string): string | undefined {
  let at = 0;
  const skip = () => {
    while (path[at] === "_") at++;
  };
  for (const letter of key.replaceAll("_", "").toLowerCase().split("")) {
    skip();
    if (path.slice(at) === "…") return "";
    if (path[at]?.toLowerCase() !== letter) return undefined;
    at++;
  }
  skip();
  const rest = path.slice(at);
  return /^(?:[.[…]|$)/.test(rest) ? rest.replace(/^[.…]/, "") : undefined;
}

const nameIn = (path: string) => /^[^.[]*/.exec(path)?.[0] ?? path;

function shortJson(value: unknown): string {
  if (typeof value !== "string" || value.length <= charactersMax) return safeText(JSON.stringify(value));
  return `${safeText(JSON.stringify(value.slice(0, charactersMax)))} ${text.body.cut(count(value.length))}`;
}
