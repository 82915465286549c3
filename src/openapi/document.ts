import { stringify } from "yaml";
import { z } from "zod";
import { createDocument, type ZodOpenApiOperationObject } from "zod-openapi";
import { errorTable } from "../errors.ts";
import { Ingest } from "../gen/ingest/v1/ingest_pb.js";
import { eventsSchema, metricSchema, snapshotSchema } from "../ingest/schema.ts";
import { apiVersion, limits } from "../limits.ts";
import { components, exampleRequestId, operation, pathOf, requestId, type Success, time } from "./parts.ts";
import { timelinePaths, timelineTag } from "./timeline.ts";

/** The answers' shapes; the requests' are those that validate. Examples are the reference's. */

const pingAnswer = z
  .object({
    ok: z.literal(true),
    organizationId: z.string().meta({ description: "The organisation that the key belongs to." }),
    app: z
      .object({
        id: z.string(),
        slug: z.string().meta({ description: "Short name, unique in the organisation." }),
        name: z.string().meta({ description: "Name for people." }),
      })
      .meta({ description: "The app that the key belongs to." }),
  })
  .meta({ id: "PingResponse" });

const pingExample = { ok: true, organizationId: "org_2Mf1…", app: { id: "app_2Nh8…", slug: "crm-hub", name: "CRM Hub" } };

const rejectedEvent = z
  .object({
    index: z
      .int()
      .min(0)
      .max(limits.eventsMax - 1)
      .meta({ description: "Position in the request." }),
    code: z.enum(["missing_actor", "forbidden_event_type", "worker_not_found", "quota_exceeded"]),
    message: z.string(),
  })
  .meta({ id: "RejectedEvent" });

const eventsAnswer = z
  .object({
    requestId,
    accepted: z.int().min(0).max(limits.eventsMax).meta({ description: "Number of events accepted." }),
    rejected: z.int().min(0).max(limits.eventsMax).meta({ description: "Number of events rejected." }),
    batchLimit: z.literal(limits.eventsMax).meta({
      description: "The most events that one batch may have.",
      override: { type: "integer" },
    }),
    results: z.object({
      accepted: z.array(z.object({ eventType: z.string(), timestamp: time })).meta({ description: "In request order." }),
      rejected: z.array(rejectedEvent).meta({ description: "In request order." }),
    }),
  })
  .meta({ id: "EventsResponse" });

const acceptedExample = { eventType: "ticket.resolved", timestamp: "2026-04-19T12:05:00Z" };
const eventsExample = {
  requestId: exampleRequestId,
  accepted: 1,
  rejected: 0,
  batchLimit: limits.eventsMax,
  results: { accepted: [acceptedExample], rejected: [] },
};
const partlyExample = {
  ...eventsExample,
  accepted: 2,
  rejected: 1,
  results: {
    accepted: [acceptedExample, { eventType: "ticket.resolved", timestamp: "2026-04-19T12:06:10Z" }],
    rejected: [{ index: 2, code: "forbidden_event_type", message: errorTable.forbidden_event_type.example }],
  },
};
const eventsRequestExample = {
  events: [
    {
      eventType: "ticket.resolved",
      category: "project_management",
      actor: { externalId: "crm-user-42" },
      duration: 240,
      metadata: { ticket_id: "SUP-431" },
    },
  ],
};

const snapshotAnswer = z
  .object({
    requestId,
    ok: z.literal(true),
    snapshotType: z.string(),
    worker: z
      .object({ id: z.string(), displayName: z.string() })
      .meta({ description: "The worker that the actor resolved to." }),
  })
  .meta({ id: "SnapshotResponse" });

const snapshotExample = {
  requestId: exampleRequestId,
  ok: true,
  snapshotType: "tickets_open",
  worker: { id: "wrk_2Mf…", displayName: "Alex Chen" },
};
const snapshotRequestExample = {
  snapshotType: "tickets_open",
  actor: { externalId: "crm-user-42", displayName: "Alex Chen" },
  metrics: { open: 7, mood: "calm", first_response: { value: 42, unit: "minutes", label: "First response" } },
};

