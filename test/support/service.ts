import { randomBytes } from "node:crypto";
import { type CallOptions, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, inject } from "vitest";
import { type App, type AppOptions, startApp } from "../../src/app.ts";
import { parseConfig } from "../../src/config.ts";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { Ingest } from "../../src/gen/ingest/v1/ingest_pb.js";
import { createLogger } from "../../src/observe/log.ts";
import { createClient as createDatabaseClient } from "../../src/store/database.ts";
import { type KeyDocument, keyCollection } from "../../src/store/keys.ts";
import { announce } from "../../src/store/revisions.ts";
import { eventsMessage, snapshotMessage } from "./messages.ts";
import { stalledStart, startsMax } from "./processes.ts";
import { HintWatch } from "./hints.ts";
import { NewsWatch } from "./news.ts";
import { ShardWatch } from "./sharding.ts";
import { type OrganizationSettings, Setup } from "./setup.ts";
import { WorkerChanges } from "./worker-changes.ts";

export interface TestService {
  /** Its database is read by a client of the test's own, which may do what the service must not. */
  readonly app: App;
  readonly admin: Setup;
  readonly changes: WorkerChanges;
  /** Every line logged so far. */
  readonly log: string[];
}

export interface StartOptions {
  /** Default: a new one. */
  readonly database?: string;
  readonly env?: Record<string, string>;
  readonly mongodbUri?: string;
  readonly now?: () => number;
}

/**
 * The real service on a free port, on a new database unless one is given. Its `close` rejects if the service or the
 * administration sent a command that a sharded cluster would refuse.
 */
export async function startService({
  database = `test-${randomBytes(6).toString("hex")}`,
  env = {},
  mongodbUri = inject("mongodbUri"),
  now,
}: StartOptions = {}): Promise<TestService> {
  const log: string[] = [];
  const config = parseConfig({ PORT: "0", HOST: "127.0.0.1", MONGODB_DB: database, DRAIN_SECONDS: "5", ...env });
  const logger = createLogger({ level: "trace", destination: { write: (line: string) => void log.push(line) } });
  const watches = [new ShardWatch(), new NewsWatch(), new HintWatch()];
  const app = await startPatiently({
    config,
    onCommand: (command) => watches.forEach((watch) => watch.hear(command)),
    mongodbUri,
    logger,
    metricsEveryMs: 0,
    ...(now === undefined ? {} : { now }),
  });
  const client = createDatabaseClient(mongodbUri);
  const close = async () => {
    await client.close();
    await app.close();
    for (const watch of watches) watch.check();
  };
  const own = { ...app, db: client.db(database), close };
  const changes = new WorkerChanges(app.db);
  return { app: own, admin: new Setup(app.db), changes, log };
}

async function startPatiently(options: AppOptions): Promise<App> {
  for (let starts = 1; ; starts++) {
    try {
      return await startApp(options);
    } catch (error) {
      if (starts === startsMax || !stalledStart.test((error as Error).message)) throw error;
    }
  }
}

export interface Tenant {
  readonly organizationId: string;
  readonly appId: string;
  readonly keyId: string;
  readonly key: string;
}

/** An organisation with an app that may send `ticket.*`, and a key. */
export async function createTenant(admin: Setup, settings: OrganizationSettings = { name: "Test" }): Promise<Tenant> {
  const organization = await admin.createOrganization({
    keyRequestsPerSecond: 100_000,
    organizationRequestsPerSecond: 100_000,
    ...settings,
  });
  const app = await admin.createApp(organization.id, "crm-hub", "CRM Hub", ["ticket.*"]);
  const key = await admin.createKey(app.id);
  return { organizationId: organization.id, appId: app.id, keyId: key.id, key: key.key };
}

/** A key that expired a minute ago. The API cannot create an expired key. */
export async function createExpiredKey({ app, admin }: TestService, appId: string): Promise<string> {
  const { id, key } = await admin.createKey(appId);
  await keyCollection(app.db).updateOne({ _id: id }, { $set: { expiresAt: new Date(Date.now() - 60_000) } });
  await announce(app.db, [id]);
  return key;
}

/** A key with these fields, for sending unless they say otherwise. */
export async function insertKey(
  { app }: Pick<TestService, "app">,
  { appId }: Pick<Tenant, "appId">,
  fields: Partial<KeyDocument>,
): Promise<{ readonly id: string; readonly key: string }> {
  return new Setup(app.db).createKey(appId, undefined, "ingest", fields);
}

/** Shared by most tests of a file. */
export interface Suite {
  readonly service: TestService;
  readonly url: string;
  readonly tenant: Tenant;
}

