import { randomBytes } from "node:crypto";
import { link, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Db } from "mongodb";
import { hashOfKey, hintOfKey } from "../access/principal.ts";
import type { IdSource } from "../ids.ts";
import { appCollection } from "../store/apps.ts";
import { isDuplicateKey } from "../store/database.ts";
import { keyCollection } from "../store/keys.ts";
import { organizationCollection } from "../store/organizations.ts";
import { newApp, newKey, newOrganization } from "./admin.ts";

/** What the demo organisation consists of, as it is kept in DATA_DIR. */
interface DemoRecord {
  readonly organizationId: string;
  readonly appId: string;
  readonly keyId: string;
  readonly key: string;
}

/**
 * The key of the demo organisation, which is made when the database holds no organisation yet. What it is to be is
 * decided first and recorded in a file of DATA_DIR that its owner alone can read; the documents follow from the record.
 * So two processes that start at once make one, and one that was killed between is finished by the next.
 * @returns undefined where there is none: others use the database, or the demo key was revoked.
 */
export async function openDemo(db: Db, ids: IdSource, dataDir: string): Promise<string | undefined> {
  const path = join(dataDir, "demo.json");
  let record = await readRecord(path);
  if (record === undefined) {
    if ((await organizationCollection(db).findOne()) !== null) return undefined;
    record = await writeRecord(path, {
      organizationId: ids.next("org"),
      appId: ids.next("app"),
      keyId: ids.next("key"),
      key: `wp_live_${randomBytes(16).toString("hex")}`,
    });
  }
  await store(db, record);
  const key = await keyCollection(db).findOne({ _id: record.keyId });
  return key === null || key.revokedAt !== null ? undefined : record.key;
}

async function readRecord(path: string): Promise<DemoRecord | undefined> {
  try {
    return JSON.parse(await readFile(path, "utf8")) as DemoRecord;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new Error(`${path} cannot be read (${(error as Error).message}); remove it to start without a demo key`);
  }
}

/** Writes the record unless there is one; answers the one that is there. */
async function writeRecord(path: string, record: DemoRecord): Promise<DemoRecord> {
  const draft = `${path}.${record.keyId}`;
  await writeFile(draft, JSON.stringify(record), { mode: 0o600, flag: "wx", flush: true });
  try {
    // A link, unlike a rename, leaves an existing file: of several at once the first wins, whole.
    await link(draft, path);
    return record;
  } catch (error) {
    const existing = await readRecord(path);
    if (existing === undefined) throw error;
    return existing;
  } finally {
    await rm(draft, { force: true });
  }
}

async function store(db: Db, { organizationId, appId, keyId, key }: DemoRecord): Promise<void> {
  const createdAt = new Date();
  const inserts = [
    organizationCollection(db).insertOne(newOrganization(organizationId, { name: "Demo" }, createdAt)),
    appCollection(db).insertOne(
      newApp(appId, { organizationId, slug: "crm-hub", name: "CRM Hub", allow: ["ticket.*"] }, createdAt),
    ),
    keyCollection(db).insertOne(
      newKey(keyId, { organizationId, appId, hash: hashOfKey(key), hint: hintOfKey(key) }, createdAt),
    ),
  ];
  for (const outcome of await Promise.allSettled(inserts)) {
    // There already: an earlier start, or another process, has stored it.
    if (outcome.status === "rejected" && !isDuplicateKey(outcome.reason)) throw outcome.reason;
  }
}

/**
 * Calls to paste into a shell: the reference's, and the same by gRPC tools that ask the service for its schema.
 * @param certificate file that the tools are to trust, when the URL is https.
 */
export function demoCalls(url: string, key: string, certificate?: string): string {
  const authority = url.replace(/^https?:\/\//, "");
  const trust = certificate === undefined ? "" : ` --cacert ${quoted(certificate)}`;
  const plain = certificate === undefined;
  return `
  export WEPEOPLE_BASE_URL=${url} WEPEOPLE_API_KEY=${key}

  curl${trust} "$WEPEOPLE_BASE_URL/api/v1/ingest/ping" -H "Authorization: Bearer $WEPEOPLE_API_KEY"

  curl${trust} -X POST "$WEPEOPLE_BASE_URL/api/v1/ingest/events" -H "Authorization: Bearer $WEPEOPLE_API_KEY" -H "Content-Type: application/json" -H "Idempotency-Key: crm-batch-8412" -d '{"events":[{"eventType":"ticket.resolved","category":"project_management","actor":{"externalId":"crm-user-42"},"duration":240,"metadata":{"ticket_id":"SUP-431"}}]}'

  grpcurl ${plain ? "-plaintext" : trust.trim().slice(1)} -H "authorization: Bearer $WEPEOPLE_API_KEY" ${authority} ingest.v1.Ingest/Ping

  ${buf} curl ${plain ? "--http2-prior-knowledge" : trust.trim()} -H "Authorization: Bearer $WEPEOPLE_API_KEY" ${url}/ingest.v1.Ingest/Ping
`;
}

/** In a clone buf is a development dependency; elsewhere a bare `npx buf` would run a stranger's package of that name. */
const buf = import.meta.url.includes("/node_modules/") ? "npx --package @bufbuild/buf buf" : "npx buf";

const quoted = (text: string) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
