import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Admin } from "./admin.ts";

/** The key of the demo organisation: made on the first start, kept in a file that its owner alone can read. */
export async function demoKey(admin: Admin, dataDir: string): Promise<string | undefined> {
  const path = join(dataDir, "demo-key");
  try {
    return (await readFile(path, "utf8")).trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  if ((await admin.listOrganizations()).length > 0) return undefined;
  const organization = await admin.createOrganization({ name: "Demo" });
  const app = await admin.createApp(organization.id, "crm-hub", "CRM Hub", ["ticket.*"]);
  const { key } = await admin.createKey(app.id);
  await writeFile(path, `${key}\n`, { mode: 0o600 });
  return key;
}

/** Calls to paste into a shell: the reference's, and the same by gRPC tools that ask the service for its schema. */
export function demoCalls(url: string, key: string): string {
  const authority = url.replace(/^https?:\/\//, "");
  return `
  export WEPEOPLE_BASE_URL=${url} WEPEOPLE_API_KEY=${key}

  curl "$WEPEOPLE_BASE_URL/api/v1/ingest/ping" -H "Authorization: Bearer $WEPEOPLE_API_KEY"

  curl -X POST "$WEPEOPLE_BASE_URL/api/v1/ingest/events" -H "Authorization: Bearer $WEPEOPLE_API_KEY" -H "Content-Type: application/json" -H "Idempotency-Key: crm-batch-8412" -d '{"events":[{"eventType":"ticket.resolved","category":"project_management","actor":{"externalId":"crm-user-42"},"duration":240,"metadata":{"ticket_id":"SUP-431"}}]}'

  grpcurl -plaintext -H "authorization: Bearer $WEPEOPLE_API_KEY" ${authority} ingest.v1.Ingest/Ping

  npx buf curl --http2-prior-knowledge -H "Authorization: Bearer $WEPEOPLE_API_KEY" ${url}/ingest.v1.Ingest/Ping
`;
}
