import { setTimeout as delay } from "node:timers/promises";
import type { Db, MongoClient } from "mongodb";
import { MongoClient as Client } from "mongodb";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { usageCollection } from "../../src/store/usage.ts";
import {
  bearer,
  createTenant,
  protocols,
  type Send,
  startService,
  type Tenant,
  type TestService,
} from "../support/service.ts";
import { countedQuota } from "./crash.ts";
import { type Asked, Ledger, send, type Way } from "./ledger.ts";
import { TestMongod } from "./mongod.ts";
import { type Moment, MongoProxy } from "./proxy.ts";
import { report, runLine, table } from "./report.ts";

/** `npm run test:fault` tries every fault at every step. A usual run tries some of them, and every step. */
const all = process.env.FAULTS === "all";

// A request waits seconds for its database, and some are repeated many times.
vi.setConfig({ testTimeout: 120_000 });

/** The write path: every command for a request with an Idempotency-Key and a new actor, in order. */
const steps = {
  events: [
    ["find", "idempotency"],
    ["find", "workers"],
    ["update", "usage"],
    ["findAndModify", "usage"],
    ["insert", "workers"],
    ["insert", "idempotency"],
    ["insert", "timeline"],
  ],
  snapshots: [
    ["find", "idempotency"],
    ["find", "workers"],
    ["update", "usage"],
    ["findAndModify", "usage"],
    ["insert", "workers"],
    ["insert", "idempotency"],
    ["insert", "timeline"],
    ["update", "snapshots"],
  ],
  /** Without an Idempotency-Key. The last step is that of a repetition. */
  "events with ids": [
    ["find", "workers"],
    ["update", "usage"],
    ["findAndModify", "usage"],
    ["insert", "workers"],
    ["insert", "timeline"],
    ["find", "timeline"],
  ],
} as const;

interface Step {
  readonly rpc: keyof typeof steps;
  readonly command: string;
  readonly collection: string;
}

const everyStep: Step[] = (Object.keys(steps) as (keyof typeof steps)[])
  .flatMap((rpc) => steps[rpc].map(([command, collection]) => ({ rpc, command, collection })))
  // The other steps are those of events.
  .filter(({ rpc, collection }) => all || rpc !== "events with ids" || collection === "timeline");

const databaseName = "faults";
let mongod: TestMongod;
let client: MongoClient;
let db: Db;
/** The instance for retries, which no fault touches. */
let sound: TestService;
let tenant: Tenant;
const ledger = new Ledger();
const closing: Promise<unknown>[] = [];

beforeAll(async () => {
  mongod = await TestMongod.start();
  client = new Client(mongod.uri, { appName: "test" });
  db = client.db(databaseName);
  sound = await startService({ database: databaseName, mongodbUri: mongod.uri });
  tenant = await createTenant(sound.admin, { name: "Faults", quotaEventsPerMonth: 50_000 });
});

afterAll(async () => {
  await Promise.allSettled([...closing, client.close()]);
  await mongod.stop();
});

let counter = 0;
/** Three events of one new actor, the second of them rejected, or a snapshot. Every other request has event ids. */
async function newRequest(step: Step, name: string, isKeyed = step.rpc !== "events with ids"): Promise<Asked> {
  const asked = await requestOf(step, name, isKeyed);
  ledger.ask(asked);
  // Only a repetition looks for stored ids.
  if (step.command === "find" && step.collection === "timeline") await untilAnswered(sound.app.url, "rest", asked);
  return asked;
}

async function requestOf({ rpc, command, collection }: Step, name: string, isKeyed: boolean): Promise<Asked> {
  const tag = `${++counter} ${name} ${command} ${collection}`;
  // The first events of an organisation's month are charged in another way.
  const isFirst = command === "findAndModify" && collection === "usage";
  const { key } = isFirst ? await createTenant(sound.admin, { name: tag, quotaEventsPerMonth: 50_000 }) : tenant;
  const who = `x${counter}`;
  const actor = { externalId: who, email: `${who}@x.org`, displayName: "Alex" };
  const metadata = (index: number) => ({ tag, index, actor: who });
  const common = { tag, key, idempotencyKey: isKeyed ? `k${counter}` : undefined };
  if (rpc === "snapshots") {
    return {
      ...common,
      rpc,
      body: { snapshotType: "open_tickets", actor, metrics: { n: counter }, metadata: metadata(0) },
    };
  }
  const isNamed = rpc === "events with ids" || (isKeyed && counter % 2 === 0);
  const events = ["ticket.resolved", "deploy.forbidden", "ticket.opened"].map((eventType, index) => ({
    ...{ eventType, category: "project_management", actor, metadata: metadata(index) },
    ...(isNamed ? { eventId: `${tag}/${index}` } : {}),
  }));
  return { ...common, rpc: "events", isNamed, body: { events } };
}

