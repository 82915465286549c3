import { Code } from "@connectrpc/connect";
import { LRUCache } from "lru-cache";
import type { Db } from "mongodb";
import type { Caller, Rejection, RequestEnd, RequestStart } from "../exchange.ts";
import type { IdSource } from "../ids.ts";
import { isNotWhitelisted } from "../ingest/events.ts";
import { redactCallerText } from "../redact.ts";
import { isPassing } from "../store/database.ts";
import { insertRecords, type RequestDocument, type RequestRecord, type TypeCount } from "../store/requests.ts";

export interface RequestRecorderOptions {
  readonly db: Db;
  readonly ids: IdSource;
  readonly now: () => number;
  readonly keepHours: number;
  readonly onError: (error: unknown) => void;
}

export const recordLimits = {
  /** Bytes of records that one instance stores, plus one burst. */
  storedBytesMax: 1024 ** 3,
  /** Fraction of it that may be written at once. */
  burst: 1 / 16,
  /** Fraction of both that one organisation may use. */
  organizationShare: 1 / 8,
  /** Rejections that a record lists; it only counts the others. */
  rejectionsMax: 20,
  /** Types that are not whitelisted and that a record counts; callers may invent any number of them. */
  forbiddenTypesMax: 20,
  reasonCharactersMax: 1_000,
  /** Bytes that wait in memory while the database is slow. */
  queueBytesMax: 8 * 1024 ** 2,
} as const;

/** Records wait this many milliseconds, to be written together. */
const writeAfterMs = 250;
const retryAfterMs = 1_000;
const writeRecordsMax = 1_000;

/**
 * Records the outcome of requests that were not fully accepted, for `ingest request show` and `ingest tail`. It needs a
 * known key, so strangers cannot fill the database, and limits the bytes of each organisation and of all. No request
 * waits for it; a killed process loses its last records.
 */
export class RequestRecorder {
  readonly #options: RequestRecorderOptions;
  readonly #all: ByteBudget;
  readonly #organizations = new LRUCache<string, ByteBudget>({ max: 10_000 });
  /** The second of a key's last recorded refusal by the rate limit. One record a second is enough. */
  readonly #limited = new LRUCache<string, number>({ max: 10_000 });
  #queue: { readonly document: RequestDocument; readonly bytes: number }[] = [];
  #queuedBytes = 0;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;
  readonly counts = { written: 0, dropped: 0, repeated: 0 };

  constructor(options: RequestRecorderOptions) {
    this.#options = options;
    this.#all = this.#budget(1);
  }

  ended(start: RequestStart, end: RequestEnd): void {
    const { caller } = end;
    if (caller === undefined || isAccepted(end)) return;
    const { ids, now, keepHours } = this.#options;
    const record = recordOf(start, caller, end);
    const bytes = Buffer.byteLength(JSON.stringify(record));
    if (this.#isRepeated(record)) return void this.counts.repeated++;
    if (!this.#allows(caller.organizationId, bytes)) return void this.counts.dropped++;
    const document = { _id: ids.next("rec"), ...record, expiresAt: new Date(now() + keepHours * 3_600_000) };
    this.#queue.push({ document, bytes });
    this.#queuedBytes += bytes;
    this.#schedule(writeAfterMs);
  }

  /** Records that the database does not take now are lost. */
  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#writing;
    while (this.#queue.length > 0 && (await this.#writeSome()));
    clearTimeout(this.#timer);
  }

  #budget(share: number): ByteBudget {
    const { storedBytesMax, burst } = recordLimits;
    const bytesPerSecond = (share * storedBytesMax) / (this.#options.keepHours * 3_600);
    return new ByteBudget(share * burst * storedBytesMax, bytesPerSecond, this.#options.now());
  }

  #isRepeated({ limitedBy, keyId, receivedAt }: RequestRecord): boolean {
    if (limitedBy === undefined) return false;
    const second = Math.floor(receivedAt.getTime() / 1000);
    if (this.#limited.get(keyId) === second) return true;
    this.#limited.set(keyId, second);
    return false;
  }

  #allows(organizationId: string, bytes: number): boolean {
    let own = this.#organizations.get(organizationId);
    if (own === undefined) {
      own = this.#budget(recordLimits.organizationShare);
      this.#organizations.set(organizationId, own);
    }
    const nowMs = this.#options.now();
    return (
      this.#queuedBytes + bytes <= recordLimits.queueBytesMax && own.take(bytes, nowMs) && this.#all.take(bytes, nowMs)
    );
  }

  #schedule(afterMs: number): void {
    if (this.#writing !== undefined || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#writing = this.#writeSome().then((done) => {
        this.#writing = undefined;
        if (this.#queue.length > 0) this.#schedule(done ? writeAfterMs : retryAfterMs);
      });
    }, afterMs);
    this.#timer.unref();
  }