const minutes = limits.idempotencyWindowSeconds / 60;
/** `example` differs from call to call, so that sending every example is no misuse of the key. */
const idempotencyKey = (example: string) => ({
  name: "Idempotency-Key",
  in: "header" as const,
  required: false,
  description: `Makes the request safe to retry: for ${minutes} minutes the same request with the same key gets the first answer again, byte for byte, and stores nothing. Another request with the same key is \`invalid_body\`.`,
  schema: { type: "string" as const, minLength: 1, maxLength: limits.idempotencyKeyCharactersMax, pattern: "^[ -~]+$" },
  example,
});

const dryRun = {
  name: "X-Dry-Run",
  in: "header" as const,
  required: false,
  description:
    "true: answer exactly as always, and store nothing, cost no quota and claim no Idempotency-Key. A worker that would be made has an empty id in the answer.",
  schema: { type: "string" as const, enum: ["true", "false"] },
};

/** A call that stores what its body says. */
const storing = (
  call: Pick<Parameters<typeof operation>[0], "operationId" | "summary" | "description" | "codes">,
  body: { readonly schema: z.ZodType; readonly example: object },
  idempotencyKeyExample: string,
  successes: Readonly<Record<string, Success>>,
): ZodOpenApiOperationObject =>
  operation({
    ...call,
    tag: "ingest",
    parameters: {
      parameters: [idempotencyKey(idempotencyKeyExample), dryRun],
      requestBody: {
        required: true,
        description: `At most ${limits.bodyBytesMax} bytes, after decompression: it may be sent with Content-Encoding gzip.`,
        content: { "application/json": body },
      },
    },
    successes,
    codes: ["invalid_body", "batch_too_large", "missing_actor", "worker_not_found", "quota_exceeded", "forbidden_scope", ...call.codes],
    sometimes: ["idempotency-replayed", "x-dry-run"],
  });

const ping = operation({
  operationId: "ping",
  summary: "Validate a key and echo the app it belongs to.",
  tag: "ingest",
  successes: { "200": { description: "The key is good.", schema: pingAnswer, example: pingExample } },
  codes: [],
});

const events = storing(
  {
    operationId: "ingestEvents",
    summary: "Ingest one or more events into the monitoring timeline.",
    description:
      "Each event is judged on its own, in order. When all are rejected for the same reason, the request fails with that code.",
    codes: ["forbidden_event_type"],
  },
  { schema: eventsSchema, example: eventsRequestExample },
  "crm-batch-8412",
  {
    "202": { description: "All events were accepted and are durable.", schema: eventsAnswer, example: eventsExample },
    "207": {
      description:
        "Some events were rejected, or all for differing reasons; results.rejected says which and why. The accepted ones are durable.",
      schema: eventsAnswer,
      example: partlyExample,
    },
  },
);

const snapshots = storing(
  {
    operationId: "ingestSnapshot",
    summary: "Replace the current snapshot card for a worker.",
    description:
      "The newest timestamp wins the card; an older snapshot is accepted and kept as history. A snapshot counts as one event of the quota.",
    codes: [],
  },
  { schema: snapshotSchema, example: snapshotRequestExample },
  "crm-snapshot-8412",
  {
    "202": { description: "The snapshot was accepted and is durable.", schema: snapshotAnswer, example: snapshotExample },
  },
);

/** `openapi/v1.yaml`, from the schemas that validate and the tables that answer. */
export function openapiYaml(): string {
  const document = createDocument({
    openapi: "3.1.1",
    info: {
      title: "Ingest",
      version: apiVersion,
      description:
        "Services push events and metric snapshots about their workers into the monitoring timeline. See also the [errors](/docs/errors) and the [limits](/docs/limits).",
      license: { name: "Proprietary", identifier: "LicenseRef-Proprietary" },
    },
    servers: [{ url: "/" }],
    tags: [{ name: "ingest", description: "Send events and snapshots." }, timelineTag],
    components: {
      ...components,
      schemas: { Metric: metricSchema },
      securitySchemes: {
        bearer: {
          type: "http",
          scheme: "bearer",
          bearerFormat: "wp_live_<32 hex>",
          description: "An API key of an app: wp_live_ and 32 hexadecimal digits.",
        },
      },
    },
    paths: {
      [pathOf(Ingest.method.ping)]: { get: ping },
      [pathOf(Ingest.method.events)]: { post: events },
      [pathOf(Ingest.method.snapshots)]: { post: snapshots },
      ...timelinePaths(),
    },
  });
  return stringify(document, { lineWidth: 0, aliasDuplicateObjects: false });
}
