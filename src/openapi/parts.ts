import { z } from "zod";
import { type ErrorCode, errorTable } from "../errors.ts";
import { apiVersion } from "../limits.ts";

/** What the descriptions of all calls are made of. */

export const requestId = z.string().meta({ description: "req_ and a ULID.", example: "req_01HP3K5V4J3M9NVT8XZKQ9YQ2E" });
export const time = z.string().meta({ override: { type: "string", format: "date-time" } });

const codes = Object.keys(errorTable) as [ErrorCode, ...ErrorCode[]];
const errorAnswer = z
  .object({
    error: z.object({
      code: z.enum(codes),
      message: z.string().meta({ description: "For people; subject to copy edits." }),
      requestId,
      docsUrl: z.string().meta({ description: "A page about the code.", override: { type: "string", format: "uri" } }),
    }),
  })
  .meta({ id: "Error" });

export const header = (description: string, type: "string" | "integer" = "string") => ({ description, schema: { type } });

const commonHeaders = {
  "X-Request-Id": header("The request's id."),
  "X-API-Version": header(`Always ${apiVersion}.`),
};
const admittedHeaders = {
  ...commonHeaders,
  "X-RateLimit-Limit": header("Requests a second of the key, and its burst.", "integer"),
  "X-RateLimit-Remaining": header("Requests that may follow at once.", "integer"),
};

export const accessCodes = [
  "missing_authorization",
  "invalid_key",
  "key_revoked",
  "key_expired",
  "plan_disabled",
  "rate_limited",
  "internal_error",
] as const satisfies readonly ErrorCode[];

/** One answer a status, naming the codes that come with it. */
export function errorResponses(used: readonly ErrorCode[]) {
  const byStatus = Map.groupBy(used, (code) => errorTable[code].http);
  return Object.fromEntries(
    [...byStatus].map(([status, list]) => [
      String(status),
      {
        description: list.map((code) => `\`${code}\`: ${errorTable[code].when}`).join(" "),
        headers: {
          ...(status === 401 ? commonHeaders : admittedHeaders),
          ...(status === 401 ? { "WWW-Authenticate": header("Bearer") } : {}),
          ...(list.some((code) => errorTable[code].retryable)
            ? { "Retry-After": header("Seconds to wait before the same request is sent again.", "integer") }
            : {}),
        },
        content: { "application/json": { schema: errorAnswer } },
      },
    ]),
  );
}

export const success = (description: string, schema: z.ZodType) => ({
  description,
  headers: admittedHeaders,
  content: { "application/json": { schema } },
});
