import { gzipSync } from "node:zlib";
import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { errorTable } from "../../src/errors.ts";
import { RetryInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { limits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { eventCollection, rowsBetween } from "../../src/store/events.ts";
import { usageCollection } from "../../src/store/usage.ts";
import { workerCollection } from "../../src/store/workers.ts";
import { event, expectError, snapshot, unique } from "../support/requests.ts";
import {
  type Answer,
  bearer,
  createExpiredKey,
  createTenant,
  pathOver,
  protocols,
  type Send,
  useService,
} from "../support/service.ts";
import { storedRows } from "../support/rows.ts";

const suite = useService();

describe.each(Object.entries(protocols))("over %s", (name, send: Send) => {
  const events = (body: unknown, headers: Record<string, string> = {}, key = suite.tenant.key) =>
    send(suite.url, "events", body, { ...bearer(key), ...headers });
  const snapshots = (body: unknown, headers: Record<string, string> = {}) =>
    send(suite.url, "snapshots", body, { ...bearer(suite.tenant.key), ...headers });

  test("ping echoes the app of the key, with request id, version and rate limit", async () => {
    const answer = await send(suite.url, "ping", {}, { authorization: `bEaReR ${suite.tenant.key}` });
    expect(answer.body).toEqual({
      ok: true,
      organizationId: suite.tenant.organizationId,
      app: { id: suite.tenant.appId, slug: "crm-hub", name: "CRM Hub" },
    });
    expect(answer.headers.get("x-request-id")).toMatch(/^req_/);
    expect(answer.headers.get("x-api-version")).toBe("2026-04-01");
    expect(answer.headers.get("x-ratelimit-limit")).toBe("100000");
    expect(Number(answer.headers.get("x-ratelimit-remaining"))).toBeLessThan(100_000);
    expect(answer.headers.get("ratelimit-policy")).toBe('"key";q=100000;w=1');
  });

  test.each([
    ["missing_authorization", {}],
    ["invalid_key", { authorization: "Basic abc" }],
    ["invalid_key", { authorization: "Bearer wp_live_short" }],
    ["invalid_key", { authorization: `Bearer wp_live_${"0".repeat(32)}` }],
  ] as const)("%s is answered to %j, with WWW-Authenticate", async (code, headers) => {
    const answer = await send(suite.url, "ping", {}, headers);
    expectError(suite.url, answer, code);
    expect(answer.headers.get("www-authenticate")).toBe("Bearer");
  });

  test("an access token of the administration API is refused by its form, saying what to use", async () => {
    const answer = await send(suite.url, "ping", {}, bearer(`wp_adm_${"0".repeat(40)}`));
    expectError(suite.url, answer, "forbidden_scope");
    expect(answer.error?.message).toContain("send an API key: 'Authorization: Bearer wp_live_…'");
  });

  test("an expired key, a revoked key and a plan without the API are refused, each with its own code", async () => {
    const expired = await createExpiredKey(suite.service, suite.tenant.appId);
    expectError(suite.url, await send(suite.url, "ping", {}, bearer(expired)), "key_expired");
    const revoked = await suite.service.admin.createKey(suite.tenant.appId);
    await suite.service.admin.revokeKey(revoked.id);
    const answer = await send(suite.url, "ping", {}, bearer(revoked.key));
    expectError(suite.url, answer, "key_revoked");
    expect(answer.headers.get("x-ratelimit-limit")).toBe("100000");
    const poor = await createTenant(suite.service.admin, { name: "No API", api: false });
    expectError(suite.url, await send(suite.url, "ping", {}, bearer(poor.key)), "plan_disabled");
  });

  // The poll is short: without news, Ingest looks a key up again after four seconds. Each try has its own key.
  test("a revocation acts within a second, even on a key in memory", { retry: 2 }, async () => {
    const key = await suite.service.admin.createKey(suite.tenant.appId);
    expect((await send(suite.url, "ping", {}, bearer(key.key))).error).toBeUndefined();
    await suite.service.admin.revokeKey(key.id);
    await expect
      .poll(async () => (await send(suite.url, "ping", {}, bearer(key.key))).error?.code, {
        timeout: 1000,
        interval: 20,
      })
      .toBe("key_revoked");
  });

  test("an accepted event is stored as sent", async () => {
    const type = unique("ticket.stored");
    const metadata = JSON.parse('{"a.b":1,"$set":{"$x":[null,true,"é"]},"__proto__":{"constructor":1},"n":1.5}');
    const sent = event({ eventType: type, timestamp: "2026-04-19T14:05:00.250+02:00", duration: 240, metadata });
    const answer = await events({ events: [sent] });
    expect(answer.error).toBeUndefined();
    expect([0, 202]).toContain(answer.status);
    expect(answer.body).toMatchObject({ accepted: 1, rejected: 0, batchLimit: 500 });
    expect(answer.body.results).toEqual({
      accepted: [{ eventType: type, timestamp: "2026-04-19T12:05:00.250Z" }],
      rejected: [],
    });
    expect(answer.body.requestId).toBe(answer.headers.get("x-request-id"));
    const stored = await storedRows(suite.service.app.db, { type });
    expect(stored).toHaveLength(1);
    expect(stored[0]).toMatchObject({
      kind: "event",
      category: "project_management",
      durationSeconds: 240,
      appId: suite.tenant.appId,
    });
    expect(stored[0]?.timestamp.toISOString()).toBe("2026-04-19T12:05:00.250Z");
    expect(JSON.stringify(stored[0]?.metadata)).toBe(JSON.stringify(metadata));
  });

  test("Ingest judges events one by one, in order, and stores the accepted ones", async () => {
    const type = unique("ticket.mixed");
    const body = {
      events: [
        event({ eventType: type }),
        event({ eventType: type, actor: {} }),
        event({ eventType: "deploy.shipped" }),
        event({ eventType: type, actor: { workerId: "wrk_unknown" } }),
        event({ eventType: type }),
      ],
    };
    const answer = await events(body);
    expect([0, 207]).toContain(answer.status);
    expect(answer.body).toMatchObject({ accepted: 2, rejected: 3 });
    expect(answer.body.results.rejected.map(({ index, code }: any) => [index, code])).toEqual([
      [1, "missing_actor"],
      [2, "forbidden_event_type"],
      [3, "worker_not_found"],
    ]);
    expect(answer.body.results.rejected[1].message).toBe("eventType 'deploy.shipped' is not whitelisted.");
    expect(await eventCollection(suite.service.app.db).countDocuments({ type })).toBe(2);
  });

  test("if all events are rejected with one code the request fails with it; with several codes it does not", async () => {
    expectError(
      suite.url,
      await events({ events: [event({ eventType: "deploy.a" }), event({ eventType: "deploy.b" })] }),
      "forbidden_event_type",
    );
    expectError(suite.url, await events({ events: [event({ actor: {} })] }), "missing_actor");
    expectError(
      suite.url,
      await events({ events: [event({ actor: { workerId: "wrk_x", email: "a@b.org" } })] }),
      "worker_not_found",
    );
    // Over gRPC the message is a header, which holds at most 64 KB.
    const long = Array.from({ length: 25 }, (_, i) => event({ actor: { workerId: `${i}${"漢".repeat(198)}` } }));
    expectError(suite.url, await events({ events: long }), "worker_not_found");
    const mixed = await events({ events: [event({ eventType: "deploy.a" }), event({ actor: {} })] });
    expect([0, 207]).toContain(mixed.status);
    expect(mixed.body).toMatchObject({ accepted: 0, rejected: 2 });
  });

  test("an invalid body is refused completely, with a path for every issue, and nothing is stored", async () => {
    const type = unique("ticket.whole");
    const answer = await events({
      events: [
        event({ eventType: type }),
        event({ eventType: type, duration: limits.durationSecondsMax + 1 }),
        event({ eventType: "x" }),
      ],
    });
    expectError(suite.url, answer, "invalid_body");
    expect(answer.error?.message).toContain("events[1].duration: ");
    expect(answer.error?.message).toContain(`${pathOver(name, "events[2].eventType")}: `);
    expect(await eventCollection(suite.service.app.db).countDocuments({ type })).toBe(0);
  });

  test("an error shows a member name of the body only as far as gRPC's headers can hold it", async () => {
    const name = (i: number) => `${i}${"€".repeat(185)}`;
    const tooLong = "x".repeat(limits.labelCharactersMax + 1);
    const metrics = Object.fromEntries(Array.from({ length: limits.issuesMax }, (_, i) => [name(i), tooLong]));
    const answer = await snapshots(snapshot({ metrics }));
    expectError(suite.url, answer, "invalid_body");
    expect(answer.error?.message).toContain("metrics.0€€");
    expect(answer.error?.message).toContain("metrics.19€€");
    expect(answer.error?.message).not.toContain(name(0));
  });

  test("an error lists at most 20 issues", async () => {
    const answer = await events({ events: Array.from({ length: 25 }, () => event({ duration: -1 })) });
    expectError(suite.url, answer, "invalid_body");
    expect(answer.error?.message).toMatch(/… and 5 more$/);
  });

  test.each([
    ["duration", event({ duration: 86_400 }), event({ duration: 86_401 })],
    [
      "externalId",
      event({ actor: { externalId: "x".repeat(200) } }),
      event({ actor: { externalId: "x".repeat(201) } }),
    ],
    [
      "displayName",
      event({ actor: { externalId: "n", displayName: "x".repeat(200) } }),
      event({ actor: { externalId: "n", displayName: "x".repeat(201) } }),
    ],
    ["email", event({ actor: { email: `a@${"x".repeat(252)}` } }), event({ actor: { email: `a@${"x".repeat(253)}` } })],
    ["eventType", event({ eventType: `ticket.${"x".repeat(57)}` }), event({ eventType: `ticket.${"x".repeat(58)}` })],
    [
      "metadata size",
      event({ metadata: { a: "x".repeat(16_384 - 8) } }),
      event({ metadata: { a: "x".repeat(16_384 - 7) } }),
    ],
    ["metadata depth", event({ metadata: nested(32) }), event({ metadata: nested(33) })],
  ])("%s is accepted at its limit and refused one beyond", async (_bound, at, beyond) => {
    expect((await events({ events: [at] })).error).toBeUndefined();
    expectError(suite.url, await events({ events: [beyond] }), "invalid_body");
  });

  test("500 events are accepted, 501 are batch_too_large, none are invalid_body", async () => {
    const many = (count: number) => ({ events: Array.from({ length: count }, () => event()) });
    expect((await events(many(500))).body).toMatchObject({ accepted: 500, rejected: 0 });
    expectError(suite.url, await events(many(501)), "batch_too_large");
    expectError(suite.url, await events(many(0)), "invalid_body");
  });

  test("a message over 1 MB is batch_too_large, and the connection's other calls continue", async () => {
    const big = { events: [event({ metadata: { a: "x".repeat(1_100_000) } })] };
    const [tooLarge, other] = await Promise.all([events(big), events({ events: [event()] })]);
    expectError(suite.url, tooLarge as Answer, "batch_too_large");
    expect(tooLarge?.error?.details?.findDetails(RetryInfoSchema) ?? []).toEqual([]);
    expect(other?.error).toBeUndefined();
  });

  test("a timestamp more than 24 hours ahead is invalid_body, in events and snapshots, and nothing is stored", async () => {
    const type = unique("ticket.future");
    const hours = (ahead: number) => new Date(Date.now() + ahead * 3_600_000).toISOString();
    for (const timestamp of ["2999-01-01T00:00:00Z", hours(24.1)]) {
      const refused = await events({ events: [event({ eventType: type }), event({ eventType: type, timestamp })] });
      expectError(suite.url, refused, "invalid_body");
      expect(refused.error?.message).toMatch(
        /^events\[1\]\.timestamp: must be at most 24 hours after the time of receipt \(the server's clock says 20/,
      );
      const shot = await snapshots(snapshot({ snapshotType: type, timestamp }));
      expectError(suite.url, shot, "invalid_body");
      expect(shot.error?.message).toContain("must be at most 24 hours after the time of receipt");
    }
    expect(await eventCollection(suite.service.app.db).countDocuments({ type })).toBe(0);
    expect(await cardCollection(suite.service.app.db).countDocuments({ snapshotType: type })).toBe(0);
    const ahead = await snapshots(snapshot({ snapshotType: type, timestamp: hours(23.9) }));
    expect(ahead.error).toBeUndefined();
  });

  test("the error for a malformed email does not contain it, in the answer and in the log", async () => {
    const email = `${unique("alex.chen")} example.org`;
    const answer = await events({ events: [event({ actor: { email } })] });
    expectError(suite.url, answer, "invalid_body");
    expect(answer.error?.message).toContain("actor.email: must be an email address; it has");
    expect(JSON.stringify([answer.body, answer.error?.details])).not.toContain(email);
    expect(suite.service.log.join("")).not.toContain(email);
  });

  test("a NUL in a metadata key is invalid_body", async () => {
    expectError(suite.url, await events({ events: [event({ metadata: { "a\0b": 1 } })] }), "invalid_body");
  });

  test("a snapshot is answered, kept as history and shown on the card; an older one does not replace it", async () => {
    const type = unique("tickets_open");
    const metrics = { open: 7, mood: "calm", age: { value: 3, unit: "minutes", label: "Age" } };
    const newest = await snapshots(snapshot({ snapshotType: type, timestamp: "2026-05-01T12:00:00Z", metrics }));
    expect([0, 202]).toContain(newest.status);
    expect(newest.body).toMatchObject({ ok: true, snapshotType: type, worker: { displayName: "crm-user-42" } });
    await snapshots(snapshot({ snapshotType: type, timestamp: "2026-05-01T11:00:00Z", metrics: { open: 1 } }));
    const card = await cardCollection(suite.service.app.db).findOne({ snapshotType: type });
    expect(card?.metrics).toEqual(metrics);
    await snapshots(snapshot({ snapshotType: type, timestamp: "2026-05-01T12:00:00Z", metrics: { open: 9 } }));
    expect((await cardCollection(suite.service.app.db).findOne({ snapshotType: type }))?.metrics).toEqual({ open: 9 });
    expect(await eventCollection(suite.service.app.db).countDocuments({ type, metrics: { $exists: true } })).toBe(3);
  });

  test.each([
    ["no metrics", snapshot({ metrics: {} })],
    ["a label over 200 characters", snapshot({ metrics: { a: "x".repeat(201) } })],
    [
      "metrics over 16 KB",
      snapshot({ metrics: Object.fromEntries(Array.from({ length: 90 }, (_, i) => [`m${i}`, "x".repeat(190)])) }),
    ],
  ])("a snapshot with %s is invalid_body", async (_what, body) => {
    expectError(suite.url, await snapshots(body), "invalid_body");
  });

  test("a snapshot without an actor's id is missing_actor, one of an unknown worker worker_not_found", async () => {
    expectError(suite.url, await snapshots(snapshot({ actor: { displayName: "x" } })), "missing_actor");
    expectError(suite.url, await snapshots(snapshot({ actor: { workerId: "wrk_unknown" } })), "worker_not_found");
  });

  test("the first known id decides the actor's worker, and an email in any case is the same worker", async () => {
    const name = unique("al").toLowerCase();
    const one = await snapshots(snapshot({ actor: { email: `${name}@x.org`, displayName: "Al" } }));
    const two = await snapshots(snapshot({ actor: { email: `${name.toUpperCase()}@X.org` } }));
    const three = await snapshots(
      snapshot({ actor: { externalId: name, email: `${name}@x.org`, displayName: "Other" } }),
    );
    const four = await snapshots(snapshot({ actor: { externalId: name } }));
    const five = await snapshots(snapshot({ actor: { workerId: one.body.worker.id } }));
    for (const answer of [two, three, four, five])
      expect(answer.body.worker).toEqual({ id: one.body.worker.id, displayName: "Al" });
    const worker = await workerCollection(suite.service.app.db).findOne({ _id: one.body.worker.id });
    expect(worker?.links).toMatchObject([{ connection: "custom:crm-hub", externalId: name }]);
  });

  test("20 concurrent requests for a new actor create one worker", async () => {
    const name = unique("crowd");
    const actor = { externalId: name, email: `${name}@x.org` };
    const answers = await Promise.all(Array.from({ length: 20 }, () => snapshots(snapshot({ actor }))));
    expect(new Set(answers.map(({ body }) => body.worker.id)).size).toBe(1);
    expect(await workerCollection(suite.service.app.db).countDocuments({ email: actor.email })).toBe(1);
  });

  test("a replay gets the first answer, and the same key with another request is refused", async () => {
    const type = unique("ticket.replay");
    const headers = { "idempotency-key": unique("key") };
    const body = { events: [event({ eventType: type }), event({ eventType: "deploy.x" })] };
    const first = await events(body, headers);
    const again = await events(body, headers);
    expect(again.body).toEqual(first.body);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect(again.headers.get("x-request-id")).toBe(first.body.requestId);
    expect(first.headers.get("idempotency-replayed")).toBeNull();
    expect(await eventCollection(suite.service.app.db).countDocuments({ type })).toBe(1);
    const other = await events({ events: [event({ eventType: type, duration: 1 })] }, headers);
    expectError(suite.url, other, "invalid_body");
    expect(other.error?.message).toContain("Idempotency-Key");
    expectError(suite.url, await snapshots(snapshot(), headers), "invalid_body");
    expect(await eventCollection(suite.service.app.db).countDocuments({ type })).toBe(1);
  });

  test("a request that failed as a whole is not remembered", async () => {
    const headers = { "idempotency-key": unique("key") };
    expectError(
      suite.url,
      await events({ events: [event({ eventType: "deploy.x" })] }, headers),
      "forbidden_event_type",
    );
    expect((await events({ events: [event()] }, headers)).body).toMatchObject({ accepted: 1 });
  });

  test("concurrent duplicates store one set of events and all get the same answer", async () => {
    const type = unique("ticket.duplicates");
    const headers = { "idempotency-key": unique("key") };
    const body = { events: [event({ eventType: type }), event({ eventType: type })] };
    const answers = await Promise.all(Array.from({ length: 10 }, () => events(body, headers)));
    for (const answer of answers) expect(answer.body).toEqual(answers[0]?.body);
    expect(await eventCollection(suite.service.app.db).countDocuments({ type })).toBe(2);
  });

  test("an Idempotency-Key longer than 200 characters is invalid_body", async () => {
    expect((await events({ events: [event()] }, { "idempotency-key": "k".repeat(200) })).error).toBeUndefined();
    expectError(suite.url, await events({ events: [event()] }, { "idempotency-key": "k".repeat(201) }), "invalid_body");
  });

  test("the first events that fit the quota are accepted; replays and rejected events cost nothing", async () => {
    const small = await createTenant(suite.service.admin, { name: "Small", quotaEventsPerMonth: 3 });
    const headers = { "idempotency-key": unique("key") };
    const type = unique("ticket.quota");
    const body = { events: [event({ eventType: "deploy.x" }), event({ eventType: type }), event({ eventType: type })] };
    await events(body, headers, small.key);
    await events(body, headers, small.key);
    const partial = await events({ events: [event({ eventType: type }), event({ eventType: type })] }, {}, small.key);
    expect(partial.body).toMatchObject({ accepted: 1, rejected: 1 });
    expect(partial.body.results.rejected[0]).toMatchObject({ index: 1, code: "quota_exceeded" });
    expectError(suite.url, await events({ events: [event()] }, {}, small.key), "quota_exceeded");
    expect((await events(body, headers, small.key)).headers.get("idempotency-replayed")).toBe("true");
    expect(
      (await usageCollection(suite.service.app.db).findOne({ organizationId: small.organizationId }))?.events,
    ).toBe(3);
  });

  test("with N events left, concurrent requests have exactly N events accepted", async () => {
    const small = await createTenant(suite.service.admin, { name: "Small", quotaEventsPerMonth: 10 });
    const answers = await Promise.all(Array.from({ length: 30 }, () => events({ events: [event()] }, {}, small.key)));
    expect(answers.filter(({ error }) => error === undefined)).toHaveLength(10);
    expect(await eventCollection(suite.service.app.db).countDocuments(rowsBetween(small.organizationId))).toBe(10);
  });

  test("past the burst of its key, a request is rate_limited, with the time to wait", async () => {
    const slow = await createTenant(suite.service.admin, { name: "Slow", keyRequestsPerSecond: 2 });
    const answers = await Promise.all(Array.from({ length: 8 }, () => send(suite.url, "ping", {}, bearer(slow.key))));
    const refused = answers.filter(({ error }) => error !== undefined);
    expect(refused.length).toBeGreaterThanOrEqual(4);
    for (const answer of refused) {
      expectError(suite.url, answer, "rate_limited");
      const wait = answer.headers.get("retry-after");
      // 2 if the burst was taken twice, with a pause in between, before the instance reported it.
      expect(wait).toMatch(/^[12]$/);
      expect(answer.headers.get("x-ratelimit-limit")).toBe("2");
      if (answer.status === 0) {
        const [retry] = answer.error?.details?.findDetails(RetryInfoSchema) ?? [];
        expect(String(retry?.retryDelay?.seconds)).toBe(wait);
      }
    }
  });

  test("past the burst of its organisation, a request is rate_limited, too", async () => {
    const slow = await createTenant(suite.service.admin, { name: "Slow", organizationRequestsPerSecond: 2 });
    const other = await suite.service.admin.createKey(slow.appId);
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, i) => send(suite.url, "ping", {}, bearer(i % 2 === 0 ? slow.key : other.key))),
    );
    expect(answers.some(({ error }) => error?.code === "rate_limited" && error.message.includes("organisation"))).toBe(
      true,
    );
  });
});