  /** Returns whether the database took the batch. */
  async #writeSome(): Promise<boolean> {
    const batch = this.#queue.slice(0, writeRecordsMax);
    const { db, onError } = this.#options;
    try {
      await insertRecords(
        db,
        batch.map(({ document }) => document),
      );
      this.counts.written += batch.length;
    } catch (error) {
      onError(error);
      if (isPassing(error)) return false;
      this.counts.dropped += batch.length;
    }
    this.#queue = this.#queue.slice(batch.length);
    for (const { bytes } of batch) this.#queuedBytes -= bytes;
    return true;
  }
}

class ByteBudget {
  readonly #bytesMax: number;
  readonly #bytesPerSecond: number;
  #bytes: number;
  #atMs: number;

  constructor(bytesMax: number, bytesPerSecond: number, nowMs: number) {
    this.#bytesMax = bytesMax;
    this.#bytesPerSecond = bytesPerSecond;
    this.#bytes = bytesMax;
    this.#atMs = nowMs;
  }

  take(bytes: number, nowMs: number): boolean {
    const gained = (Math.max(0, nowMs - this.#atMs) / 1000) * this.#bytesPerSecond;
    this.#bytes = Math.min(this.#bytesMax, this.#bytes + gained);
    this.#atMs = nowMs;
    if (this.#bytes < bytes) return false;
    this.#bytes -= bytes;
    return true;
  }
}

/** Whether everything was accepted and new, in a request that was no replay and no dry run. */
const isAccepted = ({ fault, rejections, duplicates, claim, dryRun, status, code }: RequestEnd): boolean =>
  fault === undefined &&
  rejections.length === 0 &&
  duplicates.length === 0 &&
  claim !== "replayed" &&
  !dryRun &&
  status !== 0 &&
  code === undefined;

function recordOf(
  { receivedAt, rpc, protocol, traceId }: RequestStart,
  caller: Caller,
  end: RequestEnd,
): RequestRecord {
  const { requestId, fault, status, code, durationMs, rejections, accepted, duplicates, limitedBy, claim, dryRun } =
    end;
  const forbiddenTypes = claim === "replayed" || dryRun || caller.test === true ? [] : forbiddenTypesOf(end);
  return {
    requestId,
    receivedAt,
    rpc,
    protocol,
    status,
    ...(fault === undefined ? {} : { code: fault.code, reason: shown(fault.message) }),
    ...(code === undefined ? {} : { connectCode: Code[code] }),
    ...caller,
    accepted,
    ...(duplicates.length === 0 ? {} : { duplicates: duplicates.length }),
    ...(rejections.length === 0 ? {} : { rejected: rejections.length, rejections: firstOf(rejections) }),
    ...(forbiddenTypes.length === 0 ? {} : { forbiddenTypes }),
    ...(limitedBy === undefined ? {} : { limitedBy }),
    ...(claim === undefined ? {} : { claim }),
    ...(dryRun ? { dryRun } : {}),
    ...(traceId === undefined ? {} : { traceId }),
    durationMs: Math.round(durationMs * 10) / 10,
  };
}

const shown = (text: string) => redactCallerText(text, recordLimits.reasonCharactersMax);

const firstOf = (rejections: readonly Rejection[]) =>
  rejections
    .slice(0, recordLimits.rejectionsMax)
    .map(({ index, code, message }) => ({ index, code, message: shown(message) }));

/** The most frequent types that are not whitelisted, and a count of the others. */
function forbiddenTypesOf({ rejections, types }: RequestEnd): TypeCount[] {
  const counts = new Map<string, number>();
  for (const rejection of rejections) {
    if (!isNotWhitelisted(rejection)) continue;
    const type = shown(types[rejection.index] ?? "");
    counts.set(type, (counts.get(type) ?? 0) + 1);
  }
  const sorted = [...counts].map(([type, events]) => ({ type, events })).sort((a, b) => b.events - a.events);
  const others = sorted.slice(recordLimits.forbiddenTypesMax).reduce((sum, { events }) => sum + events, 0);
  const named = sorted.slice(0, recordLimits.forbiddenTypesMax);
  return others === 0 ? named : [...named, { type: "", events: others }];
}
