import { connect } from "node:net";
import { gzipSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RetryInfoSchema,
} from "../../src/gen/google/rpc/error_details_pb.js";
import { limits } from "../../src/limits.ts";
import { event, expectError, snapshot, unique } from "../support/requests.ts";
import { bearer, createTenant, insertKey, pathOver, protocols, type Send, useService } from "../support/service.ts";

/** The content of errors, and the order of checks when a request has several. */

const suite = useService();

const overRpc = Object.entries(protocols).filter(([name]) => name !== "REST");

describe.each(overRpc)("over %s", (name, send: Send) => {
  test("an invalid body has one BadRequest violation for each issue", async () => {
    const events = [event({ duration: -1 }), event(), event({ eventType: "?" })];
    const { error } = await send(suite.url, "events", { events }, bearer(suite.tenant.key));
    const [bad] = error?.details?.findDetails(BadRequestSchema) ?? [];
    expect(bad?.fieldViolations.map(({ field }) => field)).toEqual([
      "events[0].duration",
      pathOver(name, "events[2].eventType"),
    ]);
    expect(bad?.fieldViolations[0]?.description).not.toBe("");
  });

  test("ErrorInfo has the code and our domain; an exhausted quota has QuotaFailure but no RetryInfo", async () => {
    const own = await createTenant(suite.service.admin, { name: "None", quotaEventsPerMonth: 0 });
    const answer = await send(suite.url, "snapshots", snapshot(), bearer(own.key));
    expectError(suite.url, answer, "quota_exceeded");
    const [info] = answer.error?.details?.findDetails(ErrorInfoSchema) ?? [];
    expect(info).toMatchObject({ reason: "quota_exceeded", domain: "ingest.v1" });
    const [failure] = answer.error?.details?.findDetails(QuotaFailureSchema) ?? [];
    expect(failure?.violations[0]?.subject).toContain(own.organizationId);
    expect(answer.error?.details?.findDetails(RetryInfoSchema)).toEqual([]);
    expect(answer.headers.get("retry-after")).toBeNull();
  });
});

describe.each(Object.entries(protocols))("over %s", (_name, send: Send) => {
  test("a bad Idempotency-Key or X-Dry-Run is refused before anything in the body", async () => {
    const events = Array.from({ length: limits.eventsMax + 1 }, () => event());
    const key = "k".repeat(limits.idempotencyKeyCharactersMax + 1);
    for (const [name, header] of [
      ["Idempotency-Key", { "idempotency-key": key }],
      ["X-Dry-Run", { "x-dry-run": "maybe" }],
    ] as const) {
      const answer = await send(suite.url, "events", { events }, { ...bearer(suite.tenant.key), ...header });
      expectError(suite.url, answer, "invalid_body");
      expect(answer.error?.message).toMatch(RegExp(`^${name}: `));
    }
  });

  test("every answer to a known key has rate limit headers, errors included", async () => {
    for (const answer of [
      await send(suite.url, "ping", {}, bearer(suite.tenant.key)),
      await send(suite.url, "events", { events: [event()] }, bearer(suite.tenant.key)),
      await send(suite.url, "events", { events: [event({ duration: -1 })] }, bearer(suite.tenant.key)),
      await send(suite.url, "snapshots", snapshot({ actor: {} }), bearer(suite.tenant.key)),
      await send(suite.url, "events", { events: [event({ eventType: "deploy.x" })] }, bearer(suite.tenant.key)),
    ]) {
      expect(answer.headers.get("x-ratelimit-limit")).toBe("100000");
      expect(answer.headers.get("x-ratelimit-remaining")).toMatch(/^\d+$/);
      expect(answer.headers.get("ratelimit-policy")).toBe('"key";q=100000;w=1');
      expect(answer.headers.get("ratelimit")).toMatch(/^"key";r=\d+;t=\d+$/);
    }
    const unknown = await send(suite.url, "ping", {}, bearer(`wp_live_${"0".repeat(32)}`));
    expect(unknown.headers.get("x-ratelimit-limit")).toBeNull();
  });
});

