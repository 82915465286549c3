import { randomFillSync } from "node:crypto";

/**
 * An id is a prefix and a ULID: 48 bits of milliseconds and 80 random bits in Crockford's base 32, so ids sort by time.
 * A library does not fit, because event ids derive from the request's id. Within a millisecond, request ids must
 * therefore grow by steps that leave room for a whole batch.
 */
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const values = new Map([...alphabet].map((character, value) => [character, value]));
/** All pairs of digits by value. Pairs make an id at a quarter of the cost of single digits. */
const pairs = [...alphabet].flatMap((first) => [...alphabet].map((second) => first + second));
const halfBits = 2 ** 40;
/** Distance between two ids of the same millisecond; exceeds the events of one batch. */
const step = 1024;

export const workerIdPattern = /^wrk_[0-7][0-9A-HJKMNP-TV-Z]{25}$/;

export type IdPrefix = "org" | "app" | "key" | "wrk" | "req" | "rec";

export interface IdSource {
  /** Returns an id such as `req_01HP3K5V4J3M9NVT8XZKQ9YQ2E`, greater than all earlier ones of this source. */
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
  /** The digits of the time and of the high half of the random bits. */
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
        // Keep the last steps free, so that adding an event's index never carries.
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
 * The ids of a request's events: `evt_` and the request's ULID plus 1 + index. A retry gets the same ids, so it cannot
 * store an event twice.
 */
export function eventIds(requestId: string): (index: number) => string {
  const ulid = requestId.slice(4);
  const prefix = `evt_${ulid.slice(0, 18)}`;
  let low = 0;
  for (const character of ulid.slice(18)) low = low * 32 + (values.get(character) ?? 0);
  return (index) => prefix + encode(low + 1 + index, 8);
}

export const isRequestId = (text: string): boolean => /^req_[0-9A-HJKMNP-TV-Z]{26}$/.test(text);

export function timeOfId(id: string): Date {
  let ms = 0;
  for (const character of id.slice(4, 14)) ms = ms * 32 + (values.get(character) ?? 0);
  return new Date(ms);
}

/** The smallest ULID of a moment, for ranges over `_id`. */
export function firstUlidAt(date: Date): string {
  return encode(date.getTime(), 10) + "0".repeat(16);
}

function encode(value: number, length: number): string {
  let text = "";
  let rest = value;
  while (text.length < length) {
    const high = Math.floor(rest / 2 ** 20);
    // Take four digits (20 bits) at once, because shifts are far cheaper than divisions.
    const low = rest - high * 2 ** 20;
    text = (pairs[low >>> 10] as string) + (pairs[low & 1023] as string) + text;
    rest = high;
  }
  return text.slice(text.length - length);
}
