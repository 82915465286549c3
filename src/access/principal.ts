import { hash, randomBytes } from "node:crypto";
import { LRUCache } from "lru-cache";
import { createAddressFilter } from "../addresses.ts";
import { Fault } from "../errors.ts";
import type { Caller } from "../exchange.ts";
import { testOrganizationOf } from "../ids.ts";
import { cachedMsMax, trustMs } from "../store/changes.ts";
import { type KeyRecord, scopesOf } from "../store/keys.ts";
import { type BatchHooks, GroupCommit } from "../store/group-commit.ts";
import { bounded, faultOfDatabase } from "../store/database.ts";
import { isAccessToken } from "./access-token.ts";
import { whitelist } from "./event-types.ts";
import type { BucketSpec } from "./rate-limit.ts";
import type { Scope } from "./scopes.ts";

/** The caller behind a key, made only from a key found in the database. */
export interface Principal {
  /** Owns what the key writes and reads. Of a test key: where test data lies, see `testOrganizationOf`. */
  readonly organizationId: string;
  /** For everything else, such as rates, turns, log lines and request records: names the organisation itself. */
  readonly caller: Caller;
  readonly expiresAtMs: number;
  readonly revoked: boolean;
  readonly scopes: readonly Scope[];
  readonly app: { readonly id: string; readonly slug: string; readonly name: string };
  /** Whether the key may send the event type: the app's whitelist and the key's own list allow it. */
  readonly allows: (eventType: string) => boolean;
  /** Whether the app's whitelist alone allows it. */
  readonly appAllows: (eventType: string) => boolean;
  /** Whether the key may be used from the IP address; undefined if every address may use it. */
  readonly admits: ((address: string) => boolean) | undefined;
  /** Whether the plan includes the developer API. */
  readonly api: boolean;
  readonly quotaEvents: number;
  /** Its rate limits. */
  readonly keyBucket: BucketSpec;
  readonly organizationBucket: BucketSpec;
}

/** Format of a key. */
export const keyPattern = /^wp_(?:live|test)_[0-9a-f]{32}$/;

/** A new key, which only its caller may keep. */
export const newSecret = (isTest = false) => `wp_${isTest ? "test" : "live"}_${randomBytes(16).toString("hex")}`;
const bearerPattern = /^bearer +([^ ]+) *$/i;
/** SHA-256 of a key or an access token, base64url. 128 random bits need no slow hash, and a lookup by hash leaks no timing. */
export const hashOfKey = (key: string) => hash("sha256", key, "base64url");

/** The part of a key or an access token that is safe to show: its prefix and four digits. */
export const hintOfKey = (key: string) => `${key.slice(0, key.lastIndexOf("_") + 5)}…`;

/** The credential of an Authorization header; undefined if the header is malformed. */
export const bearerOf = (authorization: string): string | undefined => bearerPattern.exec(authorization)?.[1];

/**
 * The key of an Authorization header.
 * @throws Fault missing_authorization without a header, invalid_key when it is malformed, forbidden_scope for an access
 * token of the administration API.
 */
export function keyOfAuthorization(authorization: string | undefined): string {
  if (authorization === undefined || authorization === "") {
    throw new Fault("missing_authorization", "No Authorization header; send 'Authorization: Bearer wp_live_…'.");
  }
  const key = bearerOf(authorization);
  if (key === undefined) {
    throw new Fault("invalid_key", "The Authorization header is not of the form 'Bearer wp_live_<32 hex digits>'.");
  }
  if (isAccessToken(key)) {
    throw new Fault(
      "forbidden_scope",
      "An access token (wp_adm_…) works for the administration API only; send an API key: 'Authorization: Bearer wp_live_…'.",
    );
  }
  if (!keyPattern.test(key)) {
    throw new Fault(
      "invalid_key",
      "The API key is malformed: it must be wp_live_ or wp_test_, followed by 32 lower-case hex digits.",
    );
  }
  return key;
}

