import fc from "fast-check";
import { expect, test } from "vitest";
import { isoTime, parseTime } from "../src/time.ts";

test.each([
  ["2026-04-19T12:05:00Z", "2026-04-19T12:05:00.000Z"],
  ["2026-04-19T12:05Z", "2026-04-19T12:05:00.000Z"],
  ["2026-04-19T12:05+02:00", "2026-04-19T10:05:00.000Z"],
  ["2026-04-19t12:05:00z", "2026-04-19T12:05:00.000Z"],
  ["2026-04-19T12:05:00.5Z", "2026-04-19T12:05:00.500Z"],
  ["2026-04-19T12:05:00.123999999999Z", "2026-04-19T12:05:00.123Z"],
  ["2026-04-19T23:05:00-03:30", "2026-04-20T02:35:00.000Z"],
  ["2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999Z"],
  ["2017-01-01T08:59:60.25+09:00", "2016-12-31T23:59:59.999Z"],
  ["2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z"],
  ["2000-02-29T00:00:00Z", "2000-02-29T00:00:00.000Z"],
  ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"],
  ["0099-12-31T00:00:00Z", "0099-12-31T00:00:00.000Z"],
  ["9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"],
  ["1969-12-31T23:59:59.9999Z", "1969-12-31T23:59:59.999Z"],
])("%s is %s", (text, iso) => {
  expect(parseTime(text)).toEqual(new Date(iso));
});

const form = "must be an ISO 8601 time with an offset, such as 2026-04-19T12:05:00Z";
const exists = "must be a time that exists";
const years = "must be in the years 1 to 9999, UTC";

test.each([
  ["", form],
  ["noon", form],
  ["2026-04-19", form],
  ["2026-04-19T12:05:00", form],
  ["2026-04-19 12:05:00Z", form],
  ["2026-04-19T12Z", form],
  ["2026-04-19T12:05:00.Z", form],
  ["2026-04-19T12:05:00,5Z", form],
  ["2026-04-19T12:05.5Z", form],
  ["2026-04-19T12:05:00+0200", form],
  ["2026-04-19T12:05:00+24:00", form],
  ["2026-04-19T12:05:00+02:60", form],
  ["2026-04-19T12:05:00ZZ", form],
  ["2026-04-19T12:05:00Z\n", form],
  ["+12026-04-19T12:05:00Z", form],
  ["２026-04-19T12:05:00Z", form],
  ["2026-02-30T00:00:00Z", exists],
  ["2026-02-29T00:00:00Z", exists],
  ["1900-02-29T00:00:00Z", exists],
  ["2026-04-31T00:00:00Z", exists],
  ["2026-04-00T00:00:00Z", exists],
  ["2026-00-10T00:00:00Z", exists],
  ["2026-13-10T00:00:00Z", exists],
  ["2026-04-19T24:00:00Z", exists],
  ["2026-04-19T12:60:00Z", exists],
  ["2026-04-19T12:05:61Z", exists],
  ["0000-12-31T23:59:59Z", years],
  ["0001-01-01T00:00:00+00:01", years],
  ["9999-12-31T23:59:59-00:01", years],
])("%j is refused", (text, why) => {
  expect(parseTime(text)).toBe(why);
});

test("every time of the years 1 to 9999 reads back as written", () => {
  const date = fc.date({
    min: new Date("0001-01-01T00:00:00Z"),
    max: new Date("9999-12-31T23:59:59.999Z"),
    noInvalidDate: true,
  });
  fc.assert(
    fc.property(date, (time) => {
      expect(parseTime(isoTime(time))).toEqual(time);
    }),
  );
});

test("JavaScript and this parser agree on every time that both accept", () => {
  const two = fc.integer({ min: 0, max: 61 }).map((n) => String(n).padStart(2, "0"));
  const text = fc
    .tuple(fc.integer({ min: 0, max: 9999 }), two, two, two, two, two, fc.constantFrom("Z", "+02:00", "-11:30"))
    .map(
      ([year, month, day, h, m, s, zone]) => `${String(year).padStart(4, "0")}-${month}-${day}T${h}:${m}:${s}${zone}`,
    );
  fc.assert(
    fc.property(text, (one) => {
      const time = parseTime(one);
      const date = new Date(one);
      if (typeof time !== "string" && !one.includes(":60") && !Number.isNaN(date.getTime())) expect(time).toEqual(date);
    }),
    { numRuns: 2_000 },
  );
});
