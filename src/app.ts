import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { CommandStartedEvent, Db, MongoClient } from "mongodb";
import type { Logger } from "pino";
import type { Registry } from "prom-client";
import { hostOfListener } from "./addresses.ts";
import { Activity, FairTurns } from "./access/fair-turns.ts";
import { Principals } from "./access/principal.ts";
import { RateLimiter } from "./access/rate-limit.ts";
import { adminPortDefault, type Config, ConfigError } from "./config.ts";
import { Health } from "./gen/health/v1/health_pb.js";
import { Ingest } from "./gen/ingest/v1/ingest_pb.js";
import { Timeline } from "./gen/ingest/v1/timeline_pb.js";
import { createIdSource } from "./ids.ts";
import { IngestCalls } from "./ingest/call.ts";
import { timelineLimits } from "./limits.ts";
import { createLogger, createRequestLog } from "./observe/log.ts";
import { Metrics } from "./observe/metrics.ts";
import { metricsRoute } from "./observe/metrics-page.ts";
import { RequestRecorder } from "./observe/records.ts";
import type { Tracing } from "./observe/tracing.ts";
import { DailyUsage } from "./observe/daily-usage.ts";
import { TroubleLog } from "./observe/trouble.ts";
import { CardStore } from "./store/snapshots.ts";
import { ChangeFeed } from "./store/changes.ts";
import { ClaimStore } from "./store/idempotency.ts";
import { collections } from "./store/collections.ts";
import { bounded, createClient } from "./store/database.ts";
import { EventFeed } from "./store/event-feed.ts";
import { EventStore } from "./store/events.ts";
import { Instance } from "./store/instances.ts";
import { KeyUses } from "./store/key-uses.ts";
import { findKeyRecords } from "./store/keys.ts";
import { connectDatabase, prepareDatabase } from "./store/migrations.ts";
import { spend } from "./store/rate-buckets.ts";
import { createReadiness } from "./store/readiness.ts";
import { sharedSecret } from "./store/secrets.ts";
import { ServerClock } from "./store/server-clock.ts";
import { UsageKeeper } from "./store/usage-keeper.ts";
import { UsageStore } from "./store/usage.ts";
import { WorkerNews } from "./store/worker-news.ts";
import { WorkerStore } from "./store/workers.ts";
import { type Adapter, createAdapter } from "./transport/http/adapter.ts";
import { ingestRpcs } from "./transport/api/ingest-rpc.ts";
import { healthRpcs, watcherPlaces } from "./transport/rpc/health.ts";
import { createPeerOf } from "./transport/http/peer.ts";
import { Certificate } from "./transport/http/certificate.ts";
import { pageRoutes, probeRoutes, refusalPage } from "./transport/pages/routes.ts";
import { reflectionPlaces, reflectionService } from "./transport/rpc/reflection.ts";
import { keylessRefusal } from "./transport/rpc/keyless.ts";
import { StreamPlaces } from "./transport/rpc/stream-places.ts";
import { restRoutes } from "./transport/api/ingest-rest.ts";
import { type Server, type ServerOptions, startServer } from "./transport/http/server.ts";
import { pageTurns, TimelineCalls } from "./timeline/calls.ts";
import { Tokens } from "./timeline/tokens.ts";
import { catchUpTurns, Watches } from "./timeline/watch.ts";
import { timelineRoutes, timelineRpcs } from "./transport/api/timeline.ts";
import { untraced } from "./tracing.ts";

export interface AppOptions {
  readonly config: Config;
  /** A replica set. */
  readonly mongodbUri: string;
  /** In milliseconds since 1970. Default: the database server's clock. */
  readonly now?: (() => number) | undefined;
  /** Default: JSON lines on standard output at LOG_LEVEL. */
  readonly logger?: Logger;
  readonly tracing?: Tracing | undefined;
  /** Called for each command to the database, for tests. */
  readonly onCommand?: (command: CommandStartedEvent) => void;
  /** Milliseconds between two pages of metrics. Default: 1000. */
  readonly metricsEveryMs?: number;
  /** With several processes: takes this one's metrics and returns a reader for those of all. Default: a single process. */
  readonly shareMetrics?: (registry: Registry) => () => Promise<string>;
}

