import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Db, type Document, type IndexDescription, MongoClient, type MongoServerError } from "mongodb";
import { hashOfKey } from "../../src/access/principal.ts";
import { cards } from "../../src/store/snapshots.ts";
import { claims } from "../../src/store/idempotency.ts";
import { migrate } from "../../src/store/migrations.ts";
import { collections } from "../../src/store/collections.ts";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";
import { apps } from "../../src/store/apps.ts";
import { events } from "../../src/store/events.ts";
import { keys } from "../../src/store/keys.ts";
import { organizations } from "../../src/store/organizations.ts";
import type { PeerKey } from "./peers/by-hand.ts";
import { peerEvents } from "./peers/rows.ts";
import { ReplicaSet } from "../fault/replica-set.ts";
import { Served } from "./processes.ts";
import { Setup } from "../support/setup.ts";

const pathOf = (relative: string) => new URL(relative, import.meta.url).pathname;
const root = pathOf("../../");

function startFlagsOf(checkout: string): readonly string[] {
  const { scripts } = JSON.parse(readFileSync(join(checkout, "package.json"), "utf8"));
  return scripts.start.match(/--\S+/g) ?? [];
}

/** Node's flags in `npm start`. They keep the heap small even if there is room. */
export const startFlags = startFlagsOf(root);

/** The database of a run, and the programs that use it. */
export interface Stage {
  readonly uri: string;
  readonly members: Members;
  readonly client: MongoClient;
  /** Admits the bench's tenant at the service and at the peers. */
  readonly authorization: string;
  /** The service on the database `ingest`; further ones share it. */
  startService(env?: Record<string, string>, args?: readonly string[]): Promise<Served>;
  /** The service of another checkout, on its own database with the same tenant. */
  startOther(checkout: string, database: string): Promise<Served>;
  startPeer(name: "fastify" | "grpc-js" | "bare" | "driver"): Promise<Served>;
  /** Events stored in the database of the service or of a peer. */
  stored(database: string): Promise<number>;
  /** Empties the collections that the load fills, in every database. */
  clear(): Promise<void>;
  close(): Promise<void>;
}

/** Above every load of a bench. */
const unlimited = 1_000_000_000;
const filled = [events, cards, claims];
/** The names of collections with events: of the service, of peers and of older versions. */
const eventCollections = [events.name, peerEvents.name];

/** The members of the replica set in a bench: the embedded database is one, and most operators run three. */
export type Members = 1 | 3;

/** The option `--members`. Ends the process if it is neither. */
export function membersOf(option: string): Members {
  if (option === "1" || option === "3") return option === "3" ? 3 : 1;
  console.error(`--members must be 1 or 3; it is '${option}'.`);
  process.exit(2);
}

interface BenchDatabase {
  readonly uri: string;
  close(): Promise<void>;
}

/** A new mongod, as the service embeds it. */
async function openOne(): Promise<BenchDatabase> {
  const dataDir = await mkdtemp(join(tmpdir(), "ingest-bench-"));
  const { uri, close } = await openEmbeddedDatabase({ dataDir, env: process.env, report: () => {} });
  return { uri, close: () => close().then(() => rm(dataDir, { recursive: true, force: true })) };
}

/** A new replica set. A member may be silent under load for as long as MongoDB allows by default. */
async function openThree(): Promise<BenchDatabase> {
  const set = await ReplicaSet.start({ electionTimeoutMs: 10_000, isBreakable: false });
  return { uri: set.uri, close: () => set.stop() };
}

/** Opens a new database. Its directory is removed at the end. */
export async function openStage(members: Members = 1): Promise<Stage> {
  const database = await (members === 1 ? openOne() : openThree());
  const client = await MongoClient.connect(database.uri);
  const databaseUri = (name: string) => database.uri.replace("/?", `/${name}?`);
  const served: Served[] = [];
  const databases = ["ingest"];
  const start = async (script: string, env: Record<string, string>, args?: readonly string[]) => {
    const one = await Served.start(script, { LOG_LEVEL: "warn", ...env }, args);
    served.push(one);
    return one;
  };
  const startIn = (checkout: string, name: string, env: Record<string, string>, args: readonly string[]) =>
    start(
      join(checkout, "src/main.ts"),
      { MONGODB_URI: database.uri, MONGODB_DB: name, PORT: "0", HOST: "127.0.0.1", ...env },
      [...startFlagsOf(checkout), ...args],
    );

  const db = client.db("ingest");
  await migrate(db, collections);
  const admin = new Setup(db);
  const organization = await admin.createOrganization({
    name: "Bench",
    quotaEventsPerMonth: unlimited,
    keyRequestsPerSecond: unlimited,
    organizationRequestsPerSecond: unlimited,
  });
  const app = await admin.createApp(organization.id, "crm-hub", "CRM Hub", ["ticket.*"]);
  const { id: keyId, key } = await admin.createKey(app.id);

  return {
    uri: database.uri,
    members,
    client,
    authorization: `Bearer ${key}`,
    startService: (env = {}, args = []) => startIn(root, "ingest", env, args),
    async startOther(checkout, name) {
      // It creates its own collections, because there are none.
      const other = await startIn(checkout, name, {}, []);
      for (const { name: collection } of [organizations, apps, keys]) {
        await client
          .db(name)
          .collection(collection)
          .insertMany(await db.collection(collection).find().toArray());
      }
      databases.push(name);
      return other;
    },
    async startPeer(name) {
      const peer = await start(pathOf(`peers/${name}.ts`), { MONGODB_URI: databaseUri(name) });
      await migrate(client.db(name), filled);
      databases.push(name);
      const known: PeerKey = {
        _id: keyId,
        hash: hashOfKey(key),
        organizationId: organization.id,
        app: { id: app.id, slug: app.slug, name: app.name, allow: app.allow },
      };
      if (name === "fastify" || name === "grpc-js") await client.db(name).collection<PeerKey>("keys").insertOne(known);
      return peer;
    },
    async stored(name) {
      const counts = eventCollections.map((one) => client.db(name).collection(one).estimatedDocumentCount());
      return (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
    },
    async clear() {
      const names = new Set([...filled.map(({ name }) => name), ...eventCollections]);
      for (const database of databases) for (const name of names) await empty(client.db(database), name);
    },
    async close() {
      await Promise.all(served.map((one) => one.stop()));
      await client.close();
      await database.close();
    },
  };
}

/** Empties a collection and keeps its indexes, whichever version made them. */
async function empty(db: Db, name: string): Promise<void> {
  const [known] = await db.listCollections({ name }).toArray();
  if (known === undefined) return;
  const indexes = await db.collection(name).indexes();
  for (let tries = 1; ; tries++) {
    await db.collection(name).drop();
    try {
      await db.createCollection(name, (known as Document).options);
      break;
    } catch (error) {
      // The service still stored what the last load left: it made the collection, without options.
      if ((error as MongoServerError).code !== 48 || tries === 20) throw error;
    }
  }
  const wanted = indexes.filter((index) => index.name !== "_id_") as IndexDescription[];
  if (wanted.length > 0) await db.collection(name).createIndexes(wanted);
}
