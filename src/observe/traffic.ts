import type { Db } from "mongodb";
import type { RequestEnd, RequestStart } from "../exchange.ts";
import { Ingest } from "../gen/ingest/v1/ingest_pb.js";
import { Timeline } from "../gen/ingest/v1/timeline_pb.js";
import { isAnswering } from "../store/database.ts";
import {
  addToMinutes,
  countRequest,
  type MinuteCounts,
  minuteMs,
  noTraffic,
  type TrafficCounts,
} from "../store/traffic.ts";

/** Milliseconds between two writes. A killed process loses its counts since the last one. */
const gatherMs = 10_000;
/** The most counts in memory, one for each organisation and minute: 8 MB. Until the next write, further ones are lost. */
const countsMaxDefault = 10_000;

/** The RPCs that count. A caller decides how long a stream lasts, so `WatchEvents` does not. */
const rpcs: ReadonlySet<string> = new Set(
  [...Ingest.methods, ...Timeline.methods].filter(({ methodKind }) => methodKind === "unary").map(({ name }) => name),
);

/**
 * Counts the answered requests of each organisation by minute, with their latency, and writes the counts every ten
 * seconds. These count: Ping, Events, Snapshots, ListEvents and ListSnapshots with a live key, dry runs among them. These
 * do not: requests without a known key, those of test keys, and those whose caller left before the answer.
 *
 * It loses counts in two cases: a process dies, or a write fails. While the database is down, the counts stay in
 * memory, up to `countsMax`.
 */
export class Traffic {
  readonly #db: Db;
  readonly #onError: (error: unknown) => void;
  readonly #countsMax: number;
  /** By minute since 1970, then by organisation. */
  #gathered = new Map<number, Map<string, TrafficCounts>>();
  /** How many counts are gathered. */
  #size = 0;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;

  constructor(db: Db, onError: (error: unknown) => void, countsMax = countsMaxDefault) {
    this.#db = db;
    this.#onError = onError;
    this.#countsMax = countsMax;
  }

  /** Reads no clock: the request's own times say when it was answered. */
  ended(
    { rpc, receivedAt }: Pick<RequestStart, "rpc" | "receivedAt">,
    {
      caller,
      status,
      fault,
      code,
      durationMs,
    }: Pick<RequestEnd, "caller" | "status" | "fault" | "code" | "durationMs">,
  ): void {
    if (caller === undefined || caller.test === true || status === 0 || !rpcs.has(rpc)) return;
    const minute = Math.floor((receivedAt.getTime() + durationMs) / minuteMs);
    const counts = this.#gathered.get(minute)?.get(caller.organizationId) ?? this.#begin(minute, caller.organizationId);
    if (counts === undefined) return;
    countRequest(counts, durationMs);
    if (fault !== undefined || code !== undefined) counts.refused++;
  }

  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#writing;
    await this.#write();
    clearTimeout(this.#timer);
  }

  #begin(minute: number, organizationId: string): TrafficCounts | undefined {
    if (this.#size >= this.#countsMax) return undefined;
    let organizations = this.#gathered.get(minute);
    if (organizations === undefined) this.#gathered.set(minute, (organizations = new Map()));
    const counts = noTraffic();
    organizations.set(organizationId, counts);
    this.#size++;
    this.#schedule();
    return counts;
  }

  #schedule(): void {
    this.#timer ??= setTimeout(() => {
      this.#writing = this.#write();
    }, gatherMs).unref();
  }

  async #write(): Promise<void> {
    if (this.#size > 0 && (await isAnswering(this.#db))) {
      await addToMinutes(this.#db, this.#take()).catch(this.#onError);
    }
    this.#timer = undefined;
    if (this.#size > 0) this.#schedule();
  }

  #take(): MinuteCounts[] {
    const gathered = [...this.#gathered].flatMap(([minute, organizations]) =>
      [...organizations].map(([organizationId, counts]) => ({ organizationId, minute, ...counts })),
    );
    this.#gathered = new Map();
    this.#size = 0;
    return gathered;
  }
}
