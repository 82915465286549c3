import { Code } from "@connectrpc/connect";
import type { Db } from "mongodb";
import type { Caller, Exchange } from "../exchange.ts";
import { type IdSource, timeOfId } from "../ids.ts";
import { redactCallerText } from "../redact.ts";
import { bounded, isPassing } from "../store/database.ts";
import {
  lateAfterMs,
  PlainRows,
  type PlainRequests,
  type RequestRecord,
  type RequestRecordsDocument,
  recordsOf,
  requests as requestRecords,
} from "../store/requests.ts";
import type { ExchangeEnd } from "../transport/http/route.ts";

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

/**
 * Plain requests that differ in their rows only. They are added when they end: an exchange kept until it is written would
 * outlive the collector's young generation, which costs more than all the rest of a record.
 */
interface Group {
  readonly like: Omit<PlainRequests, "rows">;
  readonly rows: PlainRows;
  oldestMs: number;
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
  #plain = new Map<Caller | undefined, Group[]>();
  #other: RequestRecord[] = [];
  /** Taken from what was gathered, and not in the database yet. */
  #next: Batch | undefined;
  /** Of what was gathered and `#next`. */
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
    const weight = weightOf(exchange);
    if (this.#weight + weight > queueWeightMax) {
      this.counts.dropped++;
      return;
    }
    if (isPlain(exchange, end)) this.#add(exchange, end);
    else this.#other.push(recordOf(exchange, end));
    this.#weight += weight;
    if (this.#weight >= documentWeightMax && this.#next === undefined) this.#write();
    else this.#schedule(writeAfterMs);
  }

  #add(exchange: Exchange, { status, durationMs }: ExchangeEnd): void {
    const group = this.#groupOf(exchange, status);
    group.rows.add(exchange.requestId, exchange.accepted, durationMs);
    const receivedMs = exchange.receivedAt.getTime();
    if (receivedMs < group.oldestMs) group.oldestMs = receivedMs;
  }

  #groupOf({ rpc, protocol, caller, claim }: Exchange, status: number): Group {
    let groups = this.#plain.get(caller);
    if (groups === undefined) this.#plain.set(caller, (groups = []));
    for (const group of groups) {
      const { like } = group;
      if (like.rpc === rpc && like.protocol === protocol && like.status === status && like.claim === claim)
        return group;
    }
    const like = { rpc, protocol, status, ...caller, ...(claim === undefined ? {} : { claim }) };
    const group = { like, rows: new PlainRows(), oldestMs: Number.POSITIVE_INFINITY };
    groups.push(group);
    return group;
  }

  /** Writes what there is and stops; what the database does not take now is lost. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#writing;
    while (this.#unwritten && (await this.#writeNext()));
  }

  get #unwritten(): boolean {
    return this.#plain.size > 0 || this.#other.length > 0 || this.#next !== undefined;
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
      if (this.#unwritten) this.#schedule(this.#waitMs(done));
    });
  }

  /** Less than a document's worth waits for more to come: a write a few requests would cost each of them dearly. */
  #waitMs(done: boolean): number {
    if (!done) return retryAfterMs;
    return this.#weight >= documentWeightMax ? 0 : writeAfterMs;
  }

  /** Writes one document, the same again after a failure, so that it cannot be there twice. Whether it is done with. */
  async #writeNext(): Promise<boolean> {
    const { db, onError } = this.#options;
    this.#next ??= this.#take();
    const { document, requests: count, weight } = this.#next;
    try {
      // Sent directly: the driver's own insert measures every document first. Lost records are no lost events, so w: 1.
      await bounded(db.command({ insert: requestRecords.name, documents: [document], writeConcern: { w: 1 } }));
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

  /** All plain requests, which are small and bounded by the queue's bound, and others up to a document's weight. */
  #take(): Batch {
    const { ids, now, keepHours } = this.#options;
    const _id = ids.next("rec");
    const document: RequestRecordsDocument = {
      _id,
      plain: [],
      other: [],
      expiresAt: new Date(now() + keepHours * 3_600_000),
    };
    const lateBeforeMs = timeOfId(_id).getTime() - lateAfterMs;
    let weight = 0;
    let requests = 0;
    for (const { like, rows, oldestMs } of [...this.#plain.values()].flat()) {
      const plain: PlainRequests = { ...like, rows: rows.toBinary() };
      if (oldestMs < lateBeforeMs) {
        // Rarely: requests that took long are found by their ids, not by the time in them. Written out they are large.
        this.#other = this.#other.concat(recordsOf({ ...document, plain: [plain], other: [] }));
        continue;
      }
      weight += rows.count;
      requests += rows.count;
      document.plain.push(plain);
    }
    this.#plain.clear();
    let taken = 0;
    for (const record of this.#other) {
      if (weight >= documentWeightMax && taken > 0) break;
      weight += weightOf(record);
      taken++;
    }
    document.other.push(...this.#other.slice(0, taken));
    this.#other = this.#other.slice(taken);
    const late = document.other.filter((record) => isLate(record, lateBeforeMs)).map(({ id }) => id);
    if (late.length > 0) document.late = late;
    return { document, requests: requests + taken, weight };
  }
}

const weightOf = ({ rejections = [] }: Pick<RequestRecord, "rejections">) => 1 + rejections.length;

/** Whether the time in a record's id says nothing of where the record is. */
const isLate = ({ id, claim }: RequestRecord, lateBeforeMs: number) =>
  claim === "replayed" || timeOfId(id).getTime() < lateBeforeMs;

const isPlain = (exchange: Exchange, { status, code }: ExchangeEnd) =>
  exchange.fault === undefined &&
  exchange.rejections.length === 0 &&
  exchange.claim !== "replayed" &&
  exchange.traceId === undefined &&
  !exchange.dryRun &&
  status !== 0 &&
  !code;

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
