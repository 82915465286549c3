import { stringify } from "yaml";
import { errorTable, rejectionCodes } from "../errors.ts";
import { Ingest } from "../gen/ingest/v1/ingest_pb.js";
import { eventsSchema, idempotencyKeySchema, snapshotSchema } from "../ingest/schema.ts";
import { named, optional } from "../ingest/shapes.ts";
import type { JsonSchema, Shape } from "../ingest/validate.ts";
import { apiVersion, limits } from "../limits.ts";
import {
  answer,
  components,
  exampleId,
  list,
  operation,
  type OperationOptions,
  pathOf,
  requestId,
  said,
  type Success,
  text,
  time,
  unticked,
  worker,
} from "./parts.ts";
import { timelinePaths, timelineTag } from "./timeline.ts";

/**
 * Describes the answers; the requests use the shapes that validate them. The examples are those of the API reference.
 */

const ok = said({ type: "boolean", const: true });

const pingAnswer = answer("PingResponse", "The organisation and the app of the key.", {
  ok,
  organizationId: text("The organisation that the key belongs to: org_ and a ULID."),
  app: answer("App", "The app that the key belongs to.", {
    id: text("app_ and a ULID."),
    slug: text("Short name, unique in the organisation."),
    name: text("The name to show."),
  }),
});

const pingExample = {
  ok: true,
  organizationId: exampleId("org"),
  app: { id: exampleId("app"), slug: "crm-hub", name: "CRM Hub" },
};

const rejectedEvent = answer("RejectedEvent", "An event that was not stored.", {
  index: said({
    type: "integer",
    minimum: 0,
    maximum: limits.eventsMax - 1,
    description: "Position in the request, from 0.",
  }),
  code: named("RejectionCode", "Why an event was rejected.", said({ type: "string", enum: rejectionCodes })),
  message: text("The reason as text for people. The wording may change."),
});

const acceptedEvent = answer("AcceptedEvent", "An event that is stored.", {
  eventType: text("As sent."),
  timestamp: time("As sent, to the millisecond, or the time of receipt."),
  eventId: optional(text("As sent; only of events that were sent with one.")),
  duplicate: optional(
    said({ type: "boolean", description: "True if an event with this id was stored before; this one was not stored." }),
  ),
  conflict: optional(
    said({ type: "boolean", description: "True if the stored event has other content. It stays as it is." }),
  ),
});

const count = (description: string) =>
  said({ type: "integer", minimum: 0, maximum: limits.eventsMax, description });

const eventsAnswer = answer("IngestBatchResponse", "The result of a batch.", {
  requestId,
  accepted: count("Number of accepted events."),
  rejected: count("Number of rejected events."),
  batchLimit: said({
    type: "integer",
    const: limits.eventsMax,
    description: "The most events that one batch may have.",
  }),
  results: answer("IngestBatchResults", "The outcome of each event.", {
    accepted: list("In request order.", acceptedEvent),
    rejected: list("In request order.", rejectedEvent),
  }),
});

