import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { Code } from "@connectrpc/connect";
import { type Db, MongoClient, MongoServerError } from "mongodb";
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { Activity, FairTurns } from "../../src/access/fair-turns.ts";
import { timelineLimits } from "../../src/limits.ts";
import { catchUpBytes, EventFeed, type FeedReader } from "../../src/store/event-feed.ts";
import { type FeedPosition, PositionLost } from "../../src/store/feed-position.ts";
import { createIdSource } from "../../src/ids.ts";
import { keyCollection } from "../../src/store/keys.ts";
import { announce } from "../../src/store/revisions.ts";
import {
  documentsOf,
  type EventDocument,
  type EventRow,
  eventCollection,
  rowsBetween,
} from "../../src/store/events.ts";
import { workerCollection } from "../../src/store/workers.ts";
import { pageTurns } from "../../src/timeline/calls.ts";
import { catchUpTurns } from "../../src/timeline/watch.ts";
import { bearer, createTenant, insertKey, startService, type TestService } from "../support/service.ts";
import { readers, type Read, type Told, type Watch, WatchError, watchers } from "../support/timeline.ts";
import { storedRows } from "../support/rows.ts";

// Some tests write and read megabytes at the same time.
vi.setConfig({ testTimeout: 120_000 });

const env = { DRAIN_SECONDS: "1" };
let service: TestService;
let neighbour: TestService;
let url: string;

beforeAll(async () => {
  service = await startService({ env });
  neighbour = await startService({ database: service.app.db.databaseName, env });
  url = service.app.url;
});
afterAll(() => Promise.all([service.app.close(), neighbour.app.close()]));

async function createReader() {
  const tenant = await createTenant(service.admin);
  const { key: readKey, id: readKeyId } = await service.admin.createKey(tenant.appId, undefined, "read");
  return { ...tenant, readKey, readKeyId };
}

async function post(key: string, base: string, ...events: object[]): Promise<void> {
  const complete = { eventType: "ticket.resolved", category: "project_management", actor: { externalId: "al" } };
  const response = await fetch(`${base}/api/v1/ingest/events`, {
    method: "POST",
    headers: { "content-type": "application/json", ...bearer(key) },
    body: JSON.stringify({ events: events.map((event) => ({ ...complete, ...event })) }),
  });
  expect(response.status).toBe(202);
}

/** Reads until this many rows have come; returns them with the last token. */
async function take(stream: AsyncGenerator<Told, void>, rows: number) {
  const events: any[] = [];
  let resumeToken = "";
  while (events.length < rows) {
    const { value, done } = await stream.next();
    if (done === true) throw new Error(`the stream ended after ${events.length} rows`);
    events.push(...value.events);
    ({ resumeToken } = value);
  }
  return { events, resumeToken };
}

/** Begins a stream that gets everything stored from now on. */
async function begin(watch: Watch, key: string, query = {}, signal?: AbortSignal) {
  const stream = watch(url, query, bearer(key), signal);
  const { value } = await stream.next();
  return { stream, first: value as Told };
}

const numbers = (events: readonly any[]) => events.map(({ metadata }) => metadata.n);
const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => (error instanceof WatchError ? error.code : String(error)),
  );

