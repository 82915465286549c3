import { randomUUID } from "node:crypto";
import {
  closeSync,
  constants,
  createReadStream,
  openSync,
  readSync,
  realpathSync,
  type Stats,
  statSync,
} from "node:fs";
import { Socket } from "node:net";
import { hostname } from "node:os";
import { resolve } from "node:path";
import type { Readable } from "node:stream";
import { isatty, ReadStream } from "node:tty";
import { keyPattern } from "../../access/principal.ts";
import { ConfigError } from "../../config.ts";
import { createCaller, createPoster, ownerOf, parseBaseUrl } from "../../send/client.ts";
import { Journal } from "../../send/journal.ts";
import { sourceKinds } from "../../send/kinds.ts";
import { createProgressView } from "../../send/progress.ts";
import type { SourceFormat } from "../../send/formats.ts";
import { type Finding, sendFile, type SendResult } from "../../send/send.ts";
import { isPacked, UnusableSource } from "../../send/source.ts";
import { exitCodes } from "../../serve/exit.ts";
import { type Signals, watchSignals } from "../../serve/signals.ts";
import { escapeControls, note, say } from "../../terminal.ts";
import { jsonLine, type OutputFlags } from "../output.ts";

export interface SendFlags extends OutputFlags {
  url: string;
  key: string;
  snapshots?: boolean;
  format?: SourceFormat;
  state?: string;
  rejected?: string;
  name?: string;
  restart?: boolean;
  strict?: boolean;
  concurrency: number;
  giveUp: number;
}

/** @throws ConfigError that does not repeat the value, which may hold a secret. */
export function checkTarget(url: string, key: string): void {
  try {
    parseBaseUrl(url);
  } catch (error) {
    throw new ConfigError(`--url (WEPEOPLE_BASE_URL) ${(error as Error).message}`);
  }
  if (keyPattern.test(key)) return;
  const isHint = /^wp_(live|test)_[0-9a-f]{4}(…|\.+)$/.test(key);
  const hint = isHint ? " This is only the hint of a key. The whole key was shown once, when it was created." : "";
  throw new ConfigError(
    `--key (WEPEOPLE_API_KEY) must be wp_live_ or wp_test_, and 32 lower-case hexadecimal digits.${hint}`,
  );
}

interface Input {
  readonly stream: Readable;
  /** Base name of the other files; undefined for input that is not a plain file. */
  readonly path: string | undefined;
  /** Undefined if the size does not tell how much has been read. */
  readonly totalBytes: number | undefined;
}

/** Opens the input. Only a plain file can be read again by the next run; pipes and devices count as standard input. */
function openInput(path: string): Input {
  const found = path === "-" ? undefined : statSync(path);
  // Standard input may be a socket, which cannot be opened by name.
  const isStandardInput =
    found === undefined || (/^\/(dev\/(stdin|fd\/0)|proc\/self\/fd\/0)$/.test(path) && !found.isFile());
  if (isStandardInput) return { stream: process.stdin, path: undefined, totalBytes: undefined };
  const isRegularFile = found.isFile() && !/^\/(dev|proc)\//.test(path) && !/^\/(dev|proc)\//.test(realpathSync(path));
  if (!isRegularFile) return { stream: streamOf(path, found), path: undefined, totalBytes: undefined };
  return { stream: createReadStream(path), path, totalBytes: isPacked(startOf(path)) ? undefined : found.size };
}

/** Reads a pipe or a terminal without a thread, because a thread that waits in a file operation cannot be interrupted. */
function streamOf(path: string, found: Stats): Readable {
  if (!found.isFIFO() && !found.isCharacterDevice()) return createReadStream(path);
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  if (isatty(fd)) return new ReadStream(fd);
  return found.isFIFO() ? new Socket({ fd, readable: true, writable: false }) : createReadStream(path, { fd });
}

function startOf(path: string): Buffer {
  const file = openSync(path, "r");
  try {
    const start = Buffer.alloc(8);
    return start.subarray(0, readSync(file, start, 0, start.length, 0));
  } finally {
    closeSync(file);
  }
}

