import { once } from "node:events";
import { connect, constants, type ClientHttp2Session, type IncomingHttpHeaders } from "node:http2";
import * as net from "node:net";
import { buffer } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { create, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { encodeEnvelope } from "@connectrpc/connect/protocol";
import { findTrailerError } from "@connectrpc/connect/protocol-grpc";
import { ErrorInfoSchema } from "../../../src/gen/google/rpc/error_details_pb.js";
import { EventSchema, EventsRequestSchema } from "../../../src/gen/ingest/v1/ingest_pb.js";
import { limits } from "../../../src/limits.ts";
import { serverBounds } from "../../../src/transport/http/server-limits.ts";
import * as wire from "../../support/http2-wire.ts";
import { bearer, createTenant, startService, type Tenant, type TestService } from "../../support/service.ts";
import { type RawAnswer, RawConnection } from "../../support/socket.ts";

let service: TestService;
let tenant: Tenant;
let port: number;

beforeAll(async () => {
  service = await startService();
  tenant = await createTenant(service.admin);
  port = service.app.port;
});
afterAll(() => service.app.close());

const connections: RawConnection[] = [];
afterEach(() => {
  for (const connection of connections.splice(0)) connection.close();
});
async function open(): Promise<RawConnection> {
  const connection = await RawConnection.open(port);
  connections.push(connection);
  return connection;
}

const restPath = "/api/v1/ingest/events";
const rpcPath = "/ingest.v1.Ingest/Events";
const authorization = () => `Authorization: Bearer ${tenant.key}`;
const json = "Content-Type: application/json";
const tooLarge = limits.bodyBytesMax + 1;
const good = JSON.stringify({
  events: [{ eventType: "ticket.resolved", category: "design", actor: { externalId: "w" } }],
});

function expectErrorShape(answer: RawAnswer, status: number, code: string): void {
  expect(answer.status).toBe(status);
  const { error } = JSON.parse(answer.body);
  expect(Object.keys(error)).toEqual(["code", "message", "requestId", "docsUrl"]);
  expect(error.code).toBe(code);
  expect(answer.headers.get("x-request-id")).toBe(error.requestId);
  expect(answer.headers.get("x-api-version")).toBe("2026-04-01");
  expect(answer.headers.get("content-type")).toBe("application/json; charset=utf-8");
  expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
}

/** Checks at the end of a test that the process lives and serves this connection or another. */
async function expectServed(connection?: RawConnection): Promise<void> {
  const one = connection ?? (await open());
  one.send(["GET /api/v1/ingest/ping HTTP/1.1", "Host: x", authorization()]);
  expect((await one.answer()).status).toBe(200);
}

describe("over HTTP/1.1", () => {
  test.each([
    ["a host that is no URL", 400, ["HTTP/1.1", "Host: a|b"]],
    ["a port that is no number", 400, ["HTTP/1.1", "Host: x:abc"]],
    ["two hosts", 400, ["HTTP/1.1", "Host: a, b"]],
    ["no host", 400, ["HTTP/1.1"]],
    ["HTTP/1.0 without a host", 202, ["HTTP/1.0"]],
  ] as const)("%s is answered with %i, REST and RPC", async (_what, status, [version, ...lines]) => {
    for (const [path, expected] of [
      [restPath, status],
      // REST's lower-case category is not the schema's. Only the answer matters here.
      [rpcPath, 400],
    ] as const) {
      const connection = await open();
      const length = `Content-Length: ${good.length}`;
      connection.send([`POST ${path} ${version}`, ...lines, authorization(), json, length], good);
      const answer = await connection.answer();
      expect(answer.status, answer.body).toBe(expected);
      expect(answer.headers.get("x-request-id")).toMatch(/^req_/);
    }
    await expectServed();
  });

  test.each([
    ["a path that is no URL", "GET //[ HTTP/1.1"],
    ["an absolute form", "GET http://elsewhere:80/nowhere?a=b HTTP/1.1"],
    ["a path with a broken escape", "GET /%zz?%zz=%f HTTP/1.1"],
    ["an asterisk", "OPTIONS * HTTP/1.1"],
  ])("%s is not found", async (_what, line) => {
    const connection = await open();
    connection.send([line, "Host: x"]);
    expectErrorShape(await connection.answer(), 404, "not_found");
    await expectServed(connection);
  });

  test("an unreadable query does not harm a Connect GET", async () => {
    const connection = await open();
    connection.send([
      "GET /ingest.v1.Ingest/Ping?encoding=json&message=%zz&base64=1 HTTP/1.1",
      "Host: x",
      authorization(),
    ]);
    expect((await connection.answer()).status).toBeGreaterThanOrEqual(200);
    await expectServed(connection);
  });

  describe.each([
    ["content-length", (bytes: number) => [`Content-Length: ${bytes}`], (body: string) => body],
    [
      "chunks",
      () => ["Transfer-Encoding: chunked"],
      (body: string) => `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`,
    ],
  ])("a body that is too large, by %s", (_how, framing, encode) => {
    const body = " ".repeat(tooLarge);

    test("is batch_too_large over REST, and the connection continues", async () => {
      const connection = await open();
      connection.send(
        [`POST ${restPath} HTTP/1.1`, "Host: x", authorization(), json, ...framing(tooLarge)],
        encode(body),
      );
      expectErrorShape(await connection.answer(), 413, "batch_too_large");
      await expectServed(connection);
    });

    test("is batch_too_large over Connect, and the connection continues", async () => {
      const connection = await open();
      connection.send(
        [`POST ${rpcPath} HTTP/1.1`, "Host: x", authorization(), json, ...framing(tooLarge)],
        encode(body),
      );
      const answer = await connection.answer();
      expect(answer.status).toBe(429);
      expect(JSON.parse(answer.body)).toMatchObject({ code: "resource_exhausted" });
      expect(JSON.parse(answer.body).details[0].debug.reason).toBe("batch_too_large");
      await expectServed(connection);
    });

    test("gets its answer before it was sent completely, readable although the connection closes", async () => {
      const connection = await open();
      const head = [`POST ${restPath} HTTP/1.1`, "Host: x", json, "Connection: close", ...framing(tooLarge)];
      // The service does not read the body of a caller without a key.
      connection.send(head, encode(body).slice(0, 1000));
      expectErrorShape(await connection.answer(), 401, "missing_authorization");
      connection.socket.write(encode(body).slice(1000));
      await connection.ended();
      await expectServed();
    });
  });

  test("an endless body is cut off without harm to others", async () => {
    const connection = await open();
    connection.send([`POST ${restPath} HTTP/1.1`, "Host: x", authorization(), json, "Transfer-Encoding: chunked"]);
    const chunk = `${(65_536).toString(16)}\r\n${" ".repeat(65_536)}\r\n`;
    const pump = () => {
      while (!connection.socket.destroyed && connection.socket.write(chunk)) void 0;
    };
    connection.socket.on("drain", pump);
    pump();
    expectErrorShape(await connection.answer(), 413, "batch_too_large");
    await connection.ended();
    await expectServed();
  });

  test("a caller that expects 100-continue gets it, then its answer", async () => {
    const connection = await open();
    const length = `Content-Length: ${good.length}`;
    connection.send([`POST ${restPath} HTTP/1.1`, "Host: x", authorization(), json, length, "Expect: 100-continue"]);
    expect((await connection.answer()).status).toBe(100);
    connection.socket.write(good);
    expect((await connection.answer()).status).toBe(202);
    await expectServed(connection);
  });

  test("pipelined requests are answered in order", async () => {
    const connection = await open();
    const length = `Content-Length: ${good.length}`;
    connection.send([`POST ${restPath} HTTP/1.1`, "Host: x", authorization(), json, length], good);
    connection.send(["GET /nowhere HTTP/1.1", "Host: x"]);
    connection.send(
      [`POST ${rpcPath.replace("Events", "Ping")} HTTP/1.1`, "Host: x", authorization(), json, "Content-Length: 2"],
      "{}",
    );
    connection.send(["GET /api/v1/ingest/ping HTTP/1.1", "Host: x", authorization()]);
    const statuses = [];
    for (let i = 0; i < 4; i++) statuses.push((await connection.answer()).status);
    expect(statuses).toEqual([202, 404, 200, 200]);
  });

  test("the absolute form of a request target works like any other", async () => {
    const connection = await open();
    connection.send(["GET http://elsewhere/api/v1/ingest/ping?x HTTP/1.1", "Host: x", authorization()]);
    expect((await connection.answer()).status).toBe(200);
  });

  test("a caller that ends its side counts as gone, and harms no one else", async () => {
    const connection = await open();
    const length = `Content-Length: ${good.length}`;
    connection.send([`POST ${restPath} HTTP/1.1`, "Host: x", authorization(), json, length], good);
    connection.socket.end();
    await connection.ended();
    await expectServed();
  });

  test("a caller that ends within its body harms no one else", async () => {
    const connection = await open();
    connection.send([`POST ${restPath} HTTP/1.1`, "Host: x", authorization(), json, "Content-Length: 1000"], good);
    connection.socket.end();
    await connection.ended();
    await expectServed();
  });

  test("a request without a body gets its answer at once, over REST and every RPC protocol", async () => {
    const connection = await open();
    const head = (path: string, contentType: string) => [
      `POST ${path} HTTP/1.1`,
      "Host: x",
      authorization(),
      `Content-Type: ${contentType}`,
    ];
    connection.send(head(restPath, "application/json"));
    expectErrorShape(await connection.answer(), 400, "invalid_body");
    connection.send([...head(restPath, "application/json"), "Content-Encoding: gzip"]);
    expectErrorShape(await connection.answer(), 400, "invalid_body");
    connection.send(head(rpcPath, "application/json"));
    expect((await connection.answer()).status).toBe(400);
    connection.send(head("/ingest.v1.Ingest/Ping", "application/proto"));
    expect((await connection.answer()).status).toBe(200);
    connection.send(head(rpcPath, "application/grpc-web+proto"));
    expect((await connection.answer()).body).toContain("grpc-status");
    await expectServed(connection);
  });

  test("the service obeys Connection: close", async () => {
    const connection = await open();
    connection.send(["GET /api/v1/ingest/ping HTTP/1.1", "Host: x", authorization(), "Connection: close"]);
    const answer = await connection.answer();
    expect([answer.status, answer.headers.get("connection")]).toEqual([200, "close"]);
    expect(answer.headers.has("keep-alive")).toBe(false);
    await connection.ended();
  });

  test("every answer that keeps its connection says for how long, over every protocol", async () => {
    const connection = await open();
    const requests = [
      ["GET /api/v1/ingest/ping HTTP/1.1", "Host: x", authorization()],
      ["GET /api/v1/ingest/ping HTTP/1.1", "Host: x"],
      ["GET /nowhere HTTP/1.1", "Host: x"],
      ["POST /ingest.v1.Ingest/Ping HTTP/1.1", "Host: x", authorization(), "Content-Type: application/proto"],
      ["POST /ingest.v1.Ingest/Ping HTTP/1.1", "Host: x", authorization(), "Content-Type: application/grpc-web+proto"],
    ];
    for (const lines of requests) {
      connection.send(lines);
      const { headers } = await connection.answer();
      const said = [headers.get("connection"), headers.get("keep-alive"), headers.has("date")];
      expect(said, lines[0]).toEqual(["keep-alive", `timeout=${serverBounds.keepAliveMs / 1000}`, true]);
    }
  });

  test("no answer header contains a caller's text", async () => {
    const mark = "a-caller-said-this";
    const sent = [
      `Host: ${mark}`,
      `Origin: http://${mark}`,
      `User-Agent: ${mark}`,
      `X-Request-Id: ${mark}`,
      `Idempotency-Key: ${mark}`,
      `X-Dry-Run: ${mark}`,
      `traceparent: ${mark}`,
      `Content-Type: ${mark}`,
      `Accept: ${mark}`,
      `Accept-Encoding: ${mark}`,
      `If-None-Match: ${mark}`,
    ];
    const body = `{"events":[{"eventType":"${mark}","category":"design","actor":{"externalId":"${mark}"}}]}`;
    const connection = await open();
    for (const allowed of [authorization(), `Authorization: Bearer ${mark}`]) {
      for (const target of [`${restPath}?${mark}`, `/${mark}`, `/docs/${mark}`, `${rpcPath}?${mark}`]) {
        const others = sent.filter((line) => !line.startsWith("Content-Type"));
        for (const lines of [sent, [...others, json]]) {
          connection.send([`POST ${target} HTTP/1.1`, allowed, `Content-Length: ${body.length}`, ...lines], body);
          const { headers } = await connection.answer();
          expect([...headers].filter(([name, value]) => `${name}: ${value}`.includes(mark))).toEqual([]);
        }
      }
    }
    await expectServed(connection);
  });

  test.each([
    ["nothing like HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", 400],
    ["a head that does not parse", "GET / HTTP/9.9\r\n\r\n", 400],
    ["two lengths", "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400],
    ["a length and chunks", "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400],
    ["headers that are too large", `GET / HTTP/1.1\r\nHost: x\r\nA: ${"x".repeat(70_000)}\r\n\r\n`, 431],
  ])("%s gets a documented error", async (_what, bytes, status) => {
    const connection = await open();
    connection.socket.write(bytes, "latin1");
    const answer = await connection.answer();
    expectErrorShape(answer, status, "invalid_body");
    expect(answer.headers.get("connection")).toBe("close");
    await connection.ended();
    await expectServed();
  });

  test("an invalid chunk gets a documented error", async () => {
    const connection = await open();
    connection.send(
      [`POST ${restPath} HTTP/1.1`, "Host: x", authorization(), json, "Transfer-Encoding: chunked"],
      "zz\r\n{}\r\n0\r\n\r\n",
    );
    expectErrorShape(await connection.answer(), 400, "invalid_body");
    await connection.ended();
    await expectServed();
  });

  test("a wrong verb or content type of an RPC gets a documented error", async () => {
    const connection = await open();
    connection.send([`GET ${rpcPath} HTTP/1.1`, "Host: x", authorization()]);
    const verb = await connection.answer();
    expectErrorShape(verb, 405, "method_not_allowed");
    expect(verb.headers.get("allow")).toBe("POST");
    connection.send(
      [`POST ${rpcPath} HTTP/1.1`, "Host: x", authorization(), "Content-Type: text/plain", "Content-Length: 2"],
      "{}",
    );
    expectErrorShape(await connection.answer(), 415, "invalid_body");
    await expectServed(connection);
  });
});

test.each([
  ["Connect", "application/connect+proto", "/grpc.health.v1.Health/Watch"],
  ["gRPC-Web", "application/grpc-web+proto", "/grpc.health.v1.Health/Watch"],
  ["gRPC", "application/grpc+proto", "/grpc.health.v1.Health/Watch"],
  ["gRPC-Web", "application/grpc-web+proto", "/grpc.health.v1.Health/Check"],
])("a message over %s (%s) that cannot be decoded has ErrorInfo, on %s too", async (_protocol, contentType, path) => {
  const session = connect(service.app.url);
  const stream = session.request({ ":method": "POST", ":path": path, "content-type": contentType });
  let trailers: IncomingHttpHeaders = {};
  stream.on("trailers", (received) => (trailers = received));
  stream.end(encodeEnvelope(0, new Uint8Array([255, 255])));
  const body = await buffer(stream);
  session.close();
  const ends = body.toString("latin1") + JSON.stringify(trailers);
  // The details are in base64 over every protocol.
  const decoded = ends.match(/[A-Za-z0-9+/]{20,}/g)?.map((run) => Buffer.from(run, "base64").toString());
  expect(decoded?.join()).toContain("\n\finvalid_body");
});

describe("over HTTP/2", () => {
  let session: ClientHttp2Session;
  beforeAll(() => {
    session = connect(service.app.url);
  });
  afterAll(() => session.close());

  async function call(headers: Record<string, string>, body: Uint8Array | string) {
    const stream = session.request({ ":method": "POST", ...bearer(tenant.key), ...headers });
    let trailers: IncomingHttpHeaders = {};
    stream.on("trailers", (received) => (trailers = received));
    stream.end(body);
    const [head] = (await once(stream, "response")) as [IncomingHttpHeaders];
    const bytes = await buffer(stream);
    if (!stream.closed) await once(stream, "close");
    return { head, bytes, trailers, rstCode: stream.rstCode };
  }
  const grpcError = (trailers: IncomingHttpHeaders) =>
    findTrailerError(new Headers(Object.entries(trailers).map(([name, value]) => [name, String(value)])));
  const ping = () =>
    call(
      { ":path": "/ingest.v1.Ingest/Ping", "content-type": "application/grpc" },
      encodeEnvelope(0, new Uint8Array()),
    );
  const message = toBinary(
    EventsRequestSchema,
    create(EventsRequestSchema, {
      events: [{ eventType: "ticket.resolved", category: 1, actor: { id: { case: "externalId", value: "w" } } }],
    }),
  );
  const grpc = (body: Uint8Array, headers: Record<string, string> = {}) =>
    call({ ":path": rpcPath, "content-type": "application/grpc", ...headers }, body);

  test("a body that is too large, without a content-length, is refused; its stream closes and the others continue", async () => {
    const [rest, connectCall, grpcCall, other] = await Promise.all([
      call({ ":path": restPath, "content-type": "application/json" }, " ".repeat(tooLarge)),
      call({ ":path": rpcPath, "content-type": "application/json" }, " ".repeat(tooLarge)),
      grpc(encodeEnvelope(0, new Uint8Array(tooLarge))),
      ping(),
    ]);
    expect(rest.head[":status"]).toBe(413);
    expect(JSON.parse(rest.bytes.toString()).error.code).toBe("batch_too_large");
    expect(connectCall.head[":status"]).toBe(429);
    const error = grpcError(grpcCall.trailers);
    expect(error?.code).toBe(Code.ResourceExhausted);
    expect(error?.findDetails(ErrorInfoSchema)[0]?.reason).toBe("batch_too_large");
    expect(other.trailers["grpc-status"]).toBe("0");
    expect([rest, connectCall, grpcCall].map(({ rstCode }) => rstCode)).toEqual([0, 0, 0]);
    expect((await ping()).trailers["grpc-status"]).toBe("0");
  });

  test.each([
    ["no message", new Uint8Array(), Code.Unimplemented, "invalid_body"],
    ["half a prefix", new Uint8Array(3), Code.InvalidArgument, "invalid_body"],
    [
      "a message shorter than its prefix says",
      encodeEnvelope(0, message).subarray(0, -1),
      Code.InvalidArgument,
      "invalid_body",
    ],
    [
      "two messages",
      Buffer.concat([encodeEnvelope(0, message), encodeEnvelope(0, message)]),
      Code.Unimplemented,
      "invalid_body",
    ],
    [
      "a message and a half",
      Buffer.concat([encodeEnvelope(0, message), new Uint8Array(2)]),
      Code.InvalidArgument,
      "invalid_body",
    ],
    [
      "a message that cannot be decoded",
      encodeEnvelope(0, new Uint8Array([255, 255])),
      Code.InvalidArgument,
      "invalid_body",
    ],
    ["compression without an encoding", encodeEnvelope(1, message), Code.Internal, "invalid_body"],
  ])("gRPC with %s has the same code as Connect's own server", async (_what, body, code, reason) => {
    const { head, trailers } = await grpc(body);
    expect(head[":status"]).toBe(200);
    expect(head["x-request-id"]).toMatch(/^req_/);
    const error = grpcError(trailers);
    expect(error?.code).toBe(code);
    expect(error?.findDetails(ErrorInfoSchema)[0]?.reason).toBe(reason);
    // Connect's own server handles such a header.
    const ordinary = await grpc(body, { expect: "100-continue" });
    expect(grpcError(ordinary.trailers)?.code).toBe(code);
  });

  test.each(["zstd", "constructor", "__proto__"])("the unknown compression %s is refused", async (name) => {
    for (const flag of [0, 1]) {
      const { trailers } = await grpc(encodeEnvelope(flag, message), { "grpc-encoding": name });
      expect(trailers["grpc-status"]).toBe(String(Code.Unimplemented));
    }
    const headers = { ":path": restPath, "content-type": "application/json", "content-encoding": name };
    const { head, bytes } = await call(headers, good);
    expect([head[":status"], bytes.toString()]).toEqual([400, expect.stringContaining("must be gzip or absent")]);
  });

  test("an invalid deadline is refused", async () => {
    const { trailers } = await grpc(encodeEnvelope(0, message), { "grpc-timeout": "soon" });
    expect(trailers["grpc-status"]).toBe(String(Code.InvalidArgument));
  });

  test.each(["application/grpc", "application/grpc+proto", "application/grpc+json"])(
    "an unknown RPC has grpc-status 12 in the headers, with our details (%s)",
    async (contentType) => {
      for (const path of ["/ingest.v1.Ingest/Nope", "/ingest.v1.Nope/Events", "/no.such.Service/Call"]) {
        const { head } = await call({ ":path": path, "content-type": contentType }, encodeEnvelope(0, message));
        const { ":status": status, ...headers } = head;
        expect(status).toBe(200);
        expect(headers["grpc-status"]).toBe(String(Code.Unimplemented));
        expect(grpcError(headers)?.findDetails(ErrorInfoSchema)[0]?.reason).toBe("not_found");
      }
    },
  );

  test.each([
    ["REST", "GET", "/api/v1/ingest/ping", {}],
    ["an unknown RPC", "POST", "/no.such.Service/Call", { "content-type": "application/grpc" }],
    ["gRPC", "POST", "/ingest.v1.Ingest/Ping", { "content-type": "application/grpc" }],
    [
      "gRPC with Expect",
      "POST",
      "/ingest.v1.Ingest/Ping",
      { "content-type": "application/grpc", expect: "100-continue" },
    ],
    ["gRPC-Web", "POST", "/ingest.v1.Ingest/Ping", { "content-type": "application/grpc-web" }],
    ["Connect", "POST", "/ingest.v1.Ingest/Ping", { "content-type": "application/json" }],
    ["a page", "GET", "/docs", {}],
    ["health", "POST", "/grpc.health.v1.Health/Check", { "content-type": "application/grpc" }],
    [
      "reflection",
      "POST",
      "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
      { "content-type": "application/grpc" },
    ],
  ] as const)("requests that are reset in the same packet harm nobody: %s", async (_what, method, path, more) => {
    const socket = net.connect(port, "127.0.0.1");
    await once(socket, "connect");
    const fields = wire.hpack({ ":method": method, ":scheme": "http", ":authority": "x", ":path": path, ...more });
    const flags = wire.flag.endHeaders | (method === "GET" ? wire.flag.endStream : 0);
    // More than a connection may have without a key. Node keeps a stream that is reset with NO_ERROR a while longer.
    const resets = Array.from({ length: 30 }, (_, i) => [
      wire.frame(wire.frameType.headers, flags, 2 * i + 1, fields),
      wire.rstStream(2 * i + 1, i < 15 ? constants.NGHTTP2_NO_ERROR : constants.NGHTTP2_CANCEL),
    ]);
    socket.write(Buffer.concat([wire.preface, wire.settings(), ...resets.flat(), wire.ping]));
    // The answer to the PING comes after everything that the streams caused.
    await once(socket, "data");
    socket.destroy();
    await expectServed();
  });

  test("over gRPC-Web an unknown RPC has its status in the last frame", async () => {
    const headers = { ":path": "/ingest.v1.Ingest/Nope", "content-type": "application/grpc-web+proto" };
    const { head, bytes } = await call(headers, encodeEnvelope(0, message));
    expect(head[":status"]).toBe(200);
    expect(bytes.toString("latin1")).toContain(`grpc-status: ${Code.Unimplemented}\r\n`);
  });

  test.each(["gzip", "GZIP", "x-gzip"])("a body declared as %s is unpacked over every protocol", async (name) => {
    const packed = gzipSync(message);
    const headers = { "content-encoding": name };
    const rest = await call({ ":path": restPath, "content-type": "application/json", ...headers }, gzipSync(good));
    expect(rest.head[":status"]).toBe(202);
    const connected = await call({ ":path": rpcPath, "content-type": "application/proto", ...headers }, packed);
    expect(connected.head[":status"]).toBe(200);
    const { trailers } = await grpc(encodeEnvelope(1, packed), { "grpc-encoding": name });
    expect(trailers["grpc-status"]).toBe("0");
  });

  test("the charset of a content type may be quoted, and an escaped path is the same path", async () => {
    for (const path of ["/ingest.v1.Ingest/Ping", "/ingest.v1.Ingest/%50ing"]) {
      const { head } = await call({ ":path": path, "content-type": 'application/json; charset="utf-8"' }, "{}");
      expect(head[":status"]).toBe(200);
    }
  });

  const unknownField = Buffer.from([80, 1]);
  test.each([
    ["the value of a Struct", "events[0].metadata.a.b", (value: Uint8Array) => valueOf({ a: valueOf({ b: value }) })],
    ["an item of a list", "events[0].metadata.a[0]", (value: Uint8Array) => valueOf({ a: field(6, field(1, value)) })],
  ])("a Value without a kind is refused: %s", async (_what, path, metadata) => {
    // The metadata is the Struct, not the Value around it.
    const send = (value: Uint8Array) => sendMetadata(metadata(value).subarray(2));
    for (const kindless of [Buffer.alloc(0), unknownField]) {
      const error = grpcError(await send(kindless));
      expect(error?.code).toBe(Code.InvalidArgument);
      expect(error?.message).toContain(`${path}: has no kind`);
    }
    expect((await send(Buffer.from([8, 0])))["grpc-status"]).toBe("0");
  });

  test.each([
    ["a key alone", field(1, Buffer.from("a")), "events[0].metadata.a"],
    ["a key and an unknown field", Buffer.concat([field(1, Buffer.from("a")), unknownField]), "events[0].metadata.a"],
    ["nothing at all", Buffer.alloc(0), "events[0].metadata"],
  ])("a Struct's entry without a value is refused: %s", async (_what, entry, path) => {
    const error = grpcError(await sendMetadata(field(1, entry)));
    expect(error?.code).toBe(Code.InvalidArgument);
    expect(error?.message).toContain(`${path}: has no kind`);
  });

  test("a Struct's entry with a field that is longer than the entry is refused", async () => {
    const tooLong = field(1, Buffer.concat([field(1, Buffer.from("a")), Buffer.from([15 * 8 + 2, 2])]));
    const error = grpcError(await sendMetadata(Buffer.concat([tooLong, Buffer.from([15 * 8, 0])])));
    expect(error?.code).toBe(Code.InvalidArgument);
    expect(error?.message).toContain("body: is not a message of ingest.v1.EventsRequest");
  });

  async function sendMetadata(struct: Uint8Array) {
    const { trailers } = await grpc(encodeEnvelope(0, field(1, Buffer.concat([event, field(metadataNumber, struct)]))));
    return trailers;
  }
});

/** A field of the wire format with fewer than 128 bytes. */
const field = (number: number, bytes: Uint8Array) =>
  Buffer.concat([Buffer.from([number * 8 + 2, bytes.length]), bytes]);

/** A google.protobuf.Value with a Struct of one member. */
function valueOf(members: Record<string, Uint8Array>): Buffer {
  const entries = Object.entries(members).map(([key, value]) =>
    field(1, Buffer.concat([field(1, Buffer.from(key)), field(2, value)])),
  );
  return field(5, Buffer.concat(entries));
}

const metadataNumber = EventSchema.field.metadata.number;
const event = toBinary(
  EventSchema,
  create(EventSchema, { eventType: "ticket.resolved", category: 1, actor: { id: { case: "externalId", value: "w" } } }),
);
