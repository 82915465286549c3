import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { parse } from "csv-parse";
import { limits } from "../limits.ts";

/** One event of a file, as it stands there. */
export interface SourceRecord {
  /** Where it begins, from 1. */
  readonly line: number;
  /** As it stands there; the same text is the same record. */
  readonly text: string;
  /** The event that it says. @throws Error that says why it is none. */
  readonly event: () => unknown;
}

export const sourceFormats = ["ndjson", "csv"] as const;
export type SourceFormat = (typeof sourceFormats)[number];

/** The records of a file, in order; empty lines are none. @throws Error when the file as a whole cannot be read. */
export function readRecords(source: Readable, format: SourceFormat): AsyncGenerator<SourceRecord> {
  return format === "csv" ? readCsv(source) : readNdjson(source);
}

async function* readNdjson(source: Readable): AsyncGenerator<SourceRecord> {
  let line = 0;
  for await (const text of createInterface({ input: source, crlfDelay: Number.POSITIVE_INFINITY })) {
    line++;
    if (text.trim() === "") continue;
    yield { line, text, event: () => parseJson(text) };
  }
}

function parseJson(text: string): unknown {
  if (text.length > limits.bodyBytesMax) throw new Error(`must have at most ${limits.bodyBytesMax} bytes`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`is not JSON: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

type Event = Record<string, unknown> & { actor: Record<string, unknown>; metadata?: Record<string, unknown> };

/** What a cell of a column says of the event. */
const columns: Readonly<Record<string, (event: Event, cell: string) => void>> = {
  eventType: (event, cell) => (event.eventType = cell),
  category: (event, cell) => (event.category = cell),
  workerId: (event, cell) => (event.actor.workerId = cell),
  externalId: (event, cell) => (event.actor.externalId = cell),
  email: (event, cell) => (event.actor.email = cell),
  displayName: (event, cell) => (event.actor.displayName = cell),
  timestamp: (event, cell) => (event.timestamp = cell),
  duration: (event, cell) => (event.duration = /^\d+$/.test(cell) ? Number(cell) : cell),
  metadata: (event, cell) => (event.metadata = { ...(parseJson(cell) as object), ...event.metadata }),
};
const metadataPrefix = "metadata.";

const setterOf = (name: string) =>
  name.startsWith(metadataPrefix) && name.length > metadataPrefix.length
    ? (event: Event, cell: string) =>
        void Object.defineProperty((event.metadata ??= {}), name.slice(metadataPrefix.length), {
          value: cell,
          enumerable: true,
        })
    : columns[name];

/** The first line names the columns; an empty cell says nothing. */
async function* readCsv(source: Readable): AsyncGenerator<SourceRecord> {
  const parser = source.pipe(parse({ bom: true, info: true, relax_column_count: true, skip_empty_lines: true }));
  source.once("error", (error) => parser.destroy(error));
  let names: readonly string[] | undefined;
  let line = 1;
  for await (const { record, info } of parser as AsyncIterable<{ record: string[]; info: { lines: number } }>) {
    if (names === undefined) names = knownColumns(record);
    else yield { line, text: JSON.stringify(record), event: eventOf(names, record) };
    line = info.lines + 1;
  }
}

function knownColumns(names: readonly string[]): readonly string[] {
  const trimmed = names.map((name) => name.trim());
  const unknown = trimmed.find((name) => setterOf(name) === undefined);
  if (unknown === undefined && new Set(trimmed).size === trimmed.length) return trimmed;
  const allowed = `${Object.keys(columns).join(", ")} and ${metadataPrefix}NAME, each once`;
  throw new Error(`The columns are ${trimmed.join(", ")}; they may be ${allowed}.`);
}

const eventOf = (names: readonly string[], cells: readonly string[]) => () => {
  if (cells.length !== names.length) throw new Error(`has ${cells.length} cells; there are ${names.length} columns`);
  const event: Event = { actor: {} };
  for (const [i, cell] of cells.entries()) if (cell !== "") setterOf(names[i] as string)?.(event, cell);
  return event;
};
