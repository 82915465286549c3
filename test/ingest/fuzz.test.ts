import { request as http1Request } from "node:http";
import { toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { errorTable, type ErrorCode } from "../../src/errors.ts";
import { EventsRequestSchema, SnapshotsRequestSchema } from "../../src/gen/ingest/v1/ingest_pb.js";

import { errorCodeOf, type Reply, send, trailersOf } from "../fault/attacks.ts";
import { envelope } from "../support/http2-wire.ts";
import { eventsMessage, snapshotMessage } from "../support/messages.ts";
import { byteMutation, mutated, mutatedBytes, mutation, strangeJson, strangeText } from "../support/mutate.ts";
import { createTenant, startService, type Tenant, type TestService } from "../support/service.ts";
import { storedRowsOf } from "../support/rows.ts";

/**
 * Ingest answers any input correctly. It never answers 500 or breaks a connection, errors have the documented form, and
 * accepted data is stored as sent. FUZZ_RUNS sets the cases of each property (`npm run test:fuzz` takes many);
 * FUZZ_SEED repeats a run.
 */
const numRuns = Number(process.env.FUZZ_RUNS ?? 80);
const seed = Number(process.env.FUZZ_SEED ?? Date.now() % 2 ** 31);
const options = { numRuns, seed };
const timeoutMs = 30_000 + numRuns * 100;
console.log(`fuzzing ${numRuns} cases a property with FUZZ_SEED=${seed}`);

let service: TestService;
let tenant: Tenant;

beforeAll(async () => {
  service = await startService();
  tenant = await createTenant(service.admin, { name: "Fuzz", quotaEventsPerMonth: 1_000_000_000 });
});
afterAll(() => service.app.close());

const event = {
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: "fuzz", email: "fuzz@example.org", displayName: "Fuzz" },
  timestamp: "2026-04-19T14:05:00.250+02:00",
  duration: 240,
  metadata: { "a.b": [1, null, { $c: "é" }], n: 1.5 },
};
const snapshot = {
  snapshotType: "tickets_open",
  actor: { externalId: "fuzz" },
  timestamp: "2026-04-19T12:05:00Z",
  metrics: { open: 7, mood: "calm", oldest: { value: 3.5, unit: "count", label: "Oldest" } },
  metadata: { a: { b: [] } },
};
const valid = { events: { events: [event, { ...event, actor: { externalId: "other" } }] }, snapshots: snapshot };
type Call = keyof typeof valid;
const call = fc.constantFrom<Call>("events", "snapshots");

const json = (value: unknown) => Buffer.from(JSON.stringify(value) ?? "undefined");
const body = (name: Call) =>
  fc.oneof(
    { weight: 6, arbitrary: fc.array(mutation, { maxLength: 4 }).map((list) => json(mutated(valid[name], list))) },
    {
      weight: 2,
      arbitrary: fc.array(byteMutation, { maxLength: 4 }).map((list) => mutatedBytes(json(valid[name]), list)),
    },
    { weight: 1, arbitrary: strangeJson.map(json) },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)) },
  );
const request = call.chain((name) => fc.record({ name: fc.constant(name), body: body(name) }));

const portOf = () => service.app.port;
const authorized = () => ({ authorization: `Bearer ${tenant.key}` });

/** A REST error has exactly its four members, and the status of its code. */
function expectRestError({ status, headers, body }: Reply): void {
  const answer = JSON.parse(body.toString("utf8"));
  expect(Object.keys(answer)).toEqual(["error"]);
  const { code, message, requestId, docsUrl } = answer.error;
  expect(Object.keys(answer.error)).toEqual(["code", "message", "requestId", "docsUrl"]);
  expect(errorTable[code as ErrorCode], code).toBeDefined();
  expect(message).not.toBe("");
  expect(requestId).toBe(headers["x-request-id"]);
  expect(docsUrl).toMatch(new RegExp(`^http.*/docs/errors/${code}$`));
  expect(status).toBeGreaterThanOrEqual(400);
  expect(status, body.toString("utf8")).toBeLessThan(500);
}

