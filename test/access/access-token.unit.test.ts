import { expect, test } from "vitest";
import { newAccessToken, problemOfAccessToken } from "../../src/access/access-token.ts";
import { hintOfKey } from "../../src/access/principal.ts";

/** CRC-32 bit by bit, as its standard defines it: what a scanner would compute. */
function crc32(text: string): string {
  let crc = 0xffffffff;
  for (const byte of Buffer.from(text, "ascii")) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}

test("a new access token ends with the CRC-32 of its digits, so that a scanner can verify it offline", () => {
  expect(crc32("123456789")).toBe("cbf43926");
  const tokens = Array.from({ length: 1_000 }, () => newAccessToken());
  for (const token of tokens) {
    const [, digits = "", checksum] = /^wp_adm_([0-9a-f]{32})([0-9a-f]{8})$/.exec(token) ?? [];
    expect(checksum, token).toBe(crc32(digits));
    expect(problemOfAccessToken(token)).toBeUndefined();
  }
  expect(new Set(tokens).size).toBe(tokens.length);
  expect(newAccessToken(() => Buffer.from("00112233445566778899aabbccddeeff", "hex"))).toBe(
    "wp_adm_00112233445566778899aabbccddeeff90482470",
  );
});

test("the hint of an access token is its prefix and four digits", () => {
  expect(hintOfKey(`wp_adm_${"ab12".repeat(10)}`)).toBe("wp_adm_ab12…");
});

const good = newAccessToken();
const digits = good.slice("wp_adm_".length);
const otherDigit = (digit: string) => (digit === "0" ? "1" : "0");

test.each([
  ["a key", `wp_live_${digits.slice(0, 32)}`, "it must begin with wp_adm_"],
  ["no digits", "wp_adm_", "it has 0 characters after wp_adm_, and must have 40"],
  ["a token without its checksum", good.slice(0, -8), "it has 32 characters after wp_adm_, and must have 40"],
  ["a token and a line end", `${good}\n`, "it has 41 characters after wp_adm_, and must have 40"],
  ["upper case", `wp_adm_${"A".repeat(40)}`, "after wp_adm_ it must have only lower-case hex digits"],
  [
    "one changed digit",
    `wp_adm_${otherDigit(good.charAt(7))}${good.slice(8)}`,
    "its last 8 digits are not the checksum of the others; copy the whole token again",
  ],
])("%s is malformed, and the problem does not quote it", (_, token, problem) => {
  expect(problemOfAccessToken(token)).toBe(problem);
  expect(problem).not.toMatch(/[0-9a-f]{8}/);
});

test("no two digits of a token can change places unnoticed", () => {
  for (let i = 7; i < good.length - 1; i++) {
    const [one, two] = [good.charAt(i), good.charAt(i + 1)];
    const swapped = good.slice(0, i) + two + one + good.slice(i + 2);
    if (swapped !== good) expect(problemOfAccessToken(swapped), swapped).toBeDefined();
  }
});
