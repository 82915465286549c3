import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { text } from "./text.ts";

const numbers = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clocks = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const moments = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export const count = (value: number): string => numbers.format(value);
export const short = (value: number): string => compact.format(value);

/** To three digits, such as 0.00167 or 12.3. */
export const rounded = (value: number): string => significant.format(value);
/** The time of day, such as "14:05". */
export const clock = (date: Date): string => clocks.format(date);

const units = [
  ["year", 365 * 86_400],
  ["month", 30 * 86_400],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
] as const;

/** Such as "3 hours ago" or "in 2 days". */
export function ago(date: Date, now = Date.now()): string {
  const seconds = (date.getTime() - now) / 1000;
  const [unit, size] = units.find(([, length]) => Math.abs(seconds) >= length) ?? ["second", 1];
  return relative.format(Math.round(seconds / size), unit);
}

export const moment = (date: Date): string => moments.format(date);
export const dateOf = (time: Timestamp | undefined): Date | undefined =>
  time === undefined ? undefined : timestampDate(time);

/** For a table's cell: relative, with the exact time beside the pointer. */
export const agoOf = (time: Timestamp | undefined): string => {
  const date = dateOf(time);
  return date === undefined ? text.actions.never : ago(date);
};

const escaped = (characters: string): string =>
  Array.from({ length: characters.length }, (_, i) => characters.charCodeAt(i))
    .map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`)
    .join("");

/**
 * A caller's text on one line of the page: control and direction characters would hide or reorder what stands around.
 * They become visible escapes.
 */
export const safeText = (value: string): string => value.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, escaped);

/** The same for a value as JSON, on several lines if it is indented; it stays JSON. */
export const jsonText = (value: unknown, indent = 2): string =>
  JSON.stringify(value, undefined, indent).replaceAll(/[^\P{Cc}\n]|[\p{Cf}\u2028\u2029]/gu, escaped);
