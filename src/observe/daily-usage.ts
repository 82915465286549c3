import { LRUCache } from "lru-cache";
import type { Db } from "mongodb";
import type { ErrorCode } from "../errors.ts";
import type { RequestEnd, RequestStart } from "../exchange.ts";
import { timeOfId } from "../ids.ts";
import { addToDays, type DayCounts, dayOf, type UsageCounts, usageTypesMax } from "../store/usage-days.ts";

/** Milliseconds between two writes. A killed process loses its counts since the last one. */
export const gatherMs = 2_000;
/**
 * The most counts in memory, such as during a database outage. Beyond this, further types of an app share one count.
 */
const countsMax = 20_000;
/** Apps and days whose types are in memory. */
const appDaysMax = 2_000;

/** Codes of events whose type is whitelisted. With other codes, the caller may have invented the type. */
const typedCodes: ReadonlySet<ErrorCode | undefined> = new Set([undefined, "worker_not_found", "quota_exceeded"]);

/**
 * Counts the outcomes of events by organisation, day, app and type, and writes the counts every two seconds.
 *
 * A type that its app may send has its own counts, up to `usageTypesMax` for each app and day. All others share the
 * type "". So callers cannot fill memory or the database with invented types.
 */
export class DailyUsage {
  readonly #db: Db;
  readonly #onError: (error: unknown) => void;
  readonly #types = new LRUCache<string, Set<string>>({ max: appDaysMax });
  #gathered = new Map<string, DayCounts>();
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;

  constructor(db: Db, onError: (error: unknown) => void) {
    this.#db = db;
    this.#onError = onError;
  }

  ended({ rpc }: Pick<RequestStart, "rpc">, end: Omit<RequestEnd, "status" | "code" | "durationMs">): void {
    const { caller, requestId, dryRun, types, rejections, duplicates, fault, claim, isStored } = end;
    if (caller === undefined || dryRun || (rpc !== "Events" && rpc !== "Snapshots")) return;
    const day = dayOf(timeOfId(requestId));
    const { organizationId, appId } = caller;
    const found = new Map<string, UsageCounts>();
    const countsOf = (type: string) => {
      let counts = found.get(type);
      if (counts === undefined) found.set(type, (counts = this.#countsOf(organizationId, day, appId, type)));
      return counts;
    };
    const isRefused = fault !== undefined && rejections.every(({ code }) => code !== fault.code);
    if (isRefused) {
      const type = rpc === "Snapshots" && typedCodes.has(fault.code) ? types[0] : undefined;
      reject(countsOf(type ?? ""), fault.code);
    } else {
      const repeated = new Set(duplicates);
      const codes = new Map(rejections.map(({ index, code }) => [index, code]));
      let last: { readonly type: string; readonly counts: UsageCounts } | undefined;
      types.forEach((sent, index) => {
        const code = codes.get(index);
        const type = typedCodes.has(code) ? sent : "";
        if (last?.type !== type) last = { type, counts: countsOf(type) };
        if (claim === "replayed" && (code !== undefined || !isStored)) last.counts.replayed++;
        else if (code !== undefined) reject(last.counts, code);
        else if (repeated.has(index)) last.counts.duplicates++;
        else if (isStored) last.counts.accepted++;
      });
    }
    this.#schedule();
  }

  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#writing;
    await this.#write();
    clearTimeout(this.#timer);
  }

  #countsOf(organizationId: string, day: string, appId: string, sent: string): UsageCounts {
    const known = this.#gathered.get(`${day}/${appId}/${sent}`);
    if (known !== undefined) return known;
    const type = this.#hasOwnCounts(`${day}/${appId}`, sent) ? sent : "";
    const key = `${day}/${appId}/${type}`;
    let counts = this.#gathered.get(key);
    if (counts === undefined) {
      counts = { organizationId, day, appId, type, accepted: 0, replayed: 0, duplicates: 0, rejected: {} };
      this.#gathered.set(key, counts);
    }
    return counts;
  }

  #hasOwnCounts(appDay: string, type: string): boolean {
    if (type === "" || this.#gathered.size >= countsMax) return false;
    let types = this.#types.get(appDay);
    if (types === undefined) this.#types.set(appDay, (types = new Set()));
    if (types.size < usageTypesMax) types.add(type);
    return types.has(type);
  }

  #schedule(): void {
    this.#timer ??= setTimeout(() => {
      this.#writing = this.#write();
    }, gatherMs).unref();
  }

  async #write(): Promise<void> {
    const gathered = [...this.#gathered.values()];
    this.#gathered = new Map();
    if (gathered.length > 0) {
      const { undone, failure } = await addToDays(this.#db, gathered);
      if (failure !== undefined) this.#onError(failure);
      for (const one of undone) this.#addAgain(one);
    }
    this.#timer = undefined;
    if (this.#gathered.size > 0) this.#schedule();
  }

  #addAgain({ organizationId, day, appId, type, accepted, replayed, duplicates, rejected }: DayCounts): void {
    const counts = this.#countsOf(organizationId, day, appId, type);
    counts.accepted += accepted;
    counts.replayed += replayed;
    counts.duplicates += duplicates;
    for (const [code, count] of Object.entries(rejected)) reject(counts, code as ErrorCode, count);
  }
}

function reject({ rejected }: UsageCounts, code: ErrorCode, count = 1): void {
  rejected[code] = (rejected[code] ?? 0) + count;
}
