import { type FileHandle, open, readFile, stat, truncate } from "node:fs/promises";
import { z } from "zod";
import { claim, type Presence } from "../process-lock.ts";
import type { Refusal } from "./answers.ts";
import type { Batch } from "./batches.ts";
import { jsonOf } from "./json.ts";
import { UnusableSource } from "./source.ts";

/** A line that is refused for good, in the file of rejected records. `send` takes that file as input. */
export interface RejectedRecord extends Refusal {
  readonly line: number;
  /** The parsed line, or its text if it cannot be parsed. The kind of file decides which of the two is set. */
  readonly event?: unknown;
  readonly snapshot?: unknown;
}

const doneShape = z.object({
  from: z.int(),
  count: z.int(),
  digest: z.string(),
  /** Stored records, over all runs. */
  stored: z.int(),
  /** Records that were refused for good, over all runs. */
  refused: z.int(),
  /** Indexes of the records to send again. */
  again: z.array(z.int()),
  /** Size of the file of rejected records after this batch. */
  rejectedBytes: z.int(),
});

const entryShape = z.union([
  z.object({ done: doneShape }),
  z.object({ closed: z.literal(true) }),
  /** A run has begun. The size of the file of rejected records, which the user may have edited. */
  z.object({ rejectedBytes: z.int() }),
  /** The app that gets the records. */
  z.object({ app: z.string() }),
]);

/** A batch whose records all have an outcome. */
export type Done = z.infer<typeof doneShape>;
type Entry = z.infer<typeof entryShape>;

export type Outcome = Pick<Done, "stored" | "again"> & { readonly rejected: readonly RejectedRecord[] };

/** The first line. Another version of the program may write other entries. */
const headShape = z.object({ ingestSendState: z.literal(3), sourceName: z.string() });

/** Only for the owner, because the files have data about people. */
export const fileMode = 0o600;

export interface JournalOptions {
  /** Discards the recorded progress. */
  readonly restart?: boolean | undefined;
  /** Stands for the file in the ids of its lines. Default: the recorded one. */
  readonly sourceName?: string | undefined;
  /** If none is given or recorded. */
  readonly defaultSourceName: string;
}

/**
 * Records the progress of a file as lines of JSON, after the answer to each batch. So the next run can continue, even if
 * this one is killed at any point: it sends the batches without an answer again. Rejected records go to a third file,
 * which is cut after a killed run to the last size in the journal.
 */
export class Journal {
  readonly #file: FileHandle | undefined;
  readonly #lock: Presence | undefined;
  readonly #rejectedPath: string;
  #rejectedFile: FileHandle | undefined;
  #rejectedBytes = 0;
  #overwritesRejected = false;
  /** Stands for the file in the ids of its lines. */
  readonly sourceName: string;
  readonly done: ReadonlyMap<number, Done>;
  /** Undefined until the first run has asked. */
  #app: string | undefined;
  #writing: Promise<void> = Promise.resolve();

  private constructor(
    file: FileHandle | undefined,
    lock: Presence | undefined,
    rejectedPath: string,
    { sourceName, entries = [] }: State,
  ) {
    this.#file = file;
    this.#lock = lock;
    this.#rejectedPath = rejectedPath;
    this.sourceName = sourceName;
    const done = entries.flatMap((entry) => ("done" in entry ? entry.done : []));
    this.done = new Map(done.map((one) => [one.from, one]));
    this.#app = entries.flatMap((entry) => ("app" in entry ? entry.app : [])).at(-1);
  }

  /**
   * Opens the journal for this run alone, until it is closed.
   * @param path undefined keeps nothing, so no later run can continue.
   * @throws Error if another run has it open; UnusableSource if another version of this program wrote it, or if it has
   * another name.
   */
  static async open(path: string | undefined, rejectedPath: string, options: JournalOptions): Promise<Journal> {
    if (path === undefined) {
      const sourceName = options.sourceName ?? options.defaultSourceName;
      return new Journal(undefined, undefined, rejectedPath, { sourceName, entries: undefined });
    }
    // Before the lock, which would create a missing folder.
    await (await open(path, "a", fileMode)).close();
    const lock = claim(`${path}.lock`);
    if (typeof lock === "number") throw new Error(`Another run is sending this file: process ${lock} holds ${path}.`);
    try {
      const state = await readState(path, options);
      const file = await open(path, state.entries === undefined ? "w" : "a", fileMode);
      if (state.entries === undefined) {
        await file.appendFile(`${JSON.stringify({ ingestSendState: 3, sourceName: state.sourceName })}\n`);
      }
      const journal = new Journal(file, lock, rejectedPath, state);
      journal.#overwritesRejected = options.restart === true;
      journal.#rejectedBytes = options.restart === true ? 0 : await keptBytes(rejectedPath, state.entries ?? []);
      await journal.#append({ rejectedBytes: journal.#rejectedBytes });
      return journal;
    } catch (error) {
      lock.leave();
      throw error;
    }
  }

