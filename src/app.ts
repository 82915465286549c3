import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { CommandStartedEvent, Db, MongoClient } from "mongodb";
import type { Logger } from "pino";
import type { Registry } from "prom-client";
import { hostOfListener, listenTrouble } from "./addresses.ts";
import { Activity, FairTurns } from "./access/fair-turns.ts";
import { Credentials } from "./access/credentials.ts";
import { InFlight } from "./access/in-flight.ts";
import { Principals } from "./access/principal.ts";
import { RateLimiter } from "./access/rate-limit.ts";
import { logLineOf } from "./admin/audit.ts";
import { JobKeeper } from "./admin/job-keeper.ts";
import { RequestWatches } from "./admin/request-watches.ts";
import { createAdminServices } from "./admin/services.ts";
import { adminPortDefault, type Config, ConfigError, isAdminPublic } from "./config.ts";
import { Failure } from "./exchange.ts";
import { Admin } from "./gen/ingest/admin/v1/admin_pb.js";
import { Health } from "./gen/health/v1/health_pb.js";
import { Ingest } from "./gen/ingest/v1/ingest_pb.js";
import { Timeline } from "./gen/ingest/v1/timeline_pb.js";
import { createIdSource, type IdSource } from "./ids.ts";
import { IngestCalls, sentTwice } from "./ingest/call.ts";
import { timelineLimits } from "./limits.ts";
import { createLogger, createRequestLog } from "./observe/log.ts";
import { Metrics } from "./observe/metrics.ts";
import { metricsRoute } from "./observe/metrics-page.ts";
import { RequestRecorder } from "./observe/request-recorder.ts";
import type { Tracing } from "./observe/opentelemetry.ts";
import { DailyUsage } from "./observe/daily-usage.ts";
import { Traffic } from "./observe/traffic.ts";
import { TroubleLog } from "./observe/trouble.ts";
import { findAccessTokens } from "./store/access-tokens.ts";
import { CardStore } from "./store/snapshots.ts";
import { ChangeFeed } from "./store/changes.ts";
import { ClaimStore } from "./store/idempotency.ts";
import { collections } from "./store/collections.ts";
import { bounded, createClient } from "./store/database.ts";
import { EventFeed } from "./store/event-feed.ts";
import { EventStore } from "./store/events.ts";
import type { BatchHooks } from "./store/group-commit.ts";
import { Instance, isFirstInstance } from "./store/instances.ts";
import { KeyUses } from "./store/key-uses.ts";
import { findKeyRecords } from "./store/keys.ts";
import { connectDatabase, prepareDatabase } from "./store/migrations.ts";
import { spend } from "./store/rate-buckets.ts";
import { createReadiness, isClockInStep } from "./store/readiness.ts";
import { Retention } from "./store/retention.ts";
import { sharedSecret } from "./store/secrets.ts";
import { ServerClock } from "./store/server-clock.ts";
import { UsageKeeper } from "./store/usage-keeper.ts";
import { UsageStore } from "./store/usage.ts";
import { erasedNameSecret, WorkerStore } from "./store/workers.ts";
import { type Adapter, createAdapter } from "./transport/http/adapter.ts";
import { type AdminApi, adminRoutes, adminRpcs } from "./transport/api/admin.ts";
import { ingestRpcs } from "./transport/api/ingest-rpc.ts";
import { healthRpcs, watcherPlaces } from "./transport/rpc/health.ts";
import type { AdapterOptions } from "./transport/http/options.ts";
import { createPeerOf } from "./transport/http/peer.ts";
import { Certificate } from "./transport/http/certificate.ts";
import { type ConsoleOidc, consoleRoutes } from "./transport/pages/console.ts";
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
import { type Stage, untraced } from "./tracing.ts";

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
export async function startApp(options: AppOptions): Promise<App> {
  // If a part cannot start, the parts before it end.
  await using ends = new AsyncDisposableStack();
  const base = await openBase(options, ends);
  const access = await startAccess(base);
  const calls = startIngest(base, access);
  const timeline = await createTimeline(base, calls);
  const observers = createObservers(base, access);
  const admin = await createAdmin(base, access);
  const { windDown, ...addresses } = await startServers(
    base,
    access,
    calls,
    { ...timeline, admin },
    observers,
    options,
  );
  const running = ends.move();
  return {
    ...addresses,
    db: base.dbs.write,
    async close() {
      windDown();
      await delay(base.config.STOP_DELAY_SECONDS * 1000);
      await running.disposeAsync();
    },
  };
}