describe.concurrent.each(Object.entries(watchers))("over %s", (_name, watch) => {
  test("rows stored after the first message arrive from any instance, once and as listed", async () => {
    const reader = await createReader();
    await post(reader.key, url, { metadata: { n: 0 } });
    const { stream, first } = await begin(watch, reader.readKey);
    expect(first.events).toEqual([]);
    await post(reader.key, url, { metadata: { n: 1, reference: { $ref: "a.b", $id: 7 } }, duration: 3 });
    await post(reader.key, neighbour.app.url, { metadata: { n: 2 } }, { metadata: { n: 3 } });
    const { events } = await take(stream, 3);
    await stream.return();
    const listed = await (readers.REST as Read)(url, "events", { pageSize: 3 }, bearer(reader.readKey));
    expect(numbers(events)).toEqual([1, 2, 3]);
    expect(events).toEqual(listed.body.events.toSorted((a: any, b: any) => a.metadata.n - b.metadata.n));
  });

  test("a resume token continues right after the rows read, on any instance and with any filter", async () => {
    const reader = await createReader();
    const { stream } = await begin(watch, reader.readKey);
    await post(reader.key, url, { metadata: { n: 1 } }, { metadata: { n: 2 } });
    const { resumeToken } = await take(stream, 2);
    await stream.return();
    await post(reader.key, url, { metadata: { n: 3 } }, { eventType: "ticket.x1", metadata: { n: 4 } });
    const resumed = watch(neighbour.app.url, { resumeToken }, bearer(reader.readKey));
    await post(reader.key, url, { metadata: { n: 5 } });
    expect(numbers((await take(resumed, 3)).events)).toEqual([3, 4, 5]);
    await resumed.return();
    const filtered = watch(url, { resumeToken, type: "ticket.x1" }, bearer(reader.readKey));
    expect(numbers((await take(filtered, 1)).events)).toEqual([4]);
    await filtered.return();
  });

  test("a stream that resumes has no row of a worker who was erased since", async () => {
    const reader = await createReader();
    const { stream } = await begin(watch, reader.readKey);
    await post(reader.key, url, { metadata: { n: 1 } });
    const { resumeToken } = await take(stream, 1);
    await stream.return();
    const leaver = { externalId: "leaver" };
    await post(reader.key, url, { actor: leaver, metadata: { n: 2 } }, { metadata: { n: 3 } });
    const { organizationId } = reader;
    const named = { organizationId, "links.externalId": leaver.externalId };
    const worker = await workerCollection(service.app.db).findOne(named);
    await service.changes.erase(worker?._id as string, { by: "operator" });
    const resumed = watch(url, { resumeToken }, bearer(reader.readKey));
    expect(numbers((await take(resumed, 1)).events)).toEqual([3]);
    await resumed.return();
  });

  test("filters apply, and no row of another organisation arrives, by a worker id or by a resume token", async () => {
    const reader = await createReader();
    const other = await createReader();
    await post(other.key, url, {});
    const [row] = await storedRows(service.app.db, rowsBetween(other.organizationId));
    const all = await begin(watch, reader.readKey);
    const guessed = watch(url, { workerId: row?.workerId as string }, bearer(reader.readKey));
    expect(await codeOf(guessed.next())).toBe("worker_not_found");
    const some = await begin(watch, reader.readKey, { category: "design", kind: "event", type: "ticket.sold" });
    const foreign = await begin(watch, other.readKey);
    await post(other.key, url, { metadata: { n: 0 } });
    await post(reader.key, url, { metadata: { n: 1 } }, { eventType: "ticket.sold", metadata: { n: 2 } });
    await post(reader.key, url, { eventType: "ticket.sold", category: "design", metadata: { n: 3 } });
    expect(numbers((await take(all.stream, 3)).events)).toEqual([1, 2, 3]);
    expect(numbers((await take(some.stream, 1)).events)).toEqual([3]);
    expect(numbers((await take(foreign.stream, 1)).events)).toEqual([0]);
    for (const { stream } of [all, some, foreign]) await stream.return();
    const resumeToken = foreign.first.resumeToken;
    expect(await codeOf(watch(url, { resumeToken }, bearer(reader.readKey)).next())).toBe("invalid_body");
  });

  test("a stream of a live key has no test row, and that of a test key no other", async () => {
    const reader = await createReader();
    const { key: testKey } = await insertKey(service, reader, { test: true, scopes: ["ingest", "read"] });
    const live = await begin(watch, reader.readKey);
    const test = await begin(watch, testKey);
    await post(testKey, url, { metadata: { n: 1 } });
    await post(reader.key, url, { metadata: { n: 2 } });
    await post(testKey, neighbour.app.url, { metadata: { n: 3 } });
    await post(reader.key, url, { metadata: { n: 4 } });
    const { events, resumeToken } = await take(test.stream, 2);
    expect(numbers(events)).toEqual([1, 3]);
    expect(numbers((await take(live.stream, 2)).events)).toEqual([2, 4]);
    for (const { stream } of [live, test]) await stream.return();
    expect(await codeOf(watch(url, { resumeToken }, bearer(reader.readKey)).next())).toBe("invalid_body");
    const resumed = watch(url, { resumeToken: test.first.resumeToken }, bearer(testKey));
    expect(numbers((await take(resumed, 2)).events)).toEqual([1, 3]);
    await resumed.return();
  });

  test("a stream ends with the error when its key is revoked", async () => {
    const reader = await createReader();
    const { stream } = await begin(watch, reader.readKey);
    await service.admin.revokeKey(reader.readKeyId);
    expect(await codeOf(take(stream, 1))).toBe("key_revoked");
  });

  test("a stream ends with the error when its key's CIDR list loses the caller's address", async () => {
    const reader = await createReader();
    const { stream } = await begin(watch, reader.readKey);
    await keyCollection(service.app.db).updateOne({ _id: reader.readKeyId }, { $set: { cidrs: ["10.0.0.0/8"] } });
    await announce(service.app.db, [reader.readKeyId]);
    expect(await codeOf(take(stream, 1))).toBe("forbidden_scope");
  });

  test("a caller without the scope, or with an invalid query, is refused before anything is sent", async () => {
    const reader = await createReader();
    const first = (query: Record<string, string>, headers: Record<string, string>) =>
      codeOf(watch(url, query, headers).next());
    expect(await first({}, bearer(reader.key))).toBe("forbidden_scope");
    expect(await first({}, {})).toBe("missing_authorization");
    expect(await first({ resumeToken: "x" }, bearer(reader.readKey))).toBe("invalid_body");
    expect(await first({ type: "x" }, bearer(reader.readKey))).toBe("invalid_body");
    expect(await first({ workerId: "crm-user-42" }, bearer(reader.readKey))).toBe("worker_not_found");
  });
});

