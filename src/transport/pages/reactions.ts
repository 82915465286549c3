import type { ErrorCode } from "../../errors.ts";

/** The fix as working commands, over REST and over gRPC. They read the key from the environment. */
export interface Reaction {
  /** A command for the operator; undefined if the caller can fix it alone. */
  readonly operator?: string;
  readonly rest: string;
  readonly grpc: string;
}

const bearer = (variable = "WEPEOPLE_API_KEY") => `-H "Authorization: Bearer $${variable}"`;
const lines = (...parts: readonly string[]) => parts.join(" \\\n  ");

/** A call with grpcurl. @param rpc service and method, as `Ingest/Ping` */
export function grpcurl(publicUrl: string, rpc: string, flags: readonly string[]): string {
  const { protocol, host, port } = new URL(publicUrl);
  const plain = protocol === "http:";
  const address = port === "" ? `${host}:${plain ? 80 : 443}` : host;
  return lines(`grpcurl${plain ? " -plaintext" : ""}`, ...flags, `${address} ingest.v1.${rpc}`);
}

/** A Ping that succeeds once the problem is fixed. @param first what the reader does before it */
const ping = (publicUrl: string, first: string, operator?: string): Reaction => ({
  ...(operator === undefined ? {} : { operator }),
  rest: `# ${first}\n${lines(`curl -sS "${publicUrl}/api/v1/ingest/ping"`, bearer())}`,
  grpc: `# ${first}\n${grpcurl(publicUrl, "Ingest/Ping", [bearer()])}`,
});

interface SendOptions {
  readonly idempotencyKey: string;
  /** As JSON. */
  readonly actor?: string;
  /** Further members of the event, as JSON. */
  readonly more?: string;
  readonly operator?: string;
  /** Whether to try again until it succeeds. */
  readonly retry?: boolean;
}

function send(publicUrl: string, options: SendOptions): Reaction {
  const { idempotencyKey, actor = '{"externalId": "crm-user-42"}', more = "", operator, retry = false } = options;
  const body = (category: string) => `-d '{"events": [{
    "eventType": "ticket.resolved",
    "category": "${category}",
    "actor": ${actor}${more}
  }]}'`;
  const headers = [bearer(), `-H "Idempotency-Key: ${idempotencyKey}"`];
  const rest = lines(
    // curl waits as long as Retry-After says; without it, curl doubles its wait each time.
    `curl -sS${retry ? " --retry 5 --retry-connrefused" : ""} "${publicUrl}/api/v1/ingest/events"`,
    ...headers,
    '-H "Content-Type: application/json"',
    body("project_management"),
  );
  const grpc = grpcurl(publicUrl, "Ingest/Events", [...headers, body("EVENT_CATEGORY_PROJECT_MANAGEMENT")]);
  return {
    ...(operator === undefined ? {} : { operator }),
    rest,
    grpc: retry ? `for seconds in 1 2 4 8 16; do\n  ${grpc} && break\n  sleep $seconds\ndone` : grpc,
  };
}

const read = (publicUrl: string, operator: string): Reaction => ({
  operator,
  rest: lines(`curl -sS "${publicUrl}/api/v1/timeline/events"`, bearer("WEPEOPLE_READ_KEY")),
  grpc: grpcurl(publicUrl, "Timeline/ListEvents", [bearer("WEPEOPLE_READ_KEY")]),
});

/** A call of administration with buf curl, which reads the schema from the service. @param message as protobuf JSON */
export function bufCurl(url: string, rpc: string, message: unknown): string {
  const plain = url.startsWith("https:") ? "" : " --http2-prior-knowledge";
  const data = JSON.stringify(message);
  return lines(
    `buf curl${plain} "${url}/ingest.admin.v1.Admin/${rpc}"`,
    bearer("INGEST_TOKEN"),
    ...(data === "{}" ? [] : [`-d '${data}'`]),
  );
}

/** Reads with an access token from the address that serves administration. */
const administer = (first: string): Reaction => ({
  rest: `# ${first}\n${lines('curl -sS "$INGEST_URL/api/v1/admin/organizations"', bearer("INGEST_TOKEN"))}`,
  grpc: `# ${first}\n${lines(
    "grpcurl -plaintext",
    bearer("INGEST_TOKEN"),
    '"${INGEST_URL#http://}" ingest.admin.v1.Admin/ListOrganizations',
  )}`,
});

const setNewKey = "Put the new key into WEPEOPLE_API_KEY, then check it:";
const newKey = "ingest key create --app app_…";
const byEmail = '{"email": "alex@example.com"}';

/** An example fix for each code. The argument is the service's public address. */
export const reactions: Readonly<Record<ErrorCode, (publicUrl: string) => Reaction>> = {
  missing_authorization: (url) => ping(url, "Send the Authorization header:"),
  invalid_key: (url) => ping(url, "Put the whole key, or a new one, into WEPEOPLE_API_KEY, then check it:", newKey),
  key_revoked: (url) => ping(url, setNewKey, newKey),
  key_expired: (url) => ping(url, setNewKey, `${newKey} --expires 2030-01-01T00:00:00Z`),
  plan_disabled: (url) => ping(url, "Once the plan includes the API:", "ingest org update org_… --api"),
  quota_exceeded: (url) =>
    send(url, { idempotencyKey: "crm-batch-1", operator: "ingest org update org_… --quota 2000000" }),
  rate_limited: (url) => send(url, { idempotencyKey: "crm-batch-2", retry: true }),
  forbidden_event_type: (url) =>
    send(url, { idempotencyKey: "crm-batch-3", operator: "ingest app allow app_… deploy.shipped" }),
  invalid_body: (url) => send(url, { idempotencyKey: "crm-batch-4", more: ',\n    "duration": 240' }),
  batch_too_large: (url) => send(url, { idempotencyKey: "crm-batch-5-part-1" }),
  missing_actor: (url) => send(url, { idempotencyKey: "crm-batch-6", actor: byEmail }),
  worker_not_found: (url) => send(url, { idempotencyKey: "crm-batch-7", actor: byEmail }),
  internal_error: (url) => send(url, { idempotencyKey: "crm-batch-8", retry: true }),
  forbidden_scope: (url) => read(url, `${newKey} --scope read`),
  not_found: (url) => ({
    ...ping(url, "Take the RPC's name from the proto file:"),
    rest: `# List the paths of the API:\ncurl -sS "${url}/openapi/v1.yaml"`,
  }),
  method_not_allowed: (url) => ping(url, "Ping is a GET:"),
  already_exists: () => administer("Find the object that has it:"),
  conflict: () => administer("Read the object again, with its new etag:"),
  failed_precondition: () => administer("Look at the object's state:"),
};
