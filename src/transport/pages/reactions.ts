import type { ErrorCode } from "../../errors.ts";

/** What to send instead, as commands that work: over REST and over gRPC. They take the key from the environment. */
export interface Reaction {
  /** For whoever administers the organisation; undefined where the caller can help itself. */
  readonly operator?: string;
  readonly rest: string;
  readonly grpc: string;
}

const authorization = '-H "Authorization: Bearer $WEPEOPLE_API_KEY"';

const restGet = (publicUrl: string, path: string, flags = "") =>
  `curl -sS${flags} "${publicUrl}${path}" \\\n  ${authorization}`;

const restPost = (publicUrl: string, call: string, body: string, key: string, flags = "") =>
  `curl -sS${flags} "${publicUrl}/api/v1/ingest/${call}" \\
  ${authorization} \\
  -H "Content-Type: application/json" \\
  -H "Idempotency-Key: ${key}" \\
  -d '${body}'`;

function grpc(publicUrl: string, rpc: string, body?: string, key?: string): string {
  const { protocol, host, port } = new URL(publicUrl);
  const plain = protocol === "http:";
  const address = port === "" ? `${host}:${plain ? 80 : 443}` : host;
  const flags = [
    authorization,
    ...(key === undefined ? [] : [`-H "Idempotency-Key: ${key}"`]),
    ...(body === undefined ? [] : [`-d '${body}'`]),
    `${address} ingest.v1.${rpc}`,
  ];
  return `grpcurl${plain ? " -plaintext" : ""} ${flags.join(" \\\n  ")}`;
}

const event = (actor: string, more = "") =>
  `{"events": [{
    "eventType": "ticket.resolved",
    "category": "support",
    "actor": ${actor}${more}
  }]}`;
const eventMessage = (actor: string, more = "") => event(actor, more).replace('"support"', '"EVENT_CATEGORY_SUPPORT"');

/** A call that is answered when all is well. */
const ping = (publicUrl: string, operator?: string): Reaction => ({
  ...(operator === undefined ? {} : { operator }),
  rest: restGet(publicUrl, "/api/v1/ingest/ping"),
  grpc: grpc(publicUrl, "Ingest/Ping"),
});

const send = (publicUrl: string, key: string, actor: string, more = "", operator?: string, flags = ""): Reaction => ({
  ...(operator === undefined ? {} : { operator }),
  rest: restPost(publicUrl, "events", event(actor, more), key, flags),
  grpc: grpc(publicUrl, "Ingest/Events", eventMessage(actor, more), key),
});

const someone = '{"externalId": "crm-user-42"}';
/** curl waits as long as Retry-After says, and twice as long each time where it says nothing. */
const retrying = " --retry 5 --retry-connrefused";

/** The right reaction to each code. @param publicUrl where the service is reached. */
export const reactions: Readonly<Record<ErrorCode, (publicUrl: string) => Reaction>> = {
  missing_authorization: (url) => ping(url),
  invalid_key: (url) => ping(url, "ingest key create --app app_…"),
  key_revoked: (url) => ping(url, "ingest key create --app app_…"),
  key_expired: (url) => ping(url, "ingest key create --app app_… --expires 2030-01-01T00:00:00Z"),
  plan_disabled: (url) => ping(url, "ingest org update org_… --api"),
  quota_exceeded: (url) => send(url, "after-quota", someone, "", "ingest org update org_… --quota 2000000"),
  rate_limited: (url) => send(url, "after-rate", someone, "", undefined, retrying),
  forbidden_event_type: (url) => send(url, "after-type", someone, "", "ingest app allow app_… deploy.shipped"),
  invalid_body: (url) => send(url, "after-body", someone, ',\n    "duration": 240'),
  batch_too_large: (url) => send(url, "import-part-1", someone),
  missing_actor: (url) => send(url, "after-actor", '{"email": "alex@example.com"}'),
  worker_not_found: (url) => send(url, "after-worker", '{"email": "alex@example.com"}'),
  internal_error: (url) => send(url, "after-failure", someone, "", undefined, retrying),
  forbidden_scope: (url) => ping(url, "ingest key create --app app_… --scope read"),
  not_found: (url) => ({ rest: `curl -sS "${url}/openapi/v1.yaml"`, grpc: grpc(url, "Ingest/Ping") }),
  method_not_allowed: (url) => ping(url),
};
