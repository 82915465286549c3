import { LRUCache } from "lru-cache";
import type { RateLimitState } from "../exchange.ts";
import type { Spending } from "../store/rate-buckets.ts";

/** A token bucket: its id, and its limit in requests a second, which is also its size. */
export interface BucketSpec {
  readonly id: string;
  readonly limit: number;
}

interface Bucket {
  limit: number;
  tokens: number;
  atMs: number;
  /** Tokens taken since the last report to the other instances. */
  unreported: number;
}

export interface RateLimiterOptions {
  readonly now: () => number;
  /** Reports the tokens spent here; returns the level over all instances, by bucket id. */
  readonly share: (spendings: readonly Spending[]) => Promise<Map<string, number>>;
  /** Called when an exchange fails; this instance then limits alone. */
  readonly onError: (error: unknown) => void;
}

/** Interval between two exchanges with the other instances, in milliseconds. */
const shareEveryMs = 100;
const bucketsMax = 100_000;

export type Verdict =
  | { readonly allowed: true; readonly state: RateLimitState }
  | {
      readonly allowed: false;
      readonly state: RateLimitState;
      readonly retryAfterSeconds: number;
      readonly refusedBy: BucketSpec;
    };

/**
 * Token buckets that all instances share, without a database round trip per request. Each instance decides by its local
 * copy. Every 100 ms it reports its spending to the bucket in the database and takes over the level there. Instances
 * that together let too much through leave a debt of at most ten seconds' worth, which later requests pay. So a key gets
 * its rate however many instances it calls. While the database is unreachable, each instance limits alone: a key then
 * gets its rate on each instance.
 *
 * We wrote this because maintained limiter libraries either count in windows or query their store on every request.
 */
export class RateLimiter {
  readonly #options: RateLimiterOptions;
  readonly #buckets = new LRUCache<string, Bucket>({ max: bucketsMax });
  #dirty = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #sharing: Promise<void> | undefined;
  #stopped = false;

  constructor(options: RateLimiterOptions) {
    this.#options = options;
  }

  /**
   * Takes one token from the key's bucket, and from its organisation's if it has one: from both or from neither.
   * Returns the state of the key's.
   */
  take(key: BucketSpec, organization?: BucketSpec): Verdict {
    const now = this.#options.now();
    const keyBucket = this.#refilled(key, now);
    const organizationBucket = organization === undefined ? keyBucket : this.#refilled(organization, now);
    const isKeyEmpty = keyBucket.tokens < 1;
    if (isKeyEmpty || organizationBucket.tokens < 1) {
      const refusedBy = isKeyEmpty || organization === undefined ? key : organization;
      const { tokens, limit } = isKeyEmpty ? keyBucket : organizationBucket;
      const retryAfterSeconds = Math.max(1, Math.ceil((1 - tokens) / limit));
      return { allowed: false, state: stateOf(keyBucket), retryAfterSeconds, refusedBy };
    }
    this.#spend(key.id, keyBucket);
    if (organization !== undefined) this.#spend(organization.id, organizationBucket);
    return { allowed: true, state: stateOf(keyBucket) };
  }

  /** The bucket's state, without taking a token. */
  peek(key: BucketSpec): RateLimitState {
    return stateOf(this.#refilled(key, this.#options.now()));
  }

  /** Reports the rest and stops. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#sharing;
    await this.#share();
  }

  #refilled({ id, limit }: BucketSpec, now: number): Bucket {
    let bucket = this.#buckets.get(id);
    if (bucket === undefined) {
      bucket = { limit, tokens: limit, atMs: now, unreported: 0 };
      this.#buckets.set(id, bucket);
    }
    if (bucket.limit !== limit) {
      bucket.tokens = Math.min(bucket.tokens, limit) + Math.max(0, limit - bucket.limit);
      bucket.limit = limit;
    }
    bucket.tokens = Math.min(limit, bucket.tokens + (Math.max(0, now - bucket.atMs) / 1000) * limit);
    bucket.atMs = now;
    return bucket;
  }

  #spend(id: string, bucket: Bucket): void {
    bucket.tokens -= 1;
    if (bucket.unreported++ === 0) this.#dirty.add(id);
    if (this.#timer === undefined) this.#schedule();
  }

  #schedule(): void {
    if (this.#stopped) return;
    this.#timer = setTimeout(() => {
      this.#sharing = this.#share().finally(() => {
        this.#timer = undefined;
        this.#sharing = undefined;
        // Drop the spending of an outage: the bucket has refilled since.
        if (this.#dirty.size > 0) this.#schedule();
      });
    }, shareEveryMs);
    this.#timer.unref();
  }

  async #share(): Promise<void> {
    const dirty = this.#dirty;
    this.#dirty = new Set();
    const spendings: Spending[] = [];
    for (const id of dirty) {
      const bucket = this.#buckets.peek(id);
      if (bucket === undefined || bucket.unreported === 0) continue;
      spendings.push({ id, limit: bucket.limit, tokens: bucket.unreported });
      bucket.unreported = 0;
    }
    if (spendings.length === 0) return;
    try {
      const levels = await this.#options.share(spendings);
      const now = this.#options.now();
      for (const [id, level] of levels) {
        const bucket = this.#buckets.peek(id);
        if (bucket === undefined) continue;
        // The level does not yet include tokens taken during the report.
        bucket.tokens = Math.min(bucket.limit, level - bucket.unreported);
        bucket.atMs = now;
      }
    } catch (error) {
      this.#options.onError(error);
    }
  }
}

const stateOf = (bucket: Bucket): RateLimitState => ({
  limit: bucket.limit,
  remaining: Math.max(0, Math.floor(bucket.tokens)),
});
