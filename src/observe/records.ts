import { Code } from "@connectrpc/connect";
import type { Db } from "mongodb";
import type { Exchange } from "../exchange.ts";
import { type IdSource, timeOfId } from "../ids.ts";
import { redactCallerText } from "../redact.ts";
import { isPassing } from "../store/database.ts";
import {
  lateAfterMs,
  type PlainRequests,
  type RequestRecord,
  type RequestRecordsDocument,
  requests,
} from "../store/requests.ts";
import type { ExchangeEnd } from "../transport/route.ts";

export interface RequestRecorderOptions {
  readonly db: Db;
  readonly ids: IdSource;
  readonly now: () => number;
  /** How long a record is kept. */
  readonly keepHours: number;
  readonly onError: (error: unknown) => void;
}

/** A record is in the database at most this long after its request, in milliseconds, when the database takes it. */
const writeAfterMs = 250;
const retryAfterMs = 1_000;
/** Weight (requests and their rejected items) at which a document is written at once. */
const documentWeightMax = 4_000;
/** Weight kept in memory while the database does not take it; what comes beyond it is dropped, and counted. */
const queueWeightMax = 50_000;
const reasonCharactersMax = 2_000;

interface Ended {
  readonly exchange: Exchange;
  readonly end: ExchangeEnd;
}

interface Batch {
  readonly document: RequestRecordsDocument;
  readonly requests: number;
  readonly weight: number;
}

/**
 * Keeps what became of every request in the database for `ingest request show` and `ingest tail`, off the requests' way:
 * they are gathered and written together, nobody waits for it, and when more comes than can be written the surplus is
 * dropped and counted. What was gathered in the last fraction of a second is lost when the process is killed.
 */
export class RequestRecorder {
  readonly #options: RequestRecorderOptions;
  #queue: Ended[] = [];
  /** Taken from the queue and not in the database yet. */
  #next: Batch | undefined;
  /** Of the queue and `#next`. */
  #weight = 0;
  #stopped = false;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;
  /** For metrics, in requests. */
  readonly counts = { written: 0, dropped: 0 };

  constructor(options: RequestRecorderOptions) {
    this.#options = options;
  }

  /** Takes note of an exchange that has ended. Pages that were served as asked are not worth a record. */
  ended(exchange: Exchange, end: ExchangeEnd): void {
    if (exchange.rpc === "" && exchange.fault === undefined) return;
    const weight = weightOf({ exchange, end });
    if (this.#weight + weight > queueWeightMax) {
      this.counts.dropped++;
      return;
    }
    this.#queue.push({ exchange, end });
    this.#weight += weight;
    if (this.#weight >= documentWeightMax && this.#next === undefined) this.#write();
    else this.#schedule(writeAfterMs);
  }

  /** Writes what there is and stops; what the database does not take now is lost. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#writing;
    while (this.#unwritten && (await this.#writeNext()));
  }

  get #unwritten(): boolean {
    return this.#queue.length > 0 || this.#next !== undefined;
  }

  #schedule(afterMs: number): void {
    if (this.#stopped || this.#timer !== undefined || this.#writing !== undefined) return;
    this.#timer = setTimeout(() => this.#write(), afterMs);
    this.#timer.unref();
  }

  #write(): void {
    if (this.#writing !== undefined) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#writing = this.#writeNext().then((done) => {
      this.#writing = undefined;
      if (this.#unwritten) this.#schedule(done ? 0 : retryAfterMs);
    });
  }

  /** Writes one document, the same again after a failure, so that it cannot be there twice. Whether it is done with. */
  async #writeNext(): Promise<boolean> {
    const { db, onError } = this.#options;
    this.#next ??= this.#take();
    const { document, requests: count, weight } = this.#next;
    try {
      // Sent directly: the driver's own insert measures every document first. Lost records are no lost events, so w: 1.
      await db.command({ insert: requests.name, documents: [document], writeConcern: { w: 1 } });
      this.counts.written += count;
    } catch (error) {
      onError(error);
      if (isPassing(error)) return false;
      this.counts.dropped += count;
    }
    this.#next = undefined;
    this.#weight -= weight;
    return true;
  }

