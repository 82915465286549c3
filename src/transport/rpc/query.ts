import { invalidMember } from "../../ingest/validate.ts";

/**
 * The bytes of a Connect GET's message, from its query.
 * @throws Fault invalid_body for a broken escape or invalid base64; it replaces or skips nothing.
 */
export function bytesOfQuery(query: string): Buffer {
  const parameters = new URLSearchParams(query);
  const raw = /(?:^|&)message=([^&]*)/.exec(query)?.[1] ?? "";
  if (/%(?![0-9a-f]{2})/i.test(raw)) throw invalidMember("message", "has a broken percent escape");
  // URLSearchParams would replace bytes that are not UTF-8.
  const latin1 = raw
    .replaceAll("+", " ")
    .replace(/%([0-9a-f]{2})/gi, (_escape, digits: string) => String.fromCharCode(Number.parseInt(digits, 16)));
  if (parameters.get("base64") !== "1") return Buffer.from(latin1, "latin1");
  // An unescaped plus sign of standard base64 has become a space.
  const base64 = latin1.replaceAll(" ", "+");
  if (!/^(?:[A-Za-z0-9+/_-]{4})*(?:[A-Za-z0-9+/_-]{2,3}={0,2})?$/.test(base64)) {
    throw invalidMember("message", "is not valid base64");
  }
  return Buffer.from(base64, "base64");
}
