import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { cards } from "../../src/store/snapshots.ts";
import { claims } from "../../src/store/idempotency.ts";
import { eventCollection, rowsBetween } from "../../src/store/events.ts";
import { usage } from "../../src/store/usage.ts";
import { workers } from "../../src/store/workers.ts";
import { bearer, createTenant, protocols, startService, type Tenant, type TestService } from "../support/service.ts";
import { limits } from "../../src/limits.ts";
import { storedRows } from "../support/rows.ts";

let service: TestService;
let url: string;

beforeAll(async () => {
  service = await startService();
  url = service.app.url;
});
afterAll(() => service.app.close());

const timestamp = "2026-04-19T12:05:00Z";
const event = (change: object = {}) => ({
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: "al" },
  timestamp,
  ...change,
});
const snapshot = (change: object = {}) => ({
  snapshotType: "tickets_open",
  actor: { externalId: "al", displayName: "Al" },
  timestamp,
  metrics: { open: 7 },
  ...change,
});
const dry = { "x-dry-run": "true" };

/** Everything stored for the tenant, except the reserved quota, which is returned a second after the last request. */
async function stored({ organizationId, keyId }: Tenant): Promise<unknown> {
  const collections = [cards, workers, usage].map(({ name }) =>
    service.app.db.collection(name).find({ organizationId }).project({ reserved: 0 }).sort({ _id: 1 }).toArray(),
  );
  const claimed = service.app.db
    .collection<{ _id: string }>(claims.name)
    .find({ _id: { $gte: keyId, $lt: `${keyId};` } });
  return Promise.all([...collections, storedRows(service.app.db, rowsBetween(organizationId)), claimed.toArray()]);
}

describe.each(Object.entries(protocols))("over %s", (_name, send) => {
  const verdict = ({ status, body, error }: Awaited<ReturnType<typeof send>>) => ({
    status,
    code: error?.code,
    message: error?.message,
    body: error === undefined ? { ...body, requestId: undefined } : undefined,
  });

  test.each([
    [
      "events of every verdict",
      [
        event(),
        event({ actor: {} }),
        event({ eventType: "deploy.x" }),
        event({ actor: { workerId: "wrk_x" } }),
        event(),
        event(),
      ],
    ],
    ["valid events", [event(), event({ actor: { email: "Al@x.org" } })]],
    [
      "events that are all refused for one reason",
      [event({ eventType: "deploy.x" }), event({ eventType: "deploy.y" })],
    ],
    ["events that do not match the schema", [event({ duration: -1 })]],
  ])("a dry run of %s answers exactly as a real request, and changes nothing", async (_what, batch) => {
    const tenant = await createTenant(service.admin, { name: "Dry", quotaEventsPerMonth: 2 });
    const before = await stored(tenant);
    const tried = await send(url, "events", { events: batch }, { ...bearer(tenant.key), ...dry });
    expect(tried.headers.get("x-dry-run")).toBe("true");
    expect(await stored(tenant)).toEqual(before);
    const real = await send(url, "events", { events: batch }, bearer(tenant.key));
    expect(real.headers.get("x-dry-run")).toBeNull();
    expect(verdict(tried)).toEqual(verdict(real));
    const spent = await send(url, "events", { events: batch }, { ...bearer(tenant.key), ...dry });
    expect(verdict(spent)).toEqual(verdict(await send(url, "events", { events: batch }, bearer(tenant.key))));
  });

  test("a dry run of a snapshot answers as a real request; a new worker has an empty id", async () => {
    const tenant = await createTenant(service.admin);
    const headers = { ...bearer(tenant.key), ...dry };
    const tried = await send(url, "snapshots", snapshot(), headers);
    expect(tried.body.worker).toEqual({ id: "", displayName: "Al" });
    expect((await send(url, "snapshots", snapshot({ actor: { email: "bo@x.org" } }), headers)).body.worker).toEqual({
      id: "",
      displayName: "bo",
    });
    const real = await send(url, "snapshots", snapshot(), bearer(tenant.key));
    expect(real.body.worker.displayName).toBe("Al");
    const before = await stored(tenant);
    const again = await send(url, "snapshots", snapshot({ metrics: { open: 8 } }), headers);
    expect(verdict(again)).toEqual(verdict(real));
    const refused = await send(url, "snapshots", snapshot({ actor: { workerId: "wrk_x" } }), headers);
    expect(refused.error?.code).toBe("worker_not_found");
    expect(refused.headers.get("x-dry-run")).toBe("true");
    expect(await stored(tenant)).toEqual(before);
  });

  test("a dry run looks up an Idempotency-Key but does not take it", async () => {
    const tenant = await createTenant(service.admin);
    const headers = { ...bearer(tenant.key), "idempotency-key": "k" };
    await send(url, "events", { events: [event({ duration: 1 })] }, { ...headers, ...dry });
    const real = await send(url, "events", { events: [event()] }, headers);
    expect(real.error).toBeUndefined();
    expect(real.headers.get("idempotency-replayed")).toBeNull();
    const before = await stored(tenant);
    const replay = await send(url, "events", { events: [event()] }, { ...headers, ...dry });
    expect(replay.body).toEqual(real.body);
    expect(replay.headers.get("idempotency-replayed")).toBe("true");
    const conflict = await send(url, "events", { events: [event({ duration: 1 })] }, { ...headers, ...dry });
    expect(conflict.error?.code).toBe("invalid_body");
    expect(conflict.error?.message).toContain("Idempotency-Key");
    expect(await stored(tenant)).toEqual(before);
  });

  test("a dry run says so in every refusal after the key is known", async () => {
    const { key } = await createTenant(service.admin);
    const refused = [
      { events: [event({ category: "nonsense" })] },
      { events: Array.from({ length: limits.eventsMax + 1 }, () => event()) },
      { events: [event({ metadata: { text: "x".repeat(limits.bodyBytesMax) } })] },
    ];
    for (const body of refused) {
      const { error, headers } = await send(url, "events", body, { ...bearer(key), ...dry });
      expect([error === undefined, headers.get("x-dry-run")]).toEqual([false, "true"]);
    }
    const long = { ...bearer(key), ...dry, "idempotency-key": "k".repeat(limits.idempotencyKeyCharactersMax + 1) };
    const { error, headers } = await send(url, "events", { events: [] }, long);
    expect([error?.message, headers.get("x-dry-run")]).toEqual([expect.stringContaining("Idempotency-Key"), "true"]);
  });

  test("X-Dry-Run is true or false: anything else is refused, and false stores", async () => {
    const tenant = await createTenant(service.admin);
    for (const value of ["yes", "1", "true, true"]) {
      const answer = await send(url, "events", { events: [event()] }, { ...bearer(tenant.key), "x-dry-run": value });
      expect(answer.error?.code).toBe("invalid_body");
      expect(answer.error?.message).toContain("X-Dry-Run");
    }
    expect(await eventCollection(service.app.db).countDocuments(rowsBetween(tenant.organizationId))).toBe(0);
    await send(url, "events", { events: [event()] }, { ...bearer(tenant.key), "x-dry-run": "false" });
    expect(await eventCollection(service.app.db).countDocuments(rowsBetween(tenant.organizationId))).toBe(1);
  });

  test("a dry run needs a key and counts against the rate limit", async () => {
    expect((await send(url, "events", { events: [event()] }, dry)).error?.code).toBe("missing_authorization");
    const slow = await createTenant(service.admin, { name: "Slow", keyRequestsPerSecond: 1 });
    const answers = await Promise.all(
      Array.from({ length: 6 }, () => send(url, "events", { events: [event()] }, { ...bearer(slow.key), ...dry })),
    );
    expect(answers.map(({ error }) => error?.code)).toContain("rate_limited");
  });
});