test("a batch sent over REST and retried over any other protocol is recognised", async () => {
  const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
  const body = {
    events: [
      event({
        timestamp: "2026-04-19T12:05:00Z",
        metadata: { b: [1, { y: 1, x: 2 }], a: "é" },
        actor: { externalId: "e", email: "E@x.org" },
      }),
    ],
  };
  const first = await (protocols.REST as Send)(suite.url, "events", body, headers);
  expect(first.error).toBeUndefined();
  for (const send of Object.values(protocols)) {
    const again = await send(suite.url, "events", body, headers);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect(again.body).toEqual(first.body);
  }
});

describe("only over REST", () => {
  const post = (body: string | Uint8Array<ArrayBuffer>, headers: Record<string, string> = {}) =>
    fetch(`${suite.url}/api/v1/ingest/events`, {
      method: "POST",
      headers: { "content-type": "application/json", ...bearer(suite.tenant.key), ...headers },
      body,
    });
  const codeOf = async (response: Response) => ((await response.json()) as any).error?.code;

  test("a replay repeats the first answer byte for byte", async () => {
    const headers = { "idempotency-key": unique("key") };
    const body = JSON.stringify({ events: [event()] });
    const first = await post(body, headers);
    const again = await post(body, headers);
    expect(again.status).toBe(first.status);
    expect(await again.text()).toBe(await first.text());
  });

  test.each([
    ["not JSON", "{", {}],
    ["an array", "[]", {}],
    ["null", "null", {}],
    ["another content type", "{}", { "content-type": "text/plain" }],
    ["an unknown encoding", "{}", { "content-encoding": "br" }],
    ["broken gzip", "{}", { "content-encoding": "gzip" }],
    ["deep nesting", `{"events":[{"metadata":${"[".repeat(100_000)}${"]".repeat(100_000)}}]}`, {}],
    ["a metric of no kind", `{"events":[{"metadata":1e999}]}`, {}],
    ["a time without an offset", JSON.stringify({ events: [event({ timestamp: "2026-04-19T12:05:00" })] }), {}],
    ["a time that does not exist", JSON.stringify({ events: [event({ timestamp: "2026-02-30T12:05:00Z" })] }), {}],
    ["an upper-case category", JSON.stringify({ events: [event({ category: "DESIGN" })] }), {}],
    ["a lone surrogate", `{"events":[${JSON.stringify(event()).replace("crm-user-42", "\\ud800")}]}`, {}],
  ])("%s is invalid_body", async (_what, body, headers: Record<string, string>) => {
    const response = await post(body, headers);
    expect(response.status).toBe(400);
    expect(await codeOf(response)).toBe("invalid_body");
  });

  test("a charset is fine, unknown members are ignored, gzip is accepted", async () => {
    const body = JSON.stringify({ events: [{ ...event(), unknown: 1 }], more: true });
    const response = await post(new Uint8Array(gzipSync(body)), {
      "content-encoding": "gzip",
      "content-type": "application/json; charset=utf-8",
    });
    expect(response.status).toBe(202);
  });

  test("a gzip bomb is cut off with batch_too_large", async () => {
    const response = await post(new Uint8Array(gzipSync(Buffer.alloc(50_000_000))), { "content-encoding": "gzip" });
    expect(response.status).toBe(413);
    expect(await codeOf(response)).toBe("batch_too_large");
  });

  test("a body of exactly 1 MB is accepted, one byte more is batch_too_large", async () => {
    const body = JSON.stringify({ events: [event()] });
    const padded = (bytes: number) => body + " ".repeat(bytes - body.length);
    expect((await post(padded(limits.bodyBytesMax))).status).toBe(202);
    expect((await post(padded(limits.bodyBytesMax + 1))).status).toBe(413);
  });

  test("Ingest checks the key before it looks at the body", async () => {
    const response = await post("{", { authorization: "Bearer nonsense", "content-type": "text/plain" });
    expect(await codeOf(response)).toBe("invalid_key");
  });

  test("an unknown path is 404 and a wrong method 405 with Allow, in the error shape with a request id", async () => {
    const unknown = await fetch(`${suite.url}/nowhere`);
    expect([unknown.status, await codeOf(unknown)]).toEqual([404, "not_found"]);
    expect(unknown.headers.get("x-request-id")).toMatch(/^req_/);
    const wrong = await fetch(`${suite.url}/api/v1/ingest/events`);
    expect([wrong.status, await codeOf(wrong), wrong.headers.get("allow")]).toEqual([
      405,
      "method_not_allowed",
      "POST",
    ]);
  });

  test("the OpenAPI document, health and every docsUrl need no key", async () => {
    for (const path of [
      "/openapi/v1.yaml",
      "/healthz",
      "/readyz",
      "/docs",
      ...Object.keys(errorTable).map((code) => `/docs/errors/${code}`),
    ]) {
      expect((await fetch(suite.url + path)).status, path).toBe(200);
    }
  });
});