const lines = watchers["REST lines"] as Watch;

test.concurrent("a quiet stream sends heartbeats, and its token moves on", async () => {
  const reader = await createReader();
  const { stream, first } = await begin(lines, reader.readKey);
  await post((await createReader()).key, url, {});
  const { value } = await stream.next();
  expect(value?.events).toEqual([]);
  expect(value?.resumeToken).not.toBe(first.resumeToken);
  await stream.return();
});

test.concurrent("a stream ends at its deadline", async () => {
  const { createClient, ConnectError } = await import("@connectrpc/connect");
  const { createGrpcTransport } = await import("@connectrpc/connect-node");
  const { Timeline } = await import("../../src/gen/ingest/v1/timeline_pb.js");
  const reader = await createReader();
  const client = createClient(Timeline, createGrpcTransport({ baseUrl: url }));
  const run = async () => {
    for await (const _ of client.watchEvents({}, { headers: bearer(reader.readKey), timeoutMs: 300 })) void _;
  };
  const error = await run().then(
    () => undefined,
    (thrown: unknown) => ConnectError.from(thrown),
  );
  expect(error?.code).toBe(Code.DeadlineExceeded);
});

test.concurrent("a stopping server ends its streams, and another one continues them", async () => {
  const stopping = await startService({ database: service.app.db.databaseName });
  const reader = await createReader();
  const streams = Object.values(watchers).map((watch) => watch(stopping.app.url, {}, bearer(reader.readKey)));
  for (const stream of streams) await stream.next();
  const [closed, ...lasts] = await Promise.all([
    stopping.app.close(),
    ...streams.map(async (stream) => {
      let last: Told | undefined;
      for await (const message of stream) last = message;
      return last as Told;
    }),
  ]);
  expect(closed).toBeUndefined();
  await post(reader.key, url, { metadata: { n: 1 } });
  for (const { endReason, resumeToken } of lasts) {
    expect(endReason).toBe("shutdown");
    const resumed = lines(url, { resumeToken }, bearer(reader.readKey));
    expect(numbers((await take(resumed, 1)).events)).toEqual([1]);
    await resumed.return();
  }
});

test.concurrent("an organisation has a bounded number of streams, and one that ends makes room", async () => {
  const reader = await createReader();
  const abort = new AbortController();
  // Test keys share the organisation's places.
  const { key: testKey } = await insertKey(service, reader, { test: true, scopes: ["read"] });
  const keys = [reader.readKey, testKey];
  const opened = Array.from({ length: timelineLimits.organizationWatchersMax }, (_, i) =>
    begin(lines, keys[i % 2] as string, {}, abort.signal),
  );
  await Promise.all(opened);
  for (const key of keys) expect(await codeOf(lines(url, {}, bearer(key)).next())).toBe("rate_limited");
  abort.abort();
  await vi.waitFor(async () => expect(await codeOf(lines(url, {}, bearer(reader.readKey)).next())).toBeUndefined(), {
    timeout: 20_000,
  });
});

