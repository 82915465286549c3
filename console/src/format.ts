import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampDate } from "@bufbuild/protobuf/wkt";

const numbers = new Intl.NumberFormat("en");
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clocks = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const moments = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });
const minutes = new Intl.DateTimeFormat("en-GB", {
  ...{ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
});
// Its other way says "yesterday" for 24 hours, whatever the day was.
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });

export const count = (value: number): string => numbers.format(value);
/** A share of all, such as "12.3 %". */
export const percent = (share: number): string => `${tenths.format(100 * share)} %`;
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

/** Such as "3 hours ago" or "in 2 days": the whole units that have passed or are left. */
export function ago(date: Date, now = Date.now()): string {
  const seconds = (date.getTime() - now) / 1000;
  const [unit, size] = units.find(([, length]) => Math.abs(seconds) >= length) ?? ["second", 1];
  return relative.format(Math.trunc(seconds / size), unit);
}

/** Such as "30 Nov 2026, 14:05:09 UTC". */
export const moment = (date: Date): string => moments.format(date);
/** Such as "30 Nov, 14:05". */
export const minute = (date: Date): string => minutes.format(date);
export const dateOf = (time: Timestamp | undefined): Date | undefined =>
  time === undefined ? undefined : timestampDate(time);

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
