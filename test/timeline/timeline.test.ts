import type { Document } from "mongodb";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Activity, FairTurns } from "../../src/access/fair-turns.ts";
import { type ErrorCode, errorTable } from "../../src/errors.ts";
import { timelineLimits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { createIdSource, eventIds } from "../../src/ids.ts";
import { documentsOf, eventCollection, rowKey, rowsBetween } from "../../src/store/events.ts";
import { announce } from "../../src/store/revisions.ts";
import { listCards, listEvents, type RowFilter, type CardPosition } from "../../src/store/timeline.ts";
import { workerCollection } from "../../src/store/workers.ts";
import { pageTurns, TimelineCalls } from "../../src/timeline/calls.ts";
import { untraced } from "../../src/tracing.ts";
import {
  type Answer,
  bearer,
  createTenant,
  insertKey,
  protocols,
  startService,
  type TestService,
  pathOver,
} from "../support/service.ts";
import { type List, type Query, readers, type Read } from "../support/timeline.ts";
import { adminRest, insertToken } from "../support/admin.ts";
import { storedRows } from "../support/rows.ts";

interface Reader {
  readonly organizationId: string;
  readonly appId: string;
  /** With the scope `ingest`. */
  readonly key: string;
  /** With the scope `read`. */
  readonly readKey: string;
}

let service: TestService;
let url: string;

beforeAll(async () => {
  service = await startService();
  url = service.app.url;
});
afterAll(() => service.app.close());

async function createReader(): Promise<Reader> {
  const tenant = await createTenant(service.admin);
  const { key: readKey } = await service.admin.createKey(tenant.appId, undefined, "read");
  return { ...tenant, readKey };
}

async function post(path: "events" | "snapshots", key: string, body: unknown): Promise<any> {
  const response = await fetch(`${url}/api/v1/ingest/${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...bearer(key) },
    body: JSON.stringify(body),
  });
  expect(response.status).toBe(202);
  return response.json();
}

const event = (change: object = {}) => ({
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: "al" },
  ...change,
});
const snapshot = (change: object = {}) => ({
  snapshotType: "tickets_open",
  actor: { externalId: "al" },
  metrics: { open: 7 },
  ...change,
});
const at = (minute: number) => new Date(Date.UTC(2026, 3, 19, 12, minute)).toISOString();

function expectRefused(answer: Answer, code: ErrorCode): void {
  expect(answer.error?.code, answer.error?.message).toBe(code);
  expect(answer.error?.connect ?? answer.status).toBe(errorTable[code][answer.status === 0 ? "connect" : "http"]);
}

/** Every page of a list, one after another. */
async function walk(read: Read, list: List, query: Query, key: string, between?: () => Promise<unknown>) {
  const rows: any[] = [];
  for (let pageToken = ""; ;) {
    const answer = await read(url, list, { ...query, ...(pageToken === "" ? {} : { pageToken }) }, bearer(key));
    expect(answer.error).toBeUndefined();
    rows.push(...answer.body[list]);
    pageToken = answer.body.nextPageToken;
    if (pageToken === "") return rows;
    await between?.();
  }
}

describe.each(Object.entries(readers))("over %s", (name, read) => {
  const list = async (reader: Reader, query: Query = {}) => {
    const answer = await read(url, "events", query, bearer(reader.readKey));
    expect(answer.error).toBeUndefined();
    return answer.body.events as any[];
  };

  test("rows are listed as they were sent, newest first", async () => {
    const reader = await createReader();
    const metadata = JSON.parse(
      `{"a.b":1,"$set":{"$x":[null,true,"é"]},"__proto__":{"constructor":1},"n":1.5,
        "reference":{"$ref":"a.b","$id":7,"$db":"c"}}`,
    );
    const metrics = JSON.parse(
      '{"open":7,"mood":"calm","__proto__":1,"age":{"value":3,"unit":"minutes","label":"Age"}}',
    );
    const events = await post("events", reader.key, {
      events: [event({ timestamp: at(1), duration: 240, metadata }), event({ timestamp: "2026-04-19T12:02:00.250Z" })],
    });
    const shot = await post("snapshots", reader.key, snapshot({ timestamp: at(3), metrics, metadata }));
    const answer = await read(url, "events", {}, bearer(reader.readKey));
    const row = { workerId: shot.worker.id, appId: reader.appId, id: expect.stringMatching(/^evt_/) };
    const resolved = { ...row, kind: "event", type: "ticket.resolved", category: "project_management" };
    const receivedAt = expect.stringMatching(/Z$/);
    expect(answer.body.events).toEqual([
      {
        ...row,
        kind: "snapshot",
        type: "tickets_open",
        requestId: shot.requestId,
        timestamp: "2026-04-19T12:03:00Z",
        receivedAt,
        metrics,
        metadata,
      },
      { ...resolved, requestId: events.requestId, timestamp: "2026-04-19T12:02:00.250Z", receivedAt },
      {
        ...resolved,
        requestId: events.requestId,
        timestamp: "2026-04-19T12:01:00Z",
        receivedAt,
        duration: 240,
        metadata,
      },
    ]);
    // toEqual ignores a member called __proto__.
    expect(JSON.stringify(answer.body.events[0].metadata)).toBe(JSON.stringify(metadata));
    expect(Object.keys(answer.body.events[0].metrics).sort()).toEqual(Object.keys(metrics).sort());
    expect(answer.body.nextPageToken).toBe("");
    expect(answer.headers.get("x-request-id")).toMatch(/^req_/);
    expect(answer.headers.get("x-api-version")).toBe("2026-04-01");
    expect(answer.headers.get("x-ratelimit-limit")).toBe("100000");
  });

  test("each filter keeps its matches, and filters together keep rows that match all", async () => {
    const reader = await createReader();
    await post("events", reader.key, {
      events: [
        event({ timestamp: at(1) }),
        event({ timestamp: at(2), eventType: "ticket.opened" }),
        event({ timestamp: at(3), category: "code", actor: { externalId: "bo" } }),
      ],
    });
    const { worker } = await post("snapshots", reader.key, snapshot({ timestamp: at(4) }));
    const minutes = async (query: Query) =>
      (await list(reader, query)).map(({ timestamp }) => new Date(timestamp).getUTCMinutes());
    expect(await minutes({})).toEqual([4, 3, 2, 1]);
    expect(await minutes({ workerId: worker.id })).toEqual([4, 2, 1]);
    expect(await minutes({ type: "ticket.resolved" })).toEqual([3, 1]);
    expect(await minutes({ type: "tickets_open" })).toEqual([4]);
    expect(await minutes({ category: "code" })).toEqual([3]);
    expect(await minutes({ kind: "snapshot" })).toEqual([4]);
    expect(await minutes({ kind: "event" })).toEqual([3, 2, 1]);
    expect(await minutes({ startTime: at(2) })).toEqual([4, 3, 2]);
    expect(await minutes({ endTime: at(2) })).toEqual([1]);
    expect(await minutes({ startTime: at(2), endTime: at(4) })).toEqual([3, 2]);
    expect(
      await minutes({
        workerId: worker.id,
        type: "ticket.resolved",
        category: "project_management",
        kind: "event",
        startTime: at(1),
        endTime: at(2),
      }),
    ).toEqual([1]);
  });

  test("pages have every row once, in order, while rows are inserted before, after and among them", async () => {
    const reader = await createReader();
    // Equal timestamps, so that only the id orders the rows.
    const sent = Array.from({ length: 9 }, (_, i) => event({ timestamp: at(10 + (i % 3)), metadata: { i } }));
    await post("events", reader.key, { events: sent });
    const before = await list(reader);
    const insert = () =>
      post("events", reader.key, { events: [9, 10, 11, 12, 13].map((minute) => event({ timestamp: at(minute) })) });
    const rows = await walk(read, "events", { pageSize: 2 }, reader.readKey, insert);
    const old = rows.filter(({ metadata }) => metadata !== undefined);
    expect(old).toEqual(before);
    expect(new Set(rows.map(({ id }) => id)).size).toBe(rows.length);
    const order = rows.map(({ timestamp, id }) => `${timestamp} ${id}`);
    expect(order).toEqual([...order].sort().reverse());
  });

  test("cards are listed as they are now, newest first, by their filters", async () => {
    const reader = await createReader();
    for (const [i, name] of ["al", "bo"].entries()) {
      for (const [j, snapshotType] of ["tickets_open", "mood"].entries()) {
        const timestamp = at(10 + 2 * j + i);
        await post("snapshots", reader.key, snapshot({ actor: { externalId: name }, snapshotType, timestamp }));
      }
    }
    // First an older one, which leaves the card; then a newer one.
    await post("snapshots", reader.key, snapshot({ timestamp: at(9), metrics: { open: 6 } }));
    const latest = { timestamp: at(20), metrics: { open: 8 }, metadata: { a: 1 } };
    const { worker } = await post("snapshots", reader.key, snapshot(latest));
    const all = await walk(read, "snapshots", { pageSize: 1 }, reader.readKey);
    const names = (cards: any[]) => cards.map((card) => `${card.worker.displayName} ${card.snapshotType}`);
    expect(names(all)).toEqual(["al tickets_open", "bo mood", "al mood", "bo tickets_open"]);
    const of = async (query: Query) => (await read(url, "snapshots", query, bearer(reader.readKey))).body.snapshots;
    expect(names(await of({ snapshotType: "mood" }))).toEqual(["bo mood", "al mood"]);
    expect(names(await of({ workerId: worker.id }))).toEqual(["al tickets_open", "al mood"]);
    expect(names(await of({ startTime: at(12), endTime: at(20) }))).toEqual(["bo mood", "al mood"]);
    expect(await of({ workerId: worker.id, snapshotType: "tickets_open" })).toEqual([
      {
        snapshotType: "tickets_open",
        worker: { id: worker.id, displayName: "al" },
        appId: reader.appId,
        requestId: expect.stringMatching(/^req_/),
        timestamp: "2026-04-19T12:20:00Z",
        receivedAt: expect.stringMatching(/Z$/),
        metrics: { open: 8 },
        metadata: { a: 1 },
      },
    ]);
  });

  test("pages have every unchanged card once, in order, while others are added and replaced", async () => {
    const reader = await createReader();
    const put = (name: string, minute: number) =>
      post("snapshots", reader.key, snapshot({ actor: { externalId: name }, timestamp: at(minute) }));
    // Equal timestamps, so that only the id orders the cards.
    for (let i = 0; i < 6; i++) await put(`still ${i}`, 10 + (i % 2));
    for (let i = 0; i < 2; i++) await put(`lively ${i}`, 10);
    let minute = 20;
    const rows = await walk(read, "snapshots", { pageSize: 2 }, reader.readKey, async () => {
      await put(`new ${minute}`, minute);
      await put(`lively ${minute % 2}`, minute++);
      await put(`old ${minute}`, 5);
    });
    const names = rows.map(({ worker }) => worker.displayName);
    expect(new Set(names).size).toBe(names.length);
    expect(names.filter((name) => name.startsWith("still"))).toHaveLength(6);
    const order = rows.map(({ timestamp, worker }) => `${timestamp} ${worker.id}`);
    expect(order).toEqual([...order].sort().reverse());
  });

  test("an organisation sees nothing of another, by default, by a guessed worker id or by a page token", async () => {
    const reader = await createReader();
    const other = await createReader();
    await post("events", other.key, { events: Array.from({ length: 3 }, () => event()) });
    const { worker } = await post("snapshots", other.key, snapshot());
    await post("snapshots", other.key, snapshot({ snapshotType: "mood" }));
    for (const what of ["events", "snapshots"] as const) {
      const own = await read(url, what, {}, bearer(reader.readKey));
      expect(own.body).toEqual({ [what]: [], nextPageToken: "" });
      expectRefused(await read(url, what, { workerId: worker.id }, bearer(reader.readKey)), "worker_not_found");
      for (const query of [{}, { workerId: worker.id }]) {
        const page = await read(url, what, { ...query, pageSize: 1 }, bearer(other.readKey));
        expect(page.body[what]).toHaveLength(1);
        const stolen = { ...query, pageSize: 1, pageToken: page.body.nextPageToken };
        expectRefused(await read(url, what, stolen, bearer(reader.readKey)), "invalid_body");
        expect((await read(url, what, stolen, bearer(other.readKey))).body[what]).toHaveLength(1);
      }
    }
  });

  test("a live key sees nothing of the test timeline, and a test key nothing else, not even with another's token", async () => {
    const reader = await createReader();
    const [write, see] = [
      await insertKey(service, reader, { test: true }),
      await insertKey(service, reader, { test: true, scopes: ["read"] }),
    ];
    const sides = [
      { send: reader.key, read: reader.readKey, other: see.key, worker: "", rows: [] as any[] },
      { send: write.key, read: see.key, other: reader.readKey, worker: "", rows: [] as any[] },
    ];
    for (const side of sides) {
      const { requestId } = await post("events", side.send, { events: [event(), event()] });
      side.worker = (await post("snapshots", side.send, snapshot())).worker.id;
      await post("snapshots", side.send, snapshot({ snapshotType: "mood" }));
      side.rows = [requestId, side.worker];
    }
    for (const { read: key, other, worker, rows } of sides) {
      const events = await walk(read, "events", { pageSize: 1, kind: "event" }, key);
      expect(events.map(({ requestId, workerId, appId }) => [requestId, workerId, appId])).toEqual(
        Array(2).fill([...rows, reader.appId]),
      );
      for (const what of ["events", "snapshots"] as const) {
        const page = await read(url, what, { pageSize: 1 }, bearer(key));
        const stolen = { pageSize: 1, pageToken: page.body.nextPageToken };
        expectRefused(await read(url, what, stolen, bearer(other)), "invalid_body");
        expectRefused(await read(url, what, { workerId: worker }, bearer(other)), "worker_not_found");
      }
      const cards = await walk(read, "snapshots", { workerId: worker }, key);
      expect(cards.map(({ snapshotType }) => snapshotType)).toEqual(["mood", "tickets_open"]);
    }
  });

  test("a page token that was changed, or belongs to other filters or the other list, is invalid_body", async () => {
    const reader = await createReader();
    await post("events", reader.key, { events: Array.from({ length: 3 }, () => event()) });
    const pageToken = (await read(url, "events", { pageSize: 1 }, bearer(reader.readKey))).body.nextPageToken;
    const refused = async (what: List, query: Query) =>
      expectRefused(await read(url, what, query, bearer(reader.readKey)), "invalid_body");
    for (const [i, character] of [...pageToken].entries()) {
      if (i % 7 !== 0) continue;
      const changed = pageToken.slice(0, i) + (character === "A" ? "B" : "A") + pageToken.slice(i + 1);
      await refused("events", { pageToken: changed });
    }
    await refused("events", { pageToken: "x" });
    await refused("events", { pageToken: `${pageToken}=` });
    await refused("events", { pageToken, kind: "event" });
    await refused("events", { pageToken, startTime: at(0) });
    await refused("snapshots", { pageToken });
    // The page size may change between pages.
    expect((await list(reader, { pageToken, pageSize: 2 })).length).toBe(2);
  });

  test.each<[string, Query]>([
    ["a page size of 0", { pageSize: 0 }],
    ["a page size above the limit", { pageSize: timelineLimits.rowsMax + 1 }],
    ["an empty worker id", { workerId: "" }],
    ["an invalid type", { type: "x" }],
    ["an unknown category", { category: "DESIGN" }],
    ["an unknown kind", { kind: "card" }],
  ])("%s is invalid_body, and the error names the parameter", async (_what, query) => {
    const reader = await createReader();
    const answer = await read(url, "events", query, bearer(reader.readKey));
    expectRefused(answer, "invalid_body");
    expect(answer.error?.message).toContain(`${pathOver(name, String(Object.keys(query)[0]))}: `);
  });

  test("an unknown worker is worker_not_found, and the answer says so", async () => {
    const reader = await createReader();
    await post("events", reader.key, { events: [event({ actor: { externalId: "crm-user-42" } })] });
    for (const what of ["events", "snapshots"] as const) {
      for (const workerId of ["crm-user-42", "wrk_x", "wrk_01HP3K5V4J3M9NVT8XZKQ9YQ2E"]) {
        const answer = await read(url, what, { workerId }, bearer(reader.readKey));
        expectRefused(answer, "worker_not_found");
        expect(answer.error?.message).toContain(`workerId '${workerId}' is not a worker of this organisation`);
        expect(answer.error?.message.includes("wrk_ and a ULID")).toBe(workerId.length < 20);
      }
    }
  });

  test("an empty range of time is invalid_body, and the answer says so", async () => {
    const reader = await createReader();
    for (const what of ["events", "snapshots"] as const) {
      for (const [startTime, endTime] of [
        [at(2), at(1)],
        [at(1), at(1)],
      ] as const) {
        const answer = await read(url, what, { startTime, endTime }, bearer(reader.readKey));
        expectRefused(answer, "invalid_body");
        expect(answer.error?.message).toContain(pathOver(name, "endTime: must be later than startTime"));
      }
    }
  });

  test("a key for sending cannot read, and the lists have the same checks as every call", async () => {
    const reader = await createReader();
    for (const what of ["events", "snapshots"] as const) {
      expectRefused(await read(url, what, {}, bearer(reader.key)), "forbidden_scope");
      expectRefused(await read(url, what, {}), "missing_authorization");
      expectRefused(await read(url, what, {}, bearer(`wp_live_${"0".repeat(32)}`)), "invalid_key");
    }
    const slow = await createTenant(service.admin, { name: "Slow", keyRequestsPerSecond: 1 });
    const { key } = await service.admin.createKey(slow.appId, undefined, "read");
    const answers = await Promise.all(Array.from({ length: 6 }, () => read(url, "events", {}, bearer(key))));
    const refused = answers.find(({ error }) => error !== undefined) as Answer;
    expectRefused(refused, "rate_limited");
    // 2 if the burst was taken twice, with a pause in between, before the instance reported it.
    expect(refused.headers.get("retry-after")).toMatch(/^[12]$/);
    await service.admin.updateOrganization(reader.organizationId, { api: false });
    await expect
      .poll(async () => (await read(url, "events", {}, bearer(reader.readKey))).error?.code, { timeout: 5_000 })
      .toBe("plan_disabled");
  });
});

test.each(Object.entries(protocols))("over %s a key for reading cannot send, but can ping", async (_name, send) => {
  const reader = await createReader();
  expectRefused(await send(url, "events", { events: [event()] }, bearer(reader.readKey)), "forbidden_scope");
  const refused = await send(url, "snapshots", snapshot(), bearer(reader.readKey));
  expectRefused(refused, "forbidden_scope");
  expect(refused.error?.message).toContain("has the scope 'read'; Snapshots needs a key with the scope 'ingest'");
  expect(refused.headers.get("www-authenticate")).toBeNull();
  expect((await send(url, "ping", {}, bearer(reader.readKey))).body.organizationId).toBe(reader.organizationId);
  const { organizationId } = reader;
  expect(await eventCollection(service.app.db).countDocuments(rowsBetween(organizationId))).toBe(0);
  for (const collection of [cardCollection, workerCollection]) {
    expect(await collection(service.app.db).countDocuments({ organizationId } as Document)).toBe(0);
  }
});

test("a key with both scopes can send and read, on every protocol", async () => {
  const reader = await createReader();
  const { key } = await insertKey(service, reader, { scopes: ["ingest", "read"], scope: "read" });
  await post("events", key, { events: [event()] });
  for (const read of Object.values(readers)) {
    expect((await read(url, "events", {}, bearer(key))).body.events).toHaveLength(1);
  }
});

test("an old key without a scope can send but not read", async () => {
  const reader = await createReader();
  await service.app.db.collection("keys").updateMany({ appId: reader.appId }, { $unset: { scopes: 1 } });
  await announce(service.app.db, [reader.appId]);
  const read = readers.REST as Read;
  await expect
    .poll(async () => (await read(url, "events", {}, bearer(reader.readKey))).error?.code, { timeout: 5_000 })
    .toBe("forbidden_scope");
  await post("events", reader.key, { events: [event()] });
});

test("over REST an unknown parameter, one given twice and an invalid time are invalid_body", async () => {
  const reader = await createReader();
  for (const [query, path] of [
    ["workerid=x", "workerid"],
    ["kind=event&kind=snapshot", "kind"],
    ["startTime=2026-04-19", "startTime"],
    ["startTime=2026-02-30T00:00:00Z", "startTime"],
    ["pageSize=many", "pageSize"],
    ["__proto__=1", "__proto__"],
  ]) {
    const response = await fetch(`${url}/api/v1/timeline/events?${query}`, { headers: bearer(reader.readKey) });
    expect(response.status).toBe(400);
    const { error } = (await response.json()) as any;
    expect(error.code).toBe("invalid_body");
    expect(error.message).toContain(`${path}: `);
  }
});

test("no page is read for a caller that has gone when its turn comes", async () => {
  const turns = new FairTurns(new Activity(), pageTurns);
  // Without a database, any read would fail with another error.
  const services = { db: {}, tokens: {}, erasedNameSecret: Buffer.alloc(32), stage: untraced, turns };
  const calls = new TimelineCalls(services as never);
  const principal = { organizationId: "org_1", caller: { organizationId: "org_1" } };
  const call = { principal, start: {}, wanted: () => false } as never;
  for (const page of [calls.listEvents(call, {}), calls.listSnapshots(call, {})]) {
    await expect(page).rejects.toMatchObject({ code: "internal_error", cause: { message: "the caller has gone" } });
  }
});

test("a page is bounded in bytes, and the pages together have everything", async () => {
  const reader = await createReader();
  const metadata = { text: "x".repeat(16_000) };
  for (let batch = 0; batch < 2; batch++) {
    await post("events", reader.key, { events: Array.from({ length: 60 }, () => event({ metadata })) });
  }
  const first = await fetch(`${url}/api/v1/timeline/events?pageSize=500`, { headers: bearer(reader.readKey) });
  const text = await first.text();
  expect(text.length).toBeLessThan(1.2 * timelineLimits.pageBytesMax);
  expect(JSON.parse(text).nextPageToken).not.toBe("");
  expect(await walk(readers.gRPC as Read, "events", { pageSize: 500 }, reader.readKey)).toHaveLength(120);
});

test("an instance accepts the tokens of another on the same database", async () => {
  const other = await startService({ database: service.app.db.databaseName });
  try {
    const reader = await createReader();
    await post("events", reader.key, { events: [event(), event()] });
    const read = readers.REST as Read;
    const { nextPageToken: pageToken } = (await read(url, "events", { pageSize: 1 }, bearer(reader.readKey))).body;
    expect((await read(other.app.url, "events", { pageToken }, bearer(reader.readKey))).body.events).toHaveLength(1);
  } finally {
    await other.app.close();
  }
});

describe("in the database", () => {
  const ids = createIdSource();
  const [organizationId, neighbourId, appId] = [ids.next("org"), ids.next("org"), ids.next("app")];
  const workers = [ids.next("wrk"), ids.next("wrk")] as const;
  const requestId = ids.next("req");
  const rowCount = 400;
  const bounds = { rowsMax: 10, bytesMax: 1_000_000, scannedRowsMax: 100 };

  beforeAll(async () => {
    const rows = () =>
      Array.from({ length: rowCount }, (_, i) => ({
        index: i,
        workerId: workers[i % 2] as string,
        type: i % 100 === 0 ? "ticket.rare" : "ticket.common",
        ...(i % 40 === 0 ? { metrics: { open: i } } : { category: i % 50 === 1 ? "design" : "other" }),
        // Ten rows share each timestamp.
        timestamp: new Date(Date.UTC(2026, 0, 1, 0, Math.floor(i / 10))),
      }));
    for (const owner of [organizationId, neighbourId]) {
      const request = { organizationId: owner, appId, requestId };
      await eventCollection(service.app.db).insertMany(documentsOf(request, rows()));
    }
    const cards = Array.from({ length: rowCount }, (_, i) => {
      const workerId = `wrk_${String(i % 50).padStart(2, "0")}`;
      const snapshotType = i % 80 === 0 ? "rare" : `type_${i}`;
      // Some cards share each timestamp.
      const timestamp = new Date(Date.UTC(2026, 0, 1, 0, i % 37));
      const common = { appId: "app_1", requestId: "req_1", timestamp, receivedAt: new Date(), metrics: {} };
      return { _id: `${workerId}/app_1/${snapshotType}_${i}`, organizationId, workerId, snapshotType, ...common };
    });
    await cardCollection(service.app.db).insertMany(cards);
  });

  const fromTime = new Date(Date.UTC(2026, 0, 1, 0, 30));
  const options: Readonly<Record<keyof RowFilter | "startTime" | "endTime" | "from", unknown>> = {
    workerId: workers[0],
    type: "ticket.rare",
    category: "design",
    kind: "snapshot",
    startTime: new Date(Date.UTC(2026, 0, 1, 0, 5)),
    endTime: new Date(Date.UTC(2026, 0, 1, 0, 35)),
    from: rowKey(organizationId, fromTime, requestId, 305),
  };
  const names = Object.keys(options) as (keyof typeof options)[];
  const combinations = Array.from({ length: 2 ** names.length }, (_, bits) =>
    Object.fromEntries(names.filter((_name, i) => bits & (1 << i)).map((name) => [name, options[name]])),
  );

  /** The reads that `work` makes, each with the server's explain output. */
  async function explained(collection: string, work: () => Promise<unknown>): Promise<Document[]> {
    const { db } = service.app;
    await db.command({ profile: 2 });
    const since = new Date();
    try {
      await work();
    } finally {
      await db.command({ profile: 0 });
    }
    const profile = await db
      .collection("system.profile")
      .find({ ns: `${db.databaseName}.${collection}`, op: "query", ts: { $gte: since } })
      .toArray();
    return Promise.all(
      profile.map(async ({ command: { lsid, $clusterTime, $db, maxTimeMS, ...command } }) => {
        const { executionStats } = await db.command({ explain: command, verbosity: "executionStats" });
        return executionStats;
      }),
    );
  }

  function stagesOf(stage: Document): Document[] {
    const inputs = [stage.inputStage, ...(stage.inputStages ?? [])].filter((input) => input !== undefined);
    return [stage, ...inputs.flatMap(stagesOf)];
  }

  function expectServed(plans: readonly Document[], keysMax: number): void {
    expect(plans.length).toBeGreaterThan(0);
    for (const { executionStages, totalKeysExamined, totalDocsExamined } of plans) {
      const stages = stagesOf(executionStages).map(({ stage }) => stage);
      expect(stages).toContain(stages.includes("CLUSTERED_IXSCAN") ? "CLUSTERED_IXSCAN" : "IXSCAN");
      expect(stages.join()).not.toMatch(/SORT|COLLSCAN/);
      expect(totalKeysExamined).toBeLessThanOrEqual(keysMax);
      expect(totalDocsExamined).toBeLessThanOrEqual(keysMax);
    }
  }

  test("an index serves every combination of filters: no sort in memory, a bounded scan, and the right rows", async () => {
    const { db } = service.app;
    const everything = (await storedRows(db, rowsBetween(organizationId))).reverse();
    const idOf = eventIds(requestId);
    let page: Awaited<ReturnType<typeof listEvents>>;
    for (const combination of combinations) {
      const { from, startTime, endTime, ...filter } = combination as any;
      const plans = await explained("timeline", async () => {
        page = await listEvents(db, { organizationId, ...(combination as object) }, bounds);
      });
      expectServed(plans, bounds.scannedRowsMax + 3);
      const wanted = everything.filter(
        (row) =>
          Object.entries(filter).every(([name, value]) => (row as any)[name] === value) &&
          (startTime === undefined || row.timestamp >= startTime) &&
          (endTime === undefined || row.timestamp < endTime) &&
          (from === undefined ||
            row.timestamp < fromTime ||
            (row.timestamp.getTime() === fromTime.getTime() && row.id <= idOf(305))),
      );
      // A token cannot name a place beyond the end of the time range, because the range is part of its scope.
      if (from !== undefined && endTime !== undefined && fromTime >= endTime) continue;
      const walked = [...page!.rows];
      while (page!.next !== undefined) {
        page = await listEvents(db, { organizationId, ...(combination as object), from: page!.next }, bounds);
        walked.push(...page.rows);
      }
      expect(walked.map(({ id }) => id)).toEqual(wanted.map(({ id }) => id));
    }
  }, 120_000);

  test("an index serves cards, too", async () => {
    const { db } = service.app;
    const everything = await cardCollection(db).find({ organizationId }).sort({ timestamp: -1, _id: -1 }).toArray();
    const startTime = new Date(Date.UTC(2026, 0, 1, 0, 5));
    const endTime = new Date(Date.UTC(2026, 0, 1, 0, 25));
    for (const filter of [
      {},
      { workerId: "wrk_07" },
      { snapshotType: "rare" },
      { workerId: "wrk_30", snapshotType: "rare" },
    ]) {
      for (const range of [{}, { startTime, endTime }]) {
        const walked: string[] = [];
        for (let from: CardPosition | undefined; ;) {
          let page: Awaited<ReturnType<typeof listCards>>;
          const plans = await explained("snapshots", async () => {
            page = await listCards(db, { organizationId, ...filter, ...range, from }, bounds);
          });
          expectServed(plans, bounds.scannedRowsMax + 2);
          walked.push(...page!.rows.map(({ _id }) => _id));
          from = page!.next;
          if (from === undefined) break;
        }
        const wanted = everything.filter(
          (card) =>
            Object.entries(filter).every(([name, value]) => (card as any)[name] === value) &&
            (range.startTime === undefined || (card.timestamp >= startTime && card.timestamp < endTime)),
        );
        expect(wanted.length).toBeGreaterThan(0);
        expect(walked).toEqual(wanted.map(({ _id }) => _id));
      }
    }
  });

  test("an index serves an operator's list of workers, too", async () => {
    const { admin, app } = service;
    const { id } = await admin.createOrganization({ name: "Many workers" });
    const ids = Array.from({ length: 60 }, (_, i) => `wrk_${String((i * 7) % 60).padStart(2, "0")}-${id}`);
    const documents = ids.map((_id) => ({ _id, organizationId: id, links: [], createdAt: new Date() }));
    await workerCollection(app.db).insertMany(documents);
    const { token } = await insertToken(service, "operator");
    const listed: string[] = [];
    let pageToken = "";
    do {
      let page: any;
      const plans = await explained("workers", async () => {
        const query = new URLSearchParams({ pageSize: "20", ...(pageToken && { pageToken }) });
        page = (await adminRest(app.adminUrl, token, "GET", `/organizations/${id}/workers?${query}`)).body;
      });
      expectServed(plans, 21);
      listed.push(...page.workers.map((worker: { id: string }) => worker.id));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(listed).toEqual(ids.toSorted().reverse());
  });
});