  #take(): Batch {
    const { ids, now, keepHours } = this.#options;
    let weight = 0;
    let count = 0;
    while (count < this.#queue.length && weight < documentWeightMax) {
      weight += weightOf(this.#queue[count] as Ended);
      count++;
    }
    const expiresAt = new Date(now() + keepHours * 3_600_000);
    const document = documentOf(this.#queue.slice(0, count), ids.next("rec"), expiresAt);
    this.#queue = this.#queue.slice(count);
    return { document, requests: count, weight };
  }
}

const weightOf = ({ exchange }: Ended) => 1 + exchange.rejections.length;

function documentOf(batch: readonly Ended[], _id: string, expiresAt: Date): RequestRecordsDocument {
  const plain = new Map<string, PlainRequests>();
  const other: RequestRecord[] = [];
  const late: string[] = [];
  const lateBeforeMs = timeOfId(_id).getTime() - lateAfterMs;
  for (const { exchange, end } of batch) {
    const { requestId, claim } = exchange;
    const isLate = claim === "replayed" || timeOfId(requestId).getTime() < lateBeforeMs;
    if (isLate) late.push(requestId);
    if (isLate || !isPlain(exchange, end)) other.push(recordOf(exchange, end));
    else addPlain(plain, exchange, end);
  }
  return { _id, plain: [...plain.values()], other, ...(late.length === 0 ? {} : { late }), expiresAt };
}

const isPlain = ({ fault, rejections, traceId, dryRun }: Exchange, { status, code }: ExchangeEnd) =>
  fault === undefined && rejections.length === 0 && traceId === undefined && !dryRun && status !== 0 && !code;

function addPlain(plain: Map<string, PlainRequests>, exchange: Exchange, { status, durationMs }: ExchangeEnd): void {
  const { requestId, rpc, protocol, caller, claim, accepted } = exchange;
  const name = `${rpc}/${protocol}/${status}/${claim}/${caller?.keyId}`;
  let group = plain.get(name);
  if (group === undefined) {
    group = { rpc, protocol, status, ...caller, ids: [], accepted: [], durationsMs: [] };
    if (claim !== undefined) group.claim = claim;
    plain.set(name, group);
  }
  group.ids.push(requestId);
  group.accepted.push(accepted);
  group.durationsMs.push(tenths(durationMs));
}

function recordOf(exchange: Exchange, { status, code, durationMs }: ExchangeEnd): RequestRecord {
  const { requestId, receivedAt, rpc, protocol, fault, caller, rejections, accepted } = exchange;
  const { limitedBy, claim, dryRun, traceId } = exchange;
  return {
    id: requestId,
    receivedAt,
    rpc,
    protocol,
    status,
    ...(fault === undefined ? {} : { code: fault.code, reason: shortened(redactCallerText(fault.message)) }),
    ...(code === undefined ? {} : { connectCode: Code[code] }),
    ...caller,
    accepted,
    ...(rejections.length === 0 ? {} : { rejections: rejections.map(redacted) }),
    ...(limitedBy === undefined ? {} : { limitedBy }),
    ...(claim === undefined ? {} : { claim }),
    ...(dryRun ? { dryRun } : {}),
    ...(traceId === undefined ? {} : { traceId }),
    durationMs: tenths(durationMs),
  };
}

const redacted = ({ index, code, message }: Exchange["rejections"][number]) => ({
  index,
  code,
  message: redactCallerText(message),
});
const shortened = (text: string) =>
  text.length > reasonCharactersMax ? `${text.slice(0, reasonCharactersMax)}…` : text;
const tenths = (ms: number) => Math.round(ms * 10) / 10;
