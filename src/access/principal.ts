import { hash } from "node:crypto";
import { LRUCache } from "lru-cache";
import { Fault } from "../errors.ts";
import type { Caller } from "../exchange.ts";
import { trustMs } from "../store/changes.ts";
import type { KeyRecord } from "../store/keys.ts";
import { type BatchHooks, GroupCommit } from "../store/group-commit.ts";
import { bounded, faultOfDatabase } from "../store/database.ts";
import type { BucketSpec } from "./rate-limit.ts";
import type { Scope } from "./scopes.ts";

/** Who calls: what a key stands for. Only a key that was looked up makes one. */
export interface Principal {
  readonly organizationId: string;
  /** The same, as log lines and records have it. */
  readonly caller: Caller;
  readonly expiresAtMs: number;
  readonly revoked: boolean;
  readonly scope: Scope;
  readonly app: { readonly id: string; readonly slug: string; readonly name: string };
  /** Whether the app's whitelist has the event type. */
  readonly allows: (eventType: string) => boolean;
  /** Whether the plan includes the developer API. */
  readonly api: boolean;
  readonly quotaEvents: number;
  /** The rate limits that it is held to. */
  readonly keyBucket: BucketSpec;
  readonly organizationBucket: BucketSpec;
}

/** A key as it is sent. */
export const keyPattern = /^wp_live_[0-9a-f]{32}$/;
const bearerPattern = /^bearer +([^ ]+) *$/i;
/** SHA-256 of a key, base64url: 128 random bits need no slow hash, and looking up a hash leaks no timing of the key. */
export const hashOfKey = (key: string) => hash("sha256", key, "base64url");

/** What may be shown of a key. */
export const hintOfKey = (key: string) => `${key.slice(0, 12)}…`;

/**
 * The key of an Authorization header.
 * @throws Fault missing_authorization without a header, invalid_key when it is malformed.
 */
export function keyOfAuthorization(authorization: string | undefined): string {
  if (authorization === undefined || authorization === "") {
    throw new Fault("missing_authorization", "No Authorization header; send 'Authorization: Bearer wp_live_…'.");
  }
  const key = bearerPattern.exec(authorization)?.[1];
  if (key === undefined) {
    throw new Fault("invalid_key", "The Authorization header is not of the form 'Bearer wp_live_<32 hex digits>'.");
  }
  if (!keyPattern.test(key)) {
    throw new Fault(
      "invalid_key",
      "The API key is malformed: it must be wp_live_ followed by 32 lower-case hex digits.",
    );
  }
  return key;
}

const knownKeysMax = 50_000;
/** Random keys must not push known ones out, so unknown ones have a cache of their own. */
const unknownKeysMax = 20_000;

export interface PrincipalsOptions {
  /** Looks keys up by their hashes. */
  readonly load: (hashes: readonly string[]) => Promise<LoadedKeys>;
  /** When news about keys was last known to be complete, in milliseconds of `performance.now()`; -Infinity = never. */
  readonly freshAtMs: () => number;
  readonly hooks?: BatchHooks;
}

export interface LoadedKeys {
  readonly records: ReadonlyMap<string, KeyRecord>;
  /**
   * Whether a majority has confirmed that this was all, at some moment since `load` was called. Otherwise it is as current
   * as the news, and trusted for as long as that.
   */
  readonly isConfirmed: boolean;
}

interface Entry {
  readonly principal: Principal | undefined;
  /** News until then. What is older counts no more, and still tells whose key it is. */
  readonly changes: number;
  /** When it was current for certain, in milliseconds of `performance.now()`; -Infinity where only news can tell. */
  readonly confirmedAtMs: number;
}

/**
 * Keys in memory: looked up together when unknown, forgotten when news of their change arrives or the news ends. Held here by
 * their hashes, so that a copy of this memory gives no key away.
 */
export class Principals {
  readonly #options: PrincipalsOptions;
  readonly #known = new LRUCache<string, Entry>({ max: knownKeysMax });
  readonly #unknown = new LRUCache<string, Entry>({ max: unknownKeysMax });
  readonly #loads: GroupCommit<string, Principal | undefined>;
  #changes = 0;
  readonly counts = { hits: 0, misses: 0 };

