import { createHash } from "node:crypto";
import { type FileHandle, open, readFile, rm, stat, truncate } from "node:fs/promises";
import { z } from "zod";
import { claim, type Presence } from "../process-lock.ts";
import type { Refusal } from "./answers.ts";
import type { Batch } from "./batches.ts";
import { UnusableSource } from "./source.ts";

/** A line that is refused for good, in the file of rejected records. `send` takes that file as input. */
export interface RejectedRecord extends Refusal {
  readonly line: number;
  /** The parsed line, or its text if it cannot be parsed. The kind of file decides which of the two is set. */
  readonly event?: unknown;
  readonly snapshot?: unknown;
}

const cut = { from: z.int(), count: z.int(), digest: z.string() };

const unconfirmedShape = z.object({
  ...cut,
  /** The number of earlier outcomes of the batch. Each round has a new Idempotency-Key. */
  round: z.int(),
  /**
   * Indexes of records that were not sent. A retry must send the other records unchanged, because the key belongs to
   * them.
   */
  without: z.array(z.int()),
  atMs: z.number(),
  /** The `keyMark` of the API key. */
  key: z.string(),
});

const doneShape = z.object({
  ...cut,
  rounds: z.int(),
  /** Stored records, over all rounds; so are the next two. */
  stored: z.int(),
  refused: z.int(),
  /** Records that the user gave up, and that may or may not be stored. */
  skipped: z.int(),
  again: z.array(z.int()),
  /** Size of the file of rejected records after this batch. */
  rejectedBytes: z.int(),
});

const entryShape = z.union([
  z.object({ sending: unconfirmedShape }),
  z.object({ notSent: z.int() }),
  z.object({ done: doneShape }),
  z.object({ closed: z.literal(true) }),
]);

/** A batch without a known outcome: the run ended before the answer came. */
export type Unconfirmed = z.infer<typeof unconfirmedShape>;
/** A batch whose records all have an outcome. */
export type Done = z.infer<typeof doneShape>;
type Entry = z.infer<typeof entryShape>;

export type Outcome = Pick<Done, "stored" | "skipped" | "again"> & { readonly rejected: readonly RejectedRecord[] };

/** The version of the entries. Another version of the program may write other ones. */
const versionLine = JSON.stringify({ ingestSendState: 2 });

/** Distinguishes keys without storing them. */
export const keyMark = (key: string) => createHash("sha256").update(key).digest("hex").slice(0, 16);

/** Only for the owner, because both files have data about people. */
const fileMode = 0o600;

/**
 * Records the progress of a file as lines of JSON, before a batch is sent and after its answer. So the next run can
 * continue, even if this one is killed at any point. Rejected records go to a third file, which is cut after a killed
 * run to the size in the journal's last line.
 */
