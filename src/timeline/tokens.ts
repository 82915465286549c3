import { createHmac, timingSafeEqual } from "node:crypto";
import { timelineLimits } from "../limits.ts";

const macBytes = 16;

/**
 * Seals a place in a listing with a MAC. Callers can neither change the token nor use it for another listing.
 * All instances share the secret, so each one opens the tokens of the others.
 */
export class Tokens {
  readonly #secret: Buffer;

  constructor(secret: Buffer) {
    this.#secret = secret;
  }

  /** @param scope organisation, call and filters that the token is valid for; the token does not contain it. */
  seal(scope: unknown, place: unknown): string {
    const text = Buffer.from(JSON.stringify(place));
    return Buffer.concat([this.#mac(scope, text), text]).toString("base64url");
  }

  /** Returns the sealed place, or undefined if the token was changed or belongs to another scope. */
  open(scope: unknown, token: string): unknown {
    if (token.length > timelineLimits.tokenCharactersMax) return undefined;
    const bytes = Buffer.from(token, "base64url");
    // Node's decoder is lenient, so accept only the canonical encoding.
    if (bytes.length <= macBytes || bytes.toString("base64url") !== token) return undefined;
    const text = bytes.subarray(macBytes);
    if (!timingSafeEqual(bytes.subarray(0, macBytes), this.#mac(scope, text))) return undefined;
    return JSON.parse(text.toString());
  }

  #mac(scope: unknown, text: Buffer): Buffer {
    const mac = createHmac("sha256", this.#secret).update(JSON.stringify(scope)).update("\0").update(text);
    return mac.digest().subarray(0, macBytes);
  }
}