const acceptedExample = { eventType: "ticket.resolved", timestamp: "2026-04-19T12:05:00Z" };
const eventsExample = {
  requestId: exampleId("req"),
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

const snapshotAnswer = answer("SnapshotResponse", "The result of a snapshot.", {
  requestId,
  ok,
  snapshotType: text("As sent."),
  worker,
});

const snapshotExample = {
  requestId: exampleId("req"),
  ok: true,
  snapshotType: "tickets_open",
  worker: { id: exampleId("wrk"), displayName: "Alex Chen" },
};
const snapshotRequestExample = {
  snapshotType: "tickets_open",
  actor: { externalId: "crm-user-42", displayName: "Alex Chen" },
  metrics: { open: 7, mood: "calm", first_response: { value: 42, unit: "minutes", label: "First response" } },
};

const minutes = limits.idempotencyWindowSeconds / 60;
const parameters = {
  IdempotencyKey: {
    name: "Idempotency-Key",
    in: "header",
    required: false,
    description: `Makes the request safe to retry. For ${minutes} minutes, the same request with the same key gets the first answer again, byte for byte, and stores nothing. A different request with the same key fails with \`invalid_body\`.`,
    schema: idempotencyKeySchema,
    examples: unticked("crm-batch-8412"),
  },
  DryRun: {
    name: "X-Dry-Run",
    in: "header",
    required: false,
    description:
      "true: get the usual answer, but store nothing, use no quota and claim no Idempotency-Key. A worker that the request would create has an empty id in the answer. `X-Ignored-Members` names the members of the body that Ingest does not know.",
    schema: { type: "string", enum: ["true", "false"] },
    examples: unticked("true"),
  },
} as const;

/** A call that stores its body. */
const storing = (
  call: Pick<OperationOptions, "operationId" | "summary" | "description" | "codes">,
  body: { readonly shape: Shape<unknown>; readonly example: object },
  successes: Readonly<Record<string, Success>>,
) =>
  operation({
    ...call,
    tag: "ingest",
    parameters: Object.keys(parameters).map((name) => ({ $ref: `#/components/parameters/${name}` })),
    requestBody: {
      required: true,
      description: `At most ${limits.bodyBytesMax} bytes after decompression; Content-Encoding may be gzip. An optional member that is null counts as missing. Unknown members are ignored.`,
      content: { "application/json": { schema: body.shape.schema, example: body.example } },
    },
    successes,
    codes: [
      "invalid_body",
      "batch_too_large",
      "missing_actor",
      "worker_not_found",
      "quota_exceeded",
      "forbidden_scope",
      ...call.codes,
    ],
    sometimes: ["idempotency-replayed", "x-dry-run", "x-ignored-members"],
  });

const ping = operation({
  operationId: "ping",
  summary: "Check a key",
  description: "Validate a key and echo the app it belongs to. Ping stores nothing and uses no quota.",
  tag: "ingest",
  successes: { "200": { description: "The key is valid.", shape: pingAnswer, example: pingExample } },
  codes: ["forbidden_scope", "invalid_body"],
});

const events = storing(
  {
    operationId: "ingestEvents",
    summary: "Send events",
    description:
      "Ingest one or more events into the monitoring timeline. Ingest accepts or rejects each event on its own, in order. When it rejects all of them with the same code, the request fails with that code.",
    codes: ["forbidden_event_type"],
  },
  { shape: eventsSchema, example: eventsRequestExample },
  {
    "202": { description: "All events were accepted and are durable.", shape: eventsAnswer, example: eventsExample },
    "207": {
      description:
        "Some events were rejected, or all of them with different codes. results.rejected says which and why. The accepted events are durable.",
      shape: eventsAnswer,
      example: partlyExample,
    },
  },
);

const snapshots = storing(
  {
    operationId: "ingestSnapshot",
    summary: "Send a snapshot",
    description:
      "Replace the current snapshot card for a worker. The newest timestamp wins the card. Ingest accepts an older snapshot and keeps it as history. A snapshot counts as one event of the quota.",
    codes: [],
  },
  { shape: snapshotSchema, example: snapshotRequestExample },
  {
    "202": { description: "The snapshot was accepted and is durable.", shape: snapshotAnswer, example: snapshotExample },
  },
);

/** The OpenAPI document, made from the shapes that validate requests and from the tables of errors and headers. */
export function openapiDocument(): object {
  const timeline = timelinePaths();
  const shapes: readonly Shape<unknown>[] = [
    ...[eventsSchema, snapshotSchema, pingAnswer, eventsAnswer, snapshotAnswer],
    ...timeline.shapes,
  ];
  const schemas: Record<string, JsonSchema> = Object.assign(
    {},
    components.schemas,
    ...shapes.map(({ definitions }) => definitions),
  );
  return {
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
    paths: {
      [pathOf(Ingest.method.ping)]: { get: ping },
      [pathOf(Ingest.method.events)]: { post: events },
      [pathOf(Ingest.method.snapshots)]: { post: snapshots },
      ...timeline.paths,
    },
    components: {
      ...components,
      parameters,
      schemas,
      securitySchemes: {
        bearerAuth: {
          type: "http",
          scheme: "bearer",
          bearerFormat: "wp_live_<32 hex>",
          description: "An API key of an app: wp_live_ and 32 hexadecimal digits. A test key begins with wp_test_.",
        },
      },
    },
  };
}

/** A document as YAML, quoted for YAML 1.1: many generators would read some plain texts as dates or booleans. */
export const yamlOf = (document: object): string =>
  stringify(document, { lineWidth: 0, aliasDuplicateObjects: false, compat: "yaml-1.1" });

export const jsonOf = (document: object): string => `${JSON.stringify(document, undefined, 2)}\n`;
