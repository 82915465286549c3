import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { promisify } from "node:util";
import { MongoNetworkError, type Db } from "mongodb";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { Fault } from "../../src/errors.ts";
import { type RequestEnd, type RequestStart, unknownEnd } from "../../src/exchange.ts";
import { createIdSource } from "../../src/ids.ts";
import { recordLimits, RequestRecorder } from "../../src/observe/request-recorder.ts";
import { requestCollection, type RequestDocument } from "../../src/store/requests.ts";
import { isoTime } from "../../src/time.ts";
import { scrape, sumOf } from "../support/prometheus.ts";
import { event, snapshot } from "../support/requests.ts";
import {
  bearer,
  createTenant,
  insertKey,
  protocols,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";
import { insertToken, showRequest } from "../support/admin.ts";
import { storedRowsOf } from "../support/rows.ts";

let service: TestService;
let tenant: Tenant;
let url: string;
let db: Db;
beforeAll(async () => {
  service = await startService();
  ({ url, db } = service.app);
  tenant = await createTenant(service.admin);
});
afterAll(() => service.app.close());

const { REST: send } = protocols as { REST: (typeof protocols)[string] };
const show = (id: string, aheadMs?: number) => showRequest(db, id, aheadMs);

/** Waits for the record, which comes a moment after the answer. */
async function shown(id: string, isThere: (request: Record<string, any>) => boolean = () => true) {
  await expect.poll(() => show(id).then(isThere, () => false), { timeout: 10_000 }).toBe(true);
  return show(id);
}

describe.each(Object.entries(protocols))("over %s", (name, send) => {
  const protocol = (name.split(" ")[0] as string).toLowerCase();

  test("a request is found by its id: caller, protocol, refusals with reasons, stored rows, replays", async () => {
    const events = [event(), event({ eventType: "deploy.shipped" }), event(), event({ actor: {} })];
    const headers = { ...bearer(tenant.key), "idempotency-key": `show-${name}` };
    const { body } = await send(url, "events", { events }, headers);
    await send(url, "events", { events }, headers);
    const request = await shown(body.requestId, ({ replays }) => replays.length === 1);
    expect(request).toMatchObject({
      requestId: body.requestId,
      outcome: "partly_accepted",
      rpc: "Events",
      protocol,
      status: name === "REST" ? 207 : 200,
      idempotencyKey: "taken",
      organizationId: tenant.organizationId,
      appId: tenant.appId,
      keyId: tenant.keyId,
      keyHint: `${tenant.key.slice(0, 12)}…`,
      accepted: 2,
      rejected: 2,
      rejections: body.results.rejected,
    });
    expect(Math.abs(Date.parse(request.receivedAt) - Date.now())).toBeLessThan(60_000);
    const rows = await storedRowsOf(db, body.requestId);
    expect(rows).toHaveLength(2);
    expect(request.eventIds).toEqual(rows.map(({ id }) => id));
    expect(request.replays[0]).toMatchObject({ protocol, status: request.status, keyHint: request.keyHint });
  });

  test("a fully accepted request is found, and so is a snapshot", async () => {
    const { body } = await send(url, "events", { events: [event(), event(), event()] }, bearer(tenant.key));
    const answer = await send(url, "snapshots", snapshot(), bearer(tenant.key));
    expect(await shown(body.requestId)).toMatchObject({ outcome: "accepted", rpc: "Events", accepted: 3, rejected: 0 });
    expect((await show(body.requestId)).eventIds).toHaveLength(3);
    const request = await shown(answer.body.requestId);
    expect(request).toMatchObject({ rpc: "Snapshots", outcome: "accepted", accepted: 1, appId: tenant.appId });
    expect(request.eventIds).toHaveLength(1);
  });

  test("a request of a test key is found with its organisation and rows, and says so", async () => {
    const { key } = await insertKey(service, tenant, { test: true });
    const headers = { ...bearer(key), "idempotency-key": `test-${name}` };
    const whole = await send(
      url,
      "events",
      { events: [event({ timestamp: "2026-04-19T12:05:00Z" }), event()] },
      headers,
    );
    const other = await send(url, "snapshots", snapshot(), bearer(key));
    const some = await send(url, "events", { events: [event(), event({ actor: {} })] }, bearer(key));
    const owned = { test: true, organizationId: tenant.organizationId, appId: tenant.appId };
    expect(await shown(whole.body.requestId)).toMatchObject({ ...owned, outcome: "accepted", accepted: 2 });
    expect(await shown(other.body.requestId)).toMatchObject({
      ...owned,
      rpc: "Snapshots",
      eventIds: [expect.any(String)],
    });
    const request = await shown(some.body.requestId, ({ outcome }) => outcome === "partly_accepted");
    expect(request).toMatchObject({ ...owned, keyHint: `${key.slice(0, 12)}…`, eventIds: [expect.any(String)] });
  });

  test("a refusal is found with its code and reason", async () => {
    const uniform = await send(url, "events", { events: [event({ eventType: "x.y" })] }, bearer(tenant.key));
    const bad = await send(url, "events", { events: [event({ duration: -1 })] }, bearer(tenant.key));
    expect(await shown(bad.headers.get("x-request-id") as string)).toMatchObject({
      outcome: "refused",
      code: "invalid_body",
      reason: bad.error?.message,
      keyHint: `${tenant.key.slice(0, 12)}…`,
      eventIds: [],
    });
    expect(await shown(uniform.headers.get("x-request-id") as string)).toMatchObject({
      code: "forbidden_event_type",
      rejections: [{ index: 0, code: "forbidden_event_type" }],
    });
  });
});

test("of a request that was repeated very often the first replays are shown", async () => {
  const keyed = { ...bearer(tenant.key), "idempotency-key": "repeated" };
  const { body } = await send(url, "events", { events: [event(), event({ eventType: "x.y" })] }, keyed);
  const own = await shown(body.requestId, ({ durationMs }) => durationMs !== undefined);
  const { _id, ...record } = (await requestCollection(db).findOne({ requestId: body.requestId })) as RequestDocument;
  const replays = Array.from({ length: 101 }, (_, n) => ({
    ...record,
    _id: `${_id}-${n}`,
    claim: "replayed" as const,
    receivedAt: new Date(record.receivedAt.getTime() + n),
  }));
  expect(own).toMatchObject({ replays: [], moreReplays: false });
  await requestCollection(db).insertMany(replays.slice(0, 100).reverse());
  expect((await show(body.requestId)).moreReplays).toBe(false);
  await requestCollection(db).insertMany(replays.slice(100));
  const { moreReplays, outcome, ...rest } = await show(body.requestId);
  expect({ moreReplays, outcome }).toEqual({ moreReplays: true, outcome: "partly_accepted" });
  expect(rest.replays.map(({ receivedAt }: any) => receivedAt)).toEqual(
    replays.slice(0, 100).map(({ receivedAt }) => isoTime(receivedAt)),
  );
});

test("a request without a known key leaves no record", async () => {
  const ids: string[] = [];
  for (const headers of [{}, bearer(`wp_live_${"0".repeat(32)}`)]) {
    ids.push((await send(url, "ping", {}, headers)).headers.get("x-request-id") as string);
  }
  ids.push((await fetch(`${url}/nowhere`)).headers.get("x-request-id") as string);
  // Records are written in the order of the requests.
  const last = await send(url, "events", { events: [event({ duration: -1 })] }, bearer(tenant.key));
  await shown(last.headers.get("x-request-id") as string);
  expect(await requestCollection(db).countDocuments({ requestId: { $in: ids } })).toBe(0);
});

test("no record has a key, wherever the caller put it", async () => {
  const { key } = tenant;
  const headers = { ...bearer(key), "idempotency-key": key };
  await send(url, "events", { events: [event()] }, headers);
  const conflict = await send(url, "events", { events: [event({ eventType: key })] }, headers);
  await fetch(`${url}/${key}`);
  await fetch(`${url}/${key.slice("wp_live_".length)}`);
  const last = await send(url, "events", { events: [event(), event({ eventType: `x${key}` })] }, bearer(key));
  await shown(conflict.headers.get("x-request-id") as string);
  await shown(last.body.requestId, ({ rejected }) => rejected === 1);
  const everything = JSON.stringify(await requestCollection(db).find().toArray());
  expect(everything).toContain("invalid_body");
  expect(everything).not.toContain(key.slice("wp_live_".length + 4));
});

test("an expired record is gone, swept or not; the rows are still found", async () => {
  const events = [event(), event({ eventType: "deploy.shipped" })];
  const { body } = await send(url, "events", { events }, bearer(tenant.key));
  const refused = await send(url, "events", { events: [event({ duration: -1 })] }, bearer(tenant.key));
  const hours = (count: number) => count * 3_600_000;
  await shown(body.requestId, ({ rejected }) => rejected === 1);
  expect(await show(body.requestId, hours(71))).toMatchObject({ outcome: "partly_accepted" });
  expect(await show(body.requestId, hours(73))).toMatchObject({
    outcome: "accepted",
    appId: tenant.appId,
    eventIds: [expect.stringMatching(/^evt_/)],
  });
  const id = refused.headers.get("x-request-id") as string;
  await shown(id);
  await expect(show(id, hours(73))).rejects.toThrow("There is no request");
});

test("an invalid id and an unknown id are refused", async () => {
  await expect(show("req_1")).rejects.toThrow("There is no request with the id 'req_1'");
  await expect(show(createIdSource().next("req"))).rejects.toThrow("There is no request");
});

test("REQUEST_RECORD_HOURS=0 keeps no records", async () => {
  const silent = await startService({ env: { REQUEST_RECORD_HOURS: "0" } });
  try {
    const own = await createTenant(silent.admin);
    await send(silent.app.url, "events", { events: [event({ duration: -1 })] }, bearer(own.key));
    await silent.app.close();
    expect(await requestCollection(db.client.db(silent.app.db.databaseName)).countDocuments()).toBe(0);
  } finally {
    await silent.app.close().catch(() => {});
  }
});

test("a stopping service writes its collected records", async () => {
  const database = `stop-${Date.now()}`;
  const stopped = await startService({ database });
  const own = await createTenant(stopped.admin);
  const refused = await send(stopped.app.url, "events", { events: [event({ duration: -1 })] }, bearer(own.key));
  await stopped.app.close();
  const id = refused.headers.get("x-request-id") as string;
  expect(await showRequest(db.client.db(database), id)).toMatchObject({ code: "invalid_body" });
});

test("written records count in the metrics", async () => {
  const samples = await scrape(service.app.adminUrl);
  expect(sumOf(samples, "ingest_request_records_total", { outcome: "written" })).toBeGreaterThan(10);
  expect(sumOf(samples, "ingest_request_records_total", { outcome: "dropped" })).toBe(0);
});

describe("the recorder", () => {
  const ids = createIdSource();
  const caller = { organizationId: "org_1", appId: "app_1", keyId: "key_1", keyHint: "wp_live_x…" };
  const fault = new Fault("invalid_body", "It is wrong.");
  const start = (receivedAt = new Date()): RequestStart => ({
    requestId: ids.next("req"),
    receivedAt,
    protocol: "rest",
    rpc: "Events",
    method: "POST",
    path: "/",
    peer: () => ({ address: "", userAgent: undefined, keyHint: undefined }),
    deadlineMs: undefined,
    ambiguousHeader: undefined,
    traceId: undefined,
    isAbandoned: () => false,
  });
  const refused = (change: Partial<RequestEnd> = {}): RequestEnd => ({
    ...unknownEnd(ids.next("req")),
    caller,
    fault,
    status: 400,
    durationMs: 1.23,
    ...change,
  });
  const recorderOn = (database: Db, now: () => number = Date.now) =>
    new RequestRecorder({ db: database, ids, now, keepHours: 72, onError: () => {} });
  const fresh = (name: string) => db.client.db(`${name}-${Date.now()}`);
  const long = new Fault("invalid_body", "It is wrong. ".repeat(1_000));

  test("an accepted request needs no record", async () => {
    const recorder = recorderOn(fresh("none"));
    recorder.ended(start(), refused({ fault: undefined, accepted: 3, status: 202 }));
    await recorder.stop();
    expect(recorder.counts).toEqual({ written: 0, dropped: 0, repeated: 0 });
  });

  test("a record of 500 rejections lists the first ones and counts all", async () => {
    const own = fresh("many");
    const recorder = recorderOn(own);
    const message = "The worker is not known. ".repeat(100);
    const rejections = Array.from({ length: 500 }, (_, index) => ({
      index,
      code: "worker_not_found" as const,
      message,
    }));
    recorder.ended(start(), refused({ fault: undefined, accepted: 1, rejections, status: 207 }));
    await recorder.stop();
    const [record] = await requestCollection(own).find().toArray();
    expect(record).toMatchObject({ rejected: 500 });
    expect(record?.rejections).toHaveLength(recordLimits.rejectionsMax);
    expect(JSON.stringify(record).length).toBeLessThan(30_000);
    await own.dropDatabase();
  });

  test("an organisation that fills its share loses only its own records", async () => {
    const own = fresh("share");
    const startMs = Date.now();
    const recorder = recorderOn(own, () => startMs);
    const share = recordLimits.storedBytesMax * recordLimits.burst * recordLimits.organizationShare;
    for (let bytes = 0; bytes < share; bytes += 1_000) recorder.ended(start(), refused({ fault: long }));
    const { dropped } = recorder.counts;
    expect(dropped).toBeGreaterThan(0);
    await recorder.stop();
    recorder.ended(start(), refused({ fault: long }));
    expect(recorder.counts.dropped).toBe(dropped + 1);
    recorder.ended(start(), refused({ caller: { ...caller, organizationId: "org_2" } }));
    expect(recorder.counts.dropped).toBe(dropped + 1);
    await recorder.stop();
    expect(await requestCollection(own).countDocuments({ organizationId: "org_2" })).toBe(1);
    await own.dropDatabase();
  });

  test("a key that keeps exceeding its rate leaves one record a second", async () => {
    const own = fresh("limited");
    const recorder = recorderOn(own);
    const limited = (second: number) => recorder.ended(start(new Date(second * 1_000)), refused({ limitedBy: "key" }));
    for (let i = 0; i < 100; i++) limited(7);
    limited(8);
    await recorder.stop();
    expect(recorder.counts).toEqual({ written: 2, dropped: 0, repeated: 99 });
    await own.dropDatabase();
  });

  test("a write whose answer was lost is repeated, and stores the record once", async () => {
    const own = fresh("again");
    let failures = 0;
    const unsteady = new Proxy(own, {
      get: (target, name) =>
        name !== "command"
          ? Reflect.get(target, name)
          : async (command: object) => {
              const reply = await target.command(command);
              if (failures++ === 0) throw new MongoNetworkError("the answer was lost");
              return reply;
            },
    });
    const recorder = recorderOn(unsteady);
    recorder.ended(start(), refused());
    await expect.poll(() => recorder.counts.written, { timeout: 10_000 }).toBe(1);
    expect(failures).toBe(2);
    expect(await requestCollection(own).countDocuments()).toBe(1);
    await own.dropDatabase();
  });
});

/** A connection that can be cut. */
async function cuttableWay(uri: string): Promise<{ address: string; cut(): void; mend(): void; server: Server }> {
  const { host } = new URL(uri.replace(/^mongodb:/, "http:"));
  const [hostname = "", port] = host.split(":");
  const sockets = new Set<Socket>();
  let isCut = false;
  const server = createServer((near) => {
    if (isCut) return void near.destroy();
    const far = connect(Number(port), hostname);
    for (const socket of [near, far]) sockets.add(socket.on("error", () => {}));
    near.pipe(far).on("close", () => near.destroy());
    far.pipe(near).on("close", () => far.destroy());
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    server,
    cut() {
      isCut = true;
      for (const socket of sockets) socket.destroy();
    },
    mend: () => void (isCut = false),
  };
}

describe("the command line", () => {
  const env = () => ({ PATH: process.env.PATH, MONGODB_URI: inject("mongodbUri"), MONGODB_DB: db.databaseName });
  const ingest = (...args: string[]) =>
    promisify(execFile)(process.execPath, ["src/cli.ts", ...args], { env: env() }).then(
      ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
      ({ code, stdout, stderr }) => ({ code, stdout, stderr }),
    );

  test("`ingest request show` prints a table or JSON, and fails for an unknown id", async () => {
    const events = [event(), event({ eventType: "deploy.shipped" })];
    const { body } = await send(url, "events", { events }, bearer(tenant.key));
    await shown(body.requestId);
    const [people, machines, unknown] = await Promise.all([
      ingest("request", "show", body.requestId),
      ingest("request", "show", body.requestId, "--json"),
      ingest("request", "show", createIdSource(() => Date.now() - 60_000).next("req")),
    ]);
    expect(people.stdout).toMatch(/^outcome +partly accepted$/m);
    expect(people.stdout).toMatch(/^1 +forbidden_event_type +eventType 'deploy.shipped' is not whitelisted\.$/m);
    expect(JSON.parse(machines.stdout)).toMatchObject({ requestId: body.requestId, appId: tenant.appId, rejected: 1 });
    expect(unknown).toMatchObject({ code: 1, stdout: "", stderr: expect.stringContaining("There is no request") });
  });

  test("`ingest tail` prints a line for each arrival, continues after an outage, and ends with 0 on Ctrl-C", async () => {
    const ways = await Promise.all([inject("mongodbUri"), service.app.adminUrl].map(cuttableWay));
    const [database = "", api = ""] = ways.map(({ address }) => address);
    const { token } = await insertToken(service, "viewer");
    const here = { ...env(), MONGODB_URI: `mongodb://${database}/?directConnection=true` };
    const elsewhere = { PATH: process.env.PATH, INGEST_URL: `http://${api}`, INGEST_TOKEN: token };
    const tail = (flags: string[], env: NodeJS.ProcessEnv) =>
      spawn(process.execPath, ["src/cli.ts", "tail", ...flags], { env });
    const children = [tail(["--json", "--app", tenant.appId], here), tail(["--rejected"], elsewhere)];
    const [json, people] = children.map(outputOf) as [Output, Output];
    const bothSay = async (text: string) => {
      for (const one of [json, people]) await expect.poll(() => one.stderr, { timeout: 20_000 }).toContain(text);
    };
    const lines = () =>
      json.stdout
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => JSON.parse(line));
    await bothSay("Waiting for events");
    const events = [event(), event({ eventType: "deploy.shipped" })];
    const { body } = await send(url, "events", { events }, bearer(tenant.key));
    await expect.poll(lines, { timeout: 10_000 }).toHaveLength(2);
    await expect.poll(() => people.stdout, { timeout: 10_000 }).toContain(body.requestId);
    expect(lines()).toMatchObject([
      {
        requestId: body.requestId,
        row: { kind: "event", type: "ticket.resolved", id: expect.stringMatching(/^evt_/) },
      },
      { rejected: { index: 1, code: "forbidden_event_type" } },
    ]);
    expect(people.stdout).toMatch(/^\S+ +rejected +req_\S+ +app_\S+ +forbidden_event_type +events\[1\]: .*$/m);

    for (const way of ways) way.cut();
    const during = await send(url, "events", { events }, bearer(tenant.key));
    await bothSay("trying again");
    for (const way of ways) way.mend();
    await bothSay("The service is back");
    await expect.poll(lines, { timeout: 20_000 }).toHaveLength(4);
    await expect.poll(() => people.stdout, { timeout: 10_000 }).toContain(during.body.requestId);
    expect(lines()[2]).toMatchObject({ requestId: during.body.requestId });
    for (const { stderr } of [json, people]) expect(stderr).not.toContain("missed");
    for (const child of children) child.kill("SIGINT");
    expect(await Promise.all(children.map(async (child) => (await once(child, "close"))[0]))).toEqual([0, 0]);
    for (const { server } of ways) server.close();
  }, 120_000);
});

interface Output {
  stdout: string;
  stderr: string;
}

function outputOf(child: ChildProcess): Output {
  const output = { stdout: "", stderr: "" };
  child.stdout?.on("data", (chunk: Buffer) => (output.stdout += chunk.toString()));
  child.stderr?.on("data", (chunk: Buffer) => (output.stderr += chunk.toString()));
  return output;
}
