import { addAbortListener } from "node:events";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import type { Answer, Failure, LineOutcome } from "./answers.ts";
import { waitBefore } from "./backoff.ts";
import { type Batch, cutBatches, type Item, itemsOf, type Loss } from "./batches.ts";
import type { KeyOwner, Post } from "./client.ts";
import type { SourceFormat } from "./formats.ts";
import type { Journal, Outcome, RejectedRecord } from "./journal.ts";
import type { SentLine, SourceKind } from "./kinds.ts";
import { readRecords } from "./records.ts";
import { UnusableSource } from "./source.ts";

export interface SendOptions {
  readonly source: Readable;
  readonly format: SourceFormat;
  readonly kind: SourceKind;
  readonly post: Post;
  /** Asks what the key belongs to. */
  readonly owner: () => Promise<KeyOwner | Failure>;
  readonly journal: Journal;
  readonly concurrency: number;
  readonly giveUpSeconds: number;
  /** Refuses lines with parts that the service would drop or round. */
  readonly strict: boolean;
  /** Stops the run. Requests in flight finish, and no new one begins. */
  readonly signal: AbortSignal;
  readonly now: () => number;
  /** Default: a timer. */
  readonly wait?: (ms: number, signal: AbortSignal) => Promise<void>;
  readonly onProgress: (progress: Progress) => void;
  readonly onTrouble: (trouble: string, retry: number) => void;
}

/** In records, over all runs unless it says otherwise. */
export interface Progress {
  /** By this run. */
  readonly accepted: number;
  /** Accepted ones that were stored before, under the same id. */
  readonly duplicates: number;
  readonly rejected: number;
  /** By earlier runs. */
  readonly alreadySent: number;
  readonly toSendAgain: number;
  /** Of the unpacked file. */
  readonly bytes: number;
}

/** A refusal or a loss that several lines share. */
export interface Finding {
  readonly lines: number;
  readonly firstLine: number;
  readonly message: string;
}

export interface SendResult extends Progress {
  /** Why the run stopped early; undefined if it did not. Another run continues from there. */
  readonly stopped: string | undefined;
  /** Whether the user must change the command line or the file before another run. */
  readonly isMistake: boolean;
  /** By code. */
  readonly refusals: ReadonlyMap<string, Finding>;
  /** By code. */
  readonly losses: ReadonlyMap<Loss["code"], Finding>;
}

/** Stops a run early; the message says why. */
class Stop extends Error {
  readonly isMistake: boolean;

  constructor(message: string, { isMistake = false } = {}) {
    super(message);
    this.isMistake = isMistake;
  }
}

const interrupted = "It was interrupted.";

/**
 * Refusals that depend only on the line. Others may pass without a change of the line. In the next run, the quota, the
 * whitelist, or the organisation's workers may differ.
 */
const finalCodes: ReadonlySet<string> = new Set(["invalid_body", "batch_too_large", "missing_actor", "strict"]);

/** The same command line would get these refusals again. */
const mistakeCodes: ReadonlySet<string> = new Set([
  "missing_authorization",
  "invalid_key",
  "key_revoked",
  "key_expired",
  "forbidden_scope",
  "not_found",
  "method_not_allowed",
]);

type Wanted = KeyOwner | (Answer & { kind: "lines" });
type Refused = Failure & { kind: "refused" };

const stopOf = ({ refusal: { code, message } }: Refused) =>
  new Stop(`The service refuses with ${code}: ${sentence(message)}`, { isMistake: mistakeCodes.has(code) });

const sentence = (text: string) => (/[.!?]$/.test(text) ? text : `${text}.`);

/** Codes that apply to each event of a request that was refused as a whole. */
const eventCodes: ReadonlySet<string> = new Set([
  "missing_actor",
  "forbidden_event_type",
  "worker_not_found",
  "quota_exceeded",
]);

/** The journal gets one outcome for each record: stored, refused for good, or for the next run to send again. */
export async function sendFile(options: SendOptions): Promise<SendResult> {
  return new Sending(options).run();
}

