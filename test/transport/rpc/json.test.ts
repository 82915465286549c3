import { once } from "node:events";
import { connect } from "node:http2";
import { buffer } from "node:stream/consumers";
import { ConnectError } from "@connectrpc/connect";
import { encodeEnvelope } from "@connectrpc/connect/protocol";
import { findTrailerError } from "@connectrpc/connect/protocol-grpc";
import { trailerParse } from "@connectrpc/connect/protocol-grpc-web";
import { describe, expect, test } from "vitest";
import { BadRequestSchema } from "../../../src/gen/google/rpc/error_details_pb.js";
import { unique } from "../../support/requests.ts";
import { bearer, useService } from "../../support/service.ts";
import { storedRows } from "../../support/rows.ts";

const suite = useService();

interface Reply {
  readonly headers: Headers;
  /** `path: message` for each issue; empty for a success. */
  readonly issues: readonly string[];
  readonly body: any;
}

type Call = (rpc: string, body: string | Uint8Array, headers?: Record<string, string>) => Promise<Reply>;

const pathOf = (rpc: string) => `/ingest.v1.Ingest/${rpc}`;
const bytesOf = (body: string | Uint8Array) => (typeof body === "string" ? Buffer.from(body) : body);

const issuesOf = (error: ConnectError) =>
  error
    .findDetails(BadRequestSchema)
    .flatMap(({ fieldViolations }) => fieldViolations.map(({ field, description }) => `${field}: ${description}`));

const post = (rpc: string, contentType: string, body: Uint8Array, headers: Record<string, string>) =>
  fetch(suite.url + pathOf(rpc), {
    method: "POST",
    headers: { "content-type": contentType, ...bearer(suite.tenant.key), ...headers },
    body: new Uint8Array(body),
  });

const overConnect: Call = async (rpc, body, headers = {}) => {
  const response = await post(rpc, "application/json", bytesOf(body), headers);
  const json = (await response.json()) as any;
  const violations = (json.details ?? []).flatMap(({ debug }: any) => debug?.fieldViolations ?? []);
  const issues = violations.map(({ field, description }: any) => `${field}: ${description}`);
  return { headers: response.headers, issues, body: response.ok ? json : undefined };
};

const overGrpcWeb: Call = async (rpc, body, headers = {}) => {
  const response = await post(rpc, "application/grpc-web+json", encodeEnvelope(0, bytesOf(body)), headers);
  const bytes = Buffer.from(await response.arrayBuffer());
  const messages: Buffer[] = [];
  let trailers = new Headers();
  for (let at = 0; at < bytes.length;) {
    const end = at + 5 + bytes.readUInt32BE(at + 1);
    if ((bytes[at] as number) & 0x80) trailers = trailerParse(bytes.subarray(at + 5, end));
    else messages.push(bytes.subarray(at + 5, end));
    at = end;
  }
  const error = findTrailerError(trailers);
  const body0 = messages[0];
  return {
    headers: response.headers,
    issues: error === undefined ? [] : issuesOf(error),
    body: body0 === undefined ? undefined : JSON.parse(String(body0)),
  };
};

const overGrpc: Call = async (rpc, body, headers = {}) => {
  const session = connect(suite.url);
  try {
    const stream = session.request({
      ":method": "POST",
      ":path": pathOf(rpc),
      "content-type": "application/grpc+json",
      te: "trailers",
      ...bearer(suite.tenant.key),
      ...headers,
    });
    stream.end(encodeEnvelope(0, bytesOf(body)));
    const trailers = new Headers();
    const keep = (fields: object, into: Headers) => {
      for (const [name, value] of Object.entries(fields)) if (!name.startsWith(":")) into.set(name, String(value));
    };
    stream.on("trailers", (fields) => keep(fields, trailers));
    const [[first], bytes] = await Promise.all([once(stream, "response"), buffer(stream)]);
    const head = new Headers();
    keep(first, head);
    const error = findTrailerError(trailers.has("grpc-status") ? trailers : head);
    return {
      headers: head,
      issues: error === undefined ? [] : issuesOf(error),
      body: bytes.length === 0 ? undefined : JSON.parse(String(bytes.subarray(5))),
    };
  } finally {
    session.close();
  }
};

const event = (more = "", actor = '{"externalId": "a"}', category = '"EVENT_CATEGORY_OTHER"', type = "ticket.a") =>
  `{"events": [{"eventType": "${type}", "category": ${category}, "actor": ${actor}${more}}]}`;
const snapshot = (metrics: string) =>
  `{"snapshotType": "ticket.a", "actor": {"externalId": "a"}, "metrics": ${metrics}}`;

