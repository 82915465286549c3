import { limits } from "../limits.ts";

export interface Parsed {
  readonly value: unknown;
  /** The first integer in the text that a double cannot hold, as written. */
  readonly rounded: string | undefined;
}

export function parseJson(text: string): Parsed {
  if (Buffer.byteLength(text) > limits.bodyBytesMax) throw new Error(`must have at most ${limits.bodyBytesMax} bytes`);
  try {
    return { value: JSON.parse(text), rounded: manyDigits.test(text) ? roundedIntegerOf(text) : undefined };
  } catch (error) {
    throw new Error(`is not JSON: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

/** Every integer past 2^53 has so many digits. */
const manyDigits = /\d{16}/;

function roundedIntegerOf(text: string): string | undefined {
  let rounded: string | undefined;
  JSON.parse(text, (_name, value: unknown, context?: { source?: string }) => {
    const { source = "" } = context ?? {};
    if (/^-?\d+$/.test(source) && BigInt(source) !== BigInt(Number(source))) rounded ??= source;
    return value;
  });
  return rounded;
}

/** The number, if the text is a JSON number that a double can hold; undefined otherwise, as for 02134 or 1e999. */
export function canonicalNumber(text: string): number | undefined {
  if (!/^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/.test(text)) return undefined;
  const value = Number(text);
  const isExact = Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value));
  return isExact ? value : undefined;
}

/** Undefined if it is not JSON. */
export function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