export interface App {
  readonly port: number;
  /** Base of every address, without a slash at its end. */
  readonly url: string;
  /** For operators: metrics and health. */
  readonly adminUrl: string;
  readonly db: Db;
  /**
   * Reports that it is not ready, and waits STOP_DELAY_SECONDS. Then gives running requests DRAIN_SECONDS to finish,
   * and closes the database.
   */
  close(): Promise<void>;
}

/** Builds and starts the service. Tests use it, too. */
export async function startApp({
  config,
  mongodbUri,
  now,
  logger = createLogger({ level: config.LOG_LEVEL }),
  tracing,
  onCommand,
  metricsEveryMs = 1_000,
  shareMetrics = (registry) => () => registry.metrics(),
}: AppOptions): Promise<App> {
  // Each client has its own connections, so heavy writes or reads do not delay look-ups and revocations of keys.
  const metrics = new Metrics();
  const connect = () => createClient(mongodbUri, { monitorCommands: (tracing ?? onCommand) !== undefined });
  const clients: Clients = { write: connect(), read: connect(), control: connect() };
  for (const client of Object.values(clients)) {
    tracing?.watchCommands(client);
    if (onCommand !== undefined) client.on("commandStarted", onCommand);
  }
  metrics.watchPools(clients);
  try {
    const db = clients.write.db(config.MONGODB_DB);
    await connectDatabase(db);
    for (const warning of await prepareDatabase(db, collections, "set up")) logger.warn(warning);
    return await serve(clients, metrics, { config, now, logger, tracing, metricsEveryMs, shareMetrics });
  } catch (error) {
    await closeClients(clients);
    throw error;
  }
}

type Clients = Readonly<Record<"write" | "read" | "control", MongoClient>>;

const closeClients = (clients: Clients) => Promise.all(Object.values(clients).map((client) => client.close()));

