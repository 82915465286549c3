import { createHash, hash } from "node:crypto";
import { Fault } from "../errors.ts";
import { limits } from "../limits.ts";
import type { Refusal } from "./answers.ts";
import type { SentLine, SourceKind } from "./kinds.ts";
import { type SourceRecord, UnusableSource } from "./source.ts";

/** Consecutive records that are sent together. The same records at the same place make the same batch. */
export interface Batch {
  readonly from: number;
  readonly records: readonly SourceRecord[];
  /** In the unpacked file. */
  readonly bytes: number;
  /** Hash of the place and the records. */
  readonly digest: string;
}

export interface Cut {
  readonly count: number;
  readonly digest: string;
}

/** By the number of their first record. */
export type Cuts = ReadonlyMap<number, Cut>;

/** The rest of the body must fit its limit, too. */
const batchBytesMax = limits.bodyBytesMax - 100_000;

/**
 * Cuts records into batches, at the same places as an earlier run, even if the file has grown since. So a batch that is
 * done is skipped.
 * @throws UnusableSource if the records of an earlier batch have changed.
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
        `From line ${line} on, the file differs from what an earlier run has sent. Use --restart to send all of it: events that are stored are not stored again.`,
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
  const digest = createHash("sha256").update(`${name} ${from}\n${records[0]?.head ?? ""}`);
  for (const { text } of records) digest.update(text).update("\n");
  return digest.digest("hex").slice(0, 40);
}

export interface Item {
  /** In the batch, from 0. */
  readonly index: number;
  readonly line: number;
  /** The parsed line, or its text if it cannot be parsed. */
  readonly value: unknown;
  /** Undefined if it is refused. */
  readonly sent: SentLine | undefined;
  /** Why it is not sent: the service would refuse it, or --strict does. */
  readonly refusal: Refusal | undefined;
  /** Parts that the service would drop or change. */
  readonly losses: readonly Loss[];
}

export interface Loss {
  readonly code: "ignored" | "rounded" | "conflict";
  readonly message: string;
}

export interface ItemOptions {
  /** Refuses records that would lose something. */
  readonly strict: boolean;
  /** Stands for the file in the ids of its lines. */
  readonly sourceName: string;
}

export function itemsOf(records: readonly SourceRecord[], kind: SourceKind, options: ItemOptions): readonly Item[] {
  return records.map((record, index) => itemOf(record, index, kind, options));
}

function itemOf(record: SourceRecord, index: number, kind: SourceKind, { strict, sourceName }: ItemOptions): Item {
  const { line, text } = record;
  let item: Item = {
    index,
    line,
    value: text.length > textShownMax ? `${text.slice(0, 200)}…` : text,
    sent: undefined,
    refusal: undefined,
    losses: [],
  };
  try {
    const { value, rounded } = record.content();
    // If the line is refused, its text keeps the digits of the rounded number.
    item = { ...item, value: rounded === undefined ? value : item.value };
    const losses = lossesOf(rounded, kind.validate(value));
    const message = losses.map((loss) => loss.message).join("; ");
    if (strict && losses.length > 0) return { ...item, losses, refusal: { code: "strict", message } };
    return { ...item, losses, sent: kind.sentAs(value as object, lineId(sourceName, line, JSON.stringify(value))) };
  } catch (error) {
    const message = error instanceof Error ? error.message.replaceAll("events[0].", "") : String(error);
    return { ...item, refusal: { code: error instanceof Fault ? error.code : "invalid_body", message } };
  }
}

/**
 * The same for the same line of the same file, however often it is sent. An edited line gets another id, and so does an
 * equal line elsewhere in the file.
 */
const lineId = (sourceName: string, line: number, json: string) =>
  `line/${line}/${hash("sha256", JSON.stringify([sourceName, line, json]), "base64url").slice(0, 22)}`;

function lossesOf(rounded: string | undefined, ignored: readonly string[]): Loss[] {
  const losses: Loss[] = [];
  if (ignored.length > 0) {
    const message = `the service knows no ${ignored.join(", ")}, and would not store it`;
    losses.push({ code: "ignored", message });
  }
  if (rounded !== undefined) {
    const message = `${rounded} would be stored as ${Number(rounded)}; write it as text to keep it`;
    losses.push({ code: "rounded", message });
  }
  return losses;
}

/** Keeps enough of a line that cannot be parsed for the user to fix it. A longer line cannot be sent. */
const textShownMax = limits.bodyBytesMax;
