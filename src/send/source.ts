import { isUtf8 } from "node:buffer";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { limits } from "../limits.ts";
import type { Parsed } from "./json.ts";

/** The file cannot be read; the message says where, and what to do. The user must change it before another run. */
export class UnusableSource extends Error {}

/** A line of a file. Only \n ends it, because JSON strings may contain other line separators. */
export interface Line {
  /** From 1. */
  readonly number: number;
  /** Without \n. Only the beginning, if the line is longer than any request. */
  readonly text: string;
  /** The line's end, in bytes of the unpacked file. */
  readonly endByte: number;
}

export interface SourceRecord {
  /** Where it begins, from 1. */
  readonly line: number;
  /** As in the file; the same text is the same record. */
  readonly text: string;
  /** The record's end, in bytes of the unpacked file. */
  readonly endByte: number;
  /** The row that names the columns, in a file that has one. It gives the text its meaning. */
  readonly head?: string;
  /** Parses the record. @throws Error that says why that fails. */
  readonly content: () => Parsed;
}

type Unpack = (chunks: AsyncGenerator<Buffer>) => AsyncGenerator<Buffer>;

async function* unpackGzip(chunks: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  const unpack = createGunzip();
  // An error here also ends the loop below.
  pipeline(chunks, unpack).catch(() => {});
  yield* unpack;
}

/** Node's decompressor ends with a frame that ends within a chunk. Files to which zstd has appended have several. */
async function* unpackZstd(chunks: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  const next = async () => (await chunks.next()).value as Buffer | undefined;
  /** Gives the frame its chunks. Returns the rest of the one within which it ended. */
  async function fed(frame: ReturnType<typeof createZstdDecompress>, first: Buffer): Promise<Buffer | undefined> {
    const closed = new Promise<void>((resolve) => frame.once("close", resolve));
    let taken = 0;
    for (let chunk: Buffer | undefined = first; chunk !== undefined; chunk = await next()) {
      const given = chunk;
      await Promise.race([closed, new Promise<void>((resolve) => frame.write(given, () => resolve()))]);
      const used = frame.bytesWritten - taken;
      if (used < chunk.length) return chunk.subarray(used);
      taken += chunk.length;
    }
    frame.end();
    return undefined;
  }
  for (let rest = await next(); rest !== undefined;) {
    const frame = createZstdDecompress();
    const feeding = fed(frame, rest);
    feeding.catch((error: Error) => frame.destroy(error));
    yield* frame;
    rest = await feeding;
  }
}

/** First bytes of files that are not plain text. `send` refuses those without `unpack`, and names them. */
const magics: readonly { readonly name: string; readonly bytes: string; readonly unpack?: Unpack }[] = [
  { name: "gzip", bytes: "1f8b", unpack: unpackGzip },
  { name: "zstd", bytes: "28b52ffd", unpack: unpackZstd },
  { name: "a ZIP archive or a spreadsheet; unpack it, or save it as CSV in UTF-8", bytes: "504b0304" },
  { name: "compressed with bzip2; unpack it first", bytes: "425a68" },
  { name: "compressed with xz; unpack it first", bytes: "fd377a585a00" },
  { name: "UTF-16 (its byte order mark is FF FE); convert it: iconv -f UTF-16 -t UTF-8", bytes: "fffe" },
  { name: "UTF-16 (its byte order mark is FE FF); convert it: iconv -f UTF-16 -t UTF-8", bytes: "feff" },
];
const magicBytesMax = Math.max(...magics.map(({ bytes }) => bytes.length / 2));

/** How the file is packed, by its first bytes. @throws UnusableSource if this program cannot read such files. */
function packingOf(start: Buffer): (typeof magics)[number] | undefined {
  const magic = magics.find(({ bytes }) => start.toString("hex").startsWith(bytes));
  if (magic !== undefined && magic.unpack === undefined) throw new UnusableSource(`The file is ${magic.name}.`);
  return magic;
}

/** Whether the file is packed, so that its size does not tell how much of it was sent. */
export const isPacked = (start: Buffer): boolean => magics.some(({ bytes }) => start.toString("hex").startsWith(bytes));

async function* unpacked(source: Readable): AsyncGenerator<Buffer> {
  const chunks = source[Symbol.asyncIterator]() as AsyncIterableIterator<Buffer>;
  let start = Buffer.alloc(0);
  while (start.length < magicBytesMax) {
    const { value, done } = await chunks.next();
    if (done === true) break;
    start = Buffer.concat([start, value]);
  }
  const packing = packingOf(start);
  const zeroAt = packing === undefined ? start.indexOf(0) : -1;
  if (zeroAt !== -1) throw new UnusableSource(`The file is not text in UTF-8: its byte ${zeroAt + 1} is 0x00.`);
  const whole = (async function* () {
    yield start;
    yield* chunks;
  })();
  if (packing?.unpack === undefined) return yield* whole;
  try {
    yield* packing.unpack(whole);
  } catch (error) {
    const { code = "", message } = error as NodeJS.ErrnoException;
    if (!/^(Z_|ZSTD_)/.test(code)) throw error;
    throw new UnusableSource(`The file is broken: it cannot be unpacked with ${packing.name} (${message}).`);
  }
}

/** The kept bytes of a line. A longer line cannot be sent, so the rest need not stay in memory. */
const lineBytesMax = limits.bodyBytesMax + 1;

/** @throws UnusableSource if the file is packed in an unknown way, or is not UTF-8. */
export async function* readLines(source: Readable): AsyncGenerator<Line> {
  let number = 0;
  let endByte = 0;
  // A long line comes in many chunks. Join them once.
  let parts: Buffer[] = [];
  let bytes = 0;
  const add = (part: Buffer) => {
    if (bytes < lineBytesMax) parts.push(part.subarray(0, lineBytesMax - bytes));
    bytes += part.length;
  };
  const close = (endBytes: number): Line => {
    endByte += bytes + endBytes;
    const line = { number: ++number, text: textOf(Buffer.concat(parts), number, bytes), endByte };
    parts = [];
    bytes = 0;
    return line;
  };
  for await (const chunk of unpacked(source)) {
    let start = 0;
    for (let end = chunk.indexOf(newline); end !== -1; end = chunk.indexOf(newline, start)) {
      add(chunk.subarray(start, end));
      yield close(1);
      start = end + 1;
    }
    add(chunk.subarray(start));
  }
  if (bytes > 0) yield close(0);
}

const newline = 0x0a;

function textOf(line: Buffer, number: number, bytes: number): string {
  // The cut may be within a character, but such a line is refused anyway.
  if (bytes >= lineBytesMax) return line.toString("latin1");
  if (!isUtf8(line)) {
    const at = invalidByteOf(line);
    const byte = (line[at] as number).toString(16).toUpperCase().padStart(2, "0");
    throw new UnusableSource(
      `Line ${number} is not UTF-8: its byte ${at + 1} is 0x${byte}. Convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8`,
    );
  }
  const text = line.toString();
  return number === 1 && text.startsWith("\uFEFF") ? text.slice(1) : text;
}

/** The offset of the first byte that is not UTF-8. */
function invalidByteOf(line: Buffer): number {
  let at = 0;
  for (const character of line.toString()) {
    const bytes = Buffer.byteLength(character);
    if (character === "\uFFFD" && line.toString("hex", at, at + bytes) !== "efbfbd") return at;
    at += bytes;
  }
  return at;
}