/** Makes the instance cache the key. */
async function prepare(url: string, step: Step): Promise<void> {
  const asked = await newRequest(step, "prepare");
  await untilAnswered(url, "rest", asked);
}

const wayOf = (n: number): Way => (n % 2 === 0 ? "rest" : "grpc");

/** Sends until there is an answer, as a client does; returns the number of tries without one. */
async function untilAnswered(url: string, way: Way, asked: Asked): Promise<number> {
  for (let failures = 0; ; failures++) {
    const reply = await send(url, way, asked);
    if (reply.kind !== "failure") {
      ledger.answered(asked, way, reply);
      return failures;
    }
    await delay(10);
  }
}

/** The first answer, then the same over both protocols. Events with ids also come again without their key. */
async function retryAndReplay(url: string, asked: Asked): Promise<number> {
  const failures = await untilAnswered(url, wayOf(counter), asked);
  await untilAnswered(sound.app.url, "rest", asked);
  await untilAnswered(sound.app.url, "grpc", asked);
  if (asked.isNamed === true) await untilAnswered(sound.app.url, "rest", { ...asked, idempotencyKey: undefined });
  return failures;
}

const nothingWrong = () => expect(ledger.problems).toEqual([]);

describe("an instance that dies", () => {
  const moments: Moment[] = ["before", "after"];
  const cases = everyStep.flatMap((step) => moments.map((moment) => ({ ...step, moment })));

  test.each(cases.filter((_, i) => all || i % 2 === 1))(
    "$moment $command $collection of $rpc: a retry on another instance finishes its request",
    async (one) => {
      const proxy = await MongoProxy.start(mongod.address);
      const dying = await startService({ database: databaseName, mongodbUri: proxy.uri });
      await prepare(dying.app.url, one);
      const asked = await newRequest(one, one.moment);
      let isDead = false;
      const died = proxy.cut({ ...one, forever: true }).then(() => (isDead = true));
      // Repeats if a slow machine did not reach the step.
      const sendOnce = () => send(dying.app.url, wayOf(counter), asked).then(() => delay(50));
      while (!isDead) await Promise.race([died, sendOnce()]);
      await retryAndReplay(sound.app.url, asked);
      proxy.close();
      closing.push(dying.app.close());
      nothingWrong();
    },
  );
});