/** What the parts are built from. */
interface Base {
  readonly config: Config;
  readonly logger: Logger;
  readonly tracing: Tracing | undefined;
  readonly metrics: Metrics;
  /** Each has its own connections, so heavy writes or reads do not delay look-ups and revocations of keys. */
  readonly dbs: Readonly<Record<"write" | "read" | "control", Db>>;
  readonly clock: ServerClock;
  readonly now: () => number;
  readonly ids: IdSource;
  readonly activity: Activity;
  readonly inFlight: InFlight;
  readonly erasedNameSecret: Buffer;
  readonly hooks: BatchHooks;
  readonly stage: Stage;
  readonly onError: (error: unknown) => void;
  /** Each part adds here how it ends. The last one ends first. */
  readonly ends: AsyncDisposableStack;
}

async function openBase(
  { config, mongodbUri, now, tracing, onCommand, logger = createLogger({ level: config.LOG_LEVEL }) }: AppOptions,
  ends: AsyncDisposableStack,
): Promise<Base> {
  const metrics = new Metrics();
  const connect = () => {
    const client = createClient(mongodbUri, { monitorCommands: (tracing ?? onCommand) !== undefined });
    ends.defer(() => client.close());
    tracing?.watchCommands(client);
    if (onCommand !== undefined) client.on("commandStarted", onCommand);
    return client;
  };
  const clients = { write: connect(), read: connect(), control: connect() };
  metrics.watchPools(clients);
  const dbOf = (client: MongoClient) => client.db(config.MONGODB_DB);
  const dbs = { write: dbOf(clients.write), read: dbOf(clients.read), control: dbOf(clients.control) };
  await connectDatabase(dbs.write);
  for (const warning of await prepareDatabase(dbs.write, collections, "set up")) logger.warn(warning);
  const clock = await ServerClock.start(dbs.control);
  metrics.watchClock(clock);
  const failures = new TroubleLog({ logger });
  ends.defer(() => failures.stop());
  return {
    ...{ config, logger, tracing, metrics, dbs, clock, ends },
    now: now ?? clock.now,
    ids: createIdSource(now ?? clock.now),
    activity: new Activity(),
    inFlight: new InFlight(),
    erasedNameSecret: await sharedSecret(dbs.write, erasedNameSecret),
    hooks: { ...metrics.batchHooks, ...tracing?.batchHooks },
    stage: tracing?.stage ?? untraced,
    onError: failures.onError,
  };
}

type Access = Awaited<ReturnType<typeof startAccess>>;

/** Starts the caches of keys and workers, the news that keeps them current, and the check of administrators. */
async function startAccess(base: Base) {
  const { config, dbs, metrics, hooks, clock, now, inFlight, erasedNameSecret, onError, ends } = base;
  const id = randomUUID();
  const requestsEnded = () => inFlight.ended();
  const name = `${hostname()}, process ${process.pid}`;
  const instance = new Instance(dbs.control, { id, name, clock, requestsEnded, onError });
  const feed = new ChangeFeed(dbs.control, { lastBeat: () => instance.lastBeat, onError });
  const principals = new Principals({
    hooks,
    async load(hashes) {
      const since = feed.heardTime;
      return { records: await findKeyRecords(dbs.control, hashes, since), isConfirmed: since === undefined };
    },
    freshAtMs: () => feed.freshAtMs,
  });
  const workers = new WorkerStore(dbs.write, erasedNameSecret, () => feed.freshAtMs, hooks);
  const keyUses = new KeyUses(dbs.write, now, onError);
  const share = (spendings: Parameters<typeof spend>[1]) => bounded(spend(dbs.control, spendings));
  const limiter = new RateLimiter({ now: monotonic, onError, share });
  const credentials = new Credentials({
    ...{ limiter, now, hooks },
    load: (hashes) => findAccessTokens(dbs.control, hashes, feed.heardTime),
    oidc: await createOidc(base),
    used: (tokenId) => keyUses.used(tokenId),
  });
  metrics.watchFeed(feed);
  metrics.watchCaches({ principals: principals.counts, workers: workers.counts });
  for (const part of [instance, feed, keyUses, limiter]) ends.defer(() => part.stop());
  instance.start();
  feed.start({
    accessChanged: (changedId) => principals.forget(changedId),
    workersChanged: (organizationId) => workers.forget(organizationId),
    newsMissed() {
      principals.forgetAll();
      workers.forgetAll();
    },
    revisionsHeard: (revisions) => instance.heard(revisions),
  });
  const isFirst = () => isFirstInstance(dbs.control, id);
  const isClockSure = () => isClockInStep(clock);
  const retention = new Retention(dbs.control, {
    ...{ isDoer: isFirst, isClockSure, retainDays: config.RETAIN_DAYS, now, onError },
  });
  ends.defer(() => retention.stop());
  retention.start();
  const jobs = new JobKeeper(dbs.control, { now: clock.now, onError });
  ends.defer(() => jobs.stop());
  jobs.start();
  const trouble = createReadiness(clock, instance);
  return { principals, credentials, limiter, workers, keyUses, jobs, isFirst, trouble };
}