/** The service with a tenant, from before the file's first test until after its last. It is empty before that. */
export function useService(options: StartOptions = {}): Suite {
  const suite = {} as { -readonly [Name in keyof Suite]: Suite[Name] };
  beforeAll(async () => {
    suite.service = await startService(options);
    suite.url = suite.service.app.url;
    suite.tenant = await createTenant(suite.service.admin);
  });
  afterAll(() => suite.service.app.close());
  return suite;
}

/** An answer in the reference's terms, over any protocol. */
export interface Answer {
  /** The REST status; 0 over RPC. */
  readonly status: number;
  readonly headers: Headers;
  /** The reference's JSON of a success. */
  readonly body: any;
  /** The error's code and message. */
  readonly error:
    | { readonly code: string; readonly message: string; readonly connect?: Code; readonly details?: ConnectError }
    | undefined;
}

export type Rpc = "ping" | "events" | "snapshots";
export type Send = (url: string, rpc: Rpc, body: unknown, headers?: Record<string, string>) => Promise<Answer>;

const rest: Send = async (url, rpc, body, headers = {}) => {
  const response = await fetch(`${url}/api/v1/ingest/${rpc}`, {
    method: rpc === "ping" ? "GET" : "POST",
    headers: rpc === "ping" ? headers : { "content-type": "application/json", ...headers },
    ...(rpc === "ping" ? {} : { body: JSON.stringify(body) }),
  });
  const json = (await response.json()) as { error?: { code: string; message: string } };
  return { status: response.status, headers: response.headers, body: json, error: json.error };
};

const rpcSender =
  (transportOf: (url: string) => Transport): Send =>
  async (url, rpc, body, headers = {}) => {
    const client = createClient(Ingest, transportOf(url));
    let seen = new Headers();
    const options: CallOptions = { headers, onHeader: (received) => (seen = received) };
    try {
      if (rpc === "ping") {
        const { ok, organizationId, app } = await client.ping({}, options);
        return {
          status: 0,
          headers: seen,
          body: { ok, organizationId, app: { id: app?.id, slug: app?.slug, name: app?.name } },
          error: undefined,
        };
      }
      if (rpc === "snapshots") {
        const { requestId, ok, snapshotType, worker } = await client.snapshots(snapshotMessage(body), options);
        return {
          status: 0,
          headers: seen,
          body: { requestId, ok, snapshotType, worker: { id: worker?.id, displayName: worker?.displayName } },
          error: undefined,
        };
      }
      const answer = await client.events(eventsMessage(body), options);
      return { status: 0, headers: seen, body: plainAnswer(answer), error: undefined };
    } catch (thrown) {
      const error = ConnectError.from(thrown);
      const [info] = error.findDetails(ErrorInfoSchema);
      // gRPC's Trailers-Only answers have their headers as metadata.
      error.metadata.forEach((value, name) => seen.set(name, value));
      return {
        status: 0,
        headers: seen,
        body: undefined,
        error: {
          code: info?.reason ?? `(no ErrorInfo) ${error.message}`,
          message: error.rawMessage,
          connect: error.code,
          details: error,
        },
      };
    }
  };

function plainAnswer(answer: any) {
  return {
    requestId: answer.requestId,
    accepted: answer.accepted,
    rejected: answer.rejected,
    batchLimit: answer.batchLimit,
    results: {
      accepted: answer.results.accepted.map(({ eventType, timestamp, eventId, duplicate, conflict }: any) => ({
        eventType,
        timestamp: new Date(Number(timestamp.seconds) * 1000 + timestamp.nanos / 1e6)
          .toISOString()
          .replace(".000Z", "Z"),
        ...(eventId === undefined ? {} : { eventId }),
        ...(duplicate ? { duplicate } : {}),
        ...(conflict ? { conflict } : {}),
      })),
      rejected: answer.results.rejected.map(({ index, code, message }: any) => ({ index, code, message })),
    },
  };
}

/** Every way to call the service. */
export const protocols: Readonly<Record<string, Send>> = {
  REST: rest,
  "Connect JSON": rpcSender((baseUrl) =>
    createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  ),
  "Connect binary": rpcSender((baseUrl) =>
    createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: true }),
  ),
  gRPC: rpcSender((baseUrl) => createGrpcTransport({ baseUrl })),
  "gRPC-Web": rpcSender((baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" })),
};

/** A path or rule of issues as the protocol's callers write it. RPC's binary format has the schema's names. */
export const pathOver = (protocol: string, path: string): string =>
  /REST|JSON/.test(protocol) ? path : path.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

export const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