export async function send(file: string, flags: SendFlags): Promise<void> {
  const { url, restart, name, concurrency, giveUp: giveUpSeconds, strict = false } = flags;
  const key = flags.key.trim();
  checkTarget(url, key);
  const input = openInput(file);
  const state = flags.state ?? (input.path === undefined ? undefined : `${input.path}.ingest-state`);
  // Each state has a file of its own: a run cuts off what a killed one of the same state has left.
  const rejectedFile = flags.rejected ?? `${flags.state ?? input.path ?? "ingest-send"}.rejected.ndjson`;
  checkFiles({ "The file": input.path, "--state": state, "--rejected": rejectedFile });
  const kind = sourceKinds[flags.snapshots === true ? "snapshot" : "event"];
  // What comes through a pipe may be new each time, even if its text is the same.
  const defaultSourceName = input.path === undefined ? randomUUID() : `${hostname()}:${realpathSync(input.path)}`;
  const journal = await openJournal(state, rejectedFile, { restart, sourceName: name, defaultSourceName });
  const signals = watchSignals();
  const view = createProgressView({ totalBytes: input.totalBytes, output: process.stderr, now: Date.now, say: note });
  const call = createCaller(url, key);
  const startedMs = Date.now();
  const rateOf = (count: number) => Math.round(count / Math.max(0.001, (Date.now() - startedMs) / 1000));
  let isComplete = false;
  try {
    const result = await sendFile({
      source: input.stream,
      format: flags.format ?? (/\.csv(\.gz|\.zst)?$/i.test(file) ? "csv" : "ndjson"),
      kind,
      post: createPoster(call, kind),
      owner: () => ownerOf(call, key),
      journal,
      concurrency,
      giveUpSeconds,
      strict,
      signal: interruption(signals),
      now: Date.now,
      onProgress: ({ accepted, rejected, bytes }) =>
        view.show(`${accepted} accepted, ${rejected} rejected, ${rateOf(accepted)}/s`, bytes),
      onTrouble: (trouble, retry) => view.wait(trouble, retry),
    })
      .then((result) => {
        isComplete = result.stopped === undefined;
        return result;
      })
      .finally(() => view.end(isComplete));
    tell(result, rejectedFile, state !== undefined, flags);
    process.exitCode = exitCodeOf(result);
  } finally {
    await journal.close();
    signals.release();
  }
}

/** @throws ConfigError if two of them are one file: the run would destroy it. */
function checkFiles(paths: Readonly<Record<string, string | undefined>>): void {
  const known = new Map<string, string>();
  for (const [name, path] of Object.entries(paths)) {
    const found = path === undefined ? undefined : statSync(path, { throwIfNoEntry: false });
    // A device or a pipe may be several of them.
    if (path === undefined || found?.isFile() === false) continue;
    const place = found === undefined ? resolve(path) : realpathSync(path);
    const other = known.get(place);
    if (other !== undefined) throw new ConfigError(`${other} and ${name} are the same file: ${path}.`);
    known.set(place, name);
  }
}

async function openJournal(...args: Parameters<typeof Journal.open>): Promise<Journal> {
  try {
    return await Journal.open(...args);
  } catch (error) {
    if (error instanceof UnusableSource) throw new ConfigError(error.message);
    throw error;
  }
}

function exitCodeOf({ stopped, isMistake, rejected, toSendAgain }: SendResult): number {
  if (isMistake) return exitCodes.usage.code;
  if (stopped !== undefined || toSendAgain > 0) return exitCodes.failed.code;
  return rejected > 0 ? exitCodes.refused.code : exitCodes.done.code;
}

/** Prints the answer. Without --json, the most important sentence comes first, then the counts that are not zero. */
function tell(result: SendResult, rejectedFile: string, isKept: boolean, flags: SendFlags): void {
  const { accepted, duplicates, rejected, alreadySent, toSendAgain, stopped, refusals, losses } = result;
  const listed = (findings: ReadonlyMap<string, Finding>) => [...findings].map(([code, rest]) => ({ code, ...rest }));
  const reasons = listed(refusals);
  const warnings = listed(losses);
  if (flags.json === true) {
    const counts = { accepted, duplicates, rejected, alreadySent, toSendAgain };
    const files = { rejectedFile: rejected > 0 ? rejectedFile : null };
    return say(jsonLine({ ...counts, ...files, stopped: stopped ?? null, reasons, warnings }));
  }
  // Texts of the file and of the service must not look like further lines.
  const first = escapeControls(headline(result, isKept));
  if (result.isMistake) note(first);
  else say(first);
  const counts: readonly (readonly [count: number, text: string])[] = [
    [accepted - duplicates, "stored"],
    [duplicates, "stored before, under the same id"],
    [alreadySent, "stored by an earlier run"],
    [toSendAgain, "not stored; the next run sends them again"],
    [rejected, `refused for good; fix them in ${rejectedFile} and send that file`],
  ];
  const digits = Math.max(...counts.map(([count]) => String(count).length));
  for (const [count, text] of counts) if (count > 0) say(`  ${String(count).padStart(digits)} ${text}`);
  for (const finding of [...reasons, ...warnings]) note(escapeControls(sentenceOf(finding)));
}

function headline({ accepted, rejected, alreadySent, toSendAgain, stopped, isMistake }: SendResult, isKept: boolean) {
  const next = isKept
    ? "Run the same command again to continue."
    : "No progress was recorded, so no run can continue: give --state to record it.";
  if (stopped !== undefined) return isMistake ? `Stopped: ${stopped}` : `Stopped: ${stopped} ${next}`;
  if (toSendAgain > 0) return `Not all lines are stored, for the reasons below. ${next}`;
  if (rejected > 0) return "Not all lines are stored.";
  return accepted + alreadySent === 0 ? "The file is empty: nothing was sent." : "All lines are stored.";
}

const sentenceOf = ({ code, lines, firstLine, message }: Finding & { code: string }) =>
  `${code}: ${lines} ${lines === 1 ? "line" : "lines"}, the first is line ${firstLine}: ${message}`;

/** Aborts with the first signal; the second one ends the process. */
function interruption(signals: Signals): AbortSignal {
  const stop = new AbortController();
  void signals.stop().then(() => stop.abort());
  return stop.signal;
}
