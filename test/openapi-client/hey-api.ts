import { createClient } from "./hey-api/client/index.js";
import { ingestEvents, ingestSnapshot, listEvents, ping, watchEvents } from "./hey-api/sdk.gen.js";
import type { IngestEvent, IngestEventBatch } from "./hey-api/types.gen.js";

/** A caller with functions generated from the published document, one for each call, named after its operation. */
const [baseUrl = "", key = "", readKey = ""] = process.argv.slice(2);
const client = createClient({ baseUrl, auth: key });
const reader = createClient({ baseUrl, auth: readKey });

const { data: pong } = await ping({ client });
const event: IngestEvent = { eventType: "ticket.resolved", category: "code", actor: { externalId: "hey-1" } };
const body: IngestEventBatch = { events: [event, { ...event, eventType: "deploy.shipped" }] };
const { data: batch, response } = await ingestEvents({ client, body, headers: { "Idempotency-Key": "hey-api-1" } });
const { data: card } = await ingestSnapshot({
  client,
  body: { snapshotType: "tickets_open", actor: { externalId: "hey-1" }, metrics: { age: { value: 3, unit: "count" } } },
});
const { error } = await ping({ client, auth: "wrong" });
const { data: page } = await listEvents({ client: reader, query: { kind: "event", pageSize: 1 } });
// The first message of a stream, without waiting for its end.
const { data: stream } = await watchEvents({ client: reader, parseAs: "stream" });
const lines = (stream as unknown as ReadableStream<BufferSource>).pipeThrough(new TextDecoderStream()).getReader();
const { value: line = "" } = await lines.read();
await lines.cancel();

console.log(
  JSON.stringify({
    slug: pong?.app.slug,
    status: response?.status,
    rejectedCode: batch?.results.rejected[0]?.code,
    workerId: card?.worker.id,
    code: error?.error.code,
    listed: page?.events[0]?.type,
    watched: typeof JSON.parse(line).resumeToken,
  }),
);
