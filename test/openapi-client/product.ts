import createClient from "openapi-fetch";
import type { components, operations, paths } from "./types.d.ts";

/**
 * A caller of the product that generated its types from the product's document and uses the product's names. It
 * compiles unchanged against that document (product.yaml) and against ours.
 */
type Schemas = components["schemas"];

const categories: readonly Schemas["EventCategory"][] = [
  "communication",
  "project_management",
  "code",
  "calendar",
  "design",
  "ai_tools",
  "other",
];

export function actorOf(externalId: string, email?: string): Schemas["Actor"] {
  return email === undefined ? { externalId } : { externalId, email };
}

export function batchOf(types: readonly string[], at: Date): Schemas["IngestEventBatch"] {
  const events = types.map((eventType, i): Schemas["IngestEvent"] => ({
    eventType,
    category: categories[i % categories.length] ?? "other",
    actor: actorOf(`user-${i}`),
    timestamp: at.toISOString(),
    duration: 240,
    metadata: { ticket_id: "SUP-431", nested: { any: [1, "two", null] } },
  }));
  return { events };
}

export function rejectedIndices(answer: Schemas["IngestBatchResponse"]): number[] {
  const { requestId, accepted, rejected, batchLimit, results } = answer;
  const times: string[] = results.accepted.map(({ eventType, timestamp }) => `${eventType} ${timestamp}`);
  console.log(requestId, accepted + rejected, batchLimit, times);
  return results.rejected.map(({ index, code, message }) => (code.length > 0 && message.length > 0 ? index : -1));
}

const snapshot: Schemas["IngestSnapshot"] = {
  snapshotType: "tickets_open",
  actor: actorOf("user-1", "user-1@example.org"),
  metrics: { open: 7, mood: "calm", first_response: { value: 42, unit: "minutes", label: "First response" } },
};

export const nameOf = ({ ok, snapshotType, worker }: Schemas["SnapshotResponse"]): string =>
  `${ok} ${snapshotType} ${worker.id} ${worker.displayName}`;
export const slugOf = ({ ok, organizationId, app }: Schemas["PingResponse"]): string =>
  `${ok} ${organizationId} ${app.id} ${app.slug} ${app.name}`;
export const messageOf = ({ error: { code, message, requestId, docsUrl } }: Schemas["Error"]): string =>
  `${code} ${message} ${requestId} ${docsUrl}`;

export type Key = components["parameters"]["IdempotencyKey"];
export type EventsBody = operations["ingestEvents"]["requestBody"]["content"]["application/json"];
export type SnapshotBody = operations["ingestSnapshot"]["requestBody"]["content"]["application/json"];
export type Pong = operations["ping"]["responses"][200]["content"]["application/json"];

export async function call(baseUrl: string, key: Key): Promise<void> {
  const client = createClient<paths>({ baseUrl });
  const { data: pong, error } = await client.GET("/api/v1/ingest/ping");
  if (error !== undefined) throw new Error(messageOf(error));
  slugOf(pong);
  const header = { "Idempotency-Key": key };
  const body: EventsBody = batchOf(["ticket.resolved"], new Date());
  const { data: batch } = await client.POST("/api/v1/ingest/events", { params: { header }, body });
  if (batch !== undefined) rejectedIndices(batch);
  const { data: card } = await client.POST("/api/v1/ingest/snapshots", { params: { header }, body: snapshot });
  if (card !== undefined) nameOf(card);
}
