import { createHash } from "node:crypto";
import { addAbortListener } from "node:events";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { limits } from "../limits.ts";
import type { Answer, Refusal } from "./answers.ts";
import { type Batch, type Cut, type Cuts, cutBatches, type Item, itemsOf, type Loss } from "./batches.ts";
import { type Post, replyMs } from "./client.ts";
import { type Journal, keyMark, type Outcome, type RejectedRecord } from "./journal.ts";
import type { SourceKind } from "./kinds.ts";
import { readRecords, type SourceFormat } from "./records.ts";
import { UnusableSource } from "./source.ts";

/** What to do with batches without a known outcome that are too old to send again safely. */
export const unconfirmedPolicies = ["ask", "send", "skip"] as const;

export interface SendOptions {
  readonly source: Readable;
  readonly format: SourceFormat;
  readonly kind: SourceKind;
  readonly post: Post;
  readonly key: string;
  readonly journal: Journal;
  readonly concurrency: number;
  readonly unconfirmed: (typeof unconfirmedPolicies)[number];
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
  readonly rejected: number;
  /** By earlier runs. */
  readonly alreadySent: number;
  readonly toSendAgain: number;
  /** Records that may be missing, because the user chose `--unconfirmed skip`. */
  readonly skipped: number;
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
 * Milliseconds after its first try in which the service still recognises a batch, less the time for one more answer.
 */
const recognisedMs = limits.idempotencyWindowSeconds * 1000 - replyMs - 30_000;

/**
 * Refusals that depend only on the line. Others may pass without a change of the line. In the next run, the quota, the
 * whitelist, or the organisation's workers (and so the API key) may differ.
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

const sentence = (text: string) => (/[.!?]$/.test(text) ? text : `${text}.`);

/** Codes that apply to each event of a request that was refused as a whole. */
const eventCodes: ReadonlySet<string> = new Set(["missing_actor", "forbidden_event_type", "worker_not_found"]);

const backoffMs = { first: 250, max: 30_000 } as const;
/** Longest wait. Node's timers fire at once if they are longer than 2^31 ms. */
const waitMsMax = 3_600_000;

/** The journal gets one outcome for each record: stored, refused for good, or for the next run to send again. */
export async function sendFile(options: SendOptions): Promise<SendResult> {
  return new Sending(options).run();
}

interface Tries {
  readonly batch: Batch;
  readonly round: number;
  readonly without: readonly number[];
  readonly beganAtMs: number;
  /** The time of the first try, if that may have stored it; else undefined. */
  sentAtMs: number | undefined;
  /** Whether some of it may be stored. */
  mayBeStored: boolean;
}

class Sending {
  readonly #options: SendOptions;
  #progress: Progress = { accepted: 0, rejected: 0, alreadySent: 0, toSendAgain: 0, skipped: 0, bytes: 0 };
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
    const cuts: Cuts = new Map<number, Cut>([...journal.done, ...journal.unconfirmed]);
    // The signal matters only while batches are left to begin. Requests in flight always finish.
    const interruption = addAbortListener(signal, () => this.#end(new Stop(interrupted)));
    try {
      for await (const batch of cutBatches(readRecords(source, format, kind), kind, cuts)) {
        while (running.size >= concurrency && !this.#isEnding) await Promise.race(running);
        if (this.#isEnding) break;
        this.#countEarlier(batch);
        if (this.#isDone(batch)) continue;
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

  #isDone({ from }: Batch): boolean {
    const { done, unconfirmed } = this.#options.journal;
    return done.get(from)?.again.length === 0 && !unconfirmed.has(from);
  }

  async #send(batch: Batch): Promise<void> {
    const { kind, journal, now, key, unconfirmed, strict } = this.#options;
    const before = journal.done.get(batch.from);
    const earlier = journal.unconfirmed.get(batch.from);
    const isKnown = earlier === undefined || (now() - earlier.atMs < recognisedMs && earlier.key === keyMark(key));
    if (!isKnown && unconfirmed === "ask") throw new Stop(unconfirmedMessage(batch));
    const items = itemsOf(batch.records, kind, strict);
    const open = before === undefined ? items : before.again.map((index) => items[index] as Item);
    // Repeat a request without an answer unchanged, even if this run would leave out other lines.
    const left = earlier === undefined ? undefined : new Set(earlier.without);
    const sent = open.filter(({ index, json, refusal }) =>
      left === undefined ? refusal === undefined : json !== undefined && !left.has(index),
    );
    for (const { line, losses } of sent) for (const loss of losses) note(this.#losses, line, loss);
    const tries: Tries = {
      batch,
      round: before?.rounds ?? 0,
      without: items.filter((item) => !sent.includes(item)).map(({ index }) => index),
      beganAtMs: now(),
      sentAtMs: isKnown ? earlier?.atMs : undefined,
      mayBeStored: isKnown && earlier !== undefined,
    };
    const isSkipped = !isKnown && unconfirmed === "skip";
    const outcomes = isSkipped || sent.length === 0 ? [] : await this.#deliver(tries, sent, idempotencyKeyOf(tries));
    const answered = new Map(sent.map((item, i) => [item.index, outcomes[i]]));
    const result = { stored: 0, skipped: 0, again: [] as number[], rejected: [] as RejectedRecord[] };
    for (const { index, line, value, refusal: ownRefusal } of open) {
      // A line that an earlier run left out may be valid now. The next run then sends it.
      const refusal = answered.has(index) ? answered.get(index) : (ownRefusal ?? leftOut);
      if (refusal !== undefined) note(this.#refusals, line, refusal);
      if (refusal === undefined) result[isSkipped ? "skipped" : "stored"]++;
      else if (finalCodes.has(refusal.code)) result.rejected.push({ line, ...refusal, [kind.name]: value });
      else result.again.push(index);
    }
    await journal.finished(batch, result);
    this.#count(batch, result);
    const exhausted = outcomes.find((refusal) => refusal?.code === "quota_exceeded");
    if (exhausted !== undefined) throw new Stop(exhausted.message);
  }

  /** @throws Stop if not every item can get an outcome. */
  async #deliver(tries: Tries, items: readonly Item[], idempotencyKey: string): Promise<(Refusal | undefined)[]> {
    const { post, now, signal, onTrouble } = this.#options;
    const lines = items.map(({ json }) => json as string);
    for (let attempt = 1; ; attempt++) {
      await this.#mark(tries);
      const answer = await post(lines, idempotencyKey);
      if (answer.kind === "none") {
        tries.mayBeStored ||= answer.mayBeStored;
        await this.#unmark(tries);
        if (signal.aborted) throw new Stop(interrupted);
        const ms = this.#waitMs(tries, answer, attempt);
        onTrouble(answer.trouble, attempt);
        await (this.#options.wait ?? waitFor)(ms, signal);
        if (signal.aborted) throw new Stop(interrupted);
        continue;
      }
      this.#answeredAtMs = now();
      if (answer.kind === "lines") {
        tries.mayBeStored ||= answer.outcomes.includes(undefined);
        return [...answer.outcomes];
      }
      if (answer.kind === "refused") return this.#refused(answer.refusal, tries, items, idempotencyKey);
      await this.#unmark(tries);
      throw new Stop(answer.message, { isMistake: true });
    }
  }

  async #refused(refusal: Refusal, tries: Tries, items: readonly Item[], idempotencyKey: string) {
    const { code, message } = refusal;
    // The error is about the key, not a line: another request used the key. This request must not get a new one.
    const isOfKey = message.startsWith("Idempotency-Key");
    const isOfLine = !isOfKey && (code === "invalid_body" || code === "batch_too_large");
    // An earlier try may still be running, and may have taken the last of the quota.
    const isOfEvents = eventCodes.has(code) || (code === "quota_exceeded" && !tries.mayBeStored);
    if (isOfEvents || (isOfLine && items.length === 1)) return items.map(() => refusal);
    if (isOfLine) {
      // One line makes the service refuse the whole batch. Sending halves finds it.
      const middle = Math.ceil(items.length / 2);
      const first = await this.#deliver(tries, items.slice(0, middle), `${idempotencyKey}-0`);
      return [...first, ...(await this.#deliver(tries, items.slice(middle), `${idempotencyKey}-1`))];
    }
    await this.#unmark(tries);
    const isMistake = mistakeCodes.has(code);
    throw new Stop(`The service refuses with ${code}: ${sentence(message)}`, { isMistake });
  }

  async #mark(tries: Tries): Promise<void> {
    if (tries.sentAtMs !== undefined) return;
    const { batch, round, without } = tries;
    const { journal, now, key } = this.#options;
    tries.sentAtMs = now();
    await journal.sending(batch, { round, without: [...without], atMs: tries.sentAtMs, key: keyMark(key) });
  }

  async #unmark(tries: Tries): Promise<void> {
    if (tries.mayBeStored || tries.sentAtMs === undefined) return;
    tries.sentAtMs = undefined;
    await this.#options.journal.notSent(tries.batch);
  }

  /** @throws Stop if the next try would be too late. */
  #waitMs({ sentAtMs, batch, beganAtMs }: Tries, answer: Answer & { kind: "none" }, attempt: number): number {
    const { now, giveUpSeconds } = this.#options;
    const nowMs = now();
    const forgottenAtMs = sentAtMs === undefined ? Number.POSITIVE_INFINITY : sentAtMs + recognisedMs;
    if (nowMs >= forgottenAtMs) throw new Stop(unconfirmedMessage(batch));
    const giveUpAtMs = Math.max(this.#answeredAtMs, beganAtMs) + giveUpSeconds * 1000;
    if (nowMs >= giveUpAtMs) {
      throw new Stop(`The service has not answered for ${giveUpSeconds} s: ${sentence(answer.trouble)}`);
    }
    const ceiling = Math.min(backoffMs.max, backoffMs.first * 2 ** (attempt - 1));
    const asked = answer.retryAfterSeconds;
    // The random part keeps several senders from retrying at the same moment.
    const ms =
      asked === undefined
        ? ceiling * (0.5 + Math.random() / 2)
        : Math.max(asked * 1000, backoffMs.first) + Math.random() * backoffMs.first;
    return Math.min(ms, giveUpAtMs - nowMs, forgottenAtMs - nowMs, waitMsMax);
  }

  #countEarlier({ from, bytes }: Batch): void {
    const before = this.#options.journal.done.get(from);
    if (before === undefined) return;
    this.#add({ alreadySent: before.stored, rejected: before.refused, skipped: before.skipped });
    if (before.again.length === 0) this.#add({ bytes });
    this.#options.onProgress(this.#progress);
  }

  #count({ bytes }: Batch, { stored, skipped, again, rejected }: Outcome): void {
    this.#add({ accepted: stored, skipped, toSendAgain: again.length, rejected: rejected.length, bytes });
    this.#options.onProgress(this.#progress);
  }

  #add(counts: Partial<Progress>): void {
    const sums = Object.entries(counts).map(([name, count]) => [name, this.#progress[name as keyof Progress] + count]);
    this.#progress = { ...this.#progress, ...Object.fromEntries(sums) };
  }
}

const leftOut: Refusal = { code: "not_sent", message: "An earlier run did not send it." };

/** The key depends on everything in the request: a run that leaves out other lines sends another request. */
function idempotencyKeyOf({ batch: { digest }, round, without }: Tries): string {
  const hash = createHash("sha256").update(`${digest} ${round} ${without.join()}`);
  return `send-${hash.digest("hex").slice(0, 40)}`;
}

function note<Code extends string>(findings: Map<Code, Finding>, line: number, what: { code: Code; message: string }) {
  const { lines, ...first } = findings.get(what.code) ?? { lines: 0, firstLine: Infinity, message: "" };
  // Batches end in any order, so find the first line.
  const told = line < first.firstLine ? { firstLine: line, message: what.message } : first;
  findings.set(what.code, { lines: lines + 1, ...told });
}

const waitFor = (ms: number, signal: AbortSignal): Promise<void> => delay(ms, undefined, { signal }).catch(() => {});

function unconfirmedMessage({ records }: Batch): string {
  const lines = `Lines ${records[0]?.line} to ${records.at(-1)?.line}`;
  return `${lines} were sent without an answer, and the service no longer recognises them. Run again with --unconfirmed send (they may be stored twice) or --unconfirmed skip (they may be missing).`;
}