test.concurrent("HEAD begins no stream, and an EventSource continues from its last id", async () => {
  const reader = await createReader();
  const watchUrl = `${url}/api/v1/timeline/events:watch`;
  for (let i = 0; i <= timelineLimits.organizationWatchersMax; i++) {
    const head = await fetch(watchUrl, { method: "HEAD", headers: bearer(reader.readKey) });
    expect(head.status).toBe(200);
  }
  const { stream, first } = await begin(lines, reader.readKey);
  await stream.return();
  await post(reader.key, url, { metadata: { n: 1 } });
  const headers = { ...bearer(reader.readKey), "last-event-id": first.resumeToken };
  const events = (watchers["REST server-sent events"] as Watch)(url, {}, headers);
  const seen = await take(events, 1);
  expect(numbers(seen.events)).toEqual([1]);
  await events.return();
  // EventSource reconnects to its first address, so the id in its header is newer than the one there.
  await post(reader.key, url, { metadata: { n: 2 } });
  const again = { ...bearer(reader.readKey), "last-event-id": seen.resumeToken };
  const resumed = (watchers["REST server-sent events"] as Watch)(url, { resumeToken: first.resumeToken }, again);
  expect(numbers((await take(resumed, 1)).events)).toEqual([2]);
  await resumed.return();
});

test.concurrent("no proxy holds a stream back until its buffer is full", async () => {
  const reader = await createReader();
  const abort = new AbortController();
  const rpc = `${url}/ingest.v1.Timeline/WatchEvents`;
  const health = `${url}/grpc.health.v1.Health/Watch`;
  const message = Buffer.from([0, 0, 0, 0, 2, ...Buffer.from("{}")]);
  const post = (contentType: string, body: Buffer) => ({
    method: "POST",
    headers: { "content-type": contentType },
    body,
  });
  for (const [address, init] of [
    [`${url}/api/v1/timeline/events:watch`, { headers: { accept: "text/event-stream" } }],
    [`${url}/api/v1/timeline/events:watch`, {}],
    [rpc, post("application/connect+json", message)],
    [rpc, post("application/grpc-web+proto", Buffer.alloc(5))],
    [health, post("application/connect+json", message)],
  ] as const) {
    const headers = { ...(init as { headers?: object }).headers, ...bearer(reader.readKey) };
    const response = await fetch(address, { ...init, headers, signal: abort.signal } as RequestInit);
    expect(response.status).toBe(200);
    expect(response.headers.get("x-accel-buffering")).toBe("no");
    expect(response.headers.get("cache-control")).toBe("no-store");
  }
  abort.abort();
});

const ids = createIdSource();
const [appId, workerId] = [ids.next("app"), ids.next("wrk")];

const newRow = (organizationId: string, n: number, text = ""): EventDocument => {
  const row = { index: 0, workerId, type: "ticket.resolved", category: "project_management" };
  const owner = { organizationId, appId, requestId: ids.next("req") };
  return documentsOf(owner, [{ ...row, timestamp: new Date(), metadata: { n, text } }])[0] as EventDocument;
};

/** The id of an organisation, the same for the same name. */
const organizationIds = new Map<string, string>();
const organization = (name: string): string => {
  const id = organizationIds.get(name) ?? ids.next("org");
  organizationIds.set(name, id);
  return id;
};

test.concurrent("a caller that reads too slowly learns so, and loses nothing when it comes back", async () => {
  const reader = await createReader();
  // Rows of a worker that is not there count as those of an erased one.
  const worker = { _id: workerId, organizationId: reader.organizationId, links: [], createdAt: new Date() };
  await workerCollection(service.app.db).insertOne(worker);
  let { stream } = await begin(lines, reader.readKey);
  const text = "x".repeat(16_000);
  const read: number[] = [];
  let sent = 0;
  let told = 0;
  // Sockets hold some megabytes, too, and the server waits for a reader that catches up. So write until the reader is
  // told.
  while (told === 0) {
    const rows = Array.from({ length: 1_000 }, () => newRow(reader.organizationId, sent++, text));
    await eventCollection(service.app.db).insertMany(rows);
    while (read.length < sent) {
      const { value } = await stream.next();
      const { events, endReason, resumeToken } = value as Told;
      read.push(...numbers(events));
      if (endReason === undefined) continue;
      expect(endReason).toBe("slow_reader");
      expect((await stream.next()).done).toBe(true);
      told++;
      stream = lines(url, { resumeToken }, bearer(reader.readKey));
    }
  }
  await stream.return();
  expect(read).toEqual(Array.from({ length: sent }, (_, n) => n));
});

