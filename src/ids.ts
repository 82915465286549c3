import { randomFillSync } from "node:crypto";

/**
 * Ids are a prefix and a ULID: 48 bits of time in milliseconds and 80 random bits in Crockford's base 32, so they sort by
 * time. Written here and not taken from a library because event ids follow from their request's id: within a
 * millisecond ids must grow (later arrival, greater id) by steps that leave room for a whole batch.
 */
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const values = new Map([...alphabet].map((character, value) => [character, value]));
/** Every two digits, by their value: an id of each request is made of these, at a quarter of the cost of single digits. */
const pairs = [...alphabet].flatMap((first) => [...alphabet].map((second) => first + second));
const halfBits = 2 ** 40;
/** Ids between two ids of the same millisecond: more than the events of one batch. */
const step = 1024;

export const workerIdPattern = /^wrk_[0-7][0-9A-HJKMNP-TV-Z]{25}$/;

export type IdPrefix = "org" | "app" | "key" | "wrk" | "req" | "rec";

/** Makes new ids. `now` and `random` are passed in so that tests can fix them. */
export interface IdSource {
  /** A new id, such as `req_01HP3K5V4J3M9NVT8XZKQ9YQ2E`, greater than every earlier one of this source. */
  next(prefix: IdPrefix): string;
}

export function createIdSource(
  now: () => number = Date.now,
  random: (bytes: Buffer) => void = randomFillSync,
): IdSource {
  const pool = Buffer.allocUnsafe(1000);
  let used = pool.length;
  let lastMs = -1;
  let high = 0;
  let low = 0;
  /** The digits of the time and of the high half. */
  let head = "";

  function random40(): number {
    if (used === pool.length) {
      random(pool);
      used = 0;
    }
    const value = pool.readUIntBE(used, 5);
    used += 5;
    return value;
  }

  return {
    next(prefix) {
      const ms = Math.max(now(), lastMs);
      if (ms !== lastMs) {
        lastMs = ms;
        high = random40();
        head = encode(ms, 10) + encode(high, 8);
        // The last steps are left free, so that adding an index to an id never carries.
        low = Math.min(random40(), halfBits - 2 * step);
      } else if (low + step <= halfBits - step) {
        low += step;
      } else {
        high = (high + 1) % halfBits;
        head = encode(ms, 10) + encode(high, 8);
        low = 0;
      }
      return `${prefix}_${head}${encode(low, 8)}`;
    },
  };
}

/**
 * The ids of a request's events: its ULID plus 1 + index, with the prefix `evt_`. The same request id gives the same
 * ids, so that storing a batch twice changes nothing.
 */
export function eventIds(requestId: string): (index: number) => string {
  const ulid = requestId.slice(4);
  const prefix = `evt_${ulid.slice(0, 18)}`;
  let low = 0;
  for (const character of ulid.slice(18)) low = low * 32 + (values.get(character) ?? 0);
  return (index) => prefix + encode(low + 1 + index, 8);
}

/** Whether a text has the form of a request's id. */
export const isRequestId = (text: string): boolean => /^req_[0-9A-HJKMNP-TV-Z]{26}$/.test(text);

/** The moment at which an id was made. */
export function timeOfId(id: string): Date {
  let ms = 0;
  for (const character of id.slice(4, 14)) ms = ms * 32 + (values.get(character) ?? 0);
  return new Date(ms);
}

/** The first id that the given moment can have, without its prefix: for ranges over `_id`. */
export function firstUlidAt(date: Date): string {
  return encode(date.getTime(), 10) + "0".repeat(16);
}

function encode(value: number, length: number): string {
  let text = "";
  let rest = value;
  while (text.length < length) {
    const high = Math.floor(rest / 2 ** 20);
    // Four digits at once; within 32 bits shifts are many times cheaper than division.
    const low = rest - high * 2 ** 20;
    text = (pairs[low >>> 10] as string) + (pairs[low & 1023] as string) + text;
    rest = high;
  }
  return text.slice(text.length - length);
}
