/**
 * The only parser of times: for bodies, queries, commands and files. It takes ISO 8601 with an offset, and yields UTC
 * to the millisecond.
 */

const form =
  /^(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,3})\d*)?)?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))$/;

/** The accepted form in words, for JSON Schema and the documentation. */
export const timeDescription =
  "RFC 3339 with an offset (`Z` or `±hh:mm`). Seconds are optional, and digits beyond milliseconds are dropped.";

const mustBeTime = "must be an ISO 8601 time with an offset, such as 2026-04-19T12:05:00Z";
const mustExist = "must be a time that exists";
const mustBeInYears = "must be in the years 1 to 9999, UTC";

/** `Date.UTC` reads years below 100 as 19xx. The calendar repeats every 400 years, so add one cycle. */
const cycleYears = 400;
const cycleMs = 146_097 * 86_400_000;
const firstMs = Date.parse("0001-01-01T00:00:00.000Z");
/** The last time that the API takes, in milliseconds since 1970. */
export const lastMs = Date.parse("9999-12-31T23:59:59.999Z");

/**
 * Parses a time, or returns a sentence that says what the text must be. A leap second becomes the last millisecond of
 * its minute, because JavaScript and MongoDB have no leap seconds. Takes time linear in the text's length.
 */
export function parseTime(text: string): Date | string {
  const parts = form.exec(text);
  if (parts === null) return mustBeTime;
  const [, year, month, day, hour, minute, second = "0", fraction = "", sign, offsetHours, offsetMinutes] = parts;
  const isLeapSecond = second === "60";
  if (+(hour as string) > 23 || +(minute as string) > 59 || (+second > 59 && !isLeapSecond)) return mustExist;
  const date = new Date(
    Date.UTC(
      +(year as string) + cycleYears,
      +(month as string) - 1,
      +(day as string),
      +(hour as string),
      +(minute as string),
    ),
  );
  // `Date.UTC` turns February 30 into March 2.
  if (date.getUTCDate() !== +(day as string) || date.getUTCMonth() !== +(month as string) - 1) return mustExist;
  const inMinuteMs = isLeapSecond ? 59_999 : +second * 1000 + +fraction.padEnd(3, "0");
  const offsetMs =
    sign === undefined ? 0 : +`${sign}1` * (+(offsetHours as string) * 60 + +(offsetMinutes as string)) * 60_000;
  const ms = date.getTime() - cycleMs + inMinuteMs - offsetMs;
  return ms < firstMs || ms > lastMs ? mustBeInYears : new Date(ms);
}

/** Parses a time, or a date, which means its first moment in UTC. Returns a sentence as `parseTime` does. */
export function parseTimeOrDate(text: string): Date | string {
  const time = parseTime(/^\d{4}-\d\d-\d\d$/.test(text) ? `${text}T00:00Z` : text);
  return time instanceof Date ? time : `${time}, or a date such as 2026-04-19`;
}

/** A time as the API writes it: UTC, without a zero fraction. */
export const isoTime = (date: Date): string => date.toISOString().replace(".000Z", "Z");

const dayMs = 86_400_000;
let latestDay = { number: Number.NaN, text: "" };

/** `YYYY-MM-DD` in UTC. It remembers the latest day, because every request asks for the same one. */
export function dayOf(date: Date): string {
  const number = Math.floor(date.getTime() / dayMs);
  if (number !== latestDay.number) latestDay = { number, text: date.toISOString().slice(0, 10) };
  return latestDay.text;
}

/** `YYYY-MM` in UTC. */
export const monthOf = (date: Date): string => dayOf(date).slice(0, 7);
