import { createHash, randomBytes } from "node:crypto";
import { link, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Db } from "mongodb";
import { hashOfKey, hintOfKey, keyPattern } from "../access/principal.ts";
import { createIdSource, type IdPrefix } from "../ids.ts";
import { appCollection } from "../store/apps.ts";
import { isDuplicateKey } from "../store/database.ts";
import { keyCollection } from "../store/keys.ts";
import { organizationCollection } from "../store/organizations.ts";
import { newApp, newKey, newOrganization } from "./admin.ts";

/**
 * The key of the demo organisation, which is made when the database holds no organisation yet. The key is recorded first,
 * in a file of DATA_DIR that its owner alone can read, and everything else follows from it, ids included. So two processes
 * that start at once make one organisation, and one that was killed between is finished by the next.
 * @returns undefined where there is none: others use the database, or the demo key was revoked.
 */
export async function openDemo(db: Db, dataDir: string): Promise<string | undefined> {
  const path = join(dataDir, "demo-key");
  let key = await readKey(path);
  if (key === undefined) {
    if ((await organizationCollection(db).findOne()) !== null) return undefined;
    key = await writeKey(path, `wp_live_${randomBytes(16).toString("hex")}`);
  }
  await store(db, key);
  const stored = await keyCollection(db).findOne({ hash: hashOfKey(key) });
  return stored === null || stored.revokedAt !== null ? undefined : key;
}

async function readKey(path: string): Promise<string | undefined> {
  try {
    const key = (await readFile(path, "utf8")).trim();
    if (keyPattern.test(key)) return key;
    throw new Error(`${path} does not hold a key; remove it`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/** Writes the key unless there is one; answers the one that is there. */
async function writeKey(path: string, key: string): Promise<string> {
  const draft = `${path}.${process.pid}`;
  await writeFile(draft, `${key}\n`, { mode: 0o600, flush: true });
  try {
    // A link, unlike a rename, leaves an existing file: of several at once the first wins, whole.
    await link(draft, path);
    return key;
  } catch (error) {
    const existing = await readKey(path);
    if (existing === undefined) throw error;
    return existing;
  } finally {
    await rm(draft, { force: true });
  }
}

async function store(db: Db, key: string): Promise<void> {
  const createdAt = new Date();
  const organizationId = idFrom(key, "org");
  const appId = idFrom(key, "app");
  const app = { organizationId, slug: "crm-hub", name: "CRM Hub", allow: ["ticket.*"] };
  const credentials = { organizationId, appId, hash: hashOfKey(key), hint: hintOfKey(key) };
  const inserts = [
    organizationCollection(db).insertOne(newOrganization(organizationId, { name: "Demo" }, createdAt)),
    appCollection(db).insertOne(newApp(appId, app, createdAt)),
    keyCollection(db).insertOne(newKey(idFrom(key, "key"), credentials, createdAt)),
  ];
  for (const outcome of await Promise.allSettled(inserts)) {
    // There already: an earlier start, or another process, has stored it.
    if (outcome.status === "rejected" && !isDuplicateKey(outcome.reason)) throw outcome.reason;
  }
}

/** An id that follows from the key: a source whose time is 0 and whose random bits are the key's hash. */
function idFrom(key: string, prefix: IdPrefix): string {
  const bits = createHash("sha256").update(`${prefix} of ${key}`).digest();
  return createIdSource(
    () => 0,
    (bytes) => void bits.copy(bytes),
  ).next(prefix);
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
