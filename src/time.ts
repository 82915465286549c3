/**
 * The one parser of times: for the bodies of every protocol, for queries, for commands and for files. The date and time of
 * ISO 8601, with an offset; stored as UTC, to the millisecond.
 */

const form =
  /^(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,3})\d*)?)?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))$/;

/** The same as JSON Schema says it, for documentation: RFC 3339, with what else is taken. */
export const timeDescription =
  "RFC 3339 with an offset (`Z` or `±hh:mm`); seconds may be left out, and what is finer than a millisecond is cut off.";

const mustBeTime = "must be an ISO 8601 time with an offset, such as 2026-04-19T12:05:00Z";
const mustExist = "must be a time that exists";
const mustBeInYears = "must be in the years 1 to 9999, UTC";

/** The calendar repeats itself after 400 years; in them `Date.UTC` takes no year for one of the 20th century. */
const cycleYears = 400;
const cycleMs = 146_097 * 86_400_000;
const firstMs = Date.parse("0001-01-01T00:00:00.000Z");
const lastMs = Date.parse("9999-12-31T23:59:59.999Z");

/**
 * The time that the text says, or a sentence that says what it must be. A leap second is the last millisecond of its
 * minute: neither JavaScript nor MongoDB can tell it from the next one. Takes time linear in the length of the text.
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
  // February 30 would be March 2.
  if (date.getUTCDate() !== +(day as string) || date.getUTCMonth() !== +(month as string) - 1) return mustExist;
  const inMinuteMs = isLeapSecond ? 59_999 : +second * 1000 + +fraction.padEnd(3, "0");
  const offsetMs =
    sign === undefined ? 0 : +`${sign}1` * (+(offsetHours as string) * 60 + +(offsetMinutes as string)) * 60_000;
  const ms = date.getTime() - cycleMs + inMinuteMs - offsetMs;
  return ms < firstMs || ms > lastMs ? mustBeInYears : new Date(ms);
}

/** A time as the API writes it: UTC, without a fraction when it is zero. */
export const isoTime = (date: Date): string => date.toISOString().replace(".000Z", "Z");