/**
 * Over the protocols with JSON, as a caller writes it: `rest` with the reference's names, `connect` with protobuf's.
 */
describe.each([
  ["REST", "/api/v1/ingest", ["events", "snapshots"], "other"],
  ["Connect JSON", "/ingest.v1.Ingest", ["Events", "Snapshots"], "EVENT_CATEGORY_OTHER"],
] as const)("JSON over %s", (_name, base, [eventsPath, snapshotsPath], category) => {
  const post = async (path: string, body: unknown) => {
    const response = await fetch(`${suite.url}${base}/${path}`, {
      method: "POST",
      headers: { "content-type": "application/json", ...bearer(suite.tenant.key) },
      body: JSON.stringify(body),
    });
    return { status: response.status, body: (await response.json()) as any };
  };

  test("an optional member that is null counts as absent", async () => {
    const type = unique("ticket.nulls");
    const actor = { externalId: unique("n"), displayName: null };
    const nulls = { timestamp: null, duration: null, metadata: null };
    const answer = await post(eventsPath, { events: [{ eventType: type, category, actor, ...nulls }] });
    expect(answer.body).toMatchObject({ accepted: 1 });
    const [row] = await storedRows(suite.service.app.db, { type });
    expect(Object.keys(row ?? {})).not.toEqual(expect.arrayContaining(["durationSeconds", "metadata"]));
    expect(row?.timestamp).toEqual(row?.receivedAt);
    const metrics = { open: base.startsWith("/api") ? 7 : { number: 7 } };
    const shot = await post(snapshotsPath, { snapshotType: type, actor, metrics, timestamp: null, metadata: null });
    expect(shot.body).toMatchObject({ ok: true });
  });
});

