import { type FileHandle, open, readFile, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { replaceFile } from "../files.ts";
import { claim } from "../process-lock.ts";
import { sayLines } from "../terminal.ts";
import { type Failure, failureOf } from "./answers.ts";
import { waitBefore } from "./backoff.ts";
import { type Call, createCaller, type KeyOwner, ownerOf } from "./client.ts";
import { fileMode } from "./journal.ts";
import { jsonOf } from "./json.ts";
import type { SourceKind } from "./kinds.ts";

export interface ExportOptions {
  readonly baseUrl: string;
  /** An API key with the scope `read`. */
  readonly key: string;
  readonly kind: SourceKind["name"];
  /** Parameters of ListEvents; undefined for any. */
  readonly filters: Readonly<Record<"workerId" | "type" | "startTime" | "endTime", string | undefined>>;
  /** Takes the lines; undefined for standard output, from which no run can continue. */
  readonly path: string | undefined;
  /** Seconds without an answer after which the run ends. */
  readonly giveUpSeconds: number;
  /** Hears the number of lines so far. */
  readonly onProgress: (rows: number) => void;
  readonly onTrouble: (trouble: string, retry: number) => void;
}

/** The user must change the command line. */
export class ExportMistake extends Error {}

const rowsMax = 500;

/**
 * The timeline is listed newest first. Rows with the same timestamp are written oldest first, so that they have the same
 * order after an import. So the last ones of a page wait for the next page, but only as many as this.
 */
const heldRowsMax = 10_000;

const stateShape = z.object({
  /** What was asked for: another question cannot go on from here. */
  query: z.string(),
  /** Whose timeline it is; absent without a file. */
  organization: z.string().optional(),
  /** The page to read next; empty for the first. */
  pageToken: z.string(),
  /** Rows with later timestamps are in the file. */
  before: z.string().optional(),
  isComplete: z.boolean(),
  rows: z.int(),
  /** Size of the file with these rows. */
  bytes: z.int(),
});
type State = z.infer<typeof stateShape>;

const rowShape = z.object({
  id: z.string(),
  type: z.string(),
  workerId: z.string(),
  category: z.string().optional(),
  timestamp: z.string(),
  duration: z.number().optional(),
  metrics: z.unknown().optional(),
  metadata: z.unknown().optional(),
});
type Row = z.infer<typeof rowShape>;

const pageShape = z.object({ events: z.array(rowShape), nextPageToken: z.string() });
type Page = z.infer<typeof pageShape> & { readonly kind: "page" };

/**
 * The row as a line for `ingest send`. Worker ids belong to one installation, so the line names the worker by its id here
 * as an external id. An event's id keeps it from being stored twice.
 */
export function lineOf({ id, type, workerId, category, timestamp, duration, metrics, metadata }: Row): string {
  const actor = { externalId: workerId };
  const own =
    metrics === undefined
      ? { eventType: type, category, actor, timestamp, duration, eventId: id }
      : { snapshotType: type, actor, timestamp, metrics };
  return `${JSON.stringify({ ...own, metadata })}\n`;
}

/**
 * Writes the timeline as NDJSON, newest first. After an interruption the same call continues: `PATH.export-state` holds
 * the place.
 * @returns the number of lines in the file.
 * @throws ExportMistake.
 */
export async function exportTimeline(options: ExportOptions): Promise<number> {
  const { path, kind, filters } = options;
  const asked = Object.entries({ kind, pageSize: String(rowsMax), ...filters }).filter(
    ([, value]) => value !== undefined,
  );
  const query = String(new URLSearchParams(asked as [string, string][]));
  const start: State = { query, pageToken: "", isComplete: false, rows: 0, bytes: 0 };
  const asking = new Asking(options);
  if (path === undefined) return new Export(options, asking, start).run();
  const lock = claim(`${statePath(path)}.lock`);
  if (typeof lock === "number") throw new Error(`Another run exports to this file: process ${lock} holds ${path}.`);
  try {
    const { organization } = await asking.owner();
    const state = (await stateOf(path, query, organization)) ?? (await begin(path, { ...start, organization }));
    const size = (await sizeOf(path)) ?? 0;
    if (size < state.bytes) {
      const lost = `${path} has ${size} bytes, and ${statePath(path)} says that ${state.bytes} were written`;
      throw new ExportMistake(`${lost}: put the file back, or remove both to begin again.`);
    }
    const file = await open(path, "a", fileMode);
    try {
      await file.truncate(state.bytes);
      return await new Export(options, asking, state, file).run();
    } finally {
      await file.close();
    }
  } finally {
    lock.leave();
  }
}

class Export {
  readonly #options: ExportOptions;
  readonly #asking: Asking;
  readonly #file: FileHandle | undefined;
  #state: State;

  constructor(options: ExportOptions, asking: Asking, state: State, file?: FileHandle) {
    this.#options = options;
    this.#asking = asking;
    this.#state = state;
    this.#file = file;
  }

  async run(): Promise<number> {
    const { before } = this.#state;
    let { pageToken } = this.#state;
    /** The page with the first of the held rows. */
    let heldFrom = pageToken;
    let held: Row[] = [];
    while (!this.#state.isComplete) {
      const page = await this.#asking.page(this.#state.query, pageToken);
      const isLast = page.nextPageToken === "";
      // After a restart, newer rows may have come in front of the first page.
      const rows = page.events.filter(({ timestamp }) => before === undefined || timeOf(timestamp) <= timeOf(before));
      const all = [...held, ...rows];
      const last = all.at(-1)?.timestamp;
      const isTooMany = all.length - rows.length >= heldRowsMax;
      const ready = isLast || isTooMany ? all : all.filter(({ timestamp }) => timestamp !== last);
      if (ready.length > 0) heldFrom = pageToken;
      held = all.slice(ready.length);
      pageToken = page.nextPageToken;
      if (held.length === 0) heldFrom = pageToken;
      // A page of newer rows alone changes nothing: the next one may have rows that are in the file.
      const next = ready.length === 0 ? this.#state.before : undefined;
      await this.#write(ready, { pageToken: heldFrom, before: held[0]?.timestamp ?? next, isComplete: isLast });
    }
    return this.#state.rows;
  }

  async #write(rows: readonly Row[], place: Pick<State, "pageToken" | "before" | "isComplete">): Promise<void> {
    const { path, onProgress } = this.#options;
    const lines = oldestFirstWithin(rows).map(lineOf).join("");
    let { isComplete } = place;
    if (this.#file !== undefined) await this.#file.appendFile(lines);
    else if (!(await sayLines(lines))) isComplete = true;
    const bytes = this.#state.bytes + Buffer.byteLength(lines);
    this.#state = { ...this.#state, ...place, isComplete, rows: this.#state.rows + rows.length, bytes };
    if (path !== undefined && this.#file !== undefined) {
      await this.#file.datasync();
      await keep(path, this.#state);
    }
    onProgress(this.#state.rows);
  }
}

/** Repeats a call while the service is away or busy. @throws ExportMistake for any other refusal. */
class Asking {
  readonly #options: ExportOptions;
  readonly #call: Call;

  constructor(options: ExportOptions) {
    this.#options = options;
    this.#call = createCaller(options.baseUrl, options.key);
  }

  owner(): Promise<KeyOwner> {
    return this.#repeated(() => ownerOf(this.#call, this.#options.key));
  }

  page(query: string, pageToken: string): Promise<Page> {
    const parameters = new URLSearchParams(query);
    if (pageToken !== "") parameters.set("pageToken", pageToken);
    return this.#repeated(async () => {
      const reply = await this.#call(`/api/v1/timeline/events?${parameters}`);
      if ("kind" in reply) return reply;
      const page = reply.status === 200 ? pageShape.safeParse(jsonOf(reply.text)).data : undefined;
      return page === undefined ? failureOf(reply) : { kind: "page", ...page };
    });
  }

  async #repeated<T extends KeyOwner | Page>(ask: () => Promise<T | Failure>): Promise<T> {
    const { giveUpSeconds, onTrouble } = this.#options;
    const deadlineMs = performance.now() + giveUpSeconds * 1000;
    for (let attempt = 1; ; attempt++) {
      const answer = await ask();
      if (answer.kind === "mistake") throw new ExportMistake(answer.message);
      if (answer.kind === "refused") {
        const { code, message } = answer.refusal;
        throw new ExportMistake(`The service refuses with ${code}: ${message}`);
      }
      if (answer.kind !== "none") return answer;
      const { trouble, retryAfterSeconds } = answer;
      const leftMs = deadlineMs - performance.now();
      if (leftMs <= 0) {
        throw new Error(`The service gives no answer: ${trouble}. Run the same command again to continue.`);
      }
      onTrouble(trouble, attempt);
      await delay(waitBefore(attempt, retryAfterSeconds, leftMs));
    }
  }
}

