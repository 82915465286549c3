import { readFileSync } from "node:fs";
import type { Db, MongoClient } from "mongodb";
import type { Logger } from "pino";
import { Principals } from "./access/principal.ts";
import { RateLimiter } from "./access/rate-limit.ts";
import type { Config } from "./config.ts";
import { Health } from "./gen/health/v1/health_pb.js";
import { Ingest } from "./gen/ingest/v1/ingest_pb.js";
import { createIdSource } from "./ids.ts";
import { IngestCalls } from "./ingest/call.ts";
import { createLogger, logExchange } from "./observe/log.ts";
import { CardStore } from "./store/cards.ts";
import { ChangeFeed } from "./store/changes.ts";
import { ClaimStore } from "./store/claims.ts";
import { collections } from "./store/collections.ts";
import { createClient, createIndexes } from "./store/database.ts";
import { EventStore } from "./store/events.ts";
import { findKeyRecords } from "./store/keys.ts";
import { spend } from "./store/rate-buckets.ts";
import { UsageStore } from "./store/usage.ts";
import { WorkerStore } from "./store/workers.ts";
import { type Adapter, createAdapter } from "./transport/adapter.ts";
import { ingestRpcs } from "./transport/connect.ts";
import { healthService } from "./transport/health.ts";
import { pageRoutes } from "./transport/pages.ts";
import { reflectionService } from "./transport/reflection.ts";
import { restRoutes } from "./transport/rest.ts";
import { startServer } from "./transport/server.ts";
import { untraced } from "./tracing.ts";

export interface AppOptions {
  readonly config: Config;
  /** A replica set. */
  readonly mongodbUri: string;
  /** In milliseconds; default the system's clock. */
  readonly now?: () => number;
  /** Default: JSON lines on standard output at LOG_LEVEL. */
  readonly logger?: Logger;
}

export interface App {
  readonly port: number;
  /** Base of every address, without a slash at its end. */
  readonly url: string;
  readonly db: Db;
  /** Finishes what is in flight, for at most DRAIN_SECONDS, then lets go of the database. */
  close(): Promise<void>;
}

/** Longest that a readiness check waits for the database, in milliseconds. */
const readyMs = 1_000;

/** Builds the service and starts it: the one place that knows all parts. Tests start the same. */
export async function startApp({
  config,
  mongodbUri,
  now = Date.now,
  logger = createLogger({ level: config.LOG_LEVEL }),
}: AppOptions): Promise<App> {
  const client = createClient(mongodbUri);
  try {
    const db = client.db(config.MONGODB_DB);
    await createIndexes(db, collections);
    return await serve(client, db, config, now, logger);
  } catch (error) {
    await client.close();
    throw error;
  }
}

async function serve(client: MongoClient, db: Db, config: Config, now: () => number, logger: Logger): Promise<App> {
  const onError = (error: unknown) => logger.warn({ err: error }, "background work failed");
  const workers = new WorkerStore(db);
  const principals: Principals = new Principals({
    now,
    load: (hashes) => findKeyRecords(db, hashes),
    freshAtMs: () => feed.freshAtMs,
  });
  const feed = new ChangeFeed(db, {
    now,
    onError,
    accessChanged: () => principals.forgetAll(),
    workerChanged: (id) => workers.forget(id),
  });
  const limiter = new RateLimiter({ now, onError, share: (spendings) => spend(db, spendings) });
  const ids = createIdSource(now);
  const calls = new IngestCalls({
    principals,
    limiter,
    workers,
    events: new EventStore(db),
    cards: new CardStore(db),
    claims: new ClaimStore(db, now),
    usage: new UsageStore(db),
    ids,
    now,
    onError,
    stage: untraced,
  });

  let stopping = false;
  const ready = async () => !stopping && (await isReachable(db));
  const tls = tlsOf(config);
  // Port 0 is known only once the server listens, and docsUrl needs it from the first answer on.
  const base = { url: config.PUBLIC_URL ?? "" };
  const handler = createLazyAdapter(() => {
    const publicUrl = base.url;
    const services = [healthService(ready), reflectionService([Ingest, Health])];
    return createAdapter({
      routes: [...restRoutes(calls), ...pageRoutes({ ready, publicUrl })],
      unary: ingestRpcs(calls),
      services: (router) => services.forEach((register) => register(router)),
      publicUrl,
      newRequestId: () => ids.next("req"),
      now,
      onEnd: (exchange, end) => logExchange(logger, exchange, end),
    });
  });
  const server = await startServer(handler, {
    host: config.HOST,
    port: config.PORT,
    ...(tls === undefined ? {} : { tls }),
  });
  const url = `${tls === undefined ? "http" : "https"}://localhost:${server.port}`;
  base.url ||= url;
  feed.start();

  return {
    port: server.port,
    url,
    db,
    async close() {
      stopping = true;
      await server.close(config.DRAIN_SECONDS * 1000);
      await limiter.stop();
      await feed.stop();
      await client.close();
    },
  };
}

function createLazyAdapter(create: () => Adapter): Adapter {
  let adapter: Adapter | undefined;
  return {
    request: (request, response) => (adapter ??= create()).request(request, response),
    stream: (stream, headers) => (adapter ??= create()).stream(stream, headers),
  };
}

async function isReachable(db: Db): Promise<boolean> {
  try {
    await db.command({ ping: 1 }, { timeoutMS: readyMs });
    return true;
  } catch {
    return false;
  }
}

function tlsOf({ TLS_CERT, TLS_KEY }: Config): { cert: string; key: string } | undefined {
  if (TLS_CERT === undefined || TLS_KEY === undefined) return undefined;
  return { cert: readFileSync(TLS_CERT, "utf8"), key: readFileSync(TLS_KEY, "utf8") };
}
