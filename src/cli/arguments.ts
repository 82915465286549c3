import { InvalidArgumentError } from "commander";
import { retainDaysMax } from "../config.ts";
import { timelineLimits } from "../limits.ts";
import { parseTimeOrDate as timeOrDate } from "../time.ts";

/** Parsers of options for commander. Each says what is allowed when it refuses a value. */

export function parseCount(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
    throw new InvalidArgumentError("It must be a whole number, 0 or more.");
  }
  return value;
}

export function parseLimit(text: string): number {
  const value = parseCount(text);
  if (value >= 1 && value <= timelineLimits.rowsMax) return value;
  throw new InvalidArgumentError(`It must be a whole number from 1 to ${timelineLimits.rowsMax}.`);
}

/** Days, or "default". */
export function parseRetainDays(text: string): number | "default" {
  if (text === "default") return text;
  if (/^\d{1,5}$/.test(text) && Number(text) <= retainDaysMax) return Number(text);
  throw new InvalidArgumentError(`It must be a whole number of days from 0 to ${retainDaysMax}, or default.`);
}

export function parseRate(text: string): number {
  const value = Number(text);
  if (!Number.isFinite(value) || value < 1 || value > 1e6) {
    throw new InvalidArgumentError("It must be a number of requests a second, from 1 to 1000000.");
  }
  return value;
}

export function parseTimeOrDate(text: string): Date {
  const time = timeOrDate(text);
  if (typeof time === "string") throw new InvalidArgumentError(`It ${time}.`);
  return time;
}

const durationUnitsMs = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** A duration such as `30m`, in milliseconds. */
export function parseDuration(text: string): number {
  const [, count, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  if (unit === undefined) {
    throw new InvalidArgumentError("It must be a whole number and a unit (s, m, h or d), such as 24h.");
  }
  return Number(count) * durationUnitsMs[unit as keyof typeof durationUnitsMs];
}