const timeOf = (timestamp: string) => Date.parse(timestamp);

/** Reverses each run of rows with the same timestamp. */
function oldestFirstWithin(rows: readonly Row[]): Row[] {
  const ordered: Row[] = [];
  for (let from = 0, to = 0; from < rows.length; from = to) {
    const timestamp = rows[from]?.timestamp;
    while (rows[to]?.timestamp === timestamp && to < rows.length) to++;
    ordered.push(...rows.slice(from, to).reverse());
  }
  return ordered;
}

const statePath = (path: string) => `${path}.export-state`;

/** @throws ExportMistake if the state belongs to another question. */
async function stateOf(path: string, query: string, organization: string): Promise<State | undefined> {
  const text = await readFile(statePath(path), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  const state = stateShape.safeParse(jsonOf(text)).data;
  // Earlier versions did not keep the organisation.
  const isSame = state !== undefined && [undefined, organization].includes(state.organization);
  if (isSame && state.query === query) return { ...state, organization };
  const other = isSame ? "an export with other filters" : `an export of ${state?.organization}`;
  const owner = state === undefined ? "another version of ingest export" : other;
  throw new ExportMistake(`${statePath(path)} belongs to ${owner}: give another file, or remove both files.`);
}

const sizeOf = async (path: string): Promise<number | undefined> => (await stat(path).catch(() => undefined))?.size;

/** Keeps the state first, so that a run that is killed at once can go on. @throws ExportMistake if the file exists. */
async function begin(path: string, state: State): Promise<State> {
  if ((await sizeOf(path)) !== undefined)
    throw new ExportMistake(`${path} exists already: give another file, or remove it.`);
  await keep(path, state);
  return state;
}

const keep = (path: string, state: State): Promise<void> => replaceFile(statePath(path), JSON.stringify(state));