async function serve(
  clients: Clients,
  metrics: Metrics,
  {
    config,
    now: givenNow,
    logger,
    tracing,
    metricsEveryMs,
    shareMetrics,
  }: Required<Omit<AppOptions, "mongodbUri" | "onCommand">>,
): Promise<App> {
  const db = clients.write.db(config.MONGODB_DB);
  const controlDb = clients.control.db(config.MONGODB_DB);
  const clock = await ServerClock.start(controlDb);
  const now = givenNow ?? clock.now;
  const monotonic = () => performance.now();
  const failures = new TroubleLog({ logger });
  const { onError } = failures;
  const hooks = { ...metrics.batchHooks, ...tracing?.batchHooks };
  const stage = tracing?.stage ?? untraced;
  const workers = new WorkerStore(db, hooks);
  const principals: Principals = new Principals({
    hooks,
    async load(hashes) {
      const since = feed.heardTime;
      return { records: await findKeyRecords(controlDb, hashes, since), isConfirmed: since === undefined };
    },
    freshAtMs: () => feed.freshAtMs,
  });
  const instanceId = randomUUID();
  const feed = new ChangeFeed(controlDb, instanceId, {
    now,
    onError,
    accessChanged: (id) => (id === undefined ? principals.forgetAll() : principals.forget(id)),
    newsMissed() {
      principals.forgetAll();
      void instance.newsMissed();
    },
    revisionHeard: (revision) => instance.heard(revision),
    onLag: (lagMs) => metrics.changeSeen(lagMs),
  });
  const workerNews = new WorkerNews(db, {
    workerChanged: (id) => workers.forget(id),
    newsMissed: () => workers.forgetAll(),
    onError,
  });
  metrics.watchFeed(feed);
  metrics.watchClock(clock);
  metrics.watchCaches({ principals: principals.counts, workers: workers.counts });
  const limiter = new RateLimiter({
    now: monotonic,
    onError,
    share: (spendings) => bounded(spend(controlDb, spendings)),
  });
  const ids = createIdSource(now);
  const usage = new UsageStore(db, hooks, onError);
  const usageKeeper = new UsageKeeper(controlDb, { usage, now: clock.now, onError });
  const keyUses = new KeyUses(db, now, onError);
  const dailyUsage = new DailyUsage(db, onError);
  const instance = new Instance(controlDb, {
    id: instanceId,
    clock,
    name: `${hostname()}, process ${process.pid}`,
    forget: () => principals.forgetAll(),
    onError,
  });
  const activity = new Activity();
  const calls = new IngestCalls({
    principals,
    limiter,
    activity,
    workers,
    events: new EventStore(db, hooks),
    cards: new CardStore(db, hooks),
    claims: new ClaimStore(db, now, hooks),
    usage,
    ids,
    now,
    onError,
    stage,
  });

  const readDb = clients.read.db(config.MONGODB_DB);
  const tokens = new Tokens(await sharedSecret(db, "timeline-tokens"));
  const readingTurns = new FairTurns(activity, pageTurns);
  const timeline = new TimelineCalls({ db: readDb, tokens, stage, turns: readingTurns });
  const { bufferedRowsMax: rowsMax, bufferedBytesMax: bytesMax } = timelineLimits;
  const holding = new FairTurns(activity, catchUpTurns);
  metrics.watchCatchUps(holding);
  const eventFeed = new EventFeed(readDb, { rowsMax, bytesMax }, { holding, reading: readingTurns }, onError);
  const watches = new Watches({ db: readDb, feed: eventFeed, tokens, calls, now: monotonic });

  const keepHours = config.REQUEST_RECORD_HOURS;
  const recorder = keepHours === 0 ? undefined : new RequestRecorder({ db, ids, now, keepHours, onError });
  metrics.watchRecords(recorder?.counts ?? {});
  const logRequest = createRequestLog(logger);
  const peerOf = createPeerOf(config.TRUSTED_PROXIES ?? []);
  const { registry } = metrics;
  const metricsPage = metricsRoute({
    text: shareMetrics(registry),
    contentType: registry.contentType,
    token: config.METRICS_TOKEN,
    everyMs: metricsEveryMs,
  });
  let stopping = false;
  const closing = new AbortController();
  const trouble = createReadiness(clock, instance);
  const whyNotReady = async () => (stopping ? "stopping" : trouble());
  const ready = async () => (await whyNotReady()) === undefined;
  const tls = certificateOf(config, logger);
  const keepAliveMs = config.KEEP_ALIVE_SECONDS * 1000;
  // Port 0 is known only once the server listens, and docsUrl needs it from the first answer on.
  const base = { url: config.PUBLIC_URL ?? "" };
  const watchers = new StreamPlaces(watcherPlaces);
  const reflections = new StreamPlaces(reflectionPlaces);
  const handler = createLazyAdapter(() => {
    const publicUrl = base.url;
    const reading = { calls, timeline, watches };
    return createAdapter({
      routes: [...restRoutes(calls), ...timelineRoutes(reading), ...probeRoutes(whyNotReady), ...pageRoutes(publicUrl)],
      rpcs: [
        ...ingestRpcs(calls),
        ...timelineRpcs(reading),
        ...healthRpcs({ ready, services: [Ingest, Timeline], closing: closing.signal, places: watchers }),
      ],
      services: reflectionService([Ingest, Timeline, Health], reflections),
      publicUrl,
      refusalPage: refusalPage(publicUrl),
      activity,
      corsOrigins: config.CORS_ORIGINS ?? [],
      keepAliveMs,
      newRequestId: () => ids.next("req"),
      now,
      peerOf,
      onBegin: (start, headers) => {
        metrics.begun();
        return tracing?.begun(start, headers);
      },
      onEnd: (start, end) => {
        metrics.ended(start, end);
        if (end.caller !== undefined) keyUses.used(end.caller.keyId);
        dailyUsage.ended(start, end);
        tracing?.ended(start, end);
        recorder?.ended(start, end);
        logRequest(start, end);
      },
      onError,
    });
  });
  const adminHandler = createLazyAdapter(() =>
    createAdapter({
      routes: [...probeRoutes(whyNotReady), metricsPage],
      rpcs: [],
      services: () => {},
      publicUrl: base.url,
      newRequestId: () => ids.next("req"),
      now,
      peerOf,
      onEnd: logRequest,
      onError,
    }),
  );
  const serverOptions = {
    bounds: { keepAliveMs, sessionIdleMs: keepAliveMs },
    ...(tls === undefined ? {} : { tls }),
    warn: (text: string) => logger.warn(text),
  };
  const adminServer = await startAdminServer(adminHandler, config, { ...serverOptions, asksCallers: false });
  const listen = { ...serverOptions, host: config.HOST, port: config.PORT, keylessRefusal };
  const server = await startServer(handler, listen).catch(async (error: unknown) => {
    await adminServer.close(0);
    throw error;
  });
  const scheme = tls === undefined ? "http" : "https";
  const url = `${scheme}://${hostOfListener(config.HOST)}:${server.port}`;
  const adminUrl = `${scheme}://${hostOfListener(config.ADMIN_HOST)}:${adminServer.port}`;
  base.url ||= url;
  metrics.watchConnections(() => server.counts(), { health_watch: watchers, reflection: reflections });
  feed.start();
  workerNews.start();
  instance.start();
  usageKeeper.start();

  return {
    port: server.port,
    url,
    adminUrl,
    db,
    async close() {
      stopping = true;
      server.windDown();
      await delay(config.STOP_DELAY_SECONDS * 1000);
      closing.abort();
      watches.stop();
      await server.close(config.DRAIN_SECONDS * 1000);
      // Stop this last, so that operators can see how the last requests end.
      await adminServer.close(0);
      tls?.stop();
      await recorder?.stop();
      await limiter.stop();
      await usage.stop();
      await usageKeeper.stop();
      await keyUses.stop();
      await dailyUsage.stop();
      await feed.stop();
      await workerNews.stop();
      await instance.stop();
      await eventFeed.stop();
      failures.stop();
      await closeClients(clients);
    },
  };
}

