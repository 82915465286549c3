import { randomFillSync } from "node:crypto";

/**
 * An id is a prefix and a ULID: 48 bits of milliseconds and 80 random bits in Crockford's base 32, so ids sort by time.
 * A library does not fit, because event ids derive from the request's id. Within a millisecond, request ids must
 * therefore grow by steps that leave room for a whole batch.
 */
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/** The value of each digit, by its character code. */
const values = new Uint8Array(128);
[...alphabet].forEach((character, value) => (values[character.charCodeAt(0)] = value));
/** All pairs of digits by value. Pairs make an id at a quarter of the cost of single digits. */
const pairs = [...alphabet].flatMap((first) => [...alphabet].map((second) => first + second));
/** How far the clock may step back while ids go on ascending, in milliseconds. */
const stepBackMsMax = 60_000;
const halfBits = 2 ** 40;
/** Distance between two ids of the same millisecond; exceeds the events of one batch. */
const step = 1024;

export const workerIdPattern = /^wrk_[0-7][0-9A-HJKMNP-TV-Z]{25}$/;
export const organizationIdPattern = /^org_[0-7][0-9A-HJKMNP-TV-Z]{25}$/;

export type IdPrefix = "org" | "app" | "key" | "wrk" | "req" | "rec" | "ers" | "tok" | "aud";

export interface IdSource {
  /**
   * Returns an id such as `req_01HP3K5V4J3M9NVT8XZKQ9YQ2E`, greater than all earlier ones of this source, unless the clock
   * has stepped back by more than a minute.
   */
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
      const clockMs = now();
      // Ids are times of receipt, too. After a larger step back, they must not stand still until the clock catches up.
      const ms = lastMs - clockMs > stepBackMsMax ? clockMs : Math.max(clockMs, lastMs);
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
  const prefix = `evt_${requestId.slice(4, 22)}`;
  const low = decode(requestId, 22, 8);
  return (index) => prefix + encode(low + 1 + index, 8);
}

/** The index of an event in its request, or undefined if the id is not of one of its events. */
export function indexOfEvent(eventId: string, requestId: string): number | undefined {
  const index = decode(eventId, 22, 8) - decode(requestId, 22, 8) - 1;
  return index >= 0 && index < step && eventIds(requestId)(index) === eventId ? index : undefined;
}

/** Bytes of a ULID. */
export const ulidBytes = 16;

/** Writes the ULID of an id as 16 bytes, which sort as the text does. @throws TypeError for a text that is no id. */
export function writeUlid(id: string, target: Buffer, offset: number): void {
  if (id.length !== 30) throw new TypeError(`'${id}' is not an id: it has no ULID`);
  target[offset] = decode(id, 4, 2);
  for (let part = 0; part < 3; part++) target.writeUIntBE(decode(id, 6 + 8 * part, 8), offset + 1 + 5 * part, 5);
}

export function ulidOf(id: string): Buffer {
  const bytes = Buffer.allocUnsafe(ulidBytes);
  writeUlid(id, bytes, 0);
  return bytes;
}

/** The id whose ULID `writeUlid` wrote. */
export function idOf(prefix: IdPrefix, bytes: Buffer, offset = 0): string {
  let text = `${prefix}_${encode(bytes.readUInt8(offset), 2)}`;
  for (let part = 0; part < 3; part++) text += encode(bytes.readUIntBE(offset + 1 + 5 * part, 5), 8);
  return text;
}

/**
 * What test keys of an organisation write lies under an id of its own, so every query of the live one passes it by. The
 * id has the highest bit of the ULID's time set. A real id has that bit only from the year 6429 on, so the two are never
 * confused, and neither needs a look-up.
 * @throws TypeError for a text that is no live organisation's id.
 */
export function testOrganizationOf(organizationId: string): string {
  const id = withOtherBit(organizationId);
  if (isTestOrganization(id)) return id;
  throw new TypeError(`'${organizationId}' is not the id of a live organisation`);
}

/** Whether the id is one that `testOrganizationOf` made. */
export function isTestOrganization(id: string): boolean {
  const code = id.charCodeAt(firstDigitAt);
  return code >= 0x34 && code <= 0x37;
}

/** The organisation itself, also for the id under which its test data lies. */
export const liveOrganizationOf = (id: string): string => (isTestOrganization(id) ? withOtherBit(id) : id);

const firstDigitAt = "org_".length;

/** The first digit has the three highest bits: 0 to 3 without the bit, 4 to 7 with it. */
const withOtherBit = (id: string) =>
  id.slice(0, firstDigitAt) + String.fromCharCode(id.charCodeAt(firstDigitAt) ^ 4) + id.slice(firstDigitAt + 1);

export const isRequestId = (text: string): boolean => /^req_[0-9A-HJKMNP-TV-Z]{26}$/.test(text);

/** The smallest id of a moment. */
export const firstId = (prefix: IdPrefix | "evt", date: Date): string =>
  `${prefix}_${encode(date.getTime(), 10)}${"0".repeat(16)}`;

/** The creation time of an id. */
export const timeOfId = (id: string): Date => new Date(decode(id, 4, 10));

function decode(text: string, start: number, length: number): number {
  let value = 0;
  for (let i = start; i < start + length; i++) value = value * 32 + (values[text.charCodeAt(i)] as number);
  return value;
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
