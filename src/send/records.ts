import type { Readable } from "node:stream";
import { readCsv } from "./csv.ts";
import type { SourceFormat } from "./formats.ts";
import { parseJson, type Parsed } from "./json.ts";
import type { SourceKind } from "./kinds.ts";
import { type Line, readLines, type SourceRecord, UnusableSource } from "./source.ts";

/** @throws UnusableSource if the file cannot be read. */
export function readRecords(source: Readable, format: SourceFormat, kind: SourceKind): AsyncGenerator<SourceRecord> {
  const lines = readLines(source);
  return format === "csv" ? readCsv(lines, kind) : readNdjson(lines);
}

async function* readNdjson(lines: AsyncIterable<Line>): AsyncGenerator<SourceRecord> {
  let isFirst = true;
  for await (const { number: line, text: raw, endByte } of lines) {
    const text = raw.replace(/\r$/, "");
    if (text.trim() === "") continue;
    if (isFirst) refuseOtherJson(text);
    isFirst = false;
    yield { line, text, endByte, content: () => unwrapped(parseJson(text)) };
  }
}

/** Otherwise each line would be rejected with an unhelpful message. */
function refuseOtherJson(firstLine: string): void {
  const isArray = firstLine.trimStart().startsWith("[");
  if (!isArray && firstLine.trim() !== "{") return;
  const [shape, filter] = isArray ? ["is one JSON array", ".[]"] : ["has JSON over several lines", "."];
  throw new UnusableSource(
    `The file ${shape}; send needs one JSON object a line. Convert it, for example: jq -c '${filter}' FILE`,
  );
}

/** Takes the event or snapshot out of a line of our file of rejected records; returns other values unchanged. */
function unwrapped({ value, rounded }: Parsed): Parsed {
  if (typeof value !== "object" || value === null) return { value, rounded };
  const { line, code, message, event, snapshot, ...others } = value as Record<string, unknown>;
  const inner = event ?? snapshot;
  const isRejected = Number.isInteger(line) && typeof code === "string" && typeof message === "string";
  if (!isRejected || inner === undefined || Object.keys(others).length > 0) return { value, rounded };
  // A line that could not be parsed is kept as text. The user may have fixed it.
  return typeof inner === "string" ? unwrapped(parseJson(inner)) : { value: inner, rounded };
}
