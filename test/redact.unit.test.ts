import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { redactCallerText, redactSecrets } from "../src/redact.ts";
import { traceIdOf } from "../src/tracing.ts";

describe("secrets are removed from texts", () => {
  test.each([
    ["mongodb://user:pass@host/db", "mongodb://…@host/db"],
    ["mongodb://user:p@ss@host,other/db and http://a:b@c", "mongodb://…@host,other/db and http://…@c"],
    ['connect to "mongodb+srv://u:p@h"', 'connect to "mongodb+srv://…@h"'],
    ["http://host/path mail@example.org", "http://host/path mail@example.org"],
    ["a://b://c@d", "a://…@d"],
    [`key wp_live_${"ab12".repeat(8)}`, "key wp_live_ab12…"],
    [`key wp_test_${"ab12".repeat(8)}`, "key wp_test_ab12…"],
    [`token wp_adm_${"ab12".repeat(10)}`, "token wp_adm_ab12…"],
    [`wp_adm_${"ab12".repeat(3)}`, "wp_adm_ab12…"],
    ["Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln-_A, x", "Bearer eyJ…, x"],
    ["token=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", "token=eyJ…"],
    ["eyJ.x and a.eyJ", "eyJ.x and a.eyJ"],
    [`WP%5FLIVE%5F${"AB12".repeat(8)}`, "WP%5FLIVE%5FAB12…"],
  ])("%s", (text, shown) => {
    expect(redactSecrets(text)).toBe(shown);
  });

  test("no password stays between :// and the last @ of its word", () => {
    const part = fc.stringMatching(/^[a-z:@/?#.]{0,20}$/);
    fc.assert(
      fc.property(part, part, (before, after) => {
        expect(redactSecrets(`x://${before}SECRET${after}@host`)).not.toContain("SECRET");
      }),
    );
  });

  test("a caller's text is cut before it is searched", () => {
    expect(redactCallerText("abc", 3)).toBe("abc");
    expect(redactCallerText(`${"x".repeat(10)}wp_live_${"0".repeat(32)}`, 10)).toBe(`${"x".repeat(10)}…`);
  });
});

/**
 * CPU milliseconds, the minimum of three runs. For 16 times the text, a quadratic pattern takes 256 times as long, a
 * linear one 16 times. The limit of 80 is far from both.
 */
function cpuMs(work: () => unknown): number {
  const runs = [0, 1, 2].map(() => {
    const start = process.cpuUsage();
    work();
    const { user, system } = process.cpuUsage(start);
    return (user + system) / 1000;
  });
  return Math.min(...runs);
}

describe("the time is linear in the length of the text", () => {
  const texts: readonly (readonly [name: string, make: (length: number) => string])[] = [
    ["a scheme without an @", (n) => `/${"a".repeat(n)}://`],
    ["many schemes in a word", (n) => "a://".repeat(n / 4)],
    ["many schemes and one @", (n) => `${"a://".repeat(n / 4)}@`],
    ["many @", (n) => `a://${"@".repeat(n)}`],
    ["many beginnings of a key", (n) => "wp_live_".repeat(n / 8)],
    ["many beginnings of a JWT", (n) => "eyJ".repeat(n / 3)],
    ["many parts of a JWT", (n) => "eyJa.".repeat(n / 5)],
    ["digits", (n) => "0123456789abcdef".repeat(n / 16)],
    ["quotes", (n) => `, "${'", "'.repeat(n / 4)}`],
    ["spaces", (n) => " ".repeat(n)],
  ];
  const readers: readonly (readonly [name: string, read: (text: string) => unknown])[] = [
    ["redactSecrets", redactSecrets],
    ["redactCallerText", (text) => redactCallerText(text, text.length)],
    ["traceIdOf", traceIdOf],
  ];
  test.each(readers.flatMap(([reader, read]) => texts.map(([text, make]) => [reader, text, read, make] as const)))(
    "%s of %s",
    (_reader, _text, read, make) => {
      const [short, long] = [make(16_000), make(256_000)];
      const many = 50;
      const ofShort = cpuMs(() => Array.from({ length: many }, () => read(short)));
      const ofLong = cpuMs(() => Array.from({ length: many }, () => read(long)));
      expect(ofLong).toBeLessThan(80 * Math.max(ofShort, 1));
    },
  );
});
