import { LRUCache } from "lru-cache";
import type { Db } from "mongodb";
import type { ErrorCode } from "../errors.ts";
import type { RequestEnd, RequestStart } from "../exchange.ts";
import { timeOfId } from "../ids.ts";
import { addToDays, type DayCounts, type UsageCounts, usageTypesMax } from "../store/usage-days.ts";
import { dayOf } from "../time.ts";

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

interface AppDay {
  readonly organizationId: string;
  readonly appId: string;
  readonly day: string;
  /** Types with their own counts. */
  readonly types: Set<string>;
  readonly counts: Map<string, DayCounts>;
}

const none: ReadonlyMap<number, never> = new Map<number, never>();

/**
 * Counts the outcomes of events by organisation, day, app and type, and writes the counts every two seconds. Test keys do
 * not count.
 *
 * A type that its app may send has its own counts, up to `usageTypesMax` for each app and day. All others share the
 * type "". So callers cannot fill memory or the database with invented types.
 */
export class DailyUsage {
  readonly #db: Db;
  readonly #onError: (error: unknown) => void;
  readonly #types = new LRUCache<string, Set<string>>({ max: appDaysMax });
  /** By day, then by app: the texts of both are at hand, so no request makes a key. */
  #gathered = new Map<string, Map<string, AppDay>>();
  /** How many counts are gathered. */
  #size = 0;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;

  constructor(db: Db, onError: (error: unknown) => void) {
    this.#db = db;
    this.#onError = onError;
  }

  ended({ rpc }: Pick<RequestStart, "rpc">, end: Omit<RequestEnd, "status" | "code" | "durationMs">): void {
    const { caller, requestId, dryRun, types, rejections, duplicates, fault, claim, isStored } = end;
    if (caller === undefined || caller.test === true || dryRun || (rpc !== "Events" && rpc !== "Snapshots")) return;
    const appDay = this.#appDayOf(caller.organizationId, caller.appId, dayOf(timeOfId(requestId)));
    const isRefused = fault !== undefined && rejections.every(({ code }) => code !== fault.code);
    if (isRefused) {
      const type = rpc === "Snapshots" && typedCodes.has(fault.code) ? types[0] : undefined;
      reject(this.#countsOf(appDay, type ?? ""), fault.code);
    } else {
      const codes = rejections.length === 0 ? none : new Map(rejections.map(({ index, code }) => [index, code]));
      const repeated = duplicates.length === 0 ? none : new Set(duplicates);
      for (let index = 0; index < types.length; index++) {
        const code = codes.get(index);
        const counts = this.#countsOf(appDay, typedCodes.has(code) ? (types[index] as string) : "");
        if (claim === "replayed" && (code !== undefined || !isStored)) counts.replayed++;
        else if (code !== undefined) reject(counts, code);
        else if (repeated.has(index)) counts.duplicates++;
        else if (isStored) counts.accepted++;
      }
    }
    this.#schedule();
  }

  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#writing;
    await this.#write();
    clearTimeout(this.#timer);
  }

  #appDayOf(organizationId: string, appId: string, day: string): AppDay {
    const known = this.#gathered.get(day)?.get(appId);
    if (known !== undefined) return known;
    const key = `${day}/${appId}`;
    let types = this.#types.get(key);
    if (types === undefined) this.#types.set(key, (types = new Set()));
    const appDay = { organizationId, appId, day, types, counts: new Map() };
    this.#gathered.set(day, (this.#gathered.get(day) ?? new Map()).set(appId, appDay));
    return appDay;
  }

  #countsOf(appDay: AppDay, sent: string): UsageCounts {
    const { organizationId, appId, day, counts: byType } = appDay;
    const known = byType.get(sent);
    if (known !== undefined) return known;
    const type = this.#hasOwnCounts(appDay, sent) ? sent : "";
    let counts = byType.get(type);
    if (counts === undefined) {
      counts = { organizationId, day, appId, type, accepted: 0, replayed: 0, duplicates: 0, rejected: {} };
      byType.set(type, counts);
      this.#size++;
    }
    return counts;
  }

  #hasOwnCounts({ types }: AppDay, type: string): boolean {
    if (type === "" || this.#size >= countsMax) return false;
    if (types.size < usageTypesMax) types.add(type);
    return types.has(type);
  }

  #schedule(): void {
    this.#timer ??= setTimeout(() => {
      this.#writing = this.#write();
    }, gatherMs).unref();
  }

  async #write(): Promise<void> {
    const appDays = this.#gathered.values().flatMap((byApp) => byApp.values());
    const gathered = [...appDays.flatMap(({ counts }) => counts.values())];
    this.#gathered = new Map();
    this.#size = 0;
    if (gathered.length > 0) {
      const { undone, failure } = await addToDays(this.#db, gathered);
      if (failure !== undefined) this.#onError(failure);
      for (const one of undone) this.#addAgain(one);
    }
    this.#timer = undefined;
    if (this.#gathered.size > 0) this.#schedule();
  }

  #addAgain({ organizationId, day, appId, type, accepted, replayed, duplicates, rejected }: DayCounts): void {
    const counts = this.#countsOf(this.#appDayOf(organizationId, appId, day), type);
    counts.accepted += accepted;
    counts.replayed += replayed;
    counts.duplicates += duplicates;
    for (const [code, count] of Object.entries(rejected)) reject(counts, code as ErrorCode, count);
  }
}

function reject({ rejected }: UsageCounts, code: ErrorCode, count = 1): void {
  rejected[code] = (rejected[code] ?? 0) + count;
}
