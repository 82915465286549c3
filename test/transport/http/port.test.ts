import { ServerClock } from "../../../src/store/server-clock.ts";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { get } from "node:https";
import { connect as connectHttp2 } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { connect as connectTls } from "node:tls";
import { promisify } from "node:util";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { credentials, makeGenericClientConstructor, Metadata, type ServiceError } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import {
  ServerReflection as ReflectionV1,
  type ServerReflectionResponse,
} from "../../../src/gen/grpc/reflection/v1/reflection_pb.js";
import { ServerReflection as ReflectionV1Alpha } from "../../../src/gen/grpc/reflection/v1alpha/reflection_pb.js";
import {
  Health,
  HealthCheckRequestSchema,
  HealthCheckResponse_ServingStatus as Status,
} from "../../../src/gen/health/v1/health_pb.js";
import {
  EventsRequestSchema,
  Ingest,
  PingRequestSchema,
  PingResponseSchema,
  SnapshotsRequestSchema,
} from "../../../src/gen/ingest/v1/ingest_pb.js";
import { createCertificate } from "../../support/certificate.ts";
import { envelope } from "../../support/http2-wire.ts";
import { eventsMessage, snapshotMessage } from "../../support/messages.ts";
import { event, snapshot } from "../../support/requests.ts";
import { RawConnection } from "../../support/socket.ts";
import { bearer, createTenant, startService, type Tenant, type TestService } from "../../support/service.ts";
import { findTool } from "../../support/tools.ts";

const run = promisify(execFile);
const restPing = "/api/v1/ingest/ping";
const services = [
  "grpc.health.v1.Health",
  "grpc.reflection.v1.ServerReflection",
  "grpc.reflection.v1alpha.ServerReflection",
  "ingest.admin.v1.Admin",
  "ingest.v1.Ingest",
  "ingest.v1.Timeline",
];

