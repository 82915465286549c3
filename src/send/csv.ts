import { CsvError, parse } from "csv-parse/sync";
import { limits } from "../limits.ts";
import { canonicalNumber, parseJson, type Parsed } from "./json.ts";
import type { SourceKind } from "./kinds.ts";
import { type Line, type SourceRecord, UnusableSource } from "./source.ts";

interface Row {
  readonly value: Record<string, unknown> & { actor: Record<string, unknown> };
  rounded: string | undefined;
}
type Cell = (row: Row, cell: string) => void;

interface Columns {
  readonly named: Readonly<Record<string, Cell>>;
  /** Members of an object, such as `metadata.NAME`, and how their text is parsed. */
  readonly members: Readonly<Record<string, (cell: string) => unknown>>;
}

const text =
  (name: string): Cell =>
  ({ value }, cell) =>
    (value[name] = cell);
const ofActor =
  (name: string): Cell =>
  ({ value }, cell) =>
    (value.actor[name] = cell);
const object =
  (name: string): Cell =>
  (row, cell) => {
    const { value, rounded } = parseJson(cell);
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new Error(`${name}: must be an object`);
    row.value[name] = { ...value, ...(row.value[name] as object) };
    row.rounded ??= rounded;
  };

const numberOrText = (cell: string) => canonicalNumber(cell) ?? cell;

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
      eventId: text("eventId"),
      duration: ({ value }, cell) => (value.duration = numberOrText(cell)),
    },
    members: { metadata: (cell) => cell },
  },
  snapshot: {
    named: { snapshotType: text("snapshotType"), ...common, metrics: object("metrics") },
    members: { metadata: (cell) => cell, metrics: numberOrText },
  },
};

function cellOf({ named, members }: Columns, column: string): Cell | undefined {
  const [, object = "", name = ""] = /^(\w+)\.(.+)$/.exec(column) ?? [];
  const valueOf = Object.hasOwn(members, object) ? members[object] : undefined;
  if (valueOf === undefined) return Object.hasOwn(named, column) ? named[column] : undefined;
  // A plain assignment would not work for every name, such as `__proto__`.
  return ({ value }, cell) =>
    void Object.defineProperty((value[object] ??= {}), name, { value: valueOf(cell), enumerable: true });
}

/**
 * An empty cell counts as absent.
 * @throws UnusableSource for a column with an unknown name, or a broken row of names.
 */
export async function* readCsv(lines: AsyncIterable<Line>, kind: SourceKind): AsyncGenerator<SourceRecord> {
  let columns: { readonly head: string; readonly cells: readonly Cell[] } | undefined;
  for await (const { line, text, endByte, texts } of readRows(lines)) {
    if (columns === undefined)
      columns = { head: text, cells: cellsOf(csvColumns[kind.name], namesIn({ line, texts })) };
    else yield { line, text, endByte, head: columns.head, content: contentOf(columns.cells, texts) };
  }
}

/** @throws UnusableSource for a broken row. */
function namesIn({ line, texts }: Pick<RawRow, "line" | "texts">): readonly string[] {
  try {
    return texts();
  } catch (error) {
    throw new UnusableSource(`Line ${line}, which names the columns, ${(error as Error).message}.`);
  }
}

/** @throws UnusableSource that lists the allowed columns. */
function cellsOf(columns: Columns, header: readonly string[]): readonly Cell[] {
  const names = header.map((name) => name.trim());
  const cells = names.flatMap((name) => cellOf(columns, name) ?? []);
  if (cells.length === names.length && new Set(names).size === names.length) return cells;
  const allowed = [...Object.keys(columns.named), ...Object.keys(columns.members).map((name) => `${name}.NAME`)];
  throw new UnusableSource(`The columns are ${names.join(", ")}; allowed are ${allowed.join(", ")}, each once.`);
}

const contentOf = (cells: readonly Cell[], texts: () => readonly string[]) => (): Parsed => {
  const given = texts();
  if (given.length !== cells.length) throw new Error(`has ${given.length} cells; there are ${cells.length} columns`);
  const row: Row = { value: { actor: {} }, rounded: undefined };
  for (const [i, text] of given.entries()) if (text !== "") cells[i]?.(row, text);
  return row;
};

interface RawRow {
  /** From 1. */
  readonly line: number;
  readonly text: string;
  readonly endByte: number;
  /** @throws Error for a broken row. */
  readonly texts: () => readonly string[];
}

/** The most lines of a row. A quoted cell may have line breaks, but more lines mean that a quote is not closed. */
const rowLinesMax = 1_000;

/** A broken row is only its first line, so that the rows after it are still read. */
async function* readRows(lines: AsyncIterable<Line>): AsyncGenerator<RawRow> {
  const iterator = lines[Symbol.asyncIterator]();
  let ahead: Line[] = [];
  const next = async (): Promise<Line | undefined> => ahead.shift() ?? (await iterator.next()).value;
  for (let first = await next(); first !== undefined; first = await next()) {
    const row = [first];
    let raw = first.text;
    let text = raw.replace(/\r$/, "");
    if (text.trim() === "") continue;
    let parsed = parseRow(text);
    while (parsed === "open") {
      const line = row.length < rowLinesMax && text.length <= limits.bodyBytesMax ? await next() : undefined;
      if (line === undefined) parsed = new Error("has a quote that is not closed");
      else {
        raw += `\n${line.text}`;
        text = raw.replace(/\r$/, "");
        row.push(line);
        if (line.text.includes('"')) parsed = parseRow(text);
      }
    }
    const result = parsed;
    if (result instanceof Error) {
      ahead = [...row.slice(1), ...ahead];
      const texts = () => {
        throw result;
      };
      yield { line: first.number, text: first.text, endByte: first.endByte, texts };
    } else {
      yield { line: first.number, text, endByte: (row.at(-1) as Line).endByte, texts: () => result };
    }
  }
}

/** "open" if the row continues in the next line; an Error if it is broken. */
function parseRow(text: string): readonly string[] | "open" | Error {
  try {
    return parse(text, { relax_column_count: true, record_delimiter: "\n" })[0] ?? [];
  } catch (error) {
    if (!(error instanceof CsvError)) throw error;
    if (error.code === "CSV_QUOTE_NOT_CLOSED") return "open";
    return new Error(
      error.code === "INVALID_OPENING_QUOTE"
        ? 'has a quote in a cell that does not begin with one; write such a cell as "Alex ""Al"" Chen"'
        : error.code === "CSV_INVALID_CLOSING_QUOTE"
          ? 'has text after a closing quote; double the quotes within a cell, as in "Alex ""Al"" Chen"'
          : `is not CSV: ${error.message}`,
    );
  }
}