async function createOidc({ config, now, onError }: Base) {
  const { OIDC_ISSUER: issuer, OIDC_AUDIENCE: audience, OIDC_ROLE_CLAIM: roleClaim } = config;
  if (issuer === undefined || audience === undefined || roleClaim === undefined) return undefined;
  // Loaded only if it is used, so that the service starts faster.
  const { Oidc } = await import("./access/oidc.ts");
  return new Oidc({ issuer, audience, roleClaim, now, onError });
}

function startIngest(
  { dbs, hooks, clock, now, ids, activity, inFlight, stage, onError, ends }: Base,
  { principals, limiter, workers, isFirst }: Access,
): IngestCalls {
  const usage = new UsageStore(dbs.write, hooks, onError);
  const usageKeeper = new UsageKeeper(dbs.control, { usage, now: clock.now, onError, isDoer: isFirst });
  for (const part of [usageKeeper, usage]) ends.defer(() => part.stop());
  usageKeeper.start();
  return new IngestCalls({
    ...{ principals, limiter, activity, inFlight, workers, usage, ids, now, onError, stage },
    events: new EventStore(dbs.write, hooks),
    cards: new CardStore(dbs.write, hooks),
    claims: new ClaimStore(dbs.write, now, hooks),
  });
}

async function createTimeline(base: Base, calls: IngestCalls) {
  const { dbs, metrics, activity, erasedNameSecret, stage, onError, ends } = base;
  const tokens = new Tokens(await sharedSecret(dbs.write, "timeline-tokens"));
  const reading = new FairTurns(activity, pageTurns);
  const holding = new FairTurns(activity, catchUpTurns);
  metrics.watchCatchUps(holding);
  const { bufferedRowsMax: rowsMax, bufferedBytesMax: bytesMax } = timelineLimits;
  const feed = new EventFeed(dbs.read, { rowsMax, bytesMax }, { holding, reading }, onError);
  ends.defer(() => feed.stop());
  return {
    timeline: new TimelineCalls({ db: dbs.read, tokens, erasedNameSecret, stage, turns: reading }),
    watches: new Watches({ db: dbs.read, feed, tokens, erasedNameSecret, calls, now: monotonic }),
  };
}

/** The administration API. */
async function createAdmin({ config, logger, dbs, ids, now }: Base, { credentials, jobs }: Access): Promise<AdminApi> {
  const services = await createAdminServices(dbs.write, {
    ...{ ids, now, jobs },
    watches: new RequestWatches(),
    auditDays: config.AUDIT_DAYS,
    onAudit: (audit) => logger.info({ audit: logLineOf(audit) }, "administration"),
  });
  return {
    services,
    async admit(authorization, start) {
      if (start.ambiguousHeader === "authorization") throw sentTwice("authorization");
      const identity = await credentials.find(authorization);
      const facts = { rateLimit: credentials.take(identity) };
      if (start.ambiguousHeader !== undefined) throw new Failure(sentTwice(start.ambiguousHeader), facts);
      return { answer: identity, facts };
    },
    recheck: (authorization, identity) => credentials.recheck(authorization, identity),
  };
}

