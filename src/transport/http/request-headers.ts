import type { IncomingHttpHeaders } from "node:http";
import { type RequestHeader, requestHeaderTable } from "../../headers.ts";

/** Each header that we read has its own bit, so one number holds the set of headers seen so far. */
const rows = new Map(
  (Object.keys(requestHeaderTable) as RequestHeader[]).map((key, i) => [
    key as string,
    { key, twice: requestHeaderTable[key].twice, bit: 1 << i },
  ]),
);

/**
 * Makes the headers that we read mean the same over HTTP/1.1 and HTTP/2. It trims spaces and tabs, and treats a header
 * sent twice as the table says. Node joins some, keeps the first of others, and trims only over HTTP/1.1.
 * @param headers are changed in place.
 * @param raw names and values in turn, as the caller sent them.
 * @returns the header that has two values but may have only one; undefined if there is none. Of several, the one whose
 * meaning matters most.
 */
export function tidyHeaders(headers: IncomingHttpHeaders, raw: readonly string[]): RequestHeader | undefined {
  let seen = 0;
  let ambiguous: RequestHeader | undefined;
  for (let i = 0; i < raw.length; i += 2) {
    const row = rows.get((raw[i] as string).toLowerCase());
    if (row === undefined) continue;
    // V8 knows this text as the name of a member. It would have to look up the caller's.
    const { key: name } = row;
    const value = trimmed(raw[i + 1] as string);
    const isFirst = (seen & row.bit) === 0;
    seen |= row.bit;
    if (isFirst) headers[name] = value;
    else if (row.twice === "joined") headers[name] += `, ${value}`;
    else if (row.twice === "refused always" || headers[name] !== value) {
      if (row.twice === "dropped") headers[name] = "";
      else if (ambiguous === undefined || rankOf(name) < rankOf(ambiguous)) ambiguous = name;
    }
  }
  return ambiguous;
}

/** Who calls must be clear before anything else counts; a host that is not clear is refused before that. */
const rankOf = (name: RequestHeader): number => (name === "host" ? 0 : name === "authorization" ? 1 : 2);

/** Removes spaces and tabs at the ends, the only white space that HTTP allows there. */
function trimmed(value: string): string {
  let start = 0;
  let end = value.length;
  while (start < end && isBlank(value.charCodeAt(start))) start++;
  while (end > start && isBlank(value.charCodeAt(end - 1))) end--;
  return start === 0 && end === value.length ? value : value.slice(start, end);
}

const isBlank = (code: number): boolean => code === 0x20 || code === 0x09;
