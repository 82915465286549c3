import { addAbortListener } from "node:events";
import type { Readable } from "node:stream";
import { limits } from "../limits.ts";
import { type Batch, type BatchItem, type Cut, type Cuts, cutBatches, judge, type RejectedRecord } from "./batches.ts";
import { backOff, NoReply, type Reply, replyMs } from "./client.ts";
import { type Journal, keyMark } from "./journal.ts";
import type { SourceKind } from "./kinds.ts";
import { readRecords, type SourceFormat } from "./records.ts";

/** What to do with batches of which an earlier run has not learnt what became of them, when it is too late to ask. */
export const unconfirmedPolicies = ["ask", "send", "skip"] as const;

export interface SendOptions {
  readonly source: Readable;
  readonly format: SourceFormat;
  readonly kind: SourceKind;
  readonly post: (lines: readonly string[], idempotencyKey: string) => Promise<Reply>;
  readonly key: string;
  readonly journal: Journal;
  /** Requests under way at once. */
  readonly concurrency: number;
  readonly unconfirmed: (typeof unconfirmedPolicies)[number];
  /** How long the service may fail to answer before the run stops. */
  readonly giveUpSeconds: number;
  /** Stops the run: what is under way is finished, nothing more is begun. */
  readonly signal: AbortSignal;
  readonly now: () => number;
  readonly onProgress: (progress: Progress) => void;
}

export interface Progress {
  /** Records that the service has accepted. */
  readonly accepted: number;
  /** Records that were not accepted. */
  readonly rejected: number;
  /** Records that an earlier run had dealt with. */
  readonly alreadySent: number;
  /** Of the file, about. */
  readonly bytes: number;
}

export interface SendResult extends Progress {
  /** Why the run stopped before the end; undefined when it did not. Another run goes on from there. */
  readonly stopped: string | undefined;
}

/** Ends a run before its end; the message says why. */
class Stop extends Error {}

/** How long after its first try a batch can be sent again and be recognised, with room for the last answer. */
const recognisedMs = limits.idempotencyWindowSeconds * 1000 - replyMs - 30_000;

/** Codes that speak of each event of a request that was refused as a whole. */
const eventCodes = new Set(["missing_actor", "forbidden_event_type", "worker_not_found"]);

/** Sends the records of a file in batches; every batch ends up in the journal, as accepted or rejected, once. */
export async function sendFile(options: SendOptions): Promise<SendResult> {
  return new Sending(options).run();
}

interface Outcome {
  readonly accepted: number;
  readonly rejected: readonly RejectedRecord[];
}

/** What is known of the tries of one batch. */
interface Tries {
  readonly batch: Batch;
  /** When it was first sent with an outcome that is not known to be nothing; undefined = it was not. */
  sentAtMs: number | undefined;
  /** Some of it may have been stored. */
  mayBeStored: boolean;
}

class Sending {
  readonly #options: SendOptions;
  #progress: Progress = { accepted: 0, rejected: 0, alreadySent: 0, bytes: 0 };
  #stop: string | undefined;
  /** What the run cannot go on after, and is no Stop. */
  #failure: Error | undefined;
  #answeredAtMs: number;

  constructor(options: SendOptions) {
    this.#options = options;
    this.#answeredAtMs = options.now();
  }

