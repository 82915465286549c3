import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type Server } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";
import { buffer } from "node:stream/consumers";
import { promisify } from "node:util";
import { gunzipSync } from "node:zlib";
import { type Metadata, type sendUnaryData, Server as GrpcServer, ServerCredentials, status } from "@grpc/grpc-js";
import { MongoClient } from "mongodb";
import { afterAll, afterEach, beforeAll, describe, expect, inject, test, vi } from "vitest";
import { unknownEnd } from "../../src/exchange.ts";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { createLogger } from "../../src/observe/log.ts";
import { startTracing } from "../../src/observe/opentelemetry.ts";
import { traceIdOf, wantsTracing } from "../../src/tracing.ts";
import { listeningUrl } from "../support/announced.ts";
import { event } from "../support/requests.ts";
import { bearer, createTenant, protocols, type Tenant } from "../support/service.ts";
import { Setup } from "../support/setup.ts";

interface ReceivedSpan {
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly kind: number;
  readonly attributes: readonly { key: string; value: Record<string, unknown> }[];
  readonly links?: readonly { traceId: string; spanId: string }[];
}

/** A collector that receives OTLP over HTTP. */
class Collector {
  readonly posts: { path: string; headers: IncomingHttpHeaders; body: Buffer }[] = [];
  readonly #server: Server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    this.posts.push({ path: request.url ?? "", headers: request.headers, body: Buffer.concat(chunks) });
    response.setHeader("content-type", request.headers["content-type"] ?? "").end("{}");
  });

  async listen(): Promise<string> {
    await once(this.#server.listen(0, "127.0.0.1"), "listening");
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Every received span, as JSON. */
  get spans(): ReceivedSpan[] {
    return this.posts
      .filter(({ headers }) => headers["content-type"] === "application/json")
      .flatMap(({ body }) => JSON.parse(body.toString()).resourceSpans)
      .flatMap(({ scopeSpans }) => scopeSpans)
      .flatMap(({ spans }) => spans);
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await once(this.#server.close(), "close");
  }
}

/** The service as a separate process, because the OTEL_* variables apply to a process. */
class ServiceProcess {
  readonly lines: string[] = [];
  errors = "";
  readonly #child: ChildProcess;

  constructor(env: Record<string, string>) {
    const { PATH, NODE_COMPILE_CACHE } = process.env;
    const own = { PATH, NODE_COMPILE_CACHE, MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database };
    const listing = `import { registerHooks } from "node:module"; registerHooks({ load(url, context, next) { if (url.includes("@opentelemetry")) process.stderr.write("loaded " + url + "\\n"); return next(url, context); } });`;
    const preload = `data:text/javascript,${encodeURIComponent(listing)}`;
    this.#child = spawn(process.execPath, ["--import", preload, "src/main.ts"], {
      env: { ...own, PORT: "0", HOST: "127.0.0.1", ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    createInterface({ input: this.#child.stdout as NodeJS.ReadableStream }).on("line", (line) => this.lines.push(line));
    this.#child.stderr?.on("data", (chunk: Buffer) => (this.errors += chunk.toString()));
  }

  async url(): Promise<string> {
    const find = () => this.lines.map(listeningUrl).find(Boolean);
    await vi.waitFor(() => expect(find(), this.errors).toBeDefined(), { timeout: 30_000, interval: 20 });
    return find() as string;
  }

  /** The OpenTelemetry packages that it has loaded. */
  get loaded(): Set<string> {
    return new Set(
      [...this.errors.matchAll(/^loaded .*\/node_modules\/@opentelemetry\/([^/]+)/gm)].map(([, name = ""]) => name),
    );
  }

  logged(requestId: string | null): Record<string, unknown> | undefined {
    return this.lines
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line))
      .find((line) => line.requestId === requestId);
  }

  async stop(): Promise<number | null> {
    this.#child.kill("SIGTERM");
    if (this.#child.exitCode === null) await once(this.#child, "exit");
    return this.#child.exitCode;
  }
}

const database = `tracing-${randomBytes(6).toString("hex")}`;
const collector = new Collector();
let client: MongoClient;
let tenant: Tenant;
let traced: ServiceProcess;
let untraced: ServiceProcess;

beforeAll(async () => {
  const endpoint = await collector.listen();
  traced = new ServiceProcess({
    OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_EXPORTER_OTLP_HEADERS: "x-tenant=ours",
    OTEL_RESOURCE_ATTRIBUTES: "deployment.environment.name=test",
    OTEL_BSP_SCHEDULE_DELAY: "100",
  });
  untraced = new ServiceProcess({ OTEL_TRACES_EXPORTER: "none", OTEL_EXPORTER_OTLP_ENDPOINT: endpoint });
  client = await MongoClient.connect(inject("mongodbUri"));
  tenant = await createTenant(new Setup(client.db(database)));
  await Promise.all([traced.url(), untraced.url()]);
});
afterAll(async () => {
  await Promise.all([traced.stop(), untraced.stop()]);
  await client.db(database).dropDatabase();
  await client.close();
  await collector.close();
});

/** A caller's own trace. */
function newTrace() {
  const traceId = randomBytes(16).toString("hex");
  const spanId = randomBytes(8).toString("hex");
  return { traceId, spanId, headers: { traceparent: `00-${traceId}-${spanId}-01` } };
}

const attribute = (span: ReceivedSpan | undefined, name: string) =>
  Object.values(span?.attributes.find(({ key }) => key === name)?.value ?? {})[0];

describe.each(Object.entries(protocols))("over %s", (name, send) => {
  test("a request's span is in the caller's trace, above its stages and the database's commands", async () => {
    const { traceId, spanId, headers } = newTrace();
    const body = { events: [event(), event({ eventType: "deploy.shipped" })] };
    const keyed = { ...bearer(tenant.key), ...headers, "idempotency-key": `trace-${name}` };
    const answer = await send(await traced.url(), "events", body, keyed);
    const own = () => collector.spans.filter((span) => span.traceId === traceId);
    const named = (wanted: string) => own().find((span) => span.name === wanted);
    await expect.poll(() => own().map((span) => span.name), { timeout: 10_000 }).toContain("Events");
    const request = named("Events");
    expect(request).toMatchObject({ parentSpanId: spanId, kind: 2 });
    expect(attribute(request, "ingest.request_id")).toBe(answer.body.requestId);
    expect(attribute(request, "ingest.app_id")).toBe(tenant.appId);
    expect([attribute(request, "ingest.accepted"), attribute(request, "ingest.rejected")].map(Number)).toEqual([1, 1]);
    for (const stage of ["admit", "validate", "decide", "write"]) {
      expect(named(stage)?.parentSpanId, stage).toBe(request?.spanId);
    }
    const batch = named("batch events");
    expect(batch?.parentSpanId).toBe(named("write")?.spanId);
    const insert = named("insert timeline");
    expect(insert).toMatchObject({ parentSpanId: batch?.spanId, kind: 3 });
    expect(attribute(insert, "db.system.name")).toBe("mongodb");
    // The claim is part of the decision.
    const claim = own().find((span) => span.name === "insert idempotency");
    const claimBatch = own().find((span) => span.spanId === claim?.parentSpanId);
    expect(claimBatch?.parentSpanId).toBe(named("decide")?.spanId);
    await expect.poll(() => traced.logged(answer.body.requestId), { timeout: 10_000 }).toMatchObject({ traceId });
  });

  test("an error's log line and, over RPC, its ErrorInfo have the trace id; without tracing, the caller's", async () => {
    for (const service of [traced, untraced]) {
      const { traceId, headers } = newTrace();
      const answer = await send(await service.url(), "ping", {}, { ...bearer("wp_live_x"), ...headers });
      expect(answer.error?.code).toBe("invalid_key");
      const requestId = answer.headers.get("x-request-id");
      await expect.poll(() => service.logged(requestId), { timeout: 10_000 }).toMatchObject({ traceId });
      if (name === "REST") continue;
      const [info] = answer.error?.details?.findDetails(ErrorInfoSchema) ?? [];
      expect(info?.metadata).toMatchObject({ traceId, requestId });
    }
  });
});

const { REST: send } = protocols as { REST: (typeof protocols)[string] };

test("requests that share a write link to one span for it", async () => {
  const url = await traced.url();
  const traces = Array.from({ length: 40 }, newTrace);
  await Promise.all(
    traces.map(({ headers }) => send(url, "events", { events: [event()] }, { ...bearer(tenant.key), ...headers })),
  );
  const ids = new Set(traces.map(({ traceId }) => traceId));
  const own = () => collector.spans.filter(({ traceId }) => ids.has(traceId));
  await expect.poll(() => own().filter((span) => span.name === "Events").length, { timeout: 10_000 }).toBe(40);
  const batches = own().filter((span) => span.name === "batch events");
  const shared = batches.find(({ links = [] }) => links.length > 0);
  expect(shared, "40 requests at once share a write").toBeDefined();
  const other = own().find(({ spanId }) => spanId === shared?.links?.[0]?.spanId);
  expect(other).toMatchObject({ name: "write" });
  expect(other?.links).toContainEqual(expect.objectContaining({ spanId: shared?.spanId }));
});

test("OTEL_* settings reach the collector: path, headers, resource; pages and health checks make no spans", async () => {
  await fetch(`${await traced.url()}/healthz`, { headers: newTrace().headers });
  await send(await traced.url(), "ping", {}, bearer(tenant.key));
  const of = (name: string) => collector.spans.filter((span) => span.name === name);
  await expect
    .poll(() => of("Ping").some((span) => span.parentSpanId === undefined || span.parentSpanId === ""), {
      timeout: 10_000,
    })
    .toBe(true);
  const [post] = collector.posts;
  expect(post).toMatchObject({ path: "/v1/traces", headers: { "x-tenant": "ours" } });
  const { attributes } = JSON.parse(post?.body.toString() ?? "").resourceSpans[0].resource;
  const resource = Object.fromEntries(attributes.map(({ key, value }: any) => [key, value.stringValue]));
  expect(resource).toMatchObject({ "service.name": "ingest", "deployment.environment.name": "test" });
  const names = new Set(collector.spans.filter(({ kind }) => kind === 2).map((span) => span.name));
  expect([...names].sort()).toEqual(["Events", "Ping"]);
  expect(collector.posts.map(({ body }) => body.toString()).join("")).not.toContain(tenant.key.slice(12));
});

test("without tracing the service loads no OpenTelemetry SDK", async () => {
  // The metrics library loads the API, which alone does nothing.
  expect([...untraced.loaded].filter((name) => name !== "api")).toEqual([]);
  expect([...traced.loaded]).toEqual(expect.arrayContaining(["api", "sdk-trace-base", "exporter-trace-otlp-http"]));
});

test("a stopped service sends its last spans, then ends with 0", async () => {
  const { traceId, headers } = newTrace();
  await send(await traced.url(), "ping", {}, { ...bearer(tenant.key), ...headers });
  expect(await traced.stop()).toBe(0);
  expect(collector.spans.some((span) => span.traceId === traceId)).toBe(true);
});

describe("the environment", () => {
  afterEach(() => vi.unstubAllEnvs());

  test.each([
    [{}, false],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://x" }, true],
    [{ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "http://x" }, true],
    [{ OTEL_TRACES_EXPORTER: "otlp" }, true],
    [{ OTEL_TRACES_EXPORTER: "none", OTEL_EXPORTER_OTLP_ENDPOINT: "http://x" }, false],
    [{ OTEL_SDK_DISABLED: "true", OTEL_EXPORTER_OTLP_ENDPOINT: "http://x" }, false],
    [{ OTEL_SERVICE_NAME: "x" }, false],
  ])("with %j, tracing is %s", (env, wanted) => {
    expect(wantsTracing(env)).toBe(wanted);
  });

  /** Closing waits at most three seconds. On a stalled machine the spans may still come later. */
  const soon = { timeout: 10_000 };

  /** Traces one request for each of the headers, and closes. Returns their trace ids. */
  async function traceAll(all: readonly IncomingHttpHeaders[], trustsCallers = false): Promise<(string | undefined)[]> {
    const tracing = await startTracing(createLogger({ level: "silent" }), trustsCallers);
    const traceIds = all.map((headers, i) => {
      const requestId = `req_${i}`;
      const traceId = tracing.begun({ requestId, rpc: "Ping", protocol: "rest" }, headers);
      tracing.ended({ requestId }, unknownEnd(requestId));
      return traceId;
    });
    await tracing.close();
    return traceIds;
  }

  /** The trace ids of `count` requests. */
  const traceAndClose = async (count: number) =>
    (await traceAll(Array.from({ length: count }, () => ({})))).map((traceId) => Buffer.from(traceId ?? "", "hex"));

  // The SDK computes its share from the trace id: it takes this one, however small the share is.
  const chosenId = "00000001000000010000000000000000";
  const asks = { traceparent: `00-${chosenId}-b7ad6b7169203331-01` };
  const declines = { traceparent: `00-${chosenId}-b7ad6b7169203331-00` };

  test.each([
    ["takes all, and the caller declines", "", "", false, declines, true],
    ["takes all, and trusted callers decline", "", "", true, declines, false],
    ["takes none, and the caller asks", "always_off", "", false, asks, false],
    ["takes none, and the caller asks", "parentbased_traceidratio", "0", false, asks, false],
    ["takes none, and trusted callers ask", "parentbased_traceidratio", "0", true, asks, true],
    ["takes few, and the caller chose its trace id", "traceidratio", "0.000001", false, asks, false],
    ["takes few, and trusted callers chose the trace id", "traceidratio", "0.000001", true, asks, true],
  ])("the sampler %s: %s %s", async (_what, sampler, share, trustsCallers, headers, isSampled) => {
    const own = new Collector();
    vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", await own.listen());
    vi.stubEnv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    vi.stubEnv("OTEL_TRACES_SAMPLER", sampler);
    vi.stubEnv("OTEL_TRACES_SAMPLER_ARG", share);
    await traceAll([headers], trustsCallers);
    if (isSampled) await vi.waitFor(() => expect(own.spans.map(({ traceId }) => traceId)).toEqual([chosenId]), soon);
    else expect(own.posts).toEqual([]);
    await own.close();
  });

  test("by default spans are sent as protobuf", async () => {
    const own = new Collector();
    vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", await own.listen());
    const [traceId] = (await traceAndClose(1)) as [Buffer];
    await vi.waitFor(() => expect(own.posts).toHaveLength(1), soon);
    expect(own.posts[0]).toMatchObject({ path: "/v1/traces", headers: { "content-type": "application/x-protobuf" } });
    expect(own.posts[0]?.body.includes(traceId)).toBe(true);
    await own.close();
  });

  const exportPath = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

  test.each(["http://", ""])(
    "over gRPC they reach a collector at %shost:port that was down at first",
    async (scheme) => {
      const calls: { request: Buffer; metadata: Metadata }[] = [];
      const raw = (message: Buffer) => message;
      const server = new GrpcServer();
      server.addService(
        {
          export: {
            ...{ path: exportPath, requestStream: false, responseStream: false },
            ...{ requestSerialize: raw, requestDeserialize: raw, responseSerialize: raw, responseDeserialize: raw },
          },
        },
        {
          export({ request, metadata }: { request: Buffer; metadata: Metadata }, reply: sendUnaryData<Buffer>) {
            if (calls.push({ request, metadata }) === 1) reply({ code: status.UNAVAILABLE });
            else reply(null, Buffer.alloc(0));
          },
        },
      );
      const port = await promisify(server.bindAsync.bind(server))("127.0.0.1:0", ServerCredentials.createInsecure());
      vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", `${scheme}127.0.0.1:${port}`);
      vi.stubEnv("OTEL_EXPORTER_OTLP_INSECURE", "true");
      vi.stubEnv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
      vi.stubEnv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours");
      try {
        const traceIds = await traceAndClose(20);
        await vi.waitFor(() => expect(calls).toHaveLength(2), soon);
        for (const { request, metadata } of calls) {
          for (const traceId of traceIds) expect(request.includes(traceId)).toBe(true);
          expect(request.includes("service.name")).toBe(true);
          expect(metadata.get("x-tenant")).toEqual(["ours"]);
        }
      } finally {
        server.forceShutdown();
      }
    },
  );

  test("over gRPC they are compressed on request", async () => {
    const bodies: Buffer[] = [];
    const server = createHttp2Server().on("stream", async (stream, headers) => {
      expect(headers).toMatchObject({ ":path": exportPath, "grpc-encoding": "gzip" });
      bodies.push(await buffer(stream));
      stream.respond({ "content-type": "application/grpc", "grpc-status": "0" }, { endStream: true });
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    vi.stubEnv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    vi.stubEnv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc");
    vi.stubEnv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    const traceIds = await traceAndClose(20);
    await vi.waitFor(() => expect(bodies).toHaveLength(1), soon);
    server.close();
    const [body] = bodies as [Buffer];
    expect(body[0]).toBe(1);
    for (const traceId of traceIds) expect(gunzipSync(body.subarray(5)).includes(traceId)).toBe(true);
  });

  test("over gRPC an invalid endpoint and a missing certificate are errors", async () => {
    vi.stubEnv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://x");
    await expect(startTracing(createLogger({ level: "silent" }), false)).rejects.toThrow(
      "OTEL_EXPORTER_OTLP_ENDPOINT is 'ftp://x'",
    );
    vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317");
    vi.stubEnv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem");
    await expect(startTracing(createLogger({ level: "silent" }), false)).rejects.toThrow(
      "OTEL_EXPORTER_OTLP_CERTIFICATE cannot be read",
    );
  });

  test.each([
    ["OTEL_TRACES_EXPORTER", "zipkin"],
    ["OTEL_EXPORTER_OTLP_PROTOCOL", "thrift"],
    ["OTEL_TRACES_SAMPLER", "jaeger_remote"],
    ["OTEL_TRACES_SAMPLER_ARG", "1.5"],
  ])("%s=%s is refused, and the error names the possible values", async (name, value) => {
    vi.stubEnv("OTEL_TRACES_SAMPLER", "traceidratio");
    vi.stubEnv(name, value);
    await expect(startTracing(createLogger({ level: "silent" }), false)).rejects.toThrow(
      `${name} is '${value}'; it must be`,
    );
  });

  test.each([
    ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"],
    ["00-00000000000000000000000000000000-b7ad6b7169203331-01", undefined],
    ["00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", undefined],
    ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", undefined],
    ["01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", "0af7651916cd43dd8448eb211c80319c"],
    ["ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", undefined],
    ["00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", undefined],
    ["x", undefined],
    [undefined, undefined],
  ])("the traceparent %s has the trace id %s", (header, traceId) => {
    expect(traceIdOf(header)).toBe(traceId);
  });
});
