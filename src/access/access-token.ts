import { randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";

/** Scanners for leaked secrets recognise an access token by this beginning. */
export const accessTokenPrefix = "wp_adm_";

const randomDigits = 32;
const checksumDigits = 8;
const digitsTotal = randomDigits + checksumDigits;

/** An access token of the administration API: the prefix, 32 random hex digits, and their CRC-32. */
export function newAccessToken(random: (bytes: number) => Buffer = randomBytes): string {
  const digits = random(randomDigits / 2).toString("hex");
  return `${accessTokenPrefix}${digits}${checksumOf(digits)}`;
}

/** Whether the text is meant as an access token, well-formed or not. */
export const isAccessToken = (text: string): boolean => text.startsWith(accessTokenPrefix);

/**
 * Says why an access token is malformed, without quoting it; undefined if it is well-formed. Mistyped and made-up tokens
 * fail here, before they reach the database.
 */
export function problemOfAccessToken(token: string): string | undefined {
  if (!isAccessToken(token)) return `it must begin with ${accessTokenPrefix}`;
  const digits = token.slice(accessTokenPrefix.length);
  if (digits.length !== digitsTotal) {
    return `it has ${digits.length} characters after ${accessTokenPrefix}, and must have ${digitsTotal}`;
  }
  if (!/^[0-9a-f]*$/.test(digits)) return `after ${accessTokenPrefix} it must have only lower-case hex digits`;
  if (digits.slice(randomDigits) !== checksumOf(digits.slice(0, randomDigits))) {
    return `its last ${checksumDigits} digits are not the checksum of the others; copy the whole token again`;
  }
  return undefined;
}

/** The CRC-32 of the digits' ASCII codes, big-endian. */
const checksumOf = (digits: string): string => crc32(digits).toString(16).padStart(checksumDigits, "0");
