import createClient from "openapi-fetch";
import type { components, paths } from "./types.d.ts";

/**
 * A caller in TypeScript, compiled against the types of the published document, and run against the service. A line
 * below `@ts-expect-error` is a call that must not compile.
 */
const [baseUrl = "", key = ""] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });

const { data: pong } = await client.GET("/api/v1/ingest/ping");
const slug: string | undefined = pong?.app.slug;

const { data: batch, response } = await client.POST("/api/v1/ingest/events", {
  params: { header: { "Idempotency-Key": "openapi-client-1" } },
  body: {
    events: [
      {
        eventType: "ticket.resolved",
        category: "project_management",
        actor: { email: "a@example.com" },
        duration: 240,
      },
      { eventType: "deploy.shipped", category: "code", actor: { externalId: "u-1" }, metadata: { sha: "1f3" } },
    ],
  },
});
const [rejected] = batch?.results.rejected ?? [];
const rejectedCode: "missing_actor" | "forbidden_event_type" | "worker_not_found" | "quota_exceeded" | undefined =
  rejected?.code;

const metrics: Record<string, components["schemas"]["Metric"]> = {
  open: 7,
  mood: "calm",
  age: { value: 3, unit: "count" },
};
const { data: card } = await client.POST("/api/v1/ingest/snapshots", {
  body: { snapshotType: "tickets_open", actor: { externalId: "u-1" }, metrics },
});
const workerId: string | undefined = card?.worker.id;

const { error } = await client.GET("/api/v1/ingest/ping", { headers: { Authorization: "Bearer wrong" } });
const code: components["schemas"]["Error"]["error"]["code"] | undefined = error?.error.code;

console.log(JSON.stringify({ slug, status: response.status, rejectedCode, workerId, code }));

/** Never called: it only has to be wrong. */
export async function wrong(): Promise<void> {
  // @ts-expect-error: there is no such path
  await client.GET("/api/v1/ingest/pong");
  // @ts-expect-error: the events are missing
  await client.POST("/api/v1/ingest/events", { body: {} });
  await client.POST("/api/v1/ingest/events", {
    body: {
      events: [
        // @ts-expect-error: no such category
        { eventType: "ticket.resolved", category: "gardening", actor: {} },
        // @ts-expect-error: a duration is a number
        { eventType: "ticket.resolved", category: "project_management", actor: {}, duration: "240" },
      ],
    },
  });
  await client.POST("/api/v1/ingest/snapshots", {
    // @ts-expect-error: a metric is a number, a label or a measure with a value
    body: { snapshotType: "tickets_open", actor: {}, metrics: { open: { unit: "count" } } },
  });
  // @ts-expect-error: an error has no such code
  const never: typeof code = "out_of_coffee";
  console.log(never);
}
