import { createHmac, timingSafeEqual } from "node:crypto";
import { timelineLimits } from "../limits.ts";

const macBytes = 16;

/**
 * Tokens that callers carry for us: a place in a listing, sealed so that it comes back as it was given out and only to the
 * listing that it belongs to. All instances share the secret, so any of them opens what another has sealed.
 */
export class Tokens {
  readonly #secret: Buffer;

  constructor(secret: Buffer) {
    this.#secret = secret;
  }

  /** `scope` says what the token is good for: organisation, call, filters. It is not in the token. */
  seal(scope: unknown, place: unknown): string {
    const text = Buffer.from(JSON.stringify(place));
    return Buffer.concat([this.#mac(scope, text), text]).toString("base64url");
  }

  /** What was sealed, or undefined when the token was changed or was sealed for another scope. */
  open(scope: unknown, token: string): unknown {
    if (token.length > timelineLimits.tokenCharactersMax) return undefined;
    const bytes = Buffer.from(token, "base64url");
    // The decoder takes what it can; only the one spelling that we made is a token of ours.
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