/** How people sign in to the console; undefined for access tokens alone. */
function consoleOidcOf({ OIDC_ISSUER, OIDC_AUDIENCE, OIDC_CLIENT_ID, OIDC_SCOPE }: Config): ConsoleOidc | undefined {
  if (OIDC_ISSUER === undefined || OIDC_AUDIENCE === undefined || OIDC_CLIENT_ID === undefined) return undefined;
  return { issuer: OIDC_ISSUER, clientId: OIDC_CLIENT_ID, audience: OIDC_AUDIENCE, scope: OIDC_SCOPE };
}

const monotonic = () => performance.now();

/** What the start and the end of a request cause beside its answer. */
function createObservers(
  { config, logger, dbs, metrics, tracing, ids, now, onError, ends }: Base,
  { keyUses }: Access,
) {
  const keepHours = config.REQUEST_RECORD_HOURS;
  const recorder = keepHours === 0 ? undefined : new RequestRecorder({ db: dbs.write, ids, now, keepHours, onError });
  const dailyUsage = new DailyUsage(dbs.write, onError);
  const traffic = new Traffic(dbs.write, onError);
  for (const part of [dailyUsage, traffic, recorder]) ends.defer(() => part?.stop());
  metrics.watchRecords(recorder?.counts ?? {});
  const log = createRequestLog(logger);
  const onBegin: AdapterOptions["onBegin"] = (start, headers) => {
    metrics.begun();
    return tracing?.begun(start, headers);
  };
  const onEnd: AdapterOptions["onEnd"] = (start, end) => {
    metrics.ended(start, end);
    if (end.caller !== undefined) keyUses.used(end.caller.keyId);
    dailyUsage.ended(start, end);
    traffic.ended(start, end);
    tracing?.ended(start, end);
    recorder?.ended(start, end);
    log(start, end);
  };
  /** On the port for operators, only calls of the API count; probes and the metrics' page do not. */
  const ofAdmin: Pick<AdapterOptions, "onBegin" | "onEnd"> = {
    onBegin: (start, headers) => (start.rpc === "" ? undefined : onBegin(start, headers)),
    onEnd: (start, end) => (start.rpc === "" ? log(start, end) : onEnd(start, end)),
  };
  return { onBegin, onEnd, ofAdmin };
}

