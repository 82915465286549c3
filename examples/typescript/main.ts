// Sends two events over gRPC, retries until the service has answered, and prints each event's result.
import { randomUUID } from "node:crypto";
import { setTimeout as wait } from "node:timers/promises";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { RetryInfoSchema } from "./gen/ts/google/rpc/error_details_pb.js";
import { type EventsResponse, EventCategory, Ingest } from "./gen/ts/ingest/v1/ingest_pb.js";

const { WEPEOPLE_BASE_URL: baseUrl = "", WEPEOPLE_API_KEY: apiKey } = process.env;
const client = createClient(Ingest, createGrpcTransport({ baseUrl }));
const actor = { id: { case: "externalId", value: "crm-user-42" } } as const;
const category = EventCategory.PROJECT_MANAGEMENT;

/** How long to wait before the next try, in seconds; undefined where a retry cannot help. */
function retryDelay(error: ConnectError, tries: number): number | undefined {
  const [info] = error.findDetails(RetryInfoSchema);
  if (info?.retryDelay !== undefined) return Number(info.retryDelay.seconds);
  // The connection broke, or no answer came in time.
  if (![Code.Unavailable, Code.DeadlineExceeded, Code.Aborted, Code.Canceled].includes(error.code)) return undefined;
  return 0.2 * 2 ** tries * (0.5 + Math.random());
}

async function send(): Promise<EventsResponse> {
  // The same key on every try: the service stores the batch once, however often it arrives.
  const headers = { authorization: `Bearer ${apiKey}`, "idempotency-key": randomUUID() };
  const events = [
    { eventType: "ticket.resolved", category, actor, duration: 240 },
    { eventType: "deploy.finished", category, actor },
  ];
  for (let tries = 1; ; tries++) {
    try {
      return await client.events({ events }, { headers, timeoutMs: 10_000 });
    } catch (thrown) {
      const error = ConnectError.from(thrown);
      const seconds = retryDelay(error, tries);
      if (seconds === undefined || tries === 6) throw error;
      console.error(`try ${tries} failed (${Code[error.code]}); next in ${seconds.toFixed(1)} s`);
      await wait(seconds * 1000);
    }
  }
}

const { accepted, results } = await send();
console.log(`accepted ${accepted}`);
for (const { index, code, message } of results?.rejected ?? []) console.log(`rejected ${index} ${code}: ${message}`);
