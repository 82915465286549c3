import { type FileHandle, open, readFile, rename, writeFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { sayLines } from "../terminal.ts";
import { parseBaseUrl, replyMs } from "./client.ts";
import type { SourceKind } from "./kinds.ts";
import { UnusableSource } from "./source.ts";

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
}

/** The service refused the call for a reason that no retry changes. */
export class ExportRefused extends Error {}

const rowsMax = 500;
const retryAfterMs = 1_000;

/** In the place of a page token: no page was read yet. */
const firstPage = "first";

const stateShape = z.object({
  /** What was asked for: another question cannot go on from here. */
  query: z.string(),
  /** The page to read next; empty when there is none. */
  pageToken: z.string(),
  rows: z.int(),
  /** Size of the file with these rows. */
  bytes: z.int(),
});
type State = z.infer<typeof stateShape>;

interface Row {
  readonly id: string;
  readonly type: string;
  readonly workerId: string;
  readonly category?: string;
  readonly timestamp: string;
  readonly duration?: number;
  readonly metrics?: unknown;
  readonly metadata?: unknown;
}

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
 */
export async function exportTimeline(options: ExportOptions): Promise<number> {
  const { path, onProgress } = options;
  const query = new URLSearchParams({ kind: options.kind, pageSize: String(rowsMax) });
  for (const [name, value] of Object.entries(options.filters)) if (value !== undefined) query.set(name, value);
  const begun = path === undefined ? undefined : await stateOf(path, String(query));
  const file = path === undefined ? undefined : await openAt(path, begun);
  let state: State = begun ?? { query: String(query), pageToken: "", rows: 0, bytes: 0 };
  let isComplete = begun?.pageToken === "";
  try {
    // The first page needs a state, too, so that a run that is killed during it can go on.
    if (path !== undefined && begun === undefined) await keep(path, { ...state, pageToken: firstPage });
    while (!isComplete) {
      const page = await pageOf(options, query, state.pageToken);
      const lines = page.events.map(lineOf).join("");
      if (file === undefined) await sayLines(lines);
      else await file.appendFile(lines);
      const bytes = state.bytes + Buffer.byteLength(lines);
      state = { ...state, pageToken: page.nextPageToken, rows: state.rows + page.events.length, bytes };
      if (path !== undefined && file !== undefined) {
        await file.datasync();
        await keep(path, state);
      }
      onProgress(state.rows);
      isComplete = state.pageToken === "";
    }
    return state.rows;
  } finally {
    await file?.close();
  }
}

const statePath = (path: string) => `${path}.export-state`;

/** @throws UnusableSource if the state belongs to another question. */
async function stateOf(path: string, query: string): Promise<State | undefined> {
  const text = await readFile(statePath(path), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  if (text === undefined) return undefined;
  const state = stateShape.parse(JSON.parse(text));
  if (state.query === query) return state;
  throw new UnusableSource(
    `${statePath(path)} belongs to an export with other filters: give another file, or remove it.`,
  );
}

/** Replaces the state in one step, so that a crash leaves the old one or the new one. */
async function keep(path: string, state: State): Promise<void> {
  await writeFile(`${statePath(path)}.new`, JSON.stringify(state), { flush: true });
  await rename(`${statePath(path)}.new`, statePath(path));
}

/** Opens the file behind the lines that count. @throws UnusableSource if there is a file that no export began. */
async function openAt(path: string, state: State | undefined): Promise<FileHandle> {
  if (state === undefined) {
    return open(path, "ax").catch((error: NodeJS.ErrnoException) => {
      if (error.code === "EEXIST") throw new UnusableSource(`${path} exists already: give another file, or remove it.`);
      throw error;
    });
  }
  const file = await open(path, "a");
  await file.truncate(state.bytes);
  return file;
}

interface Page {
  readonly events: readonly Row[];
  readonly nextPageToken: string;
}

/** Reads a page, and repeats it while the service is away or busy. @throws ExportRefused for any other answer. */
async function pageOf({ baseUrl, key, giveUpSeconds }: ExportOptions, query: URLSearchParams, pageToken: string) {
  const parameters = new URLSearchParams(query);
  if (pageToken !== "" && pageToken !== firstPage) parameters.set("pageToken", pageToken);
  const url = `${parseBaseUrl(baseUrl).href.replace(/\/+$/, "")}/api/v1/timeline/events?${parameters}`;
  const headers = { authorization: `Bearer ${key}` };
  const deadlineMs = performance.now() + giveUpSeconds * 1000;
  for (;;) {
    let waitMs = retryAfterMs;
    let trouble: unknown;
    try {
      const response = await fetch(url, { headers, redirect: "manual", signal: AbortSignal.timeout(replyMs) });
      const body = (await response.json()) as Page & { error?: { message?: string } };
      if (response.status === 200) return body;
      trouble = new ExportRefused(`The service answers ${response.status}: ${body.error?.message ?? "no reason"}`);
      if (response.status !== 429 && response.status < 500) throw trouble;
      waitMs = Number(response.headers.get("retry-after") ?? 1) * 1000;
    } catch (error) {
      if (error instanceof ExportRefused) throw error;
      trouble = error;
    }
    if (performance.now() + waitMs > deadlineMs) throw new Error("The service gives no answer.", { cause: trouble });
    await delay(waitMs);
  }
}