class Sending {
  readonly #options: SendOptions;
  #progress: Progress = { accepted: 0, duplicates: 0, rejected: 0, alreadySent: 0, toSendAgain: 0, bytes: 0 };
  readonly #refusals = new Map<string, Finding>();
  readonly #losses = new Map<Loss["code"], Finding>();
  #stop: Stop | undefined;
  /** An error that ends the run and is not a Stop. */
  #failure: Error | undefined;
  #answeredAtMs: number;

  constructor(options: SendOptions) {
    this.#options = options;
    this.#answeredAtMs = options.now();
  }

  async run(): Promise<SendResult> {
    const { source, format, kind, journal, concurrency, signal } = this.#options;
    const running = new Set<Promise<void>>();
    // The signal matters only while batches are left to begin. Requests in flight always finish.
    const interruption = addAbortListener(signal, () => this.#end(new Stop(interrupted)));
    try {
      for await (const batch of cutBatches(readRecords(source, format, kind), kind, journal.done)) {
        while (running.size >= concurrency && !this.#isEnding) await Promise.race(running);
        if (batch.from === 0 && journal.isKept) await journal.belongTo(await this.#askApp());
        if (this.#isEnding) break;
        this.#countEarlier(batch);
        if (journal.done.get(batch.from)?.again.length === 0) continue;
        const sent = this.#send(batch)
          .catch((error: Error) => this.#end(error))
          .finally(() => running.delete(sent));
        running.add(sent);
      }
    } catch (error) {
      this.#end(error as Error);
    }
    interruption[Symbol.dispose]();
    source.destroy();
    await Promise.all(running);
    if (this.#failure !== undefined) throw this.#failure;
    return {
      ...this.#progress,
      stopped: this.#stop?.message,
      isMistake: this.#stop?.isMistake ?? false,
      refusals: this.#refusals,
      losses: this.#losses,
    };
  }

  get #isEnding(): boolean {
    return this.#stop !== undefined || this.#failure !== undefined;
  }

  /** The run reports its first reason, and a failure rather than a Stop. */
  #end(reason: Error): void {
    if (reason instanceof Stop) this.#stop ??= reason;
    else if (reason instanceof UnusableSource) this.#stop ??= new Stop(reason.message, { isMistake: true });
    else this.#failure ??= reason;
    // The loop may wait for a batch that never comes. Destroying the source ends it; the reason then arrives here
    // again.
    this.#options.source.destroy(reason);
  }

  async #askApp(): Promise<string> {
    const answer = await this.#ask(this.#options.owner, this.#options.now());
    if (answer.kind === "refused") throw stopOf(answer);
    return answer.app;
  }

  async #send(batch: Batch): Promise<void> {
    const { kind, journal, now, strict } = this.#options;
    const items = itemsOf(batch.records, kind, { strict, sourceName: journal.sourceName });
    const before = journal.done.get(batch.from);
    const open = before === undefined ? items : before.again.map((index) => items[index] as Item);
    const sent = open.filter((item) => item.sent !== undefined);
    for (const { line, losses } of sent) for (const loss of losses) note(this.#losses, line, loss);
    const lines = sent.map((item) => item.sent as SentLine);
    const outcomes = lines.length === 0 ? [] : await this.#deliver(lines, now());
    const outcomeOf = new Map(sent.map((item, i) => [item, outcomes[i]]));
    const result = { stored: 0, again: [] as number[], rejected: [] as RejectedRecord[] };
    let duplicates = 0;
    for (const item of open) {
      const { index, line, value } = item;
      const outcome = item.refusal ?? (outcomeOf.get(item) as LineOutcome);
      if (typeof outcome === "string") {
        result.stored++;
        if (outcome !== "stored") duplicates++;
        if (outcome === "conflict") note(this.#losses, line, conflict);
        continue;
      }
      note(this.#refusals, line, outcome);
      if (finalCodes.has(outcome.code)) result.rejected.push({ line, ...outcome, [kind.name]: value });
      else result.again.push(index);
    }
    await journal.finished(batch, result);
    this.#count(batch, result, duplicates);
    const exhausted = outcomes.find((outcome) => typeof outcome !== "string" && outcome.code === "quota_exceeded");
    if (typeof exhausted === "object") throw new Stop(exhausted.message);
  }

  /** @throws Stop if not every line can get an outcome. */
  async #deliver(lines: readonly SentLine[], beganAtMs: number): Promise<readonly LineOutcome[]> {
    const answer = await this.#ask(() => this.#options.post(lines), beganAtMs);
    if (answer.kind === "lines") return answer.outcomes;
    const { code } = answer.refusal;
    const isOfLine = code === "invalid_body" || code === "batch_too_large";
    if (eventCodes.has(code) || (isOfLine && lines.length === 1)) return lines.map(() => answer.refusal);
    if (!isOfLine) throw stopOf(answer);
    // One line makes the service refuse the whole batch. Sending halves finds it.
    const middle = Math.ceil(lines.length / 2);
    const first = await this.#deliver(lines.slice(0, middle), beganAtMs);
    return [...first, ...(await this.#deliver(lines.slice(middle), beganAtMs))];
  }

  /** Repeats a request until it is answered. @throws Stop if that takes too long, or no try can succeed. */
  async #ask<T extends Wanted>(request: () => Promise<T | Failure>, beganAtMs: number): Promise<T | Refused> {
    const { now, signal, onTrouble } = this.#options;
    for (let attempt = 1; ; attempt++) {
      const answer = await request();
      if (answer.kind === "none") {
        if (signal.aborted) throw new Stop(interrupted);
        const ms = this.#waitMs(beganAtMs, answer, attempt);
        onTrouble(answer.trouble, attempt);
        await (this.#options.wait ?? waitFor)(ms, signal);
        if (signal.aborted) throw new Stop(interrupted);
        continue;
      }
      this.#answeredAtMs = now();
      if (answer.kind === "mistake") throw new Stop(answer.message, { isMistake: true });
      return answer;
    }
  }

  /** @throws Stop if the next try would be too late. */
  #waitMs(beganAtMs: number, answer: Failure & { kind: "none" }, attempt: number): number {
    const { now, giveUpSeconds } = this.#options;
    const nowMs = now();
    const giveUpAtMs = Math.max(this.#answeredAtMs, beganAtMs) + giveUpSeconds * 1000;
    if (nowMs >= giveUpAtMs) {
      throw new Stop(`The service has not answered for ${giveUpSeconds} s: ${sentence(answer.trouble)}`);
    }
    return waitBefore(attempt, answer.retryAfterSeconds, giveUpAtMs - nowMs);
  }

  #countEarlier({ from, bytes }: Batch): void {
    const before = this.#options.journal.done.get(from);
    if (before === undefined) return;
    this.#add({ alreadySent: before.stored, rejected: before.refused });
    if (before.again.length === 0) this.#add({ bytes });
    this.#options.onProgress(this.#progress);
  }

  #count({ bytes }: Batch, { stored, again, rejected }: Outcome, duplicates: number): void {
    this.#add({ accepted: stored, duplicates, toSendAgain: again.length, rejected: rejected.length, bytes });
    this.#options.onProgress(this.#progress);
  }

  #add(counts: Partial<Progress>): void {
    const sums = Object.entries(counts).map(([name, count]) => [name, this.#progress[name as keyof Progress] + count]);
    this.#progress = { ...this.#progress, ...Object.fromEntries(sums) };
  }
}

const conflict = { code: "conflict", message: "another event is stored under its id, and stays" } as const;

function note<Code extends string>(findings: Map<Code, Finding>, line: number, what: { code: Code; message: string }) {
  const { lines, ...first } = findings.get(what.code) ?? { lines: 0, firstLine: Infinity, message: "" };
  // Batches end in any order, so find the first line.
  const told = line < first.firstLine ? { firstLine: line, message: what.message } : first;
  findings.set(what.code, { lines: lines + 1, ...told });
}

const waitFor = (ms: number, signal: AbortSignal): Promise<void> => delay(ms, undefined, { signal }).catch(() => {});
