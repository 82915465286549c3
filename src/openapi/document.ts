import { getOption } from "@bufbuild/protobuf";
import { stringify } from "yaml";
import { z } from "zod";
import { createDocument, type ZodOpenApiOperationObject } from "zod-openapi";
import { type ErrorCode, errorTable } from "../errors.ts";
import { http } from "../gen/google/api/annotations_pb.js";
import { Ingest } from "../gen/ingest/v1/ingest_pb.js";
import { eventsSchema, metricSchema, snapshotSchema } from "../ingest/schema.ts";
import { apiVersion, limits } from "../limits.ts";

/** The answers' shapes; the requests' are those that validate. */
const requestId = z.string().meta({ description: "req_ and a ULID.", example: "req_01HP3K5V4J3M9NVT8XZKQ9YQ2E" });
const time = z.string().meta({ override: { type: "string", format: "date-time" } });

const pingAnswer = z
  .object({
    ok: z.literal(true),
    organizationId: z.string(),
    app: z.object({ id: z.string(), slug: z.string(), name: z.string() }),
  })
  .meta({ id: "PingResponse" });

const eventsAnswer = z
  .object({
    requestId,
    accepted: z.int().min(0).max(limits.eventsMax).meta({ description: "Number of events accepted." }),
    rejected: z.int().min(0).max(limits.eventsMax).meta({ description: "Number of events rejected." }),
    batchLimit: z.literal(limits.eventsMax),
    results: z.object({
      accepted: z.array(z.object({ eventType: z.string(), timestamp: time })),
      rejected: z.array(
        z.object({
          index: z.int().min(0).meta({ description: "Position in the request." }),
          code: z.enum(["missing_actor", "forbidden_event_type", "worker_not_found", "quota_exceeded"]),
          message: z.string(),
        }),
      ),
    }),
  })
  .meta({ id: "EventsResponse" });

const snapshotAnswer = z
  .object({
    requestId,
    ok: z.literal(true),
    snapshotType: z.string(),
    worker: z.object({ id: z.string(), displayName: z.string() }),
  })
  .meta({ id: "SnapshotResponse" });

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

const header = (description: string, type: "string" | "integer" = "string") => ({ description, schema: { type } });

const commonHeaders = {
  "X-Request-Id": header("The request's id, also in the body."),
  "X-API-Version": header(`Always ${apiVersion}.`),
};
const admittedHeaders = {
  ...commonHeaders,
  "X-RateLimit-Limit": header("Requests a second of the key, and its burst.", "integer"),
  "X-RateLimit-Remaining": header("Requests that may follow at once.", "integer"),
};

const accessCodes = [
  "missing_authorization",
  "invalid_key",
  "key_revoked",
  "key_expired",
  "plan_disabled",
  "rate_limited",
  "internal_error",
] as const satisfies readonly ErrorCode[];
const bodyCodes = ["invalid_body", "batch_too_large", "missing_actor", "worker_not_found", "quota_exceeded"] as const;

/** One answer a status, naming the codes that come with it. */
function errorResponses(used: readonly ErrorCode[]) {
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

const success = (description: string, schema: z.ZodType, replayable: boolean) => ({
  description,
  headers: {
    ...admittedHeaders,
    ...(replayable ? { "Idempotency-Replayed": header("true when this is the answer of an earlier request.") } : {}),
  },
  content: { "application/json": { schema } },
});

const idempotencyKey = {
  name: "Idempotency-Key",
  in: "header" as const,
  required: false,
  description: `Makes the request safe to retry for ${limits.idempotencyWindowSeconds / 60} minutes.`,
  schema: { type: "string" as const, minLength: 1, maxLength: limits.idempotencyKeyCharactersMax, pattern: "^[ -~]+$" },
};

const pathOf = (method: (typeof Ingest.method)[keyof typeof Ingest.method]) => getOption(method, http).pattern.value as string;

function operation(
  operationId: string,
  summary: string,
  body: z.ZodType | undefined,
  responses: ZodOpenApiOperationObject["responses"],
): ZodOpenApiOperationObject {
  return {
    operationId,
    summary,
    tags: ["ingest"],
    security: [{ bearer: [] }],
    ...(body === undefined
      ? {}
      : { parameters: [idempotencyKey], requestBody: { required: true, content: { "application/json": { schema: body } } } }),
    responses,
  };
}

/** `openapi/v1.yaml`, from the schemas that validate and the tables that answer. */
export function openapiYaml(): string {
  const document = createDocument({
    openapi: "3.1.1",
    info: {
      title: "Ingest",
      version: apiVersion,
      description: "Services push events and metric snapshots about their workers into the monitoring timeline.",
      license: { name: "Proprietary", identifier: "LicenseRef-Proprietary" },
    },
    servers: [{ url: "/" }],
    tags: [{ name: "ingest", description: "What services report." }],
    components: { schemas: { Metric: metricSchema }, securitySchemes: { bearer: { type: "http", scheme: "bearer", bearerFormat: "wp_live_<32 hex>" } } },
    paths: {
      [pathOf(Ingest.method.ping)]: {
        get: operation("ping", "Validate a key and echo the app it belongs to.", undefined, {
          "200": success("The key is good.", pingAnswer, false),
          ...errorResponses(accessCodes),
        }),
      },
      [pathOf(Ingest.method.events)]: {
        post: operation("ingestEvents", "Ingest one or more events into the monitoring timeline.", eventsSchema, {
          "202": success("All events were accepted and are durable.", eventsAnswer, true),
          "207": success("Some events were rejected; results.rejected says which and why.", eventsAnswer, true),
          ...errorResponses([...accessCodes, ...bodyCodes, "forbidden_event_type"]),
        }),
      },
      [pathOf(Ingest.method.snapshots)]: {
        post: operation("ingestSnapshot", "Replace the current snapshot card for a worker.", snapshotSchema, {
          "202": success("The snapshot was accepted and is durable.", snapshotAnswer, true),
          ...errorResponses([...accessCodes, ...bodyCodes]),
        }),
      },
    },
  });
  return stringify(document, { lineWidth: 0, aliasDuplicateObjects: false });
}