  constructor(options: PrincipalsOptions) {
    this.#options = options;
    this.#loads = new GroupCommit({
      name: "key reads",
      // Strangers share one turn, however many keys they make up.
      ownerOf: (hash) => this.#known.peek(hash)?.principal?.organizationId ?? "",
      concurrencyMax: 2,
      batchWeightMax: 500,
      queueWeightMax: 10_000,
      ...options.hooks,
      run: (hashes) => this.#load(hashes),
    });
  }

  /**
   * Who the key of an Authorization header stands for: at once when it is in memory.
   * @throws Fault missing_authorization, invalid_key; unavailable when it cannot be found out.
   */
  find(authorization: string | undefined): Principal | Promise<Principal> {
    const hash = hashOfKey(keyOfAuthorization(authorization));
    const remembered = this.#remembered(hash);
    if (remembered !== undefined) return remembered;
    this.counts.misses++;
    return this.#loads.submit(hash).then(existing);
  }

  /** @throws Fault invalid_key when the key is known not to exist. */
  #remembered(hash: string): Principal | undefined {
    const entry = this.#known.get(hash) ?? this.#unknown.get(hash);
    if (entry === undefined || entry.changes !== this.#changes) return undefined;
    if (performance.now() - Math.max(entry.confirmedAtMs, this.#options.freshAtMs()) >= trustMs) return undefined;
    this.counts.hits++;
    return existing(entry.principal);
  }

  /** Forgets the keys that a changed key, app or organisation concerns. Keys that are not known may be known by it. */
  forget(id: string): void {
    this.#changes++;
    this.#unknown.clear();
    for (const [hash, { principal }] of this.#known.entries()) {
      const { keyId, appId, organizationId } = principal?.caller ?? {};
      if (id === keyId || id === appId || id === organizationId) this.#known.delete(hash);
    }
  }

  /** Forgets everything: something about keys, apps or organisations may have changed. */
  forgetAll(): void {
    this.#changes++;
    this.#unknown.clear();
  }

  async #load(hashes: readonly string[]) {
    const changes = this.#changes;
    const askedAtMs = performance.now();
    let loaded: LoadedKeys;
    try {
      loaded = await bounded(this.#options.load([...new Set(hashes)]));
    } catch (error) {
      throw faultOfDatabase(error);
    }
    const confirmedAtMs = loaded.isConfirmed ? askedAtMs : Number.NEGATIVE_INFINITY;
    return hashes.map((hash) => {
      const record = loaded.records.get(hash);
      const principal = record === undefined ? undefined : principalOf(record);
      // News that arrived while the read was under way may be about what was read.
      if (changes === this.#changes) {
        const [is, isNot] = principal === undefined ? [this.#unknown, this.#known] : [this.#known, this.#unknown];
        is.set(hash, { principal, changes, confirmedAtMs });
        isNot.delete(hash);
      }
      return { value: principal };
    });
  }
}

function existing(principal: Principal | undefined): Principal {
  if (principal === undefined) throw new Fault("invalid_key", "The API key does not exist.");
  return principal;
}

function principalOf({ key, app, organization }: KeyRecord): Principal {
  return {
    organizationId: organization._id,
    caller: { organizationId: organization._id, appId: app._id, keyId: key._id, keyHint: key.hint },
    expiresAtMs: key.expiresAt?.getTime() ?? Number.POSITIVE_INFINITY,
    revoked: key.revokedAt !== null,
    scope: key.scope ?? "ingest",
    app: { id: app._id, slug: app.slug, name: app.name },
    allows: whitelist(app.allow),
    api: organization.api,
    quotaEvents: organization.quotaEventsPerMonth,
    keyBucket: { id: key._id, limit: organization.keyRequestsPerSecond },
    organizationBucket: { id: organization._id, limit: organization.organizationRequestsPerSecond },
  };
}

/** Whether a type is on the list: exactly, or by a beginning before a trailing `*`. */
export function whitelist(allow: readonly string[]): (type: string) => boolean {
  const exact = new Set(allow.filter((entry) => !entry.endsWith("*")));
  const beginnings = allow.filter((entry) => entry.endsWith("*")).map((entry) => entry.slice(0, -1));
  return (type) => exact.has(type) || beginnings.some((beginning) => type.startsWith(beginning));
}