const categories =
  "must be one of EVENT_CATEGORY_COMMUNICATION, EVENT_CATEGORY_PROJECT_MANAGEMENT, EVENT_CATEGORY_CODE, EVENT_CATEGORY_CALENDAR, EVENT_CATEGORY_DESIGN, EVENT_CATEGORY_AI_TOOLS, EVENT_CATEGORY_OTHER";
const units =
  "must be one of METRIC_UNIT_COUNT, METRIC_UNIT_MINUTES, METRIC_UNIT_RATIO, METRIC_UNIT_PERCENTAGE, METRIC_UNIT_SCORE";
const int32 = "must be a whole number of -2147483648 to 2147483647";
const isNoTime = "must be an ISO 8601 time with an offset, such as 2026-04-19T12:05:00Z";

describe.each([
  ["Connect", overConnect],
  ["gRPC", overGrpc],
  ["gRPC-Web", overGrpcWeb],
] as const)("JSON over %s", (_name, call) => {
  test.each([
    [
      event("", undefined, '"project_management"'),
      `events[0].category: ${categories}; 'project_management' is how REST spells EVENT_CATEGORY_PROJECT_MANAGEMENT`,
    ],
    [event("", undefined, '"X"'), `events[0].category: ${categories}; it is 'X'`],
    [event("", undefined, "99"), `events[0].category: ${categories}; it is 99`],
    [
      event("", '{"externalId": "a", "email": "a@b.org"}'),
      "events[0].actor: has externalId and email; send one of them, and further ids in otherIds",
    ],
    [event("", '{"externalId": 7}'), "events[0].actor.externalId: must be a string; it is 7"],
    [event(', "duration": 1.5'), `events[0].duration: ${int32}; it is 1.5`],
    [event(', "duration": 99999999999'), `events[0].duration: ${int32}; it is 99999999999`],
    [event(', "duration": 86401'), "events[0].duration: must be at most 86400; it is 86401"],
    [event(', "event_type": "b"'), "events[0].event_type: is the same member as eventType; send one of them"],
    [event(', "metadata": []'), "events[0].metadata: must be an object; it is an array"],
    [event(', "metadata": {"a": 1e999}'), "events[0].metadata.a: must be a finite number; it is Infinity"],
    [event(', "timestamp": 5'), "events[0].timestamp: must be a time such as 2026-04-19T12:05:00Z; it is 5"],
    [event(', "timestamp": "soon"'), `events[0].timestamp: ${isNoTime}; it is 'soon'`],
    [
      event(', "timestamp": "2026-02-30T00:00:00Z"'),
      "events[0].timestamp: must be a time that exists; it is '2026-02-30T00:00:00Z'",
    ],
    ['{"events": 7}', "events: must be an array; it is 7"],
    ['{"events": [null]}', "events[0]: must be an object; it is null"],
    ["[]", "body: must be an object; it is an array"],
    ["{", "body: is not valid JSON: Expected property name or '}' in JSON at position 1 (line 1 column 2)"],
  ])("%s is refused with its path, in the schema's names", async (body, issue) => {
    expect((await call("Events", body)).issues).toEqual([issue]);
  });

  test.each([
    ['{"a": 3}', 'metrics.a: over RPC write {"number": 3}'],
    ['{"a": "x"}', "metrics.a: over RPC write {\"label\": …}; it is 'x'"],
    ['{"a": {"value": 1}}', "metrics.a: must have one of number, label, measure; it has none"],
    ['{"a": {"number": "NaN"}}', "metrics.a.number: must be a finite number; it is NaN"],
    ['{"a": {"number": "x"}}', "metrics.a.number: must be a number; it is 'x'"],
    [
      '{"a.b": {"measure": {"value": "Infinity"}}}',
      "metrics.a.b.measure.value: must be a finite number; it is Infinity",
    ],
    [
      '{"a": {"measure": {"value": 1, "unit": "minutes"}}}',
      `metrics.a.measure.unit: ${units}; 'minutes' is how REST spells METRIC_UNIT_MINUTES`,
    ],
    ['{"a": {"measure": {"value": 1, "unit": 0}}}', `metrics.a.measure.unit: ${units}; it is METRIC_UNIT_UNSPECIFIED`],
    ['{"a": {"number": 1, "label": "x"}}', "metrics.a: has number and label; send one of them"],
  ])("a snapshot with the metrics %s is refused with its path", async (metrics, issue) => {
    expect((await call("Snapshots", snapshot(metrics))).issues).toEqual([issue]);
  });

  test("text that is not UTF-8 is refused, and the error names the first wrong byte", async () => {
    const body = Buffer.from(event("", '{"externalId": "Müller"}'), "latin1");
    expect((await call("Events", body)).issues).toEqual([
      `body: is not valid UTF-8: see byte ${body.indexOf(0xfc)} (counted from 0)`,
    ]);
  });

  test.each([
    ["2026-04-19T12:05Z", "2026-04-19T12:05:00.000Z"],
    ["2026-04-19t12:05:00z", "2026-04-19T12:05:00.000Z"],
    ["2026-04-19T12:05:00.1239999+02:00", "2026-04-19T10:05:00.123Z"],
    ["2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999Z"],
  ])("the time %s is stored as %s", async (sent, stored) => {
    const type = unique("ticket.time");
    const answer = await call("Events", event(`, "timestamp": "${sent}"`, undefined, undefined, type));
    expect(answer.issues).toEqual([]);
    const [row] = await storedRows(suite.service.app.db, { type });
    expect(row?.timestamp.toISOString()).toBe(stored);
  });

  test("a dry run names unknown members, at most 20, each shortened", async () => {
    const names = async (members: string, headers: Record<string, string> = { "x-dry-run": "true" }) =>
      (await call("Events", event(members), headers)).headers.get("x-ignored-members");
    expect(await names(', "metdata": {}, "a,b": 1')).toBe("events[0].metdata, events[0].a%2Cb");
    expect(await names("")).toBeNull();
    expect(await names(', "metdata": {}', {})).toBeNull();
    const many = Array.from({ length: 30 }, (_, i) => `, "${"x".repeat(500)}${i}": 1`).join("");
    const listed = ((await names(many)) as string).split(", ");
    expect(listed).toHaveLength(20);
    expect(Math.max(...listed.map(({ length }) => length))).toBeLessThan(60);
  });
});