const knownKeysMax = 50_000;
/** Unknown keys have a separate cache, so that random keys never evict known ones. */
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
   * Whether a majority confirmed the result after `load` was called. Otherwise the result is only as current as the news,
   * and expires with it.
   */
  readonly isConfirmed: boolean;
}

interface Entry {
  readonly principal: Principal | undefined;
  /** Set when a change may concern the key: the entry then only tells whose key it was. */
  isStale: boolean;
  /** In milliseconds of `performance.now()`. */
  readonly readAtMs: number;
  /** When it was certainly current, in milliseconds of `performance.now()`; -Infinity if only the news can tell. */
  readonly confirmedAtMs: number;
}

/**
 * Caches keys by their hashes, so that a memory dump reveals no key. Looks unknown keys up in batches. Drops an entry when
 * news of a change arrives, and all of them when news was missed.
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
      ownerOf: (hash) => this.#known.peek(hash)?.principal?.caller.organizationId ?? "",
      concurrencyMax: 2,
      batchWeightMax: 500,
      queueWeightMax: 10_000,
      ...options.hooks,
      run: (hashes) => this.#load(hashes),
    });
  }

  /**
   * The caller behind an Authorization header; at once for a known key.
   * @throws Fault missing_authorization, invalid_key; unavailable when the database does not answer.
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
    if (entry === undefined || entry.isStale) return undefined;
    const nowMs = performance.now();
    if (nowMs - Math.max(entry.confirmedAtMs, this.#options.freshAtMs()) >= trustMs) return undefined;
    if (nowMs - entry.readAtMs >= cachedMsMax) return undefined;
    this.counts.hits++;
    return existing(entry.principal);
  }

  /** Drops the entries that a changed key, app or organisation affects, and all unknown keys, which may now exist. */
  forget(id: string): void {
    this.#changes++;
    this.#unknown.clear();
    for (const entry of this.#known.values()) {
      const { keyId, appId, organizationId } = entry.principal?.caller ?? {};
      if (id === keyId || id === appId || id === organizationId) entry.isStale = true;
    }
  }

  /** Drops all entries: any key, app or organisation may have changed. */
  forgetAll(): void {
    this.#changes++;
    this.#unknown.clear();
    for (const entry of this.#known.values()) entry.isStale = true;
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
        is.set(hash, { principal, isStale: false, readAtMs: askedAtMs, confirmedAtMs });
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
  const appAllows = whitelist(app.allow);
  // A key without a list of its own costs an event nothing more.
  const allows = isGiven(key.eventTypes) ? both(appAllows, whitelist(key.eventTypes)) : appAllows;
  const caller = { organizationId: organization._id, appId: app._id, keyId: key._id, keyHint: key.hint };
  return {
    organizationId: key.test ? testOrganizationOf(organization._id) : organization._id,
    caller: key.test ? { ...caller, test: true } : caller,
    expiresAtMs: key.expiresAt?.getTime() ?? Number.POSITIVE_INFINITY,
    revoked: key.revokedAt !== null || app.deletedAt !== undefined,
    scopes: scopesOf(key),
    app: { id: app._id, slug: app.slug, name: app.name },
    allows,
    appAllows,
    admits: filterOf(key.cidrs),
    api: organization.api,
    quotaEvents: organization.quotaEventsPerMonth,
    keyBucket: { id: key._id, limit: organization.keyRequestsPerSecond },
    organizationBucket: { id: organization._id, limit: organization.organizationRequestsPerSecond },
  };
}

type Test = (text: string) => boolean;

const isGiven = (list: readonly string[] | undefined): list is readonly string[] => (list?.length ?? 0) > 0;

const both =
  (one: Test, other: Test): Test =>
  (text) =>
    one(text) && other(text);

function filterOf(cidrs: readonly string[] | undefined): Test | undefined {
  if (!isGiven(cidrs)) return undefined;
  try {
    return createAddressFilter(cidrs);
  } catch {
    // Only a hand that wrote to the database can cause this. Other keys of the same read must still work.
    return () => false;
  }
}
