import { hash } from "node:crypto";
import { JsonText } from "../store/documents.ts";

/**
 * A digest of a validated request. It does not depend on the protocol, the order of members or the notation of numbers
 * and times.
 */
export function fingerprint(rpc: string, request: unknown): string {
  return hash("sha256", rpc + canonicalJson(request), "base64url");
}

/** JSON with sorted members. Validation bounds the depth. */
export function canonicalJson(value: unknown): string {
  if (value instanceof Date) return `"${value.getTime()}"`;
  if (value instanceof JsonText) return canonicalJson(JSON.parse(value.text));
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const members: string[] = [];
    for (const key of Object.keys(value).sort()) {
      const member = (value as Record<string, unknown>)[key];
      if (member !== undefined) members.push(`${JSON.stringify(key)}:${canonicalJson(member)}`);
    }
    return `{${members.join(",")}}`;
  }
  return JSON.stringify(value);
}