  /** Whether a later run can continue. */
  get isKept(): boolean {
    return this.#file !== undefined;
  }

  /** @throws UnusableSource if the progress is that of another app, which has the records instead of this one. */
  async belongTo(app: string): Promise<void> {
    if (this.#app === app) return;
    if (this.#app !== undefined) {
      throw new UnusableSource(
        `The recorded progress is that of sending to ${this.#app}, and the key belongs to ${app}. Give another file with --state, or use --restart to send all lines to ${app}.`,
      );
    }
    this.#app = app;
    await this.#append({ app });
  }

  async finished({ from, records, digest }: Batch, { stored, again, rejected }: Outcome): Promise<void> {
    const before = this.done.get(from);
    await this.#inTurn(async () => {
      if (rejected.length > 0) await this.#reject(rejected.map((record) => `${JSON.stringify(record)}\n`).join(""));
      await this.#write({
        done: {
          from,
          count: records.length,
          digest,
          stored: (before?.stored ?? 0) + stored,
          refused: (before?.refused ?? 0) + rejected.length,
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
      // Otherwise append: the file may be the only copy of its lines.
      this.#rejectedFile = await open(this.#rejectedPath, this.#overwritesRejected ? "w" : "a", fileMode);
      const found = await this.#rejectedFile.stat();
      if (found.isFile()) {
        // An older file may have another mode. A device keeps its own.
        await this.#rejectedFile.chmod(fileMode).catch(() => {});
        // An editor may have left the last line open.
        if (found.size > 0 && !(await endsLine(this.#rejectedPath, found.size))) text = `\n${text}`;
      }
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

interface State {
  readonly sourceName: string;
  /** Undefined if there is no journal yet. */
  readonly entries: readonly Entry[] | undefined;
}

async function readState(path: string, options: JournalOptions): Promise<State> {
  const text = await readFile(path, "utf8");
  const end = text.lastIndexOf("\n") + 1;
  const [head, ...lines] = text.slice(0, end).split("\n").slice(0, -1).map(jsonOf);
  const recorded = headShape.safeParse(head).data?.sourceName;
  const sourceName = options.sourceName ?? recorded ?? options.defaultSourceName;
  if (options.restart === true || end === 0) return { sourceName, entries: undefined };
  const entries = z.array(entryShape).safeParse(lines).data;
  if (recorded === undefined || entries === undefined) {
    throw new UnusableSource(
      `${path} was not written by this version of ingest send. Finish the file with the version that wrote it, or use --restart to send all of it (which stores lines that the other version has stored twice).`,
    );
  }
  if (recorded !== sourceName) {
    throw new UnusableSource(
      `${path} has the progress of ${recorded}. Leave out --name, or use --restart to send all lines as those of ${sourceName}.`,
    );
  }
  // A killed run may have left half a line.
  if (end < text.length) await truncate(path, Buffer.byteLength(text.slice(0, end)));
  return { sourceName, entries };
}

/** Cuts off what a killed run has not recorded. @returns the size of the file of rejected records. */
async function keptBytes(path: string, entries: readonly Entry[]): Promise<number> {
  const found = await stat(path).catch(ignoreMissing);
  const size = found?.isFile() ? found.size : 0;
  const last = entries.at(-1);
  // After a complete run, the user may have edited the file: leave it as it is.
  if (last === undefined || "closed" in last) return size;
  const recorded = entries.flatMap((entry) => {
    if ("done" in entry) return entry.done.rejectedBytes;
    return "rejectedBytes" in entry ? entry.rejectedBytes : [];
  });
  const bytes = Math.min(size, recorded.at(-1) ?? 0);
  if (bytes < size) await truncate(path, bytes);
  return bytes;
}

async function endsLine(path: string, size: number): Promise<boolean> {
  const file = await open(path);
  try {
    const { buffer } = await file.read(Buffer.alloc(1), 0, 1, size - 1);
    return buffer.toString() === "\n";
  } finally {
    await file.close();
  }
}

function ignoreMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== "ENOENT") throw error;
}