/** Listens for callers and for operators. */
async function startServers(
  base: Base,
  access: Access,
  calls: IngestCalls,
  { timeline, watches, admin }: Awaited<ReturnType<typeof createTimeline>> & { readonly admin: AdminApi },
  observers: ReturnType<typeof createObservers>,
  options: AppOptions,
) {
  const { config, logger, metrics, ids, now, activity, onError, ends } = base;
  const tls = certificateOf(config, logger);
  ends.defer(() => tls?.stop());
  const scheme = tls === undefined ? "http" : "https";
  const urlAt = (host: string, port: number) => `${scheme}://${hostOfListener(host)}:${port}`;
  const publicUrlAt = (port: number) => config.PUBLIC_URL ?? urlAt(config.HOST, port);
  const stopping = new AbortController();
  const closing = new AbortController();
  const whyNotReady = async () => (stopping.signal.aborted ? "stopping" : access.trouble());
  const ready = async () => (await whyNotReady()) === undefined;
  const places = { health_watch: new StreamPlaces(watcherPlaces), reflection: new StreamPlaces(reflectionPlaces) };
  const keepAliveMs = config.KEEP_ALIVE_SECONDS * 1000;
  const peerOf = createPeerOf(config.TRUSTED_PROXIES ?? []);
  const both = { newRequestId: () => ids.next("req"), now, peerOf, onError };
  const serverOptions = {
    bounds: { keepAliveMs, sessionIdleMs: keepAliveMs },
    ...(tls === undefined ? {} : { tls }),
    warn: (text: string) => logger.warn(text),
  };

  const oidc = consoleOidcOf(config);
  const publicAdapter = (publicUrl: string): Adapter => {
    const reading = { calls, timeline, watches };
    const isAdmin = isAdminPublic(config);
    const services = isAdmin ? [Ingest, Timeline, Admin] : [Ingest, Timeline];
    const health = { ready, services, closing: closing.signal, places: places.health_watch };
    return createAdapter({
      ...{ ...both, publicUrl, activity, keepAliveMs },
      routes: [
        ...restRoutes(calls),
        ...timelineRoutes(reading),
        ...(isAdmin ? [...adminRoutes(admin), ...consoleRoutes({ publicUrl, isPublic: true, oidc })] : []),
        ...probeRoutes(whyNotReady),
        ...pageRoutes({ publicUrl, adminUrl: isAdmin ? publicUrl : undefined }),
      ],
      rpcs: [
        ...ingestRpcs(calls),
        ...timelineRpcs(reading),
        ...(isAdmin ? adminRpcs(admin) : []),
        ...healthRpcs(health),
      ],
      services: reflectionService([...services, Health], places.reflection),
      refusalPage: refusalPage(publicUrl),
      corsOrigins: config.CORS_ORIGINS ?? [],
      onBegin: observers.onBegin,
      onEnd: observers.onEnd,
    });
  };
  const adminAdapter = (publicUrl: string, adminUrl: string): Adapter => {
    const { metricsEveryMs: everyMs = 1_000, shareMetrics = (own) => () => own.metrics() } = options;
    const { contentType } = metrics.registry;
    const page = { text: shareMetrics(metrics.registry), contentType, token: config.METRICS_TOKEN, everyMs };
    const health = { ready, services: [Admin], closing: closing.signal, places: places.health_watch };
    return createAdapter({
      ...{ ...both, publicUrl },
      routes: [
        ...adminRoutes(admin),
        ...consoleRoutes({ publicUrl, isPublic: false, oidc }),
        ...probeRoutes(whyNotReady),
        metricsRoute(page),
        ...pageRoutes({ publicUrl, adminUrl }),
      ],
      rpcs: [...adminRpcs(admin), ...healthRpcs(health)],
      services: reflectionService([Admin, Health], places.reflection),
      refusalPage: refusalPage(publicUrl),
      corsOrigins: config.CORS_ORIGINS ?? [],
      ...observers.ofAdmin,
    });
  };

  const listen = { ...serverOptions, host: config.HOST, port: config.PORT, keylessRefusal };
  const server = await startServer((port) => publicAdapter(publicUrlAt(port)), listen);
  // For a start that fails from here on. Otherwise the server has ended by then.
  ends.defer(() => server.close(0));
  const createAdmin = (port: number) => adminAdapter(publicUrlAt(server.port), urlAt(config.ADMIN_HOST, port));
  const adminServer = await startAdminServer(createAdmin, config, { ...serverOptions, asksCallers: false });
  ends.defer(async () => {
    const cutAtMs = performance.now() + config.DRAIN_SECONDS * 1000;
    await server.close(config.DRAIN_SECONDS * 1000);
    // After the public server, so that operators can see how the last requests end. Their own calls may still run.
    await adminServer.close(Math.max(0, cutAtMs - performance.now()));
  });
  ends.defer(() => {
    closing.abort();
    watches.stop();
    admin.services.watches?.stop();
  });
  metrics.watchConnections(() => server.counts(), places);
  return {
    port: server.port,
    url: urlAt(config.HOST, server.port),
    adminUrl: urlAt(config.ADMIN_HOST, adminServer.port),
    windDown() {
      stopping.abort();
      server.windDown();
    },
  };
}

/** @throws ConfigError if the service cannot listen there. */
async function startAdminServer(
  createAdapter: (port: number) => Adapter,
  { PORT, ADMIN_PORT, ADMIN_HOST: host }: Config,
  options: Omit<ServerOptions, "host" | "port">,
): Promise<Server> {
  const port = ADMIN_PORT ?? (PORT === 0 ? 0 : adminPortDefault);
  try {
    return await startServer(createAdapter, { ...options, host, port });
  } catch (error) {
    // The user did not set this port, so a second instance on one machine takes a free one.
    const isTaken = (error as NodeJS.ErrnoException).code === "EADDRINUSE";
    if (isTaken && ADMIN_PORT === undefined) return startServer(createAdapter, { ...options, host, port: 0 });
    const trouble = listenTrouble(error, { HOST: host, PORT: port }, "ADMIN_");
    throw trouble === undefined ? error : new ConfigError(trouble, { cause: error });
  }
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
