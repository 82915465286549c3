import type { DescEnum } from "@bufbuild/protobuf";
import { type Duration, durationMs, type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import { createAddressFilter, unmappedAddress } from "../addresses.ts";
import { retainDaysMax } from "../config.ts";
import { RoleSchema, ScopeSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { arrayOf, described, matching, text, wholeNumber } from "../ingest/shapes.ts";
import { given, type Shape } from "../ingest/validate.ts";
import { limits, typePattern } from "../limits.ts";
import { restName, restNames } from "../message-json.ts";
import type { Role } from "../store/access-tokens.ts";
import type { KeyScope } from "../store/keys.ts";

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

/** A list whose entries count once if they come twice. */
function setOf<T>(items: Shape<T>, min: number, max: number): Shape<T[]> {
  const list = arrayOf(items, min, max);
  return { ...list, read: (value, reading) => [...new Set(list.read(value, reading))] };
}

/** A whitelist, or the event types of a key. */
export const types = setOf(typeEntry, 0, entriesMax);

const addressBlock = refusing(text(50), (value) => {
  const [address = ""] = value.split("/");
  if (unmappedAddress(address) !== address) {
    return `must be written as an IPv4 address or block, because that is the address we see${given(value)}`;
  }
  try {
    createAddressFilter([value]);
    return undefined;
  } catch {
    return `must be an IP address or a CIDR block such as 10.0.0.0/8 or 2001:db8::/32${given(value)}`;
  }
});

/** Blocks of a key. More would make each of its requests slow. */
const blocksMax = 100;

export const cidrs = setOf(addressBlock, 0, blocksMax);

/** An enum's number, read as REST's name of it. */
const nameOf = <Name extends string>(desc: DescEnum): Shape<Name> => {
  const names = restNames(desc);
  return {
    schema: { type: "integer" },
    definitions: {},
    read(value, reading) {
      const name = restName(desc, value as number);
      return names.includes(name)
        ? (name as Name)
        : reading.refuse(`must be one of ${names.join(", ")}${value === 0 ? "; it is missing" : given(value)}`);
    },
  };
};

export const role = nameOf<Role>(RoleSchema);

const scope = nameOf<KeyScope>(ScopeSchema);
export const scopes = setOf(scope, 1, 2);
/** None means that the caller leaves the choice to us. */
export const scopesOrNone = setOf(scope, 0, 2);

/** A time that protobuf holds in a message. Digits beyond milliseconds are dropped. */
export const moment: Shape<Date> = {
  schema: { type: "object" },
  definitions: {},
  read(value, reading) {
    const { seconds, nanos } = value as Timestamp;
    const isInYears = seconds >= -62_135_596_800n && seconds <= 253_402_300_799n;
    return isInYears && nanos >= 0 && nanos < 1e9
      ? new Date(Math.floor(timestampMs(value as Timestamp)))
      : reading.refuse(
          `must be in the years 1 to 9999, UTC, with 0 to 999999999 nanos; it is ${seconds} s ${nanos} ns`,
        );
  },
};

/** A time after the reading's time of receipt. */
export const future: Shape<Date> = {
  ...moment,
  read(value, reading) {
    const problems = reading.notes.length;
    const date = moment.read(value, reading);
    const { receivedAt } = reading;
    if (reading.notes.length > problems || receivedAt === undefined || date > receivedAt) return date;
    return reading.refuse(
      `must be in the future; it is ${date.toISOString()} (the server's clock says ${receivedAt.toISOString()})`,
    );
  },
};

const graceDaysMax = 365;

/** How long a rotated key still works, in milliseconds. */
export const grace: Shape<number> = {
  schema: { type: "object" },
  definitions: {},
  read(value, reading) {
    const ms = durationMs(value as Duration);
    return ms >= 0 && ms <= graceDaysMax * 86_400_000
      ? Math.round(ms)
      : reading.refuse(`must be 0 to ${graceDaysMax} days (0s to ${graceDaysMax * 86_400}s); it is ${ms / 1000}s`);
  },
};

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
