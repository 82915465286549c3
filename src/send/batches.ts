import { createHash } from "node:crypto";
import { Fault } from "../errors.ts";
import { limits } from "../limits.ts";
import type { SourceKind } from "./kinds.ts";
import type { SourceRecord } from "./records.ts";

/** A line of a batch, as it will be sent. */
export interface BatchItem {
  readonly record: SourceRecord;
  readonly json: string;
}

/** A record that is not sent, or was not accepted, and why. */
export interface RejectedRecord {
  readonly line: number;
  readonly code: string;
  readonly message: string;
  /** What the line says, or its text where it is not understood; one of the two, by the kind of file. */
  readonly event?: unknown;
  readonly snapshot?: unknown;
}

/** Consecutive records that are sent together. The same records at the same place are the same batch. */
export interface Batch {
  /** Number of the first record, from 0. */
  readonly from: number;
  readonly records: readonly SourceRecord[];
  /** Of the place and the records: what the Idempotency-Key is made of. */
  readonly digest: string;
}

/** What an earlier run had in a batch. */
export interface Cut {
  readonly count: number;
  readonly digest: string;
}

/** Where an earlier run has cut, by the number of the first record. */
export type Cuts = ReadonlyMap<number, Cut>;

/** The file is not what an earlier run has sent of it, or is sent as something else. */
export class SourceChanged extends Error {}

/** Bytes of records that a batch holds at most: what JSON and the body's own members add must fit the bound as well. */
const batchBytesMax = limits.bodyBytesMax - 100_000;

/**
 * Cuts records into batches. Where an earlier run has cut, this one cuts the same, so that a batch keeps its key even if
 * the file has grown since.
 * @throws SourceChanged when the records there are not the same.
 */
export async function* cutBatches(
  records: AsyncIterable<SourceRecord>,
  kind: SourceKind,
  cuts: Cuts,
): AsyncGenerator<Batch> {
  let from = 0;
  let open: SourceRecord[] = [];
  let bytes = 0;
  const close = (): Batch => {
    const batch = { from, records: open, digest: digestOf(kind, from, open) };
    const cut = cuts.get(from);
    if (cut !== undefined && cut.digest !== batch.digest) {
      const { line } = open[0] as SourceRecord;
      throw new SourceChanged(`From line ${line} on, this is not what was sent of the file before.`);
    }
    from += open.length;
    open = [];
    bytes = 0;
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

/** The records that can be sent, and those that no service would take, with the reason. */
export function judge(
  records: readonly SourceRecord[],
  kind: SourceKind,
): { items: BatchItem[]; rejected: RejectedRecord[] } {
  const items: BatchItem[] = [];
  const rejected: RejectedRecord[] = [];
  for (const record of records) {
    let value: unknown = record.text;
    try {
      value = record.value();
      kind.validate(value);
      items.push({ record, json: JSON.stringify(value) });
    } catch (error) {
      const message = error instanceof Error ? error.message.replaceAll("events[0].", "") : String(error);
      const code = error instanceof Fault ? error.code : "invalid_body";
      rejected.push({ line: record.line, code, message, [kind.name]: value });
    }
  }
  return { items, rejected };
}
