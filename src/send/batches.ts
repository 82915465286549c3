import { createHash } from "node:crypto";
import { Fault } from "../errors.ts";
import { limits } from "../limits.ts";
import type { Refusal } from "./answers.ts";
import type { SourceKind } from "./kinds.ts";
import { type SourceRecord, UnusableSource } from "./source.ts";

/** Consecutive records that are sent together. The same records at the same place are the same batch. */
export interface Batch {
  /** Number of the first record, from 0. */
  readonly from: number;
  readonly records: readonly SourceRecord[];
  /** Bytes of the unpacked file that it takes up. */
  readonly bytes: number;
  /** Of the place and the records: the Idempotency-Key is made of it. */
  readonly digest: string;
}

/** A batch as an earlier run made it. */
export interface Cut {
  readonly count: number;
  readonly digest: string;
}

/** The batches of earlier runs, by the number of their first record. */
export type Cuts = ReadonlyMap<number, Cut>;

/** Bytes of records that a batch holds at most: what JSON and the body's own members add must fit the bound as well. */
const batchBytesMax = limits.bodyBytesMax - 100_000;

/**
 * Cuts records into batches. Where an earlier run has cut, this one cuts the same, so that a batch keeps its key even if
 * the file has grown since.
 * @throws UnusableSource when the records there are not the same.
 */
export async function* cutBatches(
  records: AsyncIterable<SourceRecord>,
  kind: SourceKind,
  cuts: Cuts,
): AsyncGenerator<Batch> {
  let from = 0;
  let open: SourceRecord[] = [];
  let bytes = 0;
  let endByte = 0;
  const close = (): Batch => {
    const lastByte = (open.at(-1) as SourceRecord).endByte;
    const batch = { from, records: open, bytes: lastByte - endByte, digest: digestOf(kind, from, open) };
    const cut = cuts.get(from);
    if (cut !== undefined && cut.digest !== batch.digest) {
      const { line } = open[0] as SourceRecord;
      throw new UnusableSource(
        `From line ${line} on, the file is not what an earlier run has sent. Give --restart to send all of it.`,
      );
    }
    from += open.length;
    open = [];
    bytes = 0;
    endByte = lastByte;
    return batch;
  };
  for await (const record of records) {
    const size = Buffer.byteLength(record.text);
    const cut = cuts.get(from);
    if (cut === undefined && open.length > 0 && bytes + size > batchBytesMax) yield close();
    open.push(record);
    bytes += size;
    if (open.length === (cuts.get(from)?.count ?? kind.requestRecordsMax)) yield close();
  }
  if (open.length > 0) yield close();
}

function digestOf({ name }: SourceKind, from: number, records: readonly SourceRecord[]): string {
  const hash = createHash("sha256").update(`${name} ${from}\n`);
  for (const { text } of records) hash.update(text).update("\n");
  return hash.digest("hex").slice(0, 40);
}

/** A record of a batch, read and checked. */
export interface Item {
  /** In the batch, from 0. */
  readonly index: number;
  readonly line: number;
  /** What the line says, or its text where it is not understood. */
  readonly value: unknown;
  /** As it will be sent; undefined when it is not understood. */
  readonly json: string | undefined;
  /** Why no service would accept it; undefined when one may. */
  readonly refusal: Refusal | undefined;
  /** An integer that a double cannot hold. */
  readonly rounded: string | undefined;
}

/** Reads and checks the records of a batch, in order. */
export function itemsOf(records: readonly SourceRecord[], kind: SourceKind): readonly Item[] {
  return records.map((record, index) => itemOf(record, index, kind));
}

function itemOf(record: SourceRecord, index: number, kind: SourceKind): Item {
  const { line, text } = record;
  const item = { index, line, json: undefined, refusal: undefined, rounded: undefined };
  try {
    const { value, rounded } = record.content();
    return { ...item, value, rounded, json: JSON.stringify(value), refusal: refusalOf(() => kind.validate(value)) };
  } catch (error) {
    const refusal = refusalOf(() => {
      throw error;
    });
    return { ...item, value: text.length > textShownMax ? `${text.slice(0, 200)}…` : text, refusal };
  }
}

/** Characters of a line that is not understood, so that it can be mended. A longer one cannot be sent anyway. */
const textShownMax = limits.bodyBytesMax;

function refusalOf(check: () => void): Refusal | undefined {
  try {
    check();
    return undefined;
  } catch (error) {
    const message = error instanceof Error ? error.message.replaceAll("events[0].", "") : String(error);
    return { code: error instanceof Fault ? error.code : "invalid_body", message };
  }
}
