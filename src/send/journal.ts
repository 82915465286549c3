import { createHash } from "node:crypto";
import { type FileHandle, open, readFile, rm, truncate } from "node:fs/promises";
import { claim, type Presence } from "../process-lock.ts";
import type { Batch, RejectedRecord } from "./batches.ts";

/** A batch whose outcome is not known: it was sent, and the run ended before the answer came. */
export interface Unconfirmed {
  readonly from: number;
  readonly count: number;
  readonly digest: string;
  /** When it was first sent, in milliseconds. */
  readonly atMs: number;
  /** The key it was sent with: `keyMark`. */
  readonly key: string;
}

interface Done {
  readonly from: number;
  readonly count: number;
  readonly digest: string;
  readonly accepted: number;
  readonly rejected: number;
  /** Size of the file of rejected records behind this batch. */
  readonly rejectedBytes: number;
}

type Entry = { readonly sending: Unconfirmed } | { readonly notSent: number } | { readonly done: Done };

/** Tells keys apart without holding them. */
export const keyMark = (key: string) => createHash("sha256").update(key).digest("hex").slice(0, 16);

/**
 * What has been sent of a file: lines of JSON beside it, appended as batches go out and answers come in, so that a run
 * that was killed at any point is taken up by the next one. The rejected records are in a file of their own, which goes
 * back to its size at the last line of the journal when a run is taken up.
 */
export class Journal {
  readonly #file: FileHandle | undefined;
  readonly #lock: Presence | undefined;
  readonly #rejectedPath: string;
  #rejectedFile: FileHandle | undefined;
  #rejectedBytes: number;
  readonly done: ReadonlyMap<number, Done>;
  readonly unconfirmed: ReadonlyMap<number, Unconfirmed>;
  #writing: Promise<void> = Promise.resolve();

  private constructor(
    file: FileHandle | undefined,
    lock: Presence | undefined,
    rejectedPath: string,
    entries: readonly Entry[],
  ) {
    this.#file = file;
    this.#lock = lock;
    this.#rejectedPath = rejectedPath;
    const done = new Map<number, Done>();
    const unconfirmed = new Map<number, Unconfirmed>();
    this.#rejectedBytes = 0;
    for (const entry of entries) {
      if ("sending" in entry) unconfirmed.set(entry.sending.from, entry.sending);
      else if ("notSent" in entry) unconfirmed.delete(entry.notSent);
      else {
        unconfirmed.delete(entry.done.from);
        done.set(entry.done.from, entry.done);
        this.#rejectedBytes = entry.done.rejectedBytes;
      }
    }
    this.done = done;
    this.unconfirmed = unconfirmed;
  }

  /**
   * `path` undefined = nothing is kept, and nothing can be taken up. Held by one run at a time, until it is closed.
   * @param restart forgets what was kept.
   * @throws Error when another run holds it.
   */
  static async open(path: string | undefined, rejectedPath: string, { restart = false } = {}): Promise<Journal> {
    if (path === undefined) return new Journal(undefined, undefined, rejectedPath, []);
    const lock = claim(`${path}.lock`);
    if (typeof lock === "number") throw new Error(`Another run is sending this file: process ${lock} holds ${path}.`);
    try {
      if (restart) await rm(path, { force: true });
      const entries = await readEntries(path);
      const journal = new Journal(await open(path, "a"), lock, rejectedPath, entries);
      if (entries.length > 0) await truncate(rejectedPath, journal.#rejectedBytes).catch(ignoreMissing);
      return journal;
    } catch (error) {
      lock.leave();
      throw error;
    }
  }

  /** To be awaited before the batch is sent. */
  async sending({ from, records: { length: count }, digest }: Batch, atMs: number, key: string): Promise<void> {
    await this.#append({ sending: { from, count, digest, atMs, key } });
    await this.#file?.datasync();
  }

  /** The batch is known not to have been stored. */
  async notSent(batch: Batch): Promise<void> {
    await this.#append({ notSent: batch.from });
  }

  async finished(batch: Batch, accepted: number, rejected: readonly RejectedRecord[]): Promise<void> {
    await this.#inTurn(async () => {
      if (rejected.length > 0) {
        const text = rejected.map((record) => `${JSON.stringify(record)}\n`).join("");
        // Whatever another run has left there is not this one's.
        this.#rejectedFile ??= await open(this.#rejectedPath, this.#rejectedBytes === 0 ? "w" : "a");
        await this.#rejectedFile.appendFile(text);
        this.#rejectedBytes += Buffer.byteLength(text);
      }
      const { from, records, digest } = batch;
      const counts = { accepted, rejected: rejected.length, rejectedBytes: this.#rejectedBytes };
      await this.#write({ done: { from, count: records.length, digest, ...counts } });
    });
  }

  async close(): Promise<void> {
    await this.#writing.catch(() => {});
    await this.#file?.close();
    await this.#rejectedFile?.close();
    this.#lock?.leave();
  }

  #append(entry: Entry): Promise<void> {
    return this.#inTurn(() => this.#write(entry));
  }

  async #write(entry: Entry): Promise<void> {
    await this.#file?.appendFile(`${JSON.stringify(entry)}\n`);
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    this.#writing = this.#writing.then(work);
    return this.#writing;
  }
}

async function readEntries(path: string): Promise<Entry[]> {
  const text = await readFile(path, "utf8").catch(ignoreMissing);
  if (text === undefined || text === "") return [];
  const end = text.lastIndexOf("\n") + 1;
  // A run that was killed may have left half a line.
  if (end < text.length) await truncate(path, Buffer.byteLength(text.slice(0, end)));
  return text
    .slice(0, end)
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Entry);
}

function ignoreMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== "ENOENT") throw error;
}