describe("the one port, in plain text", () => {
  let service: TestService;
  let tenant: Tenant;
  let url: string;
  beforeAll(async () => {
    service = await startService();
    tenant = await createTenant(service.admin);
    url = service.app.url;
  });
  afterAll(() => service.app.close());
  const options = () => ({ headers: bearer(tenant.key) });

  test("speaks HTTP/1.1 and HTTP/2, and every protocol over both where the protocol allows it", async () => {
    for (const httpVersion of ["1.1", "2"] as const) {
      for (const transport of [
        createConnectTransport({ baseUrl: url, httpVersion }),
        createConnectTransport({ baseUrl: url, httpVersion, useBinaryFormat: false, useHttpGet: true }),
        createGrpcWebTransport({ baseUrl: url, httpVersion }),
      ]) {
        expect((await createClient(Ingest, transport).ping({}, options())).app?.slug).toBe("crm-hub");
      }
    }
    const grpc = createClient(Ingest, createGrpcTransport({ baseUrl: url }));
    expect((await grpc.ping({}, options())).app?.slug).toBe("crm-hub");
    expect((await fetch(url + restPing, options())).status).toBe(200);
    const session = connectHttp2(url);
    const stream = session.request({ ":path": restPing, ...bearer(tenant.key) });
    const [head] = await once(stream, "response");
    expect(head[":status"]).toBe(200);
    expect(JSON.parse(await text(stream)).app.slug).toBe("crm-hub");
    session.close();
  });

  test("an unknown expectation does not keep a request from its answer", async () => {
    const session = connectHttp2(url);
    const stream = session.request({ ":path": restPing, expect: "miracle", ...bearer(tenant.key) });
    const [head] = await once(stream, "response");
    expect(head).toMatchObject({ ":status": 200, "x-request-id": expect.stringMatching(/^req_/) });
    session.close();
    const connection = await RawConnection.open(service.app.port);
    connection.send([`GET ${restPing} HTTP/1.1`, "Host: x", "Expect: miracle", `Authorization: Bearer ${tenant.key}`]);
    expect((await connection.answer()).status).toBe(200);
    connection.close();
  });

  test.each(["x", "%", "é", "🙂"])(
    "errors about many long texts of %s fit the headers that clients of gRPC take",
    async (character) => {
      const session = connectHttp2(url);
      onTestFinished(() => session.destroy());
      /** The error's code, and the bytes of its headers and trailers. */
      const call = async (path: string, message: Uint8Array) => {
        const headers = { "content-type": "application/grpc", te: "trailers", ...bearer(tenant.key) };
        const stream = session.request({ ":method": "POST", ":path": path, ...headers });
        stream.end(envelope(Buffer.from(message), 0));
        const answer: Record<string, unknown> = {};
        for (const name of ["response", "trailers"]) stream.on(name, (part: object) => Object.assign(answer, part));
        await once(stream.resume(), "close");
        const sizes = Object.entries(answer).map(([field, value]) => field.length + String(value).length + 32);
        return { code: Number(answer["grpc-status"]), bytes: sizes.reduce((sum, size) => sum + size, 0) };
      };
      const text = character.repeat(190);
      const list = Array.from({ length: 25 }, (_, i) => `${i}${text}`);
      const events = list.map((workerId) => event({ actor: { workerId } }));
      const unknown = toBinary(EventsRequestSchema, create(EventsRequestSchema, eventsMessage({ events })));
      const metrics = Object.fromEntries(list.map((name) => [name, `${text}${text}`]));
      const message = create(SnapshotsRequestSchema, snapshotMessage(snapshot({ metrics })));
      const invalid = toBinary(SnapshotsRequestSchema, message);
      const check = toBinary(HealthCheckRequestSchema, create(HealthCheckRequestSchema, { service: text.repeat(100) }));
      const types = list.map((name) => event({ eventType: `${name}${text}` }));
      const badTypes = toBinary(EventsRequestSchema, create(EventsRequestSchema, eventsMessage({ events: types })));
      // Clients such as gRPC for Python accept 8 KB, but not more than 16 KB.
      for (const [path, body, code, bytesMax] of [
        ["/ingest.v1.Ingest/Events", unknown, Code.NotFound, 8_192],
        ["/ingest.v1.Ingest/Events", badTypes, Code.InvalidArgument, 16_384],
        ["/ingest.v1.Ingest/Snapshots", invalid, Code.InvalidArgument, 16_384],
        ["/grpc.health.v1.Health/Check", check, Code.NotFound, 8_192],
      ] as const) {
        const answer = await call(path, body);
        expect(answer.code).toBe(code);
        expect(answer.bytes, path).toBeLessThan(bytesMax);
      }
    },
  );

  test("health checks at any rate ask the database only a few times a second", async () => {
    const measure = vi.spyOn(ServerClock.prototype, "measure");
    onTestFinished(() => measure.mockRestore());
    // Ten on a connection, because more at once need a key.
    const clients = Array.from({ length: 10 }, () => createClient(Health, createGrpcTransport({ baseUrl: url })));
    const startedMs = performance.now();
    const answers = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => [
        (await (clients[i % 10] as (typeof clients)[number]).check({})).status,
        (await fetch(`${url}/readyz`, { headers: { connection: "close" } })).status,
      ]),
    );
    expect(answers).toEqual(Array(100).fill([Status.SERVING, 200]));
    const looks = measure.mock.calls.length;
    expect(looks).toBeGreaterThan(0);
    // Every second one may come from the clock, which also measures.
    expect(looks).toBeLessThanOrEqual(2 + 2 * ((performance.now() - startedMs) / 250));
  });

  test("CONNECT is refused with a documented error", async () => {
    const session = connectHttp2(url);
    const stream = session.request({ ":method": "CONNECT", ":authority": "example.com:443" });
    const [head] = await once(stream, "response");
    expect(head).toMatchObject({ ":status": 404, "x-request-id": expect.stringMatching(/^req_/) });
    session.destroy();
    const connection = await RawConnection.open(service.app.port);
    connection.send(["CONNECT example.com:443 HTTP/1.1", "Host: example.com:443"]);
    const { status, headers, body } = await connection.answer();
    expect(status).toBe(400);
    expect(headers.get("x-request-id")).toBe(JSON.parse(body).error.requestId);
    expect(JSON.parse(body).error.message).toContain("CONNECT");
    await connection.ended();
    connection.close();
  });

  test("serves @grpc/grpc-js, also with gzip", async () => {
    const Client = makeGenericClientConstructor(
      {
        Ping: {
          path: "/ingest.v1.Ingest/Ping",
          requestStream: false,
          responseStream: false,
          requestSerialize: () => Buffer.from(toBinary(PingRequestSchema, { $typeName: "ingest.v1.PingRequest" })),
          requestDeserialize: (bytes) => bytes,
          responseSerialize: (bytes) => bytes,
          responseDeserialize: (bytes) => fromBinary(PingResponseSchema, bytes),
        },
      },
      "Ingest",
    );
    for (const compression of [0, 2]) {
      const client = new Client(`127.0.0.1:${service.app.port}`, credentials.createInsecure(), {
        "grpc.default_compression_algorithm": compression as 0 | 2,
      });
      const call = (key: string): Promise<any> =>
        new Promise((resolve, reject) => {
          const metadata = new Metadata();
          metadata.set("authorization", `Bearer ${key}`);
          client.Ping?.({}, metadata, (error: ServiceError | null, answer: unknown) =>
            error === null ? resolve(answer) : reject(error),
          );
        });
      expect((await call(tenant.key)).app.slug).toBe("crm-hub");
      const refused: ServiceError = await call("nonsense").catch((error: ServiceError) => error);
      expect(refused.code).toBe(Code.Unauthenticated);
      expect(refused.metadata.get("grpc-status-details-bin")).toHaveLength(1);
      client.close();
    }
  });

  test.each([
    ["v1", ReflectionV1],
    ["v1alpha", ReflectionV1Alpha as unknown as typeof ReflectionV1],
  ])("reflection %s lists the services and describes every one of them", async (_version, reflection) => {
    const client = createClient(reflection, createGrpcTransport({ baseUrl: url }));
    async function* ask() {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
      for (const name of services) yield { messageRequest: { case: "fileContainingSymbol" as const, value: name } };
      yield { messageRequest: { case: "fileByFilename" as const, value: "google/protobuf/struct.proto" } };
      yield { messageRequest: { case: "fileContainingSymbol" as const, value: "google.rpc.ErrorInfo" } };
      yield { messageRequest: { case: "fileContainingSymbol" as const, value: "no.such.Thing" } };
    }
    const answers: ServerReflectionResponse["messageResponse"][] = [];
    for await (const { messageResponse } of client.serverReflectionInfo(ask())) answers.push(messageResponse);
    const [list, ...files] = answers;
    expect(list?.case === "listServicesResponse" && list.value.service.map(({ name }) => name).sort()).toEqual(
      services,
    );
    const unknown = files.pop();
    expect(unknown?.case === "errorResponse" && unknown.value.errorCode).toBe(Code.NotFound);
    for (const file of files) {
      const protos = file.case === "fileDescriptorResponse" ? file.value.fileDescriptorProto : [];
      const names = protos.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes));
      // With all imports, so that a client needs no second request.
      const known = new Set(names.map(({ name }) => name));
      expect(protos.length).toBeGreaterThan(0);
      for (const { dependency } of names) for (const one of dependency) expect(known).toContain(one);
    }
  });

  const grpcurl = findTool("grpcurl");
  test.skipIf(grpcurl === undefined)("grpcurl lists, describes and calls without a schema", async () => {
    const ask = async (...args: string[]) =>
      (await run(grpcurl as string, ["-plaintext", "-H", `authorization: Bearer ${tenant.key}`, ...args])).stdout;
    const address = `127.0.0.1:${service.app.port}`;
    expect((await ask(address, "list")).trim().split("\n").sort()).toEqual(services);
    expect(await ask(address, "describe", "ingest.v1.Ingest")).toMatch(/\/\/ Stores a batch of events.*rpc Events/s);
    expect(await ask(address, "describe", "ingest.v1.EventsRequest")).toContain("repeated .ingest.v1.Event events");
    expect(JSON.parse(await ask(address, "ingest.v1.Ingest/Ping")).app.slug).toBe("crm-hub");
    expect(JSON.parse(await ask(address, "grpc.health.v1.Health/Check"))).toEqual({ status: "SERVING" });
  });

  test("buf curl works without a schema, as installed from npm", async () => {
    // A full path, because only npx and npm scripts have the packages' commands on the PATH.
    const buf = join(import.meta.dirname, "../../../node_modules/.bin/buf");
    const args = ["--http2-prior-knowledge", "-H", `authorization: Bearer ${tenant.key}`, "--protocol", "grpc"];
    const { stdout } = await run(buf, ["curl", ...args, `${url}/ingest.v1.Ingest/Ping`]);
    expect(JSON.parse(stdout).app.slug).toBe("crm-hub");
  });

  test("health knows the server and each service, and no other name", async () => {
    const client = createClient(Health, createGrpcTransport({ baseUrl: url }));
    for (const name of ["", "ingest.v1.Ingest", "ingest.v1.Timeline", "ingest.admin.v1.Admin"]) {
      expect((await client.check({ service: name })).status).toBe(Status.SERVING);
    }
    const unknown = await client.check({ service: "no.such.Service" }).catch(ConnectError.from);
    expect(unknown).toMatchObject({ code: Code.NotFound });
    for await (const { status } of client.watch({ service: "no.such.Service" })) {
      expect(status).toBe(Status.SERVICE_UNKNOWN);
      break;
    }
  });

  test("a watcher's deadline ends its watch", async () => {
    const client = createClient(Health, createGrpcWebTransport({ baseUrl: url, httpVersion: "1.1" }));
    const seen: Status[] = [];
    const watch = async () => {
      // Without the client's own timer, so that only the header tells the server.
      const headers = { "grpc-timeout": "3S" };
      for await (const { status } of client.watch({}, { headers })) seen.push(status);
    };
    await expect(watch()).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    // A stalled database may be reported in between.
    expect(seen).toContain(Status.SERVING);
  });
});