describe("the feed behind the streams", () => {
  const bounds = { rowsMax: 1_000, bytesMax: 1_000_000 };
  const name = `test-${randomBytes(6).toString("hex")}`;
  let client: MongoClient;
  let feed: EventFeed;
  const errors: unknown[] = [];
  const turns = () => {
    const activity = new Activity();
    return { holding: new FairTurns(activity, catchUpTurns), reading: new FairTurns(activity, pageTurns) };
  };
  const onError = (error: unknown) => errors.push(error);

  beforeAll(() => {
    client = new MongoClient(inject("mongodbUri"), { ignoreUndefined: true, monitorCommands: true });
    feed = new EventFeed(client.db(name), bounds, turns(), onError);
  });
  afterAll(async () => {
    await feed.stop();
    await client.db(name).dropDatabase();
    await client.close();
    expect(errors).toEqual([]);
  });

  test("readers from now on share one change stream from the start, and without readers there is none", async () => {
    const openStreams = new Set<string>();
    let streamsMax = 0;
    const note = ({ reply, commandName }: { reply: any; commandName: string }) => {
      if (commandName === "aggregate") openStreams.add(String(reply.cursor.id));
      for (const id of reply.cursorsKilled ?? []) openStreams.delete(String(id));
      streamsMax = Math.max(streamsMax, openStreams.size);
    };
    client.on("commandSucceeded", note);
    onTestFinished(() => void client.off("commandSucceeded", note));
    const opened: FeedReader[] = [];
    for (const name of ["1", "1", "2", "3", "3"]) {
      opened.push(await feed.open(organization(name), {}));
    }
    await vi.waitFor(() => expect(feed.counts).toMatchObject({ readers: 5, attached: 5 }), { timeout: 20_000 });
    opened.push(...(await Promise.all(["3", "1"].map((name) => feed.open(organization(name), {})))));
    await vi.waitFor(() => expect(feed.counts).toMatchObject({ readers: 7, attached: 7 }), { timeout: 20_000 });
    await vi.waitFor(() => expect(openStreams.size).toBe(1), { timeout: 20_000 });
    for (const reader of opened) reader.close();
    await vi.waitFor(() => expect(openStreams.size).toBe(0), { timeout: 20_000 });
    expect(feed.counts).toMatchObject({ readers: 0, attached: 0, handovers: 0 });
    expect(streamsMax).toBe(1);
  });

  test("a reader from now on gets every later row once and in order, and no earlier one", async () => {
    const collection = eventCollection(client.db(name));
    const insert = (organizationId: string, first: number) =>
      collection.insertMany(Array.from({ length: 5 }, (_, i) => newRow(organizationId, first + i)));
    const readOf = async (reader: FeedReader, count: number) => {
      const read: number[] = [];
      for (let waits = 0; read.length < count && waits < 200; waits++) {
        read.push(...numbers((await reader.next(20, 1_000_000, 200)).rows));
      }
      return read;
    };
    const finished = new AbortController();
    onTestFinished(() => finished.abort());
    const busy = ["now a", "now b"].map(organization).map(async (organizationId) => {
      /** Rows that the writer has sent, and those that the database has confirmed. */
      const rows = { begun: 0, stored: 0 };
      const written = new AbortController();
      const writing = async () => {
        for (; !finished.signal.aborted && !written.signal.aborted; rows.stored += 5) {
          rows.begun += 5;
          await insert(organizationId, rows.begun - 5);
        }
      };
      const reading = Array.from({ length: 15 }, async (_, i) => {
        await vi.waitFor(() => expect(rows.stored).toBeGreaterThanOrEqual(i * 20), { timeout: 60_000, interval: 1 });
        const storedBefore = rows.stored;
        const reader = await feed.open(organizationId, {});
        const begunBefore = rows.begun;
        const read = await readOf(reader, 100);
        reader.close();
        const [first = -1] = read;
        expect(first).toBeGreaterThanOrEqual(storedBefore);
        expect(first).toBeLessThanOrEqual(begunBefore);
        expect(read).toEqual(read.map((_row, n) => first + n));
      });
      await Promise.all([writing(), Promise.all(reading).finally(() => written.abort())]);
    });
    await Promise.all(busy);
    // The shared stream has nothing to read. It serves an organisation from its first reader on.
    const quiet = await feed.open(organization("now quiet"), {});
    for (const organizationId of ["now c", "now d"].map(organization)) {
      const reader = await feed.open(organizationId, {});
      await insert(organizationId, 0);
      expect(await readOf(reader, 5)).toEqual([0, 1, 2, 3, 4]);
      reader.close();
    }
    quiet.close();
  });

  test("old rows wait for their reader, however large they are", async () => {
    const organizationId = organization("past");
    // Room for one row, but not for two.
    const narrow = new EventFeed(client.db(name), { ...bounds, bytesMax: 20_000 }, turns(), onError);
    onTestFinished(() => narrow.stop());
    const first = await narrow.open(organizationId, {});
    const from = first.seen;
    first.close();
    const rows = Array.from({ length: 100 }, (_, n) => newRow(organizationId, n, "x".repeat(12_000)));
    await eventCollection(client.db(name)).insertMany(rows);
    const reader = await narrow.open(organizationId, {}, from);
    const read: EventRow[] = [];
    while (read.length < rows.length) {
      // Like a reader that writes what it has taken: the next rows are there before it comes back.
      await delay(1);
      const batch = await reader.next(rows.length, bounds.bytesMax, 1_000);
      expect(batch.overflowed).toBe(false);
      read.push(...batch.rows);
    }
    expect(numbers(read)).toEqual(rows.map((_, n) => n));
  });

  test.each([
    [20, 1, 8],
    [100, 5, 32],
  ])(
    "of %d stalled readers of %d organisations, only those with one of %d turns hold rows, and active readers get every row",
    async (count, organizations, turnsMax) => {
      const rowBytes = 16_000;
      const stalled = Array.from({ length: organizations }, (_, i) => organization(`stalled ${count} ${i}`));
      const reading = organization(`reading ${count}`);
      const shared = turns();
      const many = new EventFeed(client.db(name), bounds, shared, onError);
      onTestFinished(() => many.stop());
      const from = (await many.open(reading, {})).seen;
      await many.stop();
      const rows = (organizationId: string) =>
        Array.from({ length: 60 }, (_, n) => newRow(organizationId, n, "x".repeat(rowBytes)));
      await eventCollection(client.db(name)).insertMany([...stalled, reading].flatMap(rows));

      let fetched = 0;
      const note = ({ reply }: { reply: any }) =>
        (fetched += reply?.cursor?.nextBatch?.length ?? reply?.cursor?.firstBatch?.length ?? 0);
      client.on("commandSucceeded", note);
      onTestFinished(() => void client.off("commandSucceeded", note));
      const goOn = Promise.withResolvers<void>();
      const readAll = async (organizationId: string, begin: Promise<void>) => {
        const reader = await many.open(organizationId, {}, from);
        await begin;
        const read: EventRow[] = [];
        while (read.length < 60) read.push(...(await reader.next(500, bounds.bytesMax, 1_000)).rows);
        reader.close();
        return numbers(read);
      };
      const all = Array.from({ length: count }, (_, i) => readAll(stalled[i % organizations] as string, goOn.promise));
      await vi.waitFor(() => expect(shared.holding.counts.waiting).toBe(count - turnsMax), { timeout: 30_000 });
      // Every turn reads until it holds enough.
      await vi.waitFor(() => expect(fetched).toBeGreaterThanOrEqual((turnsMax * catchUpBytes) / (rowBytes + 1_000)), {
        timeout: 30_000,
      });
      expect(shared.holding.counts.cost).toBe(turnsMax * catchUpBytes);
      const expected = Array.from({ length: 60 }, (_, n) => n);
      const read = readAll(reading, Promise.resolve());
      if (turnsMax < 32) expect(await read).toEqual(expected);
      expect(fetched * rowBytes).toBeLessThanOrEqual(turnsMax * (catchUpBytes + 17 * rowBytes) + 60 * rowBytes);
      goOn.resolve();
      for (const each of await Promise.all([...all, read])) expect(each).toEqual(expected);
      await many.stop();
      expect(shared.holding.counts).toEqual({ cost: 0, waiting: 0 });
    },
  );

  test("a place that the database no longer remembers is reported as such", async () => {
    // A test cannot wait until the oplog has rolled over, so it uses the server's error for it.
    const lost = new MongoServerError({ message: "the resume point may no longer be in the oplog", code: 286 });
    const stream = { tryNext: () => Promise.reject(lost), close: () => Promise.resolve() };
    const db = { collection: () => ({ watch: () => stream, collectionName: "timeline" }) };
    const forgetful = new EventFeed(db as unknown as Db, bounds, turns(), () => {});
    await expect(forgetful.open(organization("1"), {}, { data: "82" })).rejects.toThrow(PositionLost);
    expect(forgetful.counts.readers).toBe(0);
    await forgetful.stop();
  });

  test("a feed that stops while its first reader opens ends", async () => {
    const brief = new EventFeed(client.db(name), bounds, turns(), onError);
    const earlier = await feed.open(organization("brief"), {});
    const opening = brief.open(organization("brief"), {}, earlier.seen);
    await brief.stop();
    earlier.close();
    expect((await opening).closed).toBe(true);
  });

  test("a caller that leaves while its reader waits for a turn keeps no place", async () => {
    const never = { enter: () => ({ leave: () => {} }) };
    const full = new EventFeed(client.db(name), bounds, { holding: never, reading: never }, onError);
    const earlier = await feed.open(organization("waiting"), {});
    const gone = new AbortController();
    const opening = full.open(organization("waiting"), {}, earlier.seen, gone.signal);
    expect(full.counts.readers).toBe(1);
    gone.abort();
    expect((await opening).closed).toBe(true);
    const late = await full.open(organization("waiting"), {}, undefined, gone.signal);
    expect(late.closed).toBe(true);
    expect(full.counts.readers).toBe(0);
    earlier.close();
    await full.stop();
  });

  test("readers of another organisation that come and go do not hold a stream up", async () => {
    const [steady, fickle] = ["steady", "fickle"].map(organization) as [string, string];
    const rows = Array.from({ length: 900 }, (_, n) => newRow(steady, n));
    const reader = await feed.open(steady, {});
    await vi.waitFor(() => expect(feed.counts.attached).toBe(1), { timeout: 20_000 });
    let streams = 0;
    const note = ({ commandName }: { commandName: string }) => void (commandName === "aggregate" && streams++);
    client.on("commandStarted", note);
    onTestFinished(() => void client.off("commandStarted", note));
    await eventCollection(client.db(name)).insertMany(rows);
    const read: number[] = [];
    let isDone = false;
    const coming = (async () => {
      while (!isDone) (await feed.open(fickle, {})).close();
    })();
    while (read.length < rows.length) read.push(...numbers((await reader.next(500, 1_000_000, 200)).rows));
    isDone = true;
    await coming;
    reader.close();
    expect(read).toEqual(rows.map((_row, n) => n));
    // Each stream that was opened again has brought many rows.
    expect(streams).toBeLessThan(rows.length / 5);
  });

  test("readers that come and go under heavy writes get every row once, in one order", async () => {
    const collection = eventCollection(client.db(name));
    const organizations = ["a", "b", "c"].map(organization);
    const from = new Map<string, FeedPosition>();
    for (const organizationId of organizations) {
      const reader = await feed.open(organizationId, {});
      from.set(organizationId, reader.seen);
      reader.close();
    }
    const last = 1_000_000;
    const { handovers } = feed.counts;
    const reading = organizations.flatMap((organizationId) =>
      [0, 1].map(async () => {
        const seen: number[] = [];
        let position = from.get(organizationId);
        while (seen.at(-1) !== last) {
          const reader = await feed.open(organizationId, {}, position);
          // Some leave while they catch up, some after they share the stream.
          for (let batches = Math.floor(Math.random() * 100); batches >= 0; batches--) {
            const batch = await reader.next(1 + Math.floor(Math.random() * 20), 1_000_000, 20);
            seen.push(...numbers(batch.rows));
            position = batch.position;
            if (batch.overflowed) break;
          }
          reader.close();
        }
        return seen;
      }),
    );
    const written = new Map<string, number>();
    const writing = organizations.map(async (organizationId) => {
      let n = 0;
      while (feed.counts.handovers < handovers + 12) {
        await collection.insertMany(Array.from({ length: 5 }, () => newRow(organizationId, n++)));
      }
      await collection.insertOne(newRow(organizationId, last));
      written.set(organizationId, n + 1);
    });
    await Promise.all(writing);
    const read = await Promise.all(reading);
    for (const [i, seen] of read.entries()) {
      const rows = written.get(organizations[Math.floor(i / 2)] as string) as number;
      expect(seen).toEqual([...Array.from({ length: rows - 1 }, (_, n) => n), last]);
    }
  });
});
