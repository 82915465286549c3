import { once } from "node:events";
import { globSync, readFileSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { text } from "node:stream/consumers";
import { create, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { describe, expect, onTestFinished, test } from "vitest";
import { EventsRequestSchema } from "../../../src/gen/ingest/v1/ingest_pb.js";
import { newAccessToken } from "../../../src/access/access-token.ts";
import { requestHeaderTable } from "../../../src/headers.ts";
import { tidyHeaders } from "../../../src/transport/http/request-headers.ts";
import { insertToken } from "../../support/admin.ts";
import { envelope } from "../../support/http2-wire.ts";
import { eventsMessage } from "../../support/messages.ts";
import { event } from "../../support/requests.ts";
import { bearer, useService } from "../../support/service.ts";
import { RawConnection } from "../../support/socket.ts";

const suite = useService();

interface Reply {
  /** The HTTP status, or the gRPC status. */
  readonly status: number;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly text: string;
}

type Lines = readonly (readonly [name: string, value: string])[];

const eventsJson = JSON.stringify({ events: [event()] });
const connectJson = eventsJson.replace("project_management", "EVENT_CATEGORY_PROJECT_MANAGEMENT");
const eventsProto = Buffer.from(
  toBinary(EventsRequestSchema, create(EventsRequestSchema, eventsMessage({ events: [event()] }))),
);

/** A way to send Events with exactly these header lines. */
interface Way {
  readonly path: string;
  readonly contentType: string;
  readonly body: Buffer;
}

const ways = {
  REST: { path: "/api/v1/ingest/events", contentType: "application/json", body: Buffer.from(eventsJson) },
  Connect: { path: "/ingest.v1.Ingest/Events", contentType: "application/json", body: Buffer.from(connectJson) },
  "gRPC-Web": {
    path: "/ingest.v1.Ingest/Events",
    contentType: "application/grpc-web+proto",
    body: envelope(eventsProto, 0),
  },
  gRPC: { path: "/ingest.v1.Ingest/Events", contentType: "application/grpc", body: envelope(eventsProto, 0) },
} satisfies Record<string, Way>;

async function overHttp1({ path, contentType, body }: Way, lines: Lines): Promise<Reply> {
  const connection = await RawConnection.open(suite.service.app.port);
  onTestFinished(() => connection.close());
  connection.send(
    [
      `POST ${path} HTTP/1.1`,
      "Host: localhost",
      ...(lines.some(([name]) => name === "content-type") ? [] : [`content-type: ${contentType}`]),
      `content-length: ${body.length}`,
      ...lines.map(([name, value]) => `${name}: ${value}`),
    ],
    body,
  );
  const answer = await connection.answer();
  return { status: answer.status, headers: Object.fromEntries(answer.headers), text: answer.body };
}

async function overHttp2({ path, contentType, body }: Way, lines: Lines): Promise<Reply> {
  const session = connectHttp2(suite.url, {
    strictFieldWhitespaceValidation: false,
    strictSingleValueFields: false,
  } as object);
  onTestFinished(() => session.destroy());
  // Node sends an array of names and values unchanged.
  const raw = [":method", "POST", ":path", path, ":scheme", "http", ":authority", "localhost", "te", "trailers"];
  if (!lines.some(([name]) => name === "content-type")) raw.push("content-type", contentType);
  for (const [name, value] of lines) raw.push(name, value);
  const stream = session.request(raw as never);
  stream.end(body);
  const headers: Record<string, unknown> = {};
  for (const name of ["response", "trailers"]) stream.on(name, (part: object) => Object.assign(headers, part));
  const answer = await text(stream);
  return { status: Number(headers["grpc-status"] ?? headers[":status"]), headers, text: answer };
}

const versions = { "HTTP/1.1": overHttp1, "HTTP/2": overHttp2 };
const cases = Object.entries(ways).flatMap(([protocol, way]) =>
  Object.entries(versions)
    .filter(([version]) => protocol !== "gRPC" || version === "HTTP/2")
    .map(([version, send]) => ({ protocol, version, way, send })),
);

describe.each(cases)("$protocol over $version", ({ protocol, way, send, version }) => {
  const authorization = () => ["authorization", `Bearer ${suite.tenant.key}`] as const;
  const wasReplayed = ({ headers }: Reply) => headers["idempotency-replayed"] === "true";
  const isInvalid = ({ status, text: body, headers }: Reply) => {
    if (protocol === "gRPC") expect(status).toBe(Code.InvalidArgument);
    else if (protocol === "REST") expect(JSON.parse(body).error.code).toBe("invalid_body");
    else if (protocol === "Connect") expect(JSON.parse(body).code).toBe("invalid_argument");
    else expect(`${String(headers["grpc-status"])} ${body}`).toMatch(/\b3\b/);
    return decodeURIComponent(`${body} ${String(headers["grpc-message"] ?? "")}`);
  };

  test("spaces and tabs at the ends of a value are ignored", async () => {
    const key = `trim ${protocol} ${version}`;
    const first = await send(way, [authorization(), ["idempotency-key", key]]);
    expect(wasReplayed(first)).toBe(false);
    for (const value of [`${key} `, ` ${key}`, `\t${key} \t`]) {
      const again = await send(way, [
        ["authorization", ` Bearer ${suite.tenant.key}\t`],
        ["idempotency-key", value],
      ]);
      expect(wasReplayed(again), JSON.stringify(value)).toBe(true);
    }
    const dry = await send(way, [authorization(), ["x-dry-run", " true "]]);
    expect(dry.headers["x-dry-run"]).toBe("true");
  });

  test("two lines with the same value count as one", async () => {
    const key = `twice ${protocol} ${version}`;
    await send(way, [authorization(), ["idempotency-key", key]]);
    const again = await send(way, [
      authorization(),
      authorization(),
      ["idempotency-key", key],
      ["idempotency-key", `${key} `],
      ["x-dry-run", "false"],
      ["x-dry-run", "false"],
      ["content-type", way.contentType],
      ["content-type", way.contentType],
    ]);
    expect(wasReplayed(again)).toBe(true);
  });

  test.each([
    ["Authorization", "authorization", ["Bearer KEY", "Bearer wp_live_00000000000000000000000000000000"]],
    ["Authorization", "authorization", ["Bearer wp_live_00000000000000000000000000000000", "Bearer KEY"]],
    ["Idempotency-Key", "idempotency-key", ["k", "l"]],
    ["X-Dry-Run", "x-dry-run", ["true", "false"]],
  ])("%s with two values is refused", async (name, header, values) => {
    const lines = values.map((value) => [header, value.replace("KEY", suite.tenant.key)] as const);
    const answer = await send(way, header === "authorization" ? lines : [authorization(), ...lines]);
    expect(isInvalid(answer)).toContain(`${name}: was sent twice with different values`);
  });

  test("of several headers with two values, the one that says who calls is refused first", async () => {
    const lines = [
      ...[
        ["x-dry-run", "true"],
        ["x-dry-run", "false"],
      ],
      ...[authorization(), ["authorization", "Bearer wp_live_00000000000000000000000000000000"]],
    ] as unknown as Lines;
    expect(isInvalid(await send(way, lines))).toContain("Authorization: was sent twice with different values");
  });

  test("a caller without a key gets that error first", async () => {
    const answer = await send(way, [
      ["idempotency-key", "k"],
      ["idempotency-key", "l"],
    ]);
    expect(`${answer.text} ${String(answer.headers["grpc-message"])}`).toMatch(/Authorization/);
  });

  test("two traces count as none, and cause no error", async () => {
    const trace = (digit: string) => ["traceparent", `00-${digit.repeat(32)}-${digit.repeat(16)}-01`] as const;
    const answer = await send(way, [authorization(), trace("1"), trace("2"), ["x-dry-run", "true"]]);
    expect(answer.headers["x-dry-run"]).toBe("true");
    expect(suite.service.log.join("")).not.toMatch(/1{32}|2{32}/);
  });

  test("accepts as many fields as fit the limit on bytes", async () => {
    const many = Array.from({ length: 250 }, (_, i) => [`x${i}`, "y"] as const);
    const answer = await send(way, [...many, authorization(), ["x-dry-run", "true"]]);
    expect(answer.headers["x-dry-run"]).toBe("true");
  });
});

test("fields past Node's own limit are refused, not dropped", async () => {
  const many = Array.from({ length: 2_100 }, () => ["x", "y"] as const);
  const answer = await overHttp1(ways.REST, [
    ...many,
    ["authorization", `Bearer ${suite.tenant.key}`],
    ["x-dry-run", "true"],
  ]);
  expect(answer.headers["x-dry-run"]).toBe("true");
});

test.each([
  [
    "more fields than the bound",
    "NGHTTP2_ENHANCE_YOUR_CALM",
    Object.fromEntries(Array.from({ length: 600 }, (_, i) => [`x${i}`, "y"])),
  ],
  ["a body shorter than its content-length", "NGHTTP2_PROTOCOL_ERROR", { "content-length": "9" }],
])("%s costs an HTTP/2 caller the stream, not the session", async (_what, code, fields) => {
  const session = connectHttp2(suite.url);
  onTestFinished(() => session.destroy());
  const stream = session.request({
    ":method": "POST",
    ":path": ways.REST.path,
    ...bearer(suite.tenant.key),
    ...fields,
  });
  stream.end("{}");
  const [error] = await once(stream, "error");
  expect(String(error)).toContain(code);
  const next = session.request({ ":path": "/healthz" });
  expect((await once(next, "response"))[0]).toMatchObject({ ":status": 200 });
});

test("a list in two lines is one list", () => {
  const headers = { accept: "a, b ", tracestate: "x" };
  expect(tidyHeaders(headers, ["Accept", " a", "accept", "b ", "Tracestate", "x"])).toBeUndefined();
  expect(headers).toEqual({ accept: "a, b", tracestate: "x" });
});

test.each([
  ["no Host", [], "no Host"],
  ["two", ["Host: a", "Host: b"], "two Host"],
  ["the same one twice", ["Host: a", "host: a"], "two Host"],
  ["one that is no host", ["Host: a|b"], "no host and port"],
  ["a port that is no number", ["Host: x:abc"], "no host and port"],
  ["two after another header with two values", ["X-Dry-Run: a", "X-Dry-Run: b", "Host: a", "Host: b"], "two Host"],
])("an HTTP/1.1 request with %s is refused, and its connection ends", async (_what, hosts, message) => {
  for (const path of ["/healthz", "/api/v1/ingest/ping", "/ingest.v1.Ingest/Ping"]) {
    const connection = await RawConnection.open(suite.service.app.port);
    onTestFinished(() => connection.close());
    connection.send([`GET ${path} HTTP/1.1`, ...hosts, `Authorization: Bearer ${suite.tenant.key}`]);
    const { status, headers, body } = await connection.answer();
    expect(status).toBe(400);
    expect(headers.get("x-request-id")).toMatch(/^req_/);
    expect(headers.get("x-content-type-options")).toBe("nosniff");
    expect(JSON.parse(body).error).toMatchObject({ code: "invalid_body", message: expect.stringContaining(message) });
    await connection.ended();
  }
});

test("administration refuses headers with two values, and names the caller's first", async () => {
  const { token } = await insertToken(suite.service, "operator");
  const other = newAccessToken();
  const ask = async (...lines: string[]) => {
    const connection = await RawConnection.open(Number(new URL(suite.service.app.adminUrl).port));
    onTestFinished(() => connection.close());
    connection.send(["GET /api/v1/admin/whoami HTTP/1.1", "Host: x", ...lines]);
    const { status, body, headers } = await connection.answer();
    return [status, JSON.parse(body).error?.message, headers.has("x-ratelimit-limit")];
  };
  const two = ["Content-Type: application/json", "Content-Type: text/plain"];
  expect(await ask(`Authorization: Bearer ${token}`)).toEqual([200, undefined, true]);
  const contentType = expect.stringMatching(/^Content-Type: was sent twice/);
  expect(await ask(...two, `Authorization: Bearer ${token}`)).toEqual([400, contentType, true]);
  const authorization = expect.stringMatching(/^Authorization: was sent twice/);
  const both = [`Authorization: Bearer ${token}`, `Authorization: Bearer ${other}`];
  expect(await ask(...two, ...both)).toEqual([400, authorization, false]);
});

test.each(["Host: localhost", "Host: [::1]:8080", "Host:", "Host: sub.example.org:80", "Host: 127.0.0.1"])(
  "%s is a good one",
  async (host) => {
    const connection = await RawConnection.open(suite.service.app.port);
    onTestFinished(() => connection.close());
    connection.send(["GET /healthz HTTP/1.1", host]);
    expect((await connection.answer()).status).toBe(200);
  },
);

test("HTTP/1.0 needs no Host", async () => {
  const connection = await RawConnection.open(suite.service.app.port);
  onTestFinished(() => connection.close());
  connection.send(["GET /healthz HTTP/1.0"]);
  expect((await connection.answer()).status).toBe(200);
});

test.each(["/api/v1/ingest/ping/", "/api/v1/ingest/%70ing", "/%61pi/v1/ingest/pin%67/", "/ingest.v1.Ingest/%50ing"])(
  "%s is the same address as without its escapes and its last slash",
  async (path) => {
    const get = path.includes("Ingest") ? "?encoding=json&message=%7B%7D&connect=v1" : "";
    expect((await fetch(suite.url + path + get, { headers: bearer(suite.tenant.key) })).status).toBe(200);
  },
);

test("an escaped slash is not a slash", async () => {
  expect((await fetch(`${suite.url}/api/v1%2Fingest/ping`)).status).toBe(404);
  expect((await fetch(`${suite.url}/docs/limits/`)).status).toBe(200);
  expect((await fetch(`${suite.url}/healthz/`, { method: "POST" })).status).toBe(405);
});

test("the table has every header that the service reads", () => {
  const found = new Set<string>();
  for (const file of globSync("src/{transport,ingest,observe,access,timeline}/**/*.ts")) {
    const source = readFileSync(file, "utf8");
    for (const [, quoted, member] of source.matchAll(/\bheaders\??\.?(?:\["([a-z-]+)"\]|\.([a-z]+)\b(?! *=[^=]))/g)) {
      const name = (quoted ?? member) as string;
      if (!["get", "set", "append", "push", "length", "ratelimit", "vary", "ts"].includes(name)) found.add(name);
    }
  }
  expect(found).toContain("idempotency-key");
  const ofAnswers =
    /^(x-ratelimit|ratelimit|access-control-allow|access-control-expose|retry-after|www-auth|idempotency-replayed|x-ignored|keep-alive|x-content|x-accel)/;
  const ofNode = ["content-length", "transfer-encoding"];
  const missing = [...found].filter(
    (name) => !(name in requestHeaderTable) && !ofAnswers.test(name) && !ofNode.includes(name),
  );
  expect(missing).toEqual([]);
});

// Node ends the whole session, and offers no way to end only the stream; see docs/operations.md.
test("a body longer than its length ends its own HTTP/2 session and no other", async () => {
  const other = connectHttp2(suite.url);
  onTestFinished(() => other.destroy());
  const session = connectHttp2(suite.url);
  session.on("error", () => {});
  const wrong = session.request({
    ":method": "POST",
    ":path": "/api/v1/ingest/events",
    "content-length": "5",
    ...bearer(suite.tenant.key),
  });
  wrong.on("error", () => {});
  wrong.resume().end("more than five bytes");
  await new Promise((resolve) => session.once("close", resolve));
  const next = other.request({ ":path": "/healthz" });
  const [head] = await once(next, "response");
  expect(head[":status"]).toBe(200);
});
