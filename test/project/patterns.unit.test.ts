import { globSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { analyse } from "scslre";
import { expect, test } from "vitest";
import { parseAst } from "vitest/node";

const source = resolve(import.meta.dirname, "../../src");

interface Found {
  readonly place: string;
  readonly pattern: string;
  readonly flags: string;
}

/** Every regular expression in a tree, and every call that makes one. */
function* patternsIn(node: unknown, place: string): Generator<Found | string> {
  if (typeof node !== "object" || node === null) return;
  const { regex, callee } = node as { regex?: Omit<Found, "place">; callee?: { name?: string } };
  if (regex) yield { place, ...regex };
  if (callee?.name === "RegExp") yield place;
  for (const part of Object.values(node)) yield* patternsIn(part, place);
}

const found = globSync("**/*.ts", { cwd: source, exclude: ["gen/**"] }).flatMap((path) => [
  ...patternsIn(parseAst(readFileSync(join(source, path), "utf8"), { lang: "ts" }), path),
]);

/** It looks only at the code samples of the documentation. */
const ofOwnTexts = "transport/pages/code.ts";
const patterns = found.filter((one) => typeof one !== "string").filter(({ place }) => place !== ofOwnTexts);

/** The reason why its time may grow faster than the text; undefined if none is found. */
function whySlow({ pattern, flags }: Pick<Found, "pattern" | "flags">): string | undefined {
  const [report] = analyse({ source: pattern, flags }).reports;
  // Not run: such a pattern could take for ever.
  if (report !== undefined) return `${report.type} of ${report.character.toString()}`;
  return repeatsOf(pattern)
    .find((text) => isSlow(new RegExp(pattern, flags), text))
    ?.slice(0, 9);
}

/** Long repeats of up to three characters that follow each other in the pattern. The analysis does not find all of them. */
function repeatsOf(pattern: string): string[] {
  const plain = pattern
    .replaceAll(/\\[dw]/g, "0")
    .replaceAll(/\\s/g, " ")
    .replaceAll("\\n", "\n")
    .replaceAll(/\\?([^\w\s])(?:\{[\d,]+\})?[?*+]*/g, "$1")
    .replaceAll(/[()]/g, "");
  const words = [1, 2, 3].flatMap((length) => Array.from(plain, (_, i) => plain.slice(i, i + length)));
  return [...new Set(words)].map((word) => `${word.repeat(24_000 / word.length)}\0`);
}

/** Quadratic time is 45 ms and more for such a text, linear time 1 ms at most. Only this thread's time on a processor counts. */
function isSlow(pattern: RegExp, text: string): boolean {
  return [0, 1].every(() => {
    const begin = process.threadCpuUsage();
    text.replaceAll(new RegExp(pattern, `${pattern.flags.replace("g", "")}g`), "");
    const { user, system } = process.threadCpuUsage(begin);
    return user + system > 20_000;
  });
}

test("the search finds slow patterns, and lets fast ones pass", () => {
  const slow = [/([a-z][a-z0-9+.-]*:\/\/)[^\s"'<>]*@/gi, /(a+)+$/, /\/+$/, /"(?:\\.|[^"\\])*"/, /x".*"y/s];
  const fast = [/^\s*$/, /[a-z]+@/y, /(?<!\/)\/+$/, /"(?:\\.|[^"\\])*"?/];
  const parts = ({ source: pattern, flags }: RegExp) => ({ pattern, flags });
  expect(slow.filter((one) => whySlow(parts(one)) === undefined)).toEqual([]);
  expect(fast.map(parts).map(whySlow)).toEqual(fast.map(() => undefined));
});

test("every regular expression of src takes time linear in the length of the text", () => {
  expect(patterns.length).toBeGreaterThan(100);
  expect(patterns.map((one) => [one, whySlow(one)]).filter(([, why]) => why !== undefined)).toEqual([]);
});

test("only the highlighter puts a regular expression together", () => {
  expect([...new Set(found.filter((one) => typeof one === "string"))]).toEqual([ofOwnTexts]);
});