  async run(): Promise<SendResult> {
    const { source, format, kind, journal, concurrency, signal } = this.#options;
    const running = new Set<Promise<void>>();
    const cuts: Cuts = new Map<number, Cut>([...journal.unconfirmed, ...journal.done]);
    // Listened to while there is something to begin: what is under way is finished in any case.
    const interruption = addAbortListener(signal, () => this.#end(new Stop("It was interrupted.")));
    try {
      for await (const batch of cutBatches(readRecords(source, format, kind), kind, cuts)) {
        if (journal.done.has(batch.from)) {
          this.#count(batch, { alreadySent: batch.records.length });
          continue;
        }
        while (running.size >= concurrency && !this.#isEnding) await Promise.race(running);
        if (this.#isEnding) break;
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
    return { ...this.#progress, stopped: this.#stop };
  }

  get #isEnding(): boolean {
    return this.#stop !== undefined || this.#failure !== undefined;
  }

  /** Nothing more is begun. The first reason is told; a failure rather than a Stop. */
  #end(reason: Error): void {
    if (reason instanceof Stop) this.#stop ??= reason.message;
    else this.#failure ??= reason;
    // The loop may wait for a batch that never comes. Reading throws the reason, and it comes here once more.
    this.#options.source.destroy(reason);
  }

  async #send(batch: Batch): Promise<void> {
    const { kind, journal, now, key, unconfirmed } = this.#options;
    const earlier = journal.unconfirmed.get(batch.from);
    const isKnown = earlier === undefined || (now() - earlier.atMs < recognisedMs && earlier.key === keyMark(key));
    if (!isKnown && unconfirmed === "ask") throw new Stop(unconfirmedMessage(batch));
    if (!isKnown && unconfirmed === "skip") {
      await journal.finished(batch, 0, []);
      return this.#count(batch, { alreadySent: batch.records.length });
    }
    const { items, rejected } = judge(batch.records, kind);
    const sentAtMs = isKnown ? earlier?.atMs : undefined;
    const tries: Tries = { batch, sentAtMs, mayBeStored: sentAtMs !== undefined };
    const outcome =
      items.length === 0 ? { accepted: 0, rejected: [] } : await this.#deliver(tries, items, `send-${batch.digest}`);
    const all = [...rejected, ...outcome.rejected].sort((a, b) => a.line - b.line);
    await journal.finished(batch, outcome.accepted, all);
    this.#count(batch, { accepted: outcome.accepted, rejected: all.length });
    const exhausted = outcome.rejected.find(({ code }) => code === "quota_exceeded");
    if (exhausted !== undefined) throw new Stop(exhausted.message);
  }

  /** Tries until there is an outcome. @throws Stop when there is none to be had. */
  async #deliver(tries: Tries, items: readonly BatchItem[], idempotencyKey: string): Promise<Outcome> {
    const { post, now, signal } = this.#options;
    const lines = items.map(({ json }) => json);
    for (let attempt = 1; ; attempt++) {
      await this.#mark(tries);
      let reply: Reply | undefined;
      let trouble = "";
      try {
        reply = await post(lines, idempotencyKey);
      } catch (error) {
        if (!(error instanceof NoReply)) throw error;
        trouble = error.message;
        if (error.mayHaveArrived) tries.mayBeStored = true;
      }
      if (reply !== undefined && reply.status < 500 && reply.status !== 429) {
        this.#answeredAtMs = now();
        return this.#outcomeOf(reply, tries, items, idempotencyKey);
      }
      if (reply !== undefined && reply.status >= 500) {
        tries.mayBeStored = true;
        trouble = String(reply.body?.error?.message ?? `status ${reply.status}`);
      }
      // To be told to wait is an answer.
      if (reply?.status === 429) this.#answeredAtMs = now();
      await this.#unmark(tries);
      if (signal.aborted) throw new Stop("It was interrupted.");
      this.#giveUpIfDue(tries, trouble);
      await backOff(attempt, reply?.retryAfterMs, signal);
    }
  }

  async #outcomeOf(
    { status, body }: Reply,
    tries: Tries,
    items: readonly BatchItem[],
    idempotencyKey: string,
  ): Promise<Outcome> {
    const { kind } = this.#options;
    if (status === 202 && kind.requestRecordsMax === 1) return { accepted: 1, rejected: [] };
    if (status === 202 || status === 207) {
      const rejected = body.results.rejected.map(({ index, code, message }: any) =>
        rejectedRecord(kind, items[index] as BatchItem, code, message),
      );
      tries.mayBeStored ||= body.accepted > 0;
      return { accepted: body.accepted, rejected };
    }
    const { code = `http_${status}`, message = "" } = body?.error ?? {};
    const isOfLine = code === "invalid_body" || code === "batch_too_large";
    if (eventCodes.has(code) || (isOfLine && items.length === 1)) {
      return { accepted: 0, rejected: items.map((item) => rejectedRecord(kind, item, code, message)) };
    }
    if (isOfLine) return this.#halve(tries, items, idempotencyKey);
    await this.#unmark(tries);
    throw new Stop(`The service refuses with ${code}: ${message}`);
  }

  /** One line makes the service refuse the whole batch: the halves find out which. */
  async #halve(tries: Tries, items: readonly BatchItem[], idempotencyKey: string): Promise<Outcome> {
    const middle = Math.ceil(items.length / 2);
    const left = await this.#deliver(tries, items.slice(0, middle), `${idempotencyKey}-0`);
    const right = await this.#deliver(tries, items.slice(middle), `${idempotencyKey}-1`);
    return { accepted: left.accepted + right.accepted, rejected: [...left.rejected, ...right.rejected] };
  }

  async #mark(tries: Tries): Promise<void> {
    if (tries.sentAtMs !== undefined) return;
    tries.sentAtMs = this.#options.now();
    await this.#options.journal.sending(tries.batch, tries.sentAtMs, keyMark(this.#options.key));
  }

  async #unmark(tries: Tries): Promise<void> {
    if (tries.mayBeStored || tries.sentAtMs === undefined) return;
    tries.sentAtMs = undefined;
    await this.#options.journal.notSent(tries.batch);
  }

  #giveUpIfDue({ sentAtMs, batch }: Tries, trouble: string): void {
    const { now, giveUpSeconds } = this.#options;
    if (sentAtMs !== undefined && now() - sentAtMs >= recognisedMs) throw new Stop(unconfirmedMessage(batch));
    if (now() - this.#answeredAtMs >= giveUpSeconds * 1000) {
      throw new Stop(`The service has not answered for ${giveUpSeconds} s: ${trouble}`);
    }
  }

  #count({ records }: Batch, counts: Partial<Progress>): void {
    const { accepted, rejected, alreadySent, bytes } = this.#progress;
    this.#progress = {
      accepted: accepted + (counts.accepted ?? 0),
      rejected: rejected + (counts.rejected ?? 0),
      alreadySent: alreadySent + (counts.alreadySent ?? 0),
      bytes: records.reduce((sum, { text }) => sum + Buffer.byteLength(text) + 1, bytes),
    };
    this.#options.onProgress(this.#progress);
  }
}

const rejectedRecord = (
  { name }: SourceKind,
  { record, json }: BatchItem,
  code: string,
  message: string,
): RejectedRecord => ({ line: record.line, code, message, [name]: JSON.parse(json) });

function unconfirmedMessage({ records }: Batch): string {
  const lines = `Lines ${records[0]?.line} to ${records.at(-1)?.line}`;
  return `${lines} were sent without an answer, and the service would not recognise them any more. Run again with --unconfirmed send (they may be stored twice) or --unconfirmed skip (they may be missing).`;
}