/** @throws ConfigError if the port of ADMIN_PORT is taken. */
async function startAdminServer(
  adapter: Adapter,
  { PORT, ADMIN_PORT, ADMIN_HOST: host }: Config,
  options: Omit<ServerOptions, "host" | "port">,
): Promise<Server> {
  const port = ADMIN_PORT ?? (PORT === 0 ? 0 : adminPortDefault);
  try {
    return await startServer(adapter, { ...options, host, port });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EADDRINUSE") throw error;
    // The user did not set this port, so a second instance on one machine takes a free one.
    if (ADMIN_PORT === undefined) return startServer(adapter, { ...options, host, port: 0 });
    const message = `ADMIN_PORT: port ${port} of ${host} is taken; choose another one, or 0 for a free one`;
    throw new ConfigError(message, { cause: error });
  }
}

function createLazyAdapter(create: () => Adapter): Adapter {
  let adapter: Adapter | undefined;
  return {
    request: (request, response) => (adapter ??= create()).request(request, response),
    stream: (...stream) => (adapter ??= create()).stream(...stream),
    malformed: (error) => (adapter ??= create()).malformed(error),
  };
}

/** @throws ConfigError if the certificate cannot be used. */
function certificateOf(
  { TLS_CERT, TLS_KEY, TLS_CLIENT_CA, TLS_MIN_VERSION }: Config,
  logger: Logger,
): Certificate | undefined {
  if (TLS_CERT === undefined || TLS_KEY === undefined) return undefined;
  try {
    return new Certificate({
      certPath: TLS_CERT,
      keyPath: TLS_KEY,
      clientCaPath: TLS_CLIENT_CA,
      minVersion: `TLSv${TLS_MIN_VERSION}`,
      onError: (err) => logger.error({ err }, "the TLS certificate was not renewed"),
      onRenewed: () => logger.info("the TLS certificate was renewed"),
    });
  } catch (error) {
    throw new ConfigError(`TLS_CERT, TLS_KEY, TLS_CLIENT_CA: ${(error as Error).message}`, { cause: error });
  }
}