describe("over REST", () => {
  const path = "/api/v1/ingest/events";
  const post = async (headers: Record<string, string>, body: string | Uint8Array<ArrayBuffer>, at = path) => {
    const response = await fetch(suite.url + at, { method: "POST", headers, body });
    return { status: response.status, headers: response.headers, body: (await response.json()) as any };
  };

  test("the first failing check decides: route, authorization, key, address, plan, rate, content type, size, schema, events", async () => {
    const revoked = await suite.service.admin.createKey(suite.tenant.appId);
    await suite.service.admin.revokeKey(revoked.id);
    const poor = await createTenant(suite.service.admin, { name: "Poor", api: false, keyRequestsPerSecond: 1 });
    const slow = await createTenant(suite.service.admin, { name: "Slow", keyRequestsPerSecond: 1 });
    const big = `{"events":[${JSON.stringify(event())}],"x":"${"x".repeat(limits.bodyBytesMax)}"}`;
    const text = { "content-type": "text/plain" };
    const json = { "content-type": "application/json" };
    // Each request also fails every later check.
    expect((await post(text, big, "/nowhere")).body.error.code).toBe("not_found");
    expect((await post(text, big)).body.error.code).toBe("missing_authorization");
    expect((await post({ ...text, ...bearer("nonsense") }, big)).body.error.code).toBe("invalid_key");
    expect((await post({ ...text, ...bearer(revoked.key) }, big)).body.error.code).toBe("key_revoked");
    const away = await insertKey(suite.service, poor, { cidrs: ["10.0.0.0/8"] });
    expect((await post({ ...text, ...bearer(away.key) }, big)).body.error.code).toBe("forbidden_scope");
    for (let i = 0; i < 3; i++) {
      expect((await post({ ...text, ...bearer(poor.key) }, big)).body.error.code).toBe("plan_disabled");
    }
    await post({ ...json, ...bearer(slow.key) }, "{}");
    // A second later the bucket has room for one more.
    const slowCode = async () => (await post({ ...text, ...bearer(slow.key) }, big)).body.error.code;
    await expect.poll(slowCode, { interval: 0 }).toBe("rate_limited");
    const typed = await post({ ...text, ...bearer(suite.tenant.key) }, big);
    expect(typed.body.error).toMatchObject({ code: "invalid_body", message: expect.stringContaining("Content-Type") });
    expect((await post({ ...json, ...bearer(suite.tenant.key) }, big)).body.error.code).toBe("batch_too_large");
    const both = { events: [event({ duration: -1 }), event({ eventType: "deploy.x" })] };
    expect((await post({ ...json, ...bearer(suite.tenant.key) }, JSON.stringify(both))).body.error.code).toBe(
      "invalid_body",
    );
  });

  test("a caller without a valid key gets its answer before Ingest reads the body", async () => {
    const { port } = new URL(suite.url);
    const socket = connect(Number(port), "127.0.0.1");
    // The body never arrives.
    socket.write(
      `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\nAuthorization: Bearer wp_live_${"0".repeat(32)}\r\n\r\n`,
    );
    const answer = await new Promise<string>((resolve) => socket.once("data", (data) => resolve(data.toString())));
    socket.destroy();
    expect(answer).toMatch(/^HTTP\/1\.1 401 /);
    expect(answer).toContain('"invalid_key"');
  });

  test("answers have exactly the members of the API reference", async () => {
    const headers = { "content-type": "application/json", ...bearer(suite.tenant.key) };
    const ping = await (await fetch(`${suite.url}/api/v1/ingest/ping`, { headers })).text();
    expect(ping).toBe(
      `{"ok":true,"organizationId":"${suite.tenant.organizationId}","app":{"id":"${suite.tenant.appId}","slug":"crm-hub","name":"CRM Hub"}}`,
    );
    const timestamp = "2026-04-19T12:05:00.000Z";
    const batch = await post(
      headers,
      JSON.stringify({ events: [event({ timestamp }), event({ eventType: "deploy.shipped" })] }),
    );
    expect(batch.status).toBe(207);
    expect(JSON.stringify(batch.body)).toBe(
      `{"requestId":"${batch.headers.get("x-request-id")}","accepted":1,"rejected":1,"batchLimit":500,"results":{"accepted":[{"eventType":"ticket.resolved","timestamp":"2026-04-19T12:05:00Z"}],"rejected":[{"index":1,"code":"forbidden_event_type","message":"eventType 'deploy.shipped' is not whitelisted."}]}}`,
    );
    const card = await post(headers, JSON.stringify(snapshot()), "/api/v1/ingest/snapshots");
    expect(card.status).toBe(202);
    expect(Object.keys(card.body)).toEqual(["requestId", "ok", "snapshotType", "worker"]);
    expect(Object.keys(card.body.worker)).toEqual(["id", "displayName"]);
  });

  test("a body of several gzip members counts all of them", async () => {
    const half = JSON.stringify({ events: [event()] });
    const headers = { "content-type": "application/json", "content-encoding": "gzip", ...bearer(suite.tenant.key) };
    const members = Buffer.concat([gzipSync(half.slice(0, 20)), gzipSync(half.slice(20))]);
    expect((await post(headers, new Uint8Array(members))).status).toBe(202);
    const bomb = Buffer.concat([gzipSync(half), ...Array.from({ length: 12 }, () => gzipSync(" ".repeat(100_000)))]);
    expect((await post(headers, new Uint8Array(bomb))).body.error.code).toBe("batch_too_large");
  });

  test("an unexpected failure tells the caller nothing, and the log everything, by request id", async () => {
    const type = unique("ticket.broken");
    const { app } = suite.service;
    // The database refuses the document: an internal failure that the caller cannot fix.
    await app.db.command({ collMod: "timeline", validator: { type: { $ne: type } } });
    try {
      const headers = { "content-type": "application/json", ...bearer(suite.tenant.key) };
      const neighbour = post(headers, JSON.stringify({ events: [event()] }));
      const answer = await post(headers, JSON.stringify({ events: [event({ eventType: type })] }));
      expect(answer.status).toBe(500);
      expect(answer.body.error).toMatchObject({
        code: "internal_error",
        message: "Unexpected failure; retry with backoff.",
      });
      expect(Number(answer.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
      expect((await neighbour).status).toBe(202);
      const requestId = answer.headers.get("x-request-id") as string;
      await expect
        .poll(() => suite.service.log.find((line) => line.includes(requestId)))
        .toMatch(/Document failed validation/);
    } finally {
      await app.db.command({ collMod: "timeline", validator: {} });
    }
  });
});
