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
 * Returns the key of the demo organisation, which it creates in an empty database.
 *
 * It first writes the key to a file that only its owner can read, and all ids follow from it. So two processes that
 * start at once create one organisation, and a later start completes what a killed one began.
 * @returns undefined if the database has only other organisations, or the demo key was revoked.
 */
export async function openDemo(db: Db, dataDir: string): Promise<string | undefined> {
  const path = demoKeyPath(dataDir);
  let key = await readKey(path);
  if (key === undefined) {
    if ((await organizationCollection(db).findOne()) !== null) return undefined;
    key = await writeKey(path, `wp_live_${randomBytes(16).toString("hex")}`);
  }
  await store(db, key);
  const stored = await keyCollection(db).findOne({ hash: hashOfKey(key) });
  return stored === null || stored.revokedAt !== null ? undefined : key;
}

export const demoKeyPath = (dataDir: string) => join(dataDir, "demo-key");

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

/** Returns the key in the file, which it writes if there is none. */
async function writeKey(path: string, key: string): Promise<string> {
  const draft = `${path}.${process.pid}`;
  await writeFile(draft, `${key}\n`, { mode: 0o600, flush: true });
  try {
    // A link does not replace an existing file, as a rename would. The first of several processes wins.
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
    // An earlier start or another process has stored it.
    if (outcome.status === "rejected" && !isDuplicateKey(outcome.reason)) throw outcome.reason;
  }
}

/** The key's hash replaces the random bits, so that each start makes the same id. */
function idFrom(key: string, prefix: IdPrefix): string {
  const bits = createHash("sha256").update(`${prefix} of ${key}`).digest();
  return createIdSource(
    () => 0,
    (bytes) => void bits.copy(bytes),
  ).next(prefix);
}
