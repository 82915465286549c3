import { createLocalJWKSet, errors, type FlattenedJWSInput, type JWSHeaderParameters, type LocalJWKSet } from "jose";
import { z } from "zod";
import { isSecureUrl } from "../addresses.ts";
import { unavailable } from "../errors.ts";

export interface IssuerKeysOptions {
  /** Exactly as the tokens name it. */
  readonly issuer: string;
  /** Called when a fetch fails. */
  readonly onError: (error: unknown) => void;
  /** In milliseconds from any start. Default: the process's clock. */
  readonly monotonic?: () => number;
  /** Default: `issuerTimes.fetchWithinMs`. */
  readonly fetchWithinMs?: number;
}

/** Times in milliseconds. */
export const issuerTimes = {
  /** For both requests together, with their bodies. */
  fetchWithinMs: 5_000,
  /** Then the keys are fetched again, so that a key that the issuer withdrew ends. */
  freshMs: 600_000,
  /** Keys serve for this long while the issuer does not answer. */
  usableMs: 3_600_000,
  /** Between two fetches because of an unknown key id: anyone can make one up. */
  unknownKeyMs: 30_000,
  /** Between a failed fetch and the next. */
  retryMs: 10_000,
} as const;

const bodyBytesMax = 262_144;

const metadataSchema = z.object({ issuer: z.string(), jwks_uri: z.string() });

/**
 * The public keys of an OIDC issuer, found by its metadata. jose's own remote key set has no limit on the size of an
 * answer, and neither finds the address of the keys nor pauses after a failed fetch.
 */
export class IssuerKeys {
  readonly #options: IssuerKeysOptions;
  readonly #monotonic: () => number;
  #keys: { readonly find: LocalJWKSet; readonly atMs: number } | undefined;
  #failure: { readonly cause: unknown; readonly untilMs: number } | undefined;
  #fetching: Promise<LocalJWKSet> | undefined;

  constructor(options: IssuerKeysOptions) {
    this.#options = options;
    this.#monotonic = options.monotonic ?? (() => performance.now());
  }

  /**
   * The key that signed a token, for `jwtVerify`.
   * @throws JWKSNoMatchingKey if the issuer has no such key; Fault unavailable if the issuer does not answer.
   */
  async find(header: JWSHeaderParameters, token: FlattenedJWSInput) {
    const find = await this.#current();
    try {
      return await find(header, token);
    } catch (error) {
      const isNew = error instanceof errors.JWKSNoMatchingKey && this.#ageMs() >= issuerTimes.unknownKeyMs;
      if (!isNew) throw error;
    }
    return (await this.#fetch())(header, token);
  }

  async #current(): Promise<LocalJWKSet> {
    const keys = this.#keys;
    if (keys !== undefined && this.#ageMs() < issuerTimes.freshMs) return keys.find;
    try {
      return await this.#fetch();
    } catch (error) {
      if (keys === undefined || this.#ageMs() >= issuerTimes.usableMs) throw error;
      return keys.find;
    }
  }

  #ageMs(): number {
    return this.#monotonic() - (this.#keys?.atMs ?? Number.NEGATIVE_INFINITY);
  }

  /** Fetches the keys, once for all who ask meanwhile. @throws Fault unavailable. */
  async #fetch(): Promise<LocalJWKSet> {
    const waitMs = (this.#failure?.untilMs ?? 0) - this.#monotonic();
    if (this.#failure !== undefined && waitMs > 0) throw unavailable(this.#failure.cause, Math.ceil(waitMs / 1000));
    this.#fetching ??= this.#fetchNow().finally(() => (this.#fetching = undefined));
    return this.#fetching;
  }

  async #fetchNow(): Promise<LocalJWKSet> {
    try {
      const { issuer, fetchWithinMs = issuerTimes.fetchWithinMs } = this.#options;
      const find = await fetchKeys(issuer, AbortSignal.timeout(fetchWithinMs));
      this.#keys = { find, atMs: this.#monotonic() };
      this.#failure = undefined;
      return find;
    } catch (error) {
      const cause = new Error(`The OIDC issuer '${this.#options.issuer}' gives no keys: ${reasonOf(error)}`);
      this.#failure = { cause, untilMs: this.#monotonic() + issuerTimes.retryMs };
      this.#options.onError(cause);
      throw unavailable(cause, issuerTimes.retryMs / 1000);
    }
  }
}

/** @throws Error with the reason. */
async function fetchKeys(issuer: string, signal: AbortSignal): Promise<LocalJWKSet> {
  const metadataUrl = `${issuer.replace(/\/$/, "")}/.well-known/openid-configuration`;
  const metadata = metadataSchema.parse(await fetchJson(metadataUrl, signal));
  // Otherwise another issuer's metadata could name its own keys.
  if (metadata.issuer !== issuer) throw new Error(`${metadataUrl} is of the issuer '${metadata.issuer}'`);
  const { jwks_uri: keysUrl } = metadata;
  if (!URL.canParse(keysUrl) || !isSecureUrl(new URL(keysUrl))) throw new Error(`jwks_uri is '${keysUrl}', not https`);
  return createLocalJWKSet((await fetchJson(keysUrl, signal)) as never);
}

async function fetchJson(url: string, signal: AbortSignal): Promise<unknown> {
  const response = await fetch(url, { signal, redirect: "error", headers: { accept: "application/json" } });
  if (response.status !== 200) {
    await response.body?.cancel();
    throw new Error(`${url} answers ${response.status}`);
  }
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > bodyBytesMax) throw new Error(`${url} answers more than ${bodyBytesMax} bytes`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8"));
  } catch {
    throw new Error(`${url} does not answer JSON`);
  }
}

/** `fetch` says why it failed only in the cause. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  return cause instanceof Error ? `${message}: ${cause.message}` : message;
}
