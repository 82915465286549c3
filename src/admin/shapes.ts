import { retainDaysMax } from "../config.ts";
import { arrayOf, described, matching, text, wholeNumber } from "../ingest/shapes.ts";
import { given, type Shape } from "../ingest/validate.ts";
import { limits, typePattern } from "../limits.ts";

/** The valid forms of members that several calls take. */

const refusing = <T>(shape: Shape<T>, problemOf: (value: T) => string | undefined): Shape<T> => ({
  ...shape,
  read(value, reading) {
    const problems = reading.notes.length;
    const valid = shape.read(value, reading);
    const problem = reading.notes.length === problems ? problemOf(valid) : undefined;
    return problem === undefined ? valid : reading.refuse(problem);
  },
});

const notBlank = (value: string) => (value.trim() === "" ? `must not be blank${given(value)}` : undefined);

export const name = refusing(text(200), notBlank);
export const displayName = refusing(text(limits.displayNameCharactersMax), notBlank);

export const slug = matching(
  /^[a-z0-9][a-z0-9-]{0,62}$/,
  /[^a-z0-9-]/u,
  "have 1 to 63 of a-z, 0-9 and -, and not begin with -",
);

/** Entries of a whitelist. More would make each event's check slow. */
const entriesMax = 1_000;

const typeEntry = refusing(text(65), (value) =>
  value === "*" || typePattern.test(value) || /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\*$/.test(value)
    ? undefined
    : `must be an event type such as 'ticket.resolved', or a beginning such as 'ticket.*'${given(value)}`,
);

/** A whitelist; entries that come twice count once. */
export const types: Shape<string[]> = (() => {
  const list = arrayOf(typeEntry, 0, entriesMax);
  return { ...list, read: (value, reading) => [...new Set(list.read(value, reading))] };
})();

export const quota = wholeNumber(0, Number.MAX_SAFE_INTEGER);
export const retentionDays = wholeNumber(0, retainDaysMax);

/** Requests a second. */
export const rate: Shape<number> = {
  schema: { type: "number", minimum: 1, maximum: 1e6 },
  definitions: {},
  read: (value, reading) =>
    Number.isFinite(value) && (value as number) >= 1 && (value as number) <= 1e6
      ? (value as number)
      : reading.refuse(`must be a number of requests a second from 1 to 1000000${given(value)}`),
};

/** Protobuf's parser has checked it. */
export const flag: Shape<boolean> = { schema: { type: "boolean" }, definitions: {}, read: (value) => value as boolean };

export const month = described(
  "YYYY-MM in UTC.",
  matching(/^\d{4}-(0[1-9]|1[0-2])$/, /[^\d-]/u, "be a month such as 2026-04"),
);