test("over REST a dry run names unknown members in answers and refusals; a real request does not", async () => {
  const tenant = await createTenant(service.admin);
  const post = (call: string, body: unknown, headers: Record<string, string> = dry) =>
    fetch(`${url}/api/v1/ingest/${call}`, {
      method: "POST",
      headers: { ...bearer(tenant.key), "content-type": "application/json", ...headers },
      body: JSON.stringify(body),
    });
  const misspelt = event({ metdata: { a: 1 }, time: timestamp, actor: { externalId: "al", "é,\r\nx": 1 } });
  const tried = await post("events", { events: [event(), misspelt] });
  expect(tried.status).toBe(202);
  expect(tried.headers.get("x-ignored-members")).toBe(
    "events[1].actor.%C3%A9%2C%0D%0Ax, events[1].metdata, events[1].time",
  );
  const refused = await post("events", { events: [{ ...misspelt, duration: -1 }] });
  expect(refused.status).toBe(400);
  expect(refused.headers.get("x-ignored-members")).toContain("events[0].metdata");
  const card = await post("snapshots", snapshot({ metrics: { open: { value: 1, unti: "count" } } }));
  expect(card.headers.get("x-ignored-members")).toBe("metrics.open.unti");
  expect((await post("events", { events: [event()] })).headers.get("x-ignored-members")).toBeNull();
  expect((await post("events", { events: [misspelt] }, {})).headers.get("x-ignored-members")).toBeNull();
});

test.each(["/api/v1/ingest/events", "/ingest.v1.Ingest/Events"])(
  "a dry run that cannot be read says so: %s",
  async (path) => {
    const { key } = await createTenant(service.admin);
    for (const [type, body] of [
      ["application/json", '{"events": ['],
      ["application/json", '{"events": [{"category": 5}]}'],
      ["text/plain", "{}"],
    ] as const) {
      const headers = { ...bearer(key), ...dry, "content-type": type };
      const answer = await fetch(url + path, { method: "POST", headers, body });
      // Without one of its content types, an RPC is a page that does not exist.
      if (answer.status === 415) continue;
      expect([answer.status, answer.headers.get("x-dry-run")], `${type} ${body}`).toEqual([400, "true"]);
    }
  },
);