test("Ping is also a Connect GET", async () => {
  const query = new URLSearchParams({ connect: "v1", encoding: "json", message: "{}" });
  const response = await fetch(`${suite.url}/ingest.v1.Ingest/Ping?${query}`, { headers: bearer(suite.tenant.key) });
  expect(response.status).toBe(200);
  expect(((await response.json()) as any).organizationId).toBe(suite.tenant.organizationId);
});

test("an RPC message that cannot be decoded is invalid_argument with the code invalid_body", async () => {
  const response = await fetch(`${suite.url}/ingest.v1.Ingest/Events`, {
    method: "POST",
    headers: { "content-type": "application/json", ...bearer(suite.tenant.key) },
    body: '{"events": 7}',
  });
  const body = (await response.json()) as any;
  expect(response.status).toBe(400);
  expect(body.code).toBe("invalid_argument");
  expect(body.details[0]).toMatchObject({ type: "google.rpc.ErrorInfo" });
});

test("the log never contains a key", async () => {
  const lines = suite.service.log.join("");
  expect(lines.length).toBeGreaterThan(1000);
  expect(lines).not.toContain(suite.tenant.key);
  expect(lines).not.toMatch(/wp_live_[0-9a-f]{32}/);
  expect(Code.Internal).toBe(13);
});

function nested(levels: number): object {
  let value: object = {};
  for (let level = 1; level < levels; level++) value = { a: value };
  return value;
}