test("a health watcher learns that the server stops, and does not delay the stop", async () => {
  const service = await startService({ env: { DRAIN_SECONDS: "30", STOP_DELAY_SECONDS: "1" } });
  const client = createClient(Health, createGrpcTransport({ baseUrl: service.app.url }));
  const seen: Status[] = [];
  let closed: Promise<void> | undefined;
  const watch = async () => {
    for await (const { status } of client.watch({})) {
      seen.push(status);
      closed ??= service.app.close();
    }
  };
  await expect(watch()).rejects.toMatchObject({ code: Code.Unavailable });
  expect(seen).toEqual([Status.SERVING, Status.NOT_SERVING]);
  const startedMs = performance.now();
  await closed;
  // Far below the drain, even on a slow machine.
  expect(performance.now() - startedMs).toBeLessThan(15_000);
});

describe("the one port, with TLS", () => {
  let directory: string;
  let service: TestService;
  let tenant: Tenant;
  let url: string;
  let ca: string;
  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), "ingest-tls-"));
    const pems = await createCertificate();
    ca = pems.cert;
    const [cert, key] = [join(directory, "cert.pem"), join(directory, "key.pem")];
    writeFileSync(cert, pems.cert);
    writeFileSync(key, pems.key);
    service = await startService({ env: { TLS_CERT: cert, TLS_KEY: key } });
    tenant = await createTenant(service.admin);
    url = service.app.url;
    expect(url).toMatch(/^https:\/\/localhost:/);
  });
  afterAll(async () => {
    await service.app.close();
    rmSync(directory, { recursive: true });
  });

  test.each([
    [["h2", "http/1.1"], "h2"],
    [["http/1.1"], "http/1.1"],
    [undefined, false],
  ])("a client that offers %j speaks %s", async (offered, agreed) => {
    const socket = connectTls({
      port: service.app.port,
      servername: "localhost",
      ca,
      ...(offered === undefined ? {} : { ALPNProtocols: offered }),
    });
    await once(socket, "secureConnect");
    expect(socket.alpnProtocol).toBe(agreed);
    socket.destroy();
  });

  test("every protocol is served", async () => {
    const nodeOptions = { ca };
    for (const transport of [
      createConnectTransport({ baseUrl: url, httpVersion: "1.1", nodeOptions }),
      createConnectTransport({ baseUrl: url, httpVersion: "2", nodeOptions }),
      createGrpcTransport({ baseUrl: url, nodeOptions }),
      createGrpcWebTransport({ baseUrl: url, httpVersion: "1.1", nodeOptions }),
    ]) {
      const { app } = await createClient(Ingest, transport).ping({}, { headers: bearer(tenant.key) });
      expect(app?.slug).toBe("crm-hub");
    }
    const [response] = await once(get(url + restPing, { ca, headers: bearer(tenant.key) }), "response");
    expect(response.statusCode).toBe(200);
    expect(JSON.parse(await text(response)).app.slug).toBe("crm-hub");
  });

  test("a malformed HTTP/1.1 request gets a documented error", async () => {
    const socket = connectTls({ port: service.app.port, servername: "localhost", ca });
    socket.write("GET / HTTP/9.9\r\n\r\n");
    const answer = await text(socket);
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect(answer).toContain('"code":"invalid_body"');
  });

  test("a caller that does not speak TLS is disconnected, without harm to others", async () => {
    await expect(fetch(url.replace("https", "http") + restPing)).rejects.toThrow();
    const [response] = await once(get(url + restPing, { ca, headers: bearer(tenant.key) }), "response");
    expect(response.statusCode).toBe(200);
    response.resume();
  });
});
