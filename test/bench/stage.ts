import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MongoClient } from "mongodb";
import { hashOfKey } from "../../src/access/principal.ts";
import { Admin } from "../../src/admin/admin.ts";
import { createIdSource } from "../../src/ids.ts";
import { cards } from "../../src/store/snapshots.ts";
import { claims } from "../../src/store/idempotency.ts";
import { migrate } from "../../src/store/migrations.ts";
import { collections } from "../../src/store/collections.ts";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";
import { events } from "../../src/store/events.ts";
import type { PeerKey } from "./peers/by-hand.ts";
import { Served } from "./processes.ts";

const packageJson = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
/** Node's flags of `npm start`: they keep the heap from growing just because there is room. */
export const startFlags: readonly string[] = packageJson.scripts.start.match(/--\S+/g) ?? [];

const pathOf = (relative: string) => new URL(relative, import.meta.url).pathname;

/** The database of a run, and the programs that serve from it. */
export interface Stage {
  readonly uri: string;
  readonly client: MongoClient;
  /** Admits the bench's tenant, to the service and to the peers alike. */
  readonly authorization: string;
  /** The service on the database `ingest`; further ones share it. */
  startService(env?: Record<string, string>, args?: readonly string[]): Promise<Served>;
  startPeer(name: "fastify" | "grpc-js" | "bare" | "driver"): Promise<Served>;
  /** Events stored in the database of the service or of a peer. */
  stored(database: string): Promise<number>;
  /** Empties what the load fills, in every database. */
  clear(): Promise<void>;
  close(): Promise<void>;
}

/** Above every load of a bench. */
const unlimited = 1_000_000_000;
const filled = [events, cards, claims];

/** A fresh mongod, as the service embeds it, in a directory of its own that is removed at the end. */
export async function openStage(): Promise<Stage> {
  const dataDir = await mkdtemp(join(tmpdir(), "ingest-bench-"));
  const database = await openEmbeddedDatabase({ dataDir, env: process.env, report: () => {} });
  const client = await MongoClient.connect(database.uri);
  const databaseUri = (name: string) => database.uri.replace("/?", `/${name}?`);
  const served: Served[] = [];
  const peers: string[] = [];
  const start = async (script: string, env: Record<string, string>, args?: readonly string[]) => {
    const one = await Served.start(pathOf(script), { LOG_LEVEL: "warn", ...env }, args);
    served.push(one);
    return one;
  };

  const db = client.db("ingest");
  await migrate(db, collections);
  const admin = new Admin(db, createIdSource());
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
    client,
    authorization: `Bearer ${key}`,
    startService: (env = {}, args = []) =>
      start(
        "../../src/main.ts",
        { MONGODB_URI: database.uri, MONGODB_DB: "ingest", PORT: "0", HOST: "127.0.0.1", ...env },
        [...startFlags, ...args],
      ),
    async startPeer(name) {
      const peer = await start(`peers/${name}.ts`, { MONGODB_URI: databaseUri(name) });
      peers.push(name);
      const known: PeerKey = {
        _id: keyId,
        hash: hashOfKey(key),
        organizationId: organization.id,
        app: { id: app.id, slug: app.slug, name: app.name, allow: app.allow },
      };
      if (name === "fastify" || name === "grpc-js") await client.db(name).collection<PeerKey>("keys").insertOne(known);
      return peer;
    },
    stored: (name) => client.db(name).collection(events.name).estimatedDocumentCount(),
    async clear() {
      for (const name of ["ingest", ...peers]) {
        for (const { name: collection } of filled) await client.db(name).collection(collection).drop();
        await migrate(client.db(name), filled);
      }
    },
    async close() {
      await Promise.all(served.map((one) => one.stop()));
      await client.close();
      await database.close();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}
