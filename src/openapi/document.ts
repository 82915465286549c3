import { getOption } from "@bufbuild/protobuf";
import { stringify } from "yaml";
import { z } from "zod";
import { createDocument, type ZodOpenApiOperationObject } from "zod-openapi";
import { http } from "../gen/google/api/annotations_pb.js";
import { Ingest } from "../gen/ingest/v1/ingest_pb.js";
import { eventsSchema, metricSchema, snapshotSchema } from "../ingest/schema.ts";
import { apiVersion, limits } from "../limits.ts";
import { accessCodes, errorResponses, header, requestId, success, time } from "./parts.ts";
import { timelinePaths, timelineTag } from "./timeline.ts";

/** The answers' shapes; the requests' are those that validate. */

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

const bodyCodes = ["invalid_body", "batch_too_large", "missing_actor", "worker_not_found", "quota_exceeded"] as const;

const idempotencyKey = {
  name: "Idempotency-Key",
  in: "header" as const,
  required: false,
  description: `Makes the request safe to retry for ${limits.idempotencyWindowSeconds / 60} minutes.`,
  schema: { type: "string" as const, minLength: 1, maxLength: limits.idempotencyKeyCharactersMax, pattern: "^[ -~]+$" },
};

const dryRun = {
  name: "X-Dry-Run",
  in: "header" as const,
  required: false,
  description:
    "true: answer exactly as always, and store nothing, cost no quota and claim no Idempotency-Key. A worker that would be made has an empty id in the answer.",
  schema: { type: "string" as const, enum: ["true", "false"], default: "false" },
};

const stored = (description: string, schema: z.ZodType) => {
  const answer = success(description, schema);
  const headers = {
    ...answer.headers,
    "Idempotency-Replayed": header("true when this is the answer of an earlier request."),
    "X-Dry-Run": header("true when nothing was stored, as was asked."),
  };
  return { ...answer, headers };
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
      : { parameters: [idempotencyKey, dryRun], requestBody: { required: true, content: { "application/json": { schema: body } } } }),
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
    tags: [{ name: "ingest", description: "What services report." }, timelineTag],
    components: { schemas: { Metric: metricSchema }, securitySchemes: { bearer: { type: "http", scheme: "bearer", bearerFormat: "wp_live_<32 hex>" } } },
    paths: {
      [pathOf(Ingest.method.ping)]: {
        get: operation("ping", "Validate a key and echo the app it belongs to.", undefined, {
          "200": success("The key is good.", pingAnswer),
          ...errorResponses(accessCodes),
        }),
      },
      [pathOf(Ingest.method.events)]: {
        post: operation("ingestEvents", "Ingest one or more events into the monitoring timeline.", eventsSchema, {
          "202": stored("All events were accepted and are durable.", eventsAnswer),
          "207": stored("Some events were rejected; results.rejected says which and why.", eventsAnswer),
          ...errorResponses([...accessCodes, ...bodyCodes, "forbidden_event_type"]),
        }),
      },
      [pathOf(Ingest.method.snapshots)]: {
        post: operation("ingestSnapshot", "Replace the current snapshot card for a worker.", snapshotSchema, {
          "202": stored("The snapshot was accepted and is durable.", snapshotAnswer),
          ...errorResponses([...accessCodes, ...bodyCodes]),
        }),
      },
      ...timelinePaths(),
    },
  });
  return stringify(document, { lineWidth: 0, aliasDuplicateObjects: false });
}