describe("a request is answered and stored once although", () => {
  const cases = everyStep.flatMap((step) => (["before", "after"] as const).map((moment) => ({ ...step, moment })));
  let proxy: MongoProxy;
  let service: TestService;

  beforeAll(async () => {
    proxy = await MongoProxy.start(mongod.address);
    service = await startService({ database: databaseName, mongodbUri: proxy.uri });
  });
  afterAll(async () => {
    await service.app.close();
    proxy.close();
  });

  test.each(cases.filter((_, i) => all || i % 2 === 0))(
    "the connection is cut $moment $command $collection of $rpc",
    async (one) => {
      const asked = await newRequest(one, `cut ${one.moment}`);
      const happened = proxy.cut({ ...one, forever: false });
      await Promise.all([happened, retryAndReplay(service.app.url, asked)]);
      nothingWrong();
    },
  );

  /** What the server does instead of the command, or after it. */
  const faults = {
    "is refused by a server that steps down": { errorCode: 11602 },
    "fails without a reason": { errorCode: 1 },
    "has its connection closed": { closeConnection: true },
    "is done, and not acknowledged by a majority": { writeConcernError: { code: 64, errmsg: "waiting timed out" } },
    "is done while the server shuts down": { writeConcernError: { code: 91, errmsg: "shutting down" } },
  } as const;
  const placed = everyStep.flatMap((step) =>
    (Object.keys(faults) as (keyof typeof faults)[])
      .filter((fault) => step.command !== "find" || !("writeConcernError" in faults[fault]))
      .flatMap((fault) => (all ? [1, 2, 6] : [1]).map((times) => ({ ...step, fault, times }))),
  );
  const chosen = all ? placed : placed.filter((_, i) => i % 4 === 0);

  /** Runs `work` under the fault. The fault must occur: otherwise the case proves nothing. */
  async function under(
    fault: keyof typeof faults,
    step: Step,
    mode: object | string,
    work: (isMetWithin: (ms: number) => Promise<boolean>) => Promise<unknown>,
  ) {
    const admin = client.db("admin");
    const failPoint = (mode: object | string, data: object) =>
      admin.command({ configureFailPoint: "failCommand", mode, data });
    const namespace = `${databaseName}.${step.collection}`;
    const where = { failCommands: [step.command], appName: "ingest", namespace };
    const { count } = await failPoint(mode, { ...where, ...faults[fault] });
    const isMetWithin = (maxTimeMS: number) =>
      admin.command({ waitForFailPoint: "failCommand", timesEntered: count + 1, maxTimeMS }).then(
        () => true,
        () => false,
      );
    try {
      await work(isMetWithin);
      // Some steps come a moment after the answer.
      expect(await isMetWithin(10_000)).toBe(true);
    } finally {
      await failPoint("off", {});
    }
  }

  test.each(chosen)("$command $collection of $rpc $fault, $times times", async ({ fault, times, ...step }) => {
    const asked = await newRequest(step, fault);
    await under(fault, step, { times }, () => retryAndReplay(service.app.url, asked));
    nothingWrong();
  });

  const withoutKey = placed.filter((one) => one.times === 1 && one.collection !== "idempotency");
  test.each(withoutKey.filter((_, i) => all || i % 3 === 1))(
    "without an Idempotency-Key Ingest acknowledges nothing while $command $collection of $rpc $fault",
    async ({ fault, ...step }) => {
      await under(fault, step, "alwaysOn", async (isMetWithin) => {
        for (let tries = 1; tries <= 5; tries++) {
          const asked = await newRequest(step, `always ${fault}`, false);
          expect(await send(service.app.url, wayOf(counter), asked)).toMatchObject({ kind: "failure" });
          // The previous fault's closed connections may fail a request before it reaches this one.
          if (await isMetWithin(100)) return;
        }
      });
    },
  );
});

test("a retry that finds its claim but cannot finish is no replay; the next one is", async () => {
  const asked = await newRequest({ rpc: "events", command: "insert", collection: "timeline" }, "retry");
  await untilAnswered(sound.app.url, "rest", asked);
  const headers = { ...bearer(tenant.key), "idempotency-key": asked.idempotencyKey as string };
  const retry = () => (protocols.REST as Send)(sound.app.url, "events", asked.body, headers);
  const admin = client.db("admin");
  const data = { failCommands: ["insert"], appName: "ingest", namespace: `${databaseName}.timeline`, errorCode: 1 };
  await admin.command({ configureFailPoint: "failCommand", mode: "alwaysOn", data });
  try {
    const failed = await retry();
    expect(failed.status).toBe(500);
    expect(failed.headers.get("idempotency-replayed")).toBeNull();
  } finally {
    await admin.command({ configureFailPoint: "failCommand", mode: "off" });
  }
  expect((await retry()).headers.get("idempotency-replayed")).toBe("true");
});

test("after all faults: no row is lost or doubled, cards and quota are right", async () => {
  await Promise.allSettled(closing);
  const audit = await ledger.audit(db);
  expect(ledger.problems).toEqual([]);
  expect(audit).toMatchObject({ lost: 0, doubled: 0, unasked: 0, wrongCards: 0 });
  expect(audit.rows).toBeGreaterThan(counter);
  await sound.app.close();
  const documents = await usageCollection(db).find().toArray();
  const charged = documents.reduce((sum, { events }) => sum + events, 0);
  expect(charged).toBeGreaterThanOrEqual(audit.rows);
  const counted = await countedQuota(db, audit.rows);
  expect(counted).toBe(audit.rows);
  if (!all) return;
  const rows = [
    ["Requests, each with a fault", counter],
    ["Of these answered, with event ids beside an Idempotency-Key", ledger.counts.namedWithKey],
    ["Of these answered, with event ids and no Idempotency-Key", ledger.counts.namedWithoutKey],
    ["Rows stored", audit.rows],
    ["**Lost**", audit.lost],
    ["**Doubled**", audit.doubled],
    ["Rows without a request", audit.unasked],
    ["Cards that do not show the newest snapshot", audit.wrongCards],
    ["Replays, each compared to the byte", ledger.counts.replays],
    ["Quota charged at the end", charged],
    ["Quota charged after the count", counted],
  ] as const;
  report("fault", `${runLine()}\n\n${table(["What", "Count"], rows)}`);
});