/** A length-delimited field of protobuf's wire format. */
const field = (number: number, bytes: Uint8Array) =>
  Buffer.concat([Buffer.from([(number << 3) | 2, bytes.length]), bytes]);
const binary = async (message: Uint8Array, headers: Record<string, string> = {}) => {
  const response = await post("Events", "application/proto", message, headers);
  const debug = response.ok ? [] : ((await response.json()) as any).details.map(({ debug }: any) => debug);
  return { headers: response.headers, issues: debug.flatMap(({ fieldViolations }: any) => fieldViolations ?? []) };
};
const eventOf = (...more: Uint8Array[]) =>
  field(
    1,
    Buffer.concat([
      field(1, Buffer.from("ticket.a")),
      Buffer.from([2 << 3, 7]),
      field(3, field(2, Buffer.from("a"))),
      ...more,
    ]),
  );

test("a dry run of a binary message gives the numbers of its unknown fields", async () => {
  const message = Buffer.concat([eventOf(field(15, Buffer.from("x"))), field(14, Buffer.from("y"))]);
  const { headers, issues } = await binary(message, { "x-dry-run": "true" });
  expect(issues).toEqual([]);
  expect(headers.get("x-ignored-members")).toBe("14, events[0].15");
  expect((await binary(message)).headers.has("x-ignored-members")).toBe(false);
});

test("over JSON, the first issues are listed, and the others are counted", async () => {
  const ids = JSON.stringify(Array.from({ length: 1_000 }, () => 1));
  const body = Buffer.from(event("", `{"externalId": "a", "otherIds": ${ids}}`));
  const { message } = (await (await post("Events", "application/json", body, {})).json()) as { message: string };
  expect(message).toMatch(/^events\[0\]\.actor\.otherIds\[0\]: must be an object; it is 1; .*; … and 980 more$/);
});

test("over JSON, too many events are batch_too_large, whatever is wrong with them", async () => {
  const body = Buffer.from(JSON.stringify({ events: Array(501).fill({ category: "BAD" }) }));
  const message = "events has 501 entries; at most 500 are allowed.";
  const connectAnswer = await post("Events", "application/json", body, {});
  expect(await connectAnswer.json()).toMatchObject({ code: "resource_exhausted", message });
  const grpcWeb = await post("Events", "application/grpc-web+json", encodeEnvelope(0, body), {});
  expect(grpcWeb.headers.get("grpc-message") ?? (await grpcWeb.text())).toContain(encodeURI(message).slice(0, 20));
  const rest = await fetch(`${suite.url}/api/v1/ingest/events`, {
    method: "POST",
    headers: { "content-type": "application/json", ...bearer(suite.tenant.key) },
    body,
  });
  expect(await rest.json()).toMatchObject({ error: { code: "batch_too_large", message } });
});