test(
  "any body sent over REST is stored as sent, or refused with a documented error",
  { timeout: timeoutMs },
  async () => {
    await fc.assert(
      fc.asyncProperty(request, async ({ name, body }) => {
        const headers = { ...authorized(), "content-type": "application/json" };
        const reply = await send(portOf(), "rest", `/api/v1/ingest/${name}`, headers, body);
        if (reply.status !== 202 && reply.status !== 207) {
          expectRestError(reply);
          expect(reply.status).toBe(errorTable[JSON.parse(reply.body.toString("utf8")).error.code as ErrorCode].http);
          return;
        }
        await expectStored(JSON.parse(body.toString("utf8")), JSON.parse(reply.body.toString("utf8")));
      }),
      options,
    );
  },
);

async function expectStored(sent: any, answer: any): Promise<void> {
  const rows = await storedRowsOf(service.app.db, answer.requestId);
  const rejected = new Set(answer.results?.rejected.map(({ index }: { index: number }) => index));
  const items: any[] =
    answer.results === undefined ? [sent] : sent.events.filter((_: unknown, i: number) => !rejected.has(i));
  expect(rows).toHaveLength(items.length);
  items.forEach((item, i) => {
    const row = rows[i] as (typeof rows)[number];
    expect(row.type).toBe(item.eventType ?? item.snapshotType);
    expect(JSON.stringify(row.metadata)).toBe(JSON.stringify(item.metadata ?? undefined));
    expect(row.durationSeconds).toBe(answer.results === undefined ? undefined : (item.duration ?? undefined));
    // null counts as absent.
    if ((item.timestamp ?? undefined) !== undefined) expect(row.timestamp.getTime()).toBe(Date.parse(item.timestamp));
  });
}

const headerName = fc.constantFrom(
  "authorization",
  "content-type",
  "content-encoding",
  "idempotency-key",
  "x-request-id",
  "x-dry-run",
  "accept",
  "accept-encoding",
  "connect-protocol-version",
  "connect-timeout-ms",
  "grpc-timeout",
  "grpc-encoding",
  "grpc-accept-encoding",
  "te",
  "origin",
  "access-control-request-method",
  "traceparent",
  "tracestate",
  "host",
  "x-strange",
);
/** The values that Node lets a client send: no control characters. */
const headerValue = fc
  .oneof(
    fc.string({ unit: "binary", maxLength: 40 }),
    strangeText,
    fc.constantFrom(
      "gzip",
      "br",
      "identity",
      "gzip, gzip",
      "application/grpc",
      "application/json; charset=x",
      "true",
      "1S",
    ),
  )
  .map((text) => text.replace(/[^\t\x20-\x7e\x80-\xff]/g, "ÿ"));

test("any headers on any path get a documented error or a success", { timeout: timeoutMs }, async () => {
  const target = fc.constantFrom(
    ["POST", "/api/v1/ingest/events"],
    ["GET", "/api/v1/ingest/ping"],
    ["OPTIONS", "/api/v1/ingest/events"],
    ["POST", "/ingest.v1.Ingest/Events"],
    ["POST", "/ingest.v1.Ingest/Ping"],
    ["GET", "/ingest.v1.Ingest/Ping?connect=v1&encoding=json&message=%7B%7D"],
    ["GET", "/healthz"],
    ["GET", "/no/such/page"],
  );
  await fc.assert(
    fc.asyncProperty(
      target,
      fc.dictionary(headerName, headerValue),
      fc.boolean(),
      async ([method, path], headers, known) => {
        const sent = { "content-type": "application/json", ...(known ? authorized() : {}), ...headers };
        const reply = await sendWith(
          method as string,
          path as string,
          sent,
          method === "POST" ? json(valid.events) : undefined,
        );
        // Connect's table maps an unknown compression to 501.
        if (reply.status !== 501) expect(reply.status, reply.body.toString("utf8")).toBeLessThan(500);
        expect(reply.headers["x-request-id"]).toMatch(/^req_/);
        expect(reply.headers["x-api-version"]).toBe("2026-04-01");
        if (reply.status >= 400 && path?.startsWith("/api/")) expectRestError(reply);
      },
    ),
    options,
  );
});

