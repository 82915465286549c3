import { LRUCache } from "lru-cache";
import type { RateLimitState } from "../exchange.ts";
import type { Spending } from "../store/rate-buckets.ts";

/** A bucket to take from: its id, and its limit in requests a second, which is also its size. */
export interface BucketSpec {
  readonly id: string;
  readonly limit: number;
}

interface Bucket {
  limit: number;
  tokens: number;
  atMs: number;
  /** Taken since the last report to the other instances. */
  unreported: number;
}

export interface RateLimiterOptions {
  readonly now: () => number;
  /** Reports what was spent here and answers what is left over all instances, by bucket id. */
  readonly share: (spendings: readonly Spending[]) => Promise<Map<string, number>>;
  /** Called when sharing fails; the instance then limits on its own. */
  readonly onError: (error: unknown) => void;
}

/** Time between two exchanges with the other instances, in milliseconds. */
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
 * Token buckets shared by all instances without a round trip on a request's way. Each instance decides by its own view of
 * a bucket and reports what it spent every 100 ms to the bucket in the database, whose level becomes the new view. What
 * several instances let through before they knew of each other becomes a debt (at most ten seconds' worth) that is paid
 * back at once, so a key passes at its rate however many instances it calls. While the database cannot be reached each
 * instance limits by its own view: a key is then let through at its rate on each of them.
 *
 * Our own arithmetic and not a limiter library: those kept up either count in windows, or ask their store on every request.
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

  /** Takes one request from both buckets, or from neither. The state is that of the first (the key's). */
  take(key: BucketSpec, organization: BucketSpec): Verdict {
    const now = this.#options.now();
    const keyBucket = this.#refilled(key, now);
    const organizationBucket = this.#refilled(organization, now);
    const isKeyEmpty = keyBucket.tokens < 1;
    if (isKeyEmpty || organizationBucket.tokens < 1) {
      const refusedBy = isKeyEmpty ? key : organization;
      const { tokens, limit } = isKeyEmpty ? keyBucket : organizationBucket;
      const retryAfterSeconds = Math.max(1, Math.ceil((1 - tokens) / limit));
      return { allowed: false, state: stateOf(keyBucket), retryAfterSeconds, refusedBy };
    }
    this.#spend(key.id, keyBucket);
    this.#spend(organization.id, organizationBucket);
    return { allowed: true, state: stateOf(keyBucket) };
  }

  /** The bucket's state; takes nothing. */
  peek(key: BucketSpec): RateLimitState {
    return stateOf(this.#refilled(key, this.#options.now()));
  }

  /** Reports what is not reported yet and stops. */
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
        // Spent meanwhile: reported late it would be taken from a bucket that has filled up again.
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
        // What was taken here while the report was under way is not in the level yet.
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
