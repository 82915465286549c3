import { createHash } from "node:crypto";
import { type FileHandle, open, readFile, rm, stat, truncate } from "node:fs/promises";
import { z } from "zod";
import { claim, type Presence } from "../process-lock.ts";
import type { Refusal } from "./answers.ts";
import type { Batch } from "./batches.ts";
import { UnusableSource } from "./source.ts";

/** A line that is refused for good, as the file of rejected records holds it; `send` takes that file as input. */
export interface RejectedRecord extends Refusal {
  readonly line: number;
  /** What the line says, or its text where it is not understood; one of the two, by the kind of file. */
  readonly event?: unknown;
  readonly snapshot?: unknown;
}

const cut = { from: z.int(), count: z.int(), digest: z.string() };

const unconfirmedShape = z.object({
  ...cut,
  /** How often an outcome of the batch had been written down before: each time it is sent with a new key. */
  round: z.int(),
  /** Records that were not sent, by their index. The others must be sent again as they were, or the key does not fit. */
  without: z.array(z.int()),
  /** When it was first sent, in milliseconds. */
  atMs: z.number(),
  /** The API key it was sent with: `keyMark`. */
  key: z.string(),
});

const doneShape = z.object({
  ...cut,
  rounds: z.int(),
  /** Records that are stored; of all rounds, as are the next two. */
  stored: z.int(),
  /** Records that are refused for good. */
  refused: z.int(),
  /** Records that the user gave up without knowing whether they are stored. */
  skipped: z.int(),
  /** Records that the next run sends again, by their index. */
  again: z.array(z.int()),
  /** Size of the file of rejected records behind this batch. */
  rejectedBytes: z.int(),
});

const entryShape = z.union([
  z.object({ sending: unconfirmedShape }),
  z.object({ notSent: z.int() }),
  z.object({ done: doneShape }),
  z.object({ closed: z.literal(true) }),
]);

/** A batch whose outcome is not known: it was sent, and the run ended before the answer came. */
export type Unconfirmed = z.infer<typeof unconfirmedShape>;
/** A batch with an outcome for each of its records. */
export type Done = z.infer<typeof doneShape>;
type Entry = z.infer<typeof entryShape>;

/** What became of a batch in one round. */
export type Outcome = Pick<Done, "stored" | "skipped" | "again"> & { readonly rejected: readonly RejectedRecord[] };

/** Of the entries above. Another version of the program may have others. */
const versionLine = JSON.stringify({ ingestSendState: 2 });

/** Tells keys apart without holding them. */
export const keyMark = (key: string) => createHash("sha256").update(key).digest("hex").slice(0, 16);

/** Both files speak of people. */
const fileMode = 0o600;

/**
 * What has been sent of a file: lines of JSON beside it, appended as batches go out and answers come in, so that the next
 * run can go on after a run that was killed at any point. The rejected records are in a file of their own, which goes back
 * to its size at the last line of the journal after such a run.
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
   * `path` undefined = nothing is kept, and no run can go on from this one. Held by one run at a time, until it is closed.
   * @param restart forgets what was kept.
   * @throws Error when another run holds it; UnusableSource when another version of this program wrote it.
   */
  static async open(path: string | undefined, rejectedPath: string, { restart = false } = {}): Promise<Journal> {
    if (path === undefined) return new Journal(undefined, undefined, rejectedPath, []);
    // Before the lock: it would make every folder that is missing on its way.
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
      // Whoever mends the file of rejected records between two runs must find it as it was.
      if (last !== undefined && !("closed" in last)) await cutTo(rejectedPath, journal.#rejectedBytes);
      return journal;
    } catch (error) {
      lock.leave();
      throw error;
    }
  }

  /** To be awaited before the batch is sent. */
  async sending({ from, records: { length: count }, digest }: Batch, sent: Omit<Unconfirmed, keyof typeof cut>) {
    await this.#append({ sending: { from, count, digest, ...sent } });
    await this.#file?.datasync();
  }

  /** The batch is known not to have been stored. */
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
      // A file that another journal left is not this one's. Without a journal it may be the only copy of its lines.
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

/** Undefined when nothing has been written. */
async function readEntries(path: string): Promise<Entry[] | undefined> {
  const text = await readFile(path, "utf8").catch(ignoreMissing);
  if (text === undefined) return undefined;
  const end = text.lastIndexOf("\n") + 1;
  // A run that was killed may have left half a line.
  if (end < text.length) await truncate(path, Buffer.byteLength(text.slice(0, end)));
  if (end === 0) return undefined;
  const [version, ...lines] = text.slice(0, end - 1).split("\n");
  const entries = lines.map((line) => entryOf(line));
  if (version === versionLine && entries.every((entry) => entry !== undefined)) return entries;
  throw new UnusableSource(
    `${path} was not written by this version of ingest send. Finish the file with the version that wrote it, or give --restart to send all of it (lines that are stored already are then stored twice).`,
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