export class Journal {
  readonly #file: FileHandle | undefined;
  readonly #lock: Presence | undefined;
  readonly #rejectedPath: string;
  #rejectedFile: FileHandle | undefined;
  #rejectedBytes = 0;
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
    for (const entry of entries) {
      if ("sending" in entry) unconfirmed.set(entry.sending.from, entry.sending);
      else if ("notSent" in entry) unconfirmed.delete(entry.notSent);
      else if ("done" in entry) {
        unconfirmed.delete(entry.done.from);
        done.set(entry.done.from, entry.done);
        this.#rejectedBytes = entry.done.rejectedBytes;
      }
    }
    this.done = done;
    this.unconfirmed = unconfirmed;
  }

  /**
   * Opens the journal for this run alone, until it is closed.
   * @param path undefined keeps nothing, so no later run can continue.
   * @param restart discards the old journal.
   * @throws Error if another run has it open; UnusableSource if another version of this program wrote it.
   */
  static async open(path: string | undefined, rejectedPath: string, { restart = false } = {}): Promise<Journal> {
    if (path === undefined) return new Journal(undefined, undefined, rejectedPath, []);
    // Before the lock, which would create missing parent folders.
    await (await open(path, "a", fileMode)).close();
    const lock = claim(`${path}.lock`);
    if (typeof lock === "number") throw new Error(`Another run is sending this file: process ${lock} holds ${path}.`);
    try {
      if (restart) await rm(path, { force: true });
      const entries = await readEntries(path);
      const file = await open(path, "a", fileMode);
      if (entries === undefined) await file.appendFile(`${versionLine}\n`);
      const journal = new Journal(file, lock, rejectedPath, entries ?? []);
      const last = entries?.at(-1);
      // After a complete run, the user may have edited the file of rejected records: leave it as it is.
      if (last !== undefined && !("closed" in last)) await cutTo(rejectedPath, journal.#rejectedBytes);
      return journal;
    } catch (error) {
      lock.leave();
      throw error;
    }
  }

  /** Await this before you send the batch. */
  async sending({ from, records: { length: count }, digest }: Batch, sent: Omit<Unconfirmed, keyof typeof cut>) {
    await this.#append({ sending: { from, count, digest, ...sent } });
    await this.#file?.datasync();
  }

  /** The service has certainly not stored the batch. */
  async notSent(batch: Batch): Promise<void> {
    await this.#append({ notSent: batch.from });
  }

  async finished({ from, records, digest }: Batch, { stored, skipped, again, rejected }: Outcome): Promise<void> {
    const before = this.done.get(from);
    await this.#inTurn(async () => {
      if (rejected.length > 0) await this.#reject(rejected.map((record) => `${JSON.stringify(record)}\n`).join(""));
      await this.#write({
        done: {
          from,
          count: records.length,
          digest,
          rounds: (before?.rounds ?? 0) + 1,
          stored: (before?.stored ?? 0) + stored,
          refused: (before?.refused ?? 0) + rejected.length,
          skipped: (before?.skipped ?? 0) + skipped,
          again,
          rejectedBytes: this.#rejectedBytes,
        },
      });
    });
  }

  async close(): Promise<void> {
    await this.#append({ closed: true }).catch(() => {});
    await this.#file?.close();
    await this.#rejectedFile?.close();
    this.#lock?.leave();
  }

  async #reject(text: string): Promise<void> {
    if (this.#rejectedFile === undefined) {
      // Overwrite a file of another journal. Without a journal, append: the file may be the only copy of its lines.
      const isOwn = this.#file === undefined || this.#rejectedBytes > 0;
      this.#rejectedFile = await open(this.#rejectedPath, isOwn ? "a" : "w", fileMode);
      // An older file may have another mode. A device keeps its own.
      if ((await this.#rejectedFile.stat()).isFile()) await this.#rejectedFile.chmod(fileMode).catch(() => {});
    }
    await this.#rejectedFile.appendFile(text);
    this.#rejectedBytes += Buffer.byteLength(text);
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

/** Undefined if there is no journal yet. */
async function readEntries(path: string): Promise<Entry[] | undefined> {
  const text = await readFile(path, "utf8").catch(ignoreMissing);
  if (text === undefined) return undefined;
  const end = text.lastIndexOf("\n") + 1;
  // A killed run may have left half a line.
  if (end < text.length) await truncate(path, Buffer.byteLength(text.slice(0, end)));
  if (end === 0) return undefined;
  const [version, ...lines] = text.slice(0, end - 1).split("\n");
  const entries = lines.map((line) => entryOf(line));
  if (version === versionLine && entries.every((entry) => entry !== undefined)) return entries;
  throw new UnusableSource(
    `${path} was not written by this version of ingest send. Finish the file with the version that wrote it, or use --restart to send all of it (which stores the stored lines twice).`,
  );
}

function entryOf(line: string): Entry | undefined {
  try {
    return entryShape.safeParse(JSON.parse(line)).data;
  } catch {
    return undefined;
  }
}

async function cutTo(path: string, bytes: number): Promise<void> {
  const found = await stat(path).catch(ignoreMissing);
  if (found !== undefined && found.size > bytes) await truncate(path, bytes);
}

function ignoreMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== "ENOENT") throw error;
}
