import { LRUCache } from "lru-cache";
import { Fault } from "../errors.ts";
import { Failure, type RateLimitState } from "../exchange.ts";
import type { AccessTokenDocument } from "../store/access-tokens.ts";
import { bounded, faultOfDatabase } from "../store/database.ts";
import { type BatchHooks, GroupCommit } from "../store/group-commit.ts";
import { isAccessToken, problemOfAccessToken } from "./access-token.ts";
import type { Identity } from "./identity.ts";
import type { Oidc } from "./oidc.ts";
import { bearerOf, hashOfKey } from "./principal.ts";
import type { BucketSpec, RateLimiter } from "./rate-limit.ts";

export interface CredentialsOptions {
  /** Reads the tokens with these hashes from the database, never from a cache. */
  readonly load: (hashes: readonly string[]) => Promise<ReadonlyMap<string, AccessTokenDocument>>;
  /** Undefined if the service takes no OIDC tokens. */
  readonly oidc: Oidc | undefined;
  readonly limiter: Pick<RateLimiter, "take" | "peek">;
  /** In milliseconds since 1970. */
  readonly now: () => number;
  /** Called with the id of each token that is used, also if it is revoked or expired. */
  readonly used: (tokenId: string) => void;
  readonly hooks?: BatchHooks;
}

/** Calls a second of one access token or OIDC subject. */
export const tokenRequestsPerSecond = 100;

/** Only for fair turns, so forgetting one costs nothing. */
const knownTokensMax = 10_000;

/**
 * Tells who calls the administration API. It reads an access token from the database on every call, so every instance
 * obeys a revocation at once, and within 5 s if the replica set fails just then. Calls that arrive together share a read, and at most two reads run. Known tokens take turns
 * with strangers, so made-up tokens neither overload the database nor lock others out.
 */
export class Credentials {
  readonly #options: CredentialsOptions;
  readonly #loads: GroupCommit<string, AccessTokenDocument | undefined>;
  /** The ids of existing tokens by their hashes. */
  readonly #known = new LRUCache<string, string>({ max: knownTokensMax });

  constructor(options: CredentialsOptions) {
    this.#options = options;
    this.#loads = new GroupCommit({
      name: "access token reads",
      // Strangers share one turn, however many tokens they make up.
      ownerOf: (hash) => this.#known.get(hash) ?? "",
      concurrencyMax: 2,
      batchWeightMax: 500,
      queueWeightMax: 5_000,
      ...options.hooks,
      run: (hashes) => this.#load(hashes),
    });
  }

  /**
   * The caller behind an Authorization header.
   * @throws Fault missing_authorization; invalid_key for a malformed or unknown credential; key_revoked, key_expired;
   * forbidden_scope for an API key, or an OIDC token without a role; unavailable when the database or the OIDC issuer
   * does not answer.
   */
  async find(authorization: string | undefined): Promise<Identity> {
    if (authorization === undefined || authorization === "") {
      throw new Fault("missing_authorization", "No Authorization header; send 'Authorization: Bearer wp_adm_…'.");
    }
    const credential = bearerOf(authorization);
    if (credential === undefined) {
      const form = "Bearer wp_adm_<32 hex digits><8 hex digits>";
      throw new Fault("invalid_key", `The Authorization header is not of the form '${form}'.`);
    }
    if (isAccessToken(credential)) return this.#findToken(credential);
    if (apiKeyPattern.test(credential)) {
      throw new Fault(
        "forbidden_scope",
        "An API key (wp_live_…) only sends and reads events; the administration API takes an access token: 'Authorization: Bearer wp_adm_…'.",
      );
    }
    const { oidc } = this.#options;
    if (oidc !== undefined && jwtPattern.test(credential)) return oidc.find(credential);
    const remark = jwtPattern.test(credential)
      ? " This service takes no OIDC tokens, because OIDC_ISSUER is not set."
      : "";
    throw new Fault(
      "invalid_key",
      `The credential is not an access token: it must be wp_adm_ followed by 40 lower-case hex digits.${remark}`,
    );
  }

  /**
   * Checks that a call that has run for a while may go on; a stream should ask once a second. An access token is read
   * again, many of them in one read. An OIDC token cannot be revoked, so only its expiry counts.
   * @throws Fault as `find`.
   */
  async recheck(authorization: string | undefined, identity: Identity): Promise<void> {
    if (identity.kind === "token") await this.find(authorization);
    else this.#options.oidc?.checkExpiry(identity);
  }

  /**
   * Takes one call from the caller's rate. The command line on the database has none.
   * @returns the state for the answer's headers.
   * @throws Failure rate_limited, with the same state.
   */
  take({ kind, id }: Identity): RateLimitState | undefined {
    if (kind === "cli") return undefined;
    const verdict = this.#options.limiter.take(bucketOf(kind === "token" ? id : `oidc ${id}`));
    const state = { ...verdict.state, of: "token" as const };
    if (verdict.allowed) return state;
    const { retryAfterSeconds } = verdict;
    const message = `The access token is limited to ${tokenRequestsPerSecond} requests a second; retry after ${retryAfterSeconds} s.`;
    throw new Failure(new Fault("rate_limited", message, { retryAfterSeconds }), { rateLimit: state });
  }

  async #findToken(token: string): Promise<Identity> {
    const problem = problemOfAccessToken(token);
    if (problem !== undefined) throw new Fault("invalid_key", `The access token is malformed: ${problem}.`);
    const found = await this.#loads.submit(hashOfKey(token));
    if (found === undefined) throw new Fault("invalid_key", "The access token does not exist.");
    this.#options.used(found._id);
    const refusal = this.#refusalOf(found);
    if (refusal === undefined) return identityOf(found);
    const rateLimit = { ...this.#options.limiter.peek(bucketOf(found._id)), of: "token" as const };
    throw new Failure(refusal, { rateLimit });
  }

  #refusalOf({ hint, revokedAt, expiresAt }: AccessTokenDocument): Fault | undefined {
    if (revokedAt !== null) return new Fault("key_revoked", `The access token ${hint} was revoked.`);
    if (expiresAt === null || expiresAt.getTime() > this.#options.now()) return undefined;
    return new Fault("key_expired", `The access token ${hint} expired at ${expiresAt.toISOString()}.`);
  }

  async #load(hashes: readonly string[]) {
    let found: ReadonlyMap<string, AccessTokenDocument>;
    try {
      found = await bounded(this.#options.load([...new Set(hashes)]));
    } catch (error) {
      throw faultOfDatabase(error);
    }
    return hashes.map((hash) => {
      const token = found.get(hash);
      if (token !== undefined) this.#known.set(hash, token._id);
      return { value: token };
    });
  }
}

const bucketOf = (id: string): BucketSpec => ({ id, limit: tokenRequestsPerSecond });

const apiKeyPattern = /^wp_(live|test)_/;
const jwtPattern = /^[\w-]+\.[\w-]+\.[\w-]*$/;

function identityOf({ _id, name, role, organizationId, expiresAt }: AccessTokenDocument): Identity {
  // Without it, the token would reach every organisation.
  if (role === "manager" && organizationId === undefined) throw new Error(`the manager '${_id}' has no organisation`);
  const expiresAtMs = expiresAt?.getTime() ?? Number.POSITIVE_INFINITY;
  return { kind: "token", id: _id, name, role, organizationId, expiresAtMs };
}
