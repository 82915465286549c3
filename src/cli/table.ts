import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { escapeControls } from "../terminal.ts";

/** Other objects are not cells, because JSON is hard to read. */
export type Cell = string | number | boolean | Date | Timestamp | readonly string[] | null | undefined;

/** A column of a list, and a line of a record. */
export interface Column<Row> {
  readonly name: string;
  /** Undefined and null print as a dash. */
  readonly of: (row: Row) => Cell;
  /** A narrow terminal may cut its cells down to this width. Default: never, since people copy ids. */
  readonly cutTo?: number;
  /** A narrow terminal may leave it out; the last such column goes first. Default: it stays. */
  readonly optional?: boolean;
}

export interface Table {
  /** The heads come first. No line is wider than the terminal. */
  readonly lines: readonly string[];
  /** Names the columns for which the terminal is too narrow. */
  readonly leftOut: readonly string[];
}

const gap = 2;

/** Never wraps a row: it cuts cells and leaves columns out instead. */
export function tableOf<Row>(rows: readonly Row[], columns: readonly Column<Row>[], width: number): Table {
  const cells = [columns.map(({ name }) => name), ...rows.map((row) => columns.map(({ of }) => cellText(of(row))))];
  const natural = columns.map((_, i) => Math.max(...cells.map((row) => textWidth(row[i] as string))));
  let kept = [...columns.keys()];
  for (;;) {
    const widths = fit(
      kept.map((i) => natural[i] as number),
      kept.map((i) => Math.max(columns[i]?.cutTo ?? Number.POSITIVE_INFINITY, textWidth(columns[i]?.name as string))),
      width,
    );
    const spare = widths === undefined ? kept.findLast((i) => columns[i]?.optional) : undefined;
    if (spare === undefined) {
      const lines = cells.map((row) => {
        const line = kept.map((i, at) => fill(row[i] as string, widths?.[at] ?? (natural[i] as number)));
        return cut(line.join(" ".repeat(gap)).trimEnd(), width);
      });
      return { lines, leftOut: columns.filter((_, i) => !kept.includes(i)).map(({ name }) => name) };
    }
    kept = kept.filter((i) => i !== spare);
  }
}

/** Makes the widest columns narrower until all fit. Undefined if even the least widths do not. */
function fit(natural: readonly number[], least: readonly number[], width: number): readonly number[] | undefined {
  const isFitting = (widths: readonly number[]) =>
    widths.reduce((sum, one) => sum + one, 0) + gap * (widths.length - 1) <= width;
  if (isFitting(natural)) return natural;
  for (let cap = width; cap > 0; cap--) {
    const widths = natural.map((one, i) => Math.min(one, Math.max(cap, least[i] as number)));
    if (isFitting(widths)) return widths;
  }
  return undefined;
}

/** Prints one value a line. A long value continues on the next line, so that people see all of it. */
export function recordLines(values: readonly (readonly [name: string, value: Cell])[], width: number): string[] {
  const indent = Math.max(...values.map(([name]) => textWidth(name))) + gap;
  return values.flatMap(([name, value]) =>
    wrap(cellText(value), Math.max(width - indent, 20)).map((part, i) => fill(i === 0 ? name : "", indent) + part),
  );
}

/** Texts of callers must not act on the terminal, or look like further rows. */
const cellText = (value: Cell): string => escapeControls(textOf(value));

function textOf(value: Cell): string {
  if (value === null || value === undefined) return "-";
  if (value instanceof Date) return value.toISOString().replace(/\.\d+/, "");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object" && "seconds" in value) return textOf(timestampDate(value));
  if (typeof value === "object") return value.length === 0 ? "(none)" : value.join(" ");
  return String(value);
}

/** It takes 20 ms to make, which most commands can spare. */
let graphemes: Intl.Segmenter | undefined;
const graphemesOf = (text: string) => {
  graphemes ??= new Intl.Segmenter(undefined, { granularity: "grapheme" });
  return Array.from(graphemes.segment(text), ({ segment }) => segment);
};
/** Emoji and East Asian scripts take two columns of a terminal. Their half-width forms take one. */
const wide =
  /^(?:\p{RGI_Emoji}|[[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Hang}\uFF01-\uFF60\uFFE0-\uFFE6]--[\uFF61-\uFFDC]])/v;
const widthOf = (grapheme: string) => (wide.test(grapheme) ? 2 : 1);

/** In columns of a terminal. */
export const textWidth = (text: string): number =>
  /^[ -~]*$/.test(text) ? text.length : graphemesOf(text).reduce((sum, one) => sum + widthOf(one), 0);

const fill = (text: string, width: number): string => {
  const shown = cut(text, width);
  return shown + " ".repeat(Math.max(width - textWidth(shown), 0));
};

/** Ends with an ellipsis if the text does not fit. */
export function cut(text: string, width: number): string {
  if (textWidth(text) <= width) return text;
  return `${beginning(graphemesOf(text), width - 1).join("")}…`;
}

function beginning(text: readonly string[], width: number): readonly string[] {
  let used = 0;
  const end = text.findIndex((one) => (used += widthOf(one)) > width);
  return end === -1 ? text : text.slice(0, end);
}

/** Breaks the text at spaces, if it has any. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let rest = graphemesOf(text);
  for (;;) {
    const fitting = beginning(rest, width);
    if (fitting.length === rest.length) return [...lines, rest.join("")];
    const space = fitting.lastIndexOf(" ");
    const end = space > 0 ? space : fitting.length;
    lines.push(rest.slice(0, end).join(""));
    rest = rest.slice(space > 0 ? end + 1 : end);
  }
}