function sendWith(
  method: string,
  path: string,
  headers: Record<string, string>,
  body: Buffer | undefined,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const sent = http1Request(
      { port: portOf(), host: "127.0.0.1", method, path, headers, agent: false },
      (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.once("error", reject);
        response.once("end", () =>
          resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) }),
        );
      },
    );
    sent.once("error", reject);
    sent.end(body);
  });
}

const messages = {
  events: toBinary(EventsRequestSchema, eventsMessage(valid.events)),
  snapshots: toBinary(SnapshotsRequestSchema, snapshotMessage(valid.snapshots)),
};
const message = (name: Call) =>
  fc.oneof(
    {
      weight: 3,
      arbitrary: fc.array(byteMutation, { maxLength: 4 }).map((list) => mutatedBytes(messages[name], list)),
    },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes)) },
  );
const frames = (name: Call) =>
  fc.oneof(
    { weight: 4, arbitrary: message(name).map((bytes) => envelope(bytes)) },
    {
      weight: 2,
      arbitrary: fc
        .tuple(
          message(name),
          fc.integer({ min: 0, max: 255 }),
          fc.option(fc.nat({ max: 0xffff_ffff }), { nil: undefined }),
        )
        .map(([bytes, flags, length]) => envelope(bytes, flags, length)),
    },
    {
      weight: 1,
      arbitrary: fc.tuple(message(name), message(name)).map((two) => Buffer.concat(two.map((one) => envelope(one)))),
    },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)) },
  );
const rpcPaths = { events: "/ingest.v1.Ingest/Events", snapshots: "/ingest.v1.Ingest/Snapshots" };

test.each(["grpc", "grpc-web"] as const)(
  "any frames sent over %s get OK or an error with ErrorInfo, and never internal",
  { timeout: timeoutMs },
  async (protocol) => {
    const type = protocol === "grpc" ? "application/grpc" : "application/grpc-web+proto";
    const frame = call.chain((name) => fc.record({ name: fc.constant(name), bytes: frames(name) }));
    await fc.assert(
      fc.asyncProperty(
        frame,
        fc.constantFrom(undefined, "gzip", "identity", "zip"),
        async ({ name, bytes }, encoding) => {
          const headers = {
            ...authorized(),
            "content-type": type,
            te: "trailers",
            ...(encoding === undefined ? {} : { "grpc-encoding": encoding }),
          };
          const reply = await send(portOf(), protocol, rpcPaths[name], headers, bytes);
          expect(reply.status).toBe(200);
          const status = trailersOf(protocol, reply)["grpc-status"];
          expect(status).toBeDefined();
          if (Number(status) !== 0) expectReason(errorCodeOf(protocol, reply));
        },
      ),
      options,
    );
  },
);

test.each([
  ["JSON", "application/json"],
  ["binary", "application/proto"],
])(
  "any message sent over Connect as %s gets OK or an error with ErrorInfo, and never internal",
  { timeout: timeoutMs },
  async (_name, type) => {
    const bytesOf = (name: Call) => (type === "application/json" ? body(name) : message(name));
    const unary = call.chain((name) => fc.record({ name: fc.constant(name), bytes: bytesOf(name) }));
    await fc.assert(
      fc.asyncProperty(unary, fc.constantFrom(undefined, "gzip", "zip"), async ({ name, bytes }, encoding) => {
        const headers = {
          ...authorized(),
          "content-type": type,
          "connect-protocol-version": "1",
          ...(encoding === undefined ? {} : { "content-encoding": encoding }),
        };
        const reply = await send(portOf(), "connect", rpcPaths[name], headers, bytes);
        if (reply.status !== 200) expectReason(errorCodeOf("connect", reply));
      }),
      options,
    );
  },
);

function expectReason(reason: string | undefined): void {
  expect(errorTable[reason as ErrorCode], reason).toBeDefined();
  expect(reason).not.toBe("internal_error");
}
