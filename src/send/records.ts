import type { Readable } from "node:stream";
import { parse } from "csv-parse";
import { limits } from "../limits.ts";
import type { SourceKind } from "./kinds.ts";

/** One event or snapshot of a file, as it stands there. */
export interface SourceRecord {
  /** Where it begins, from 1. */
  readonly line: number;
  /** As it stands there; the same text is the same record. */
  readonly text: string;
  /** What it says. @throws Error that says why it says nothing. */
  readonly value: () => unknown;
}

export const sourceFormats = ["ndjson", "csv"] as const;
export type SourceFormat = (typeof sourceFormats)[number];

/** The records of a file, in order; empty lines are none. @throws Error when the file as a whole cannot be read. */
export function readRecords(source: Readable, format: SourceFormat, kind: SourceKind): AsyncGenerator<SourceRecord> {
  return format === "csv" ? readCsv(source, csvColumns[kind.name]) : readNdjson(source);
}

async function* readNdjson(source: Readable): AsyncGenerator<SourceRecord> {
  let line = 0;
  for await (const text of readLines(source)) {
    line++;
    if (text.trim() === "") continue;
    yield { line, text, value: () => parseJson(text) };
  }
}

/** Lines end with \n or \r\n: what else readline takes for an end, U+2028 and U+2029, JSON allows within a string. */
async function* readLines(source: Readable): AsyncGenerator<string> {
  // Joined once it is whole: a long line is in many chunks.
  let parts: string[] = [];
  let isStart = true;
  for await (const chunk of source.setEncoding("utf8") as AsyncIterable<string>) {
    const [rest = "", ...begun] = (isStart ? chunk.replace(/^\uFEFF/, "") : chunk).split("\n");
    isStart = false;
    parts.push(rest);
    for (const part of begun) {
      yield lineOf(parts);
      parts = [part];
    }
  }
  yield lineOf(parts);
}

const lineOf = (parts: readonly string[]) => parts.join("").replace(/\r$/, "");

function parseJson(text: string): unknown {
  if (text.length > limits.bodyBytesMax) throw new Error(`must have at most ${limits.bodyBytesMax} bytes`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`is not JSON: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

type Row = Record<string, unknown> & { actor: Record<string, unknown> };
type Cell = (row: Row, cell: string) => void;

/** What the columns of a file are called, and what their cells say. */
interface Columns {
  readonly named: Readonly<Record<string, Cell>>;
  /** Members of an object, such as `metadata.NAME`, and what is made of their text. */
  readonly members: Readonly<Record<string, (cell: string) => unknown>>;
}

const text =
  (name: string): Cell =>
  (row, cell) =>
    (row[name] = cell);
const ofActor =
  (name: string): Cell =>
  (row, cell) =>
    (row.actor[name] = cell);
const object =
  (name: string): Cell =>
  (row, cell) => {
    const value = parseJson(cell);
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new Error(`${name}: must be an object`);
    row[name] = { ...value, ...(row[name] as object) };
  };

const common = {
  ...Object.fromEntries(["workerId", "externalId", "email", "displayName"].map((name) => [name, ofActor(name)])),
  timestamp: text("timestamp"),
  metadata: object("metadata"),
};

const csvColumns: Readonly<Record<SourceKind["name"], Columns>> = {
  event: {
    named: {
      eventType: text("eventType"),
      category: text("category"),
      ...common,
      duration: (row, cell) => (row.duration = /^\d+$/.test(cell) ? Number(cell) : cell),
    },
    members: { metadata: (cell) => cell },
  },
  snapshot: {
    named: { snapshotType: text("snapshotType"), ...common, metrics: object("metrics") },
    members: {
      metadata: (cell) => cell,
      metrics: (cell) => (/^-?\d+(\.\d+)?([eE][+-]?\d+)?$/.test(cell) ? Number(cell) : cell),
    },
  },
};

function cellOf({ named, members }: Columns, column: string): Cell | undefined {
  const [, object = "", name = ""] = /^(\w+)\.(.+)$/.exec(column) ?? [];
  const valueOf = Object.hasOwn(members, object) ? members[object] : undefined;
  if (valueOf === undefined) return Object.hasOwn(named, column) ? named[column] : undefined;
  // Defined and not set, so that a member may have any name.
  return (row, cell) =>
    void Object.defineProperty((row[object] ??= {}), name, { value: valueOf(cell), enumerable: true });
}

/** The first line names the columns; an empty cell says nothing. */
async function* readCsv(source: Readable, columns: Columns): AsyncGenerator<SourceRecord> {
  const parser = source.pipe(parse({ bom: true, info: true, relax_column_count: true, skip_empty_lines: true }));
  source.once("error", (error) => parser.destroy(error));
  let cells: readonly Cell[] | undefined;
  let line = 1;
  for await (const { record, info } of parser as AsyncIterable<{ record: string[]; info: { lines: number } }>) {
    if (cells === undefined) cells = cellsOf(columns, record);
    else yield { line, text: JSON.stringify(record), value: rowOf(cells, record) };
    line = info.lines + 1;
  }
}

/** What each column says. @throws Error that names the columns there may be. */
function cellsOf(columns: Columns, header: readonly string[]): readonly Cell[] {
  const names = header.map((name) => name.trim());
  const cells = names.flatMap((name) => cellOf(columns, name) ?? []);
  if (cells.length === names.length && new Set(names).size === names.length) return cells;
  const allowed = [...Object.keys(columns.named), ...Object.keys(columns.members).map((name) => `${name}.NAME`)];
  throw new Error(`The columns are ${names.join(", ")}; they may be ${allowed.join(", ")}, each once.`);
}

const rowOf = (cells: readonly Cell[], texts: readonly string[]) => () => {
  if (texts.length !== cells.length) throw new Error(`has ${texts.length} cells; there are ${cells.length} columns`);
  const row: Row = { actor: {} };
  for (const [i, text] of texts.entries()) if (text !== "") cells[i]?.(row, text);
  return row;
};
