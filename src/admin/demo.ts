import { createHash } from "node:crypto";
import { link, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Db } from "mongodb";
import { newAccessToken, problemOfAccessToken } from "../access/access-token.ts";
import { hashOfKey, keyPattern, newSecret } from "../access/principal.ts";
import { createIdSource, type IdPrefix } from "../ids.ts";
import { accessTokenCollection } from "../store/access-tokens.ts";
import { appCollection } from "../store/apps.ts";
import { isDuplicateKey } from "../store/database.ts";
import { keyCollection } from "../store/keys.ts";
import { organizationCollection } from "../store/organizations.ts";
import { newApp } from "./apps.ts";
import { newKey } from "./keys.ts";
import { newOrganization } from "./organizations.ts";
import { newToken } from "./tokens.ts";

/**
 * Returns the key of the demo organisation, which it creates in an empty database, with access tokens to administer it.
 *
 * It first writes each secret to a file that only its owner can read, and all ids follow from them. So two processes that
 * start at once create one organisation, and a later start completes what a killed one began.
 * @returns undefined if the database has only other organisations, or the demo key was revoked.
 */
export async function openDemo(db: Db, dataDir: string): Promise<string | undefined> {
  const path = demoKeyPath(dataDir);
  let key = await readSecret(path, aKey);
  if (key === undefined) {
    if ((await organizationCollection(db).findOne()) !== null) return undefined;
    key = await writeSecret(path, aKey, newSecret());
  }
  const [operator, manager] = await Promise.all(
    demoRoles.map(async (role) => {
      const file = demoTokenPath(dataDir, role);
      return (await readSecret(file, aToken)) ?? (await writeSecret(file, aToken, newAccessToken()));
    }),
  );
  await store(db, { key, operator, manager } as Secrets);
  const stored = await keyCollection(db).findOne({ hash: hashOfKey(key) });
  return stored === null || stored.revokedAt !== null ? undefined : key;
}

const demoRoles = ["operator", "manager"] as const;
type DemoRole = (typeof demoRoles)[number];
type Secrets = Readonly<Record<"key" | DemoRole, string>>;

export const demoKeyPath = (dataDir: string) => join(dataDir, "demo-key");
/** The manager's token is for the demo organisation. */
export const demoTokenPath = (dataDir: string, role: DemoRole) => join(dataDir, `demo-${role}-token`);

/** What a file holds. */
interface Form {
  readonly name: string;
  readonly isValid: (text: string) => boolean;
}
const aKey: Form = { name: "a key", isValid: (text) => text.startsWith("wp_live_") && keyPattern.test(text) };
const aToken: Form = { name: "an access token", isValid: (text) => problemOfAccessToken(text) === undefined };

async function readSecret(path: string, form: Form): Promise<string | undefined> {
  try {
    const secret = (await readFile(path, "utf8")).trim();
    if (form.isValid(secret)) return secret;
    throw new Error(`${path} does not hold ${form.name}; remove it`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/** Returns the secret in the file, which it writes if there is none. */
async function writeSecret(path: string, form: Form, secret: string): Promise<string> {
  const draft = `${path}.${process.pid}`;
  await writeFile(draft, `${secret}\n`, { mode: 0o600, flush: true });
  try {
    // A link does not replace an existing file, as a rename would. The first of several processes wins.
    await link(draft, path);
    return secret;
  } catch (error) {
    const existing = await readSecret(path, form);
    if (existing === undefined) throw error;
    return existing;
  } finally {
    await rm(draft, { force: true });
  }
}

async function store(db: Db, { key, operator, manager }: Secrets): Promise<void> {
  const createdAt = new Date();
  const organizationId = idFrom(key, "org");
  const appId = idFrom(key, "app");
  const app = newApp(appId, { organizationId, slug: "crm-hub", name: "CRM Hub", allow: ["ticket.*"] }, createdAt);
  const token = (secret: string, role: DemoRole, settings: object) =>
    newToken(idFrom(secret, "tok"), { name: `Demo ${role}`, role, ...settings }, createdAt, secret).document;
  const inserts = [
    organizationCollection(db).insertOne(newOrganization(organizationId, { name: "Demo" }, createdAt)),
    appCollection(db).insertOne(app),
    keyCollection(db).insertOne(newKey(idFrom(key, "key"), app, {}, createdAt, key).document),
    accessTokenCollection(db).insertOne(token(operator, "operator", {})),
    accessTokenCollection(db).insertOne(token(manager, "manager", { organizationId })),
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
