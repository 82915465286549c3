import { setTimeout as delay } from "node:timers/promises";
import type { Db } from "mongodb";
import { gatherMs } from "../../src/observe/daily-usage.ts";
import { collections } from "../../src/store/collections.ts";
import { createClient } from "../../src/store/database.ts";
import { migrate } from "../../src/store/migrations.ts";
import { recount } from "../../src/store/recount.ts";
import { usageDayCollection } from "../../src/store/usage-days.ts";
import { UsageKeeper } from "../../src/store/usage-keeper.ts";
import { usageCollection, UsageStore } from "../../src/store/usage.ts";
import { type Instance, startInstance } from "./instance.ts";
import { type Asked, isRepeated, Ledger, send, type Way } from "./ledger.ts";
import { TestMongod } from "./mongod.ts";
import { Setup } from "../support/setup.ts";

export interface CrashOptions {
  readonly seed: number;
  readonly instances: number;
  readonly clients: number;
  /** Least number of SIGKILLs of an instance while the database lives. */
  readonly instanceKills: number;
  /** Least number of SIGKILLs of mongod; instances are killed then, too. */
  readonly databaseKills: number;
  /** Longest time between two kills, in milliseconds. */
  readonly pauseMsMax: number;
  readonly report: (line: string) => void;
}

export interface CrashResult {
  readonly seed: number;
  readonly seconds: number;
  readonly instanceKills: number;
  readonly databaseKills: number;
  readonly tries: number;
  readonly answered: number;
  readonly namedWithKey: number;
  readonly namedWithoutKey: number;
  readonly refused: number;
  readonly replays: number;
  readonly acknowledgedEvents: number;
  readonly rows: number;
  readonly lost: number;
  readonly doubled: number;
  readonly unasked: number;
  readonly wrongCards: number;
  /** The charge at the end, with events of requests that died, and after the service has counted the rows. */
  readonly quotaBefore: number;
  readonly quotaAfter: number;
  readonly problems: readonly string[];
}

/** Events a month of the organisation that runs out of quota during the run. */
export const smallQuotaEvents = 300;

/** Numbers from 0 up to 1, the same for the same seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Loads instances with clients that retry until they get an answer. It kills instances and their database at random
 * moments. Then it compares the whole database with the requests and answers.
 */
export async function crash(options: CrashOptions): Promise<CrashResult> {
  const startedMs = Date.now();
  const mongod = await TestMongod.start();
  const client = createClient(mongod.uri);
  const running: Instance[] = [];
  try {
    const db = client.db("crash");
    await migrate(db, collections);
    const admin = new Setup(db);
    const [large, small] = [await tenant(admin, 100_000_000), await tenant(admin, smallQuotaEvents)];
    const env = { MONGODB_URI: mongod.uri, MONGODB_DB: "crash" };
    const start = async () => void running.push(await startInstance(env));
    await Promise.all(Array.from({ length: options.instances }, start));

    const ledger = new Ledger();
    const random = seeded(options.seed);
    const load = startLoad({ ledger, random, running, keys: [large.key, small.key], clients: options.clients });
    const kills = { instances: 0, databases: 0 };
    const pause = () => delay(random() * options.pauseMsMax);
    const killInstance = async () => {
      while (running.length < 2) await delay(20);
      const [victim] = running.splice(Math.floor(random() * running.length), 1);
      await victim?.kill();
      kills.instances++;
      void start();
    };
    const say = () =>
      options.report(
        `${kills.instances} instances and ${kills.databases} databases killed, ${ledger.counts.answered} requests answered`,
      );
    while (kills.instances < options.instanceKills) {
      await pause();
      await killInstance();
      if (kills.instances % 10 === 0) say();
    }
    while (kills.databases < options.databaseKills) {
      await pause();
      await mongod.kill();
      kills.databases++;
      await delay(random() * 500);
      // Without its database no other instance could start in its place.
      if (running.length > 1 && random() < 0.3) await killInstance();
      await mongod.restart();
      // Wait for answers, so that the next kill hits running requests again.
      const { answered } = ledger.counts;
      while (ledger.counts.answered < answered + options.clients) await delay(20);
      if (kills.databases % 5 === 0) say();
    }
    while (running.length < options.instances) await delay(20);
    const tries = await load.stop();
    await replayAll(ledger, running, random);

    const charged = await chargedQuota(db);
    const audit = await ledger.audit(db);
    const quotaAfter = await countedQuota(db, audit.rows);
    const [countedBefore, countedAfter] = await countedByDay(db);
    if (countedBefore > audit.rows) ledger.problems.push(`${countedBefore} events counted by day, ${audit.rows} rows`);
    if (countedAfter !== audit.rows)
      ledger.problems.push(`${countedAfter} events counted by day after a recount, ${audit.rows} rows`);
    const smallUsage = await usageCollection(db).findOne({ organizationId: small.organizationId });
    if ((smallUsage?.events ?? 0) > smallQuotaEvents)
      ledger.problems.push(`the quota of ${smallQuotaEvents} let ${smallUsage?.events} through`);
    if (quotaAfter !== audit.rows)
      ledger.problems.push(`quota ${quotaAfter} after all was counted, ${audit.rows} rows`);
    // If it were the other way round, more than the quota could be accepted.
    if (charged < audit.rows) ledger.problems.push(`quota of ${charged} was charged for ${audit.rows} rows`);
    return {
      ...{ seed: options.seed, seconds: Math.round((Date.now() - startedMs) / 1000), tries },
      ...{ instanceKills: kills.instances, databaseKills: kills.databases },
      ...ledger.counts,
      ...audit,
      ...{ quotaBefore: charged, quotaAfter, problems: ledger.problems },
    };
  } finally {
    await Promise.all(running.map((instance) => instance.kill()));
    await client.close();
    await mongod.stop();
  }
}

/** An organisation without effective rate limits. */
export async function tenant(admin: Setup, quotaEventsPerMonth: number) {
  const rates = { keyRequestsPerSecond: 1_000_000, organizationRequestsPerSecond: 1_000_000 };
  const { id } = await admin.createOrganization({ name: "Crash", quotaEventsPerMonth, ...rates });
  const app = await admin.createApp(id, "crm-hub", "CRM Hub", ["ticket.*"]);
  return { organizationId: id, appId: app.id, key: (await admin.createKey(app.id)).key };
}

interface LoadOptions {
  readonly ledger: Ledger;
  readonly random: () => number;
  readonly running: readonly Instance[];
  /** The first one has enough quota. */
  readonly keys: readonly [string, string];
  readonly clients: number;
  /** Called after each try, with whether it got an answer. */
  readonly onTry?: (isAnswered: boolean) => void;
}

/** Clients that send until they get an answer. `stop` waits for the last answers, and returns the number of tries. */
export function startLoad({ ledger, random, running, keys, clients, onTry }: LoadOptions): {
  stop: () => Promise<number>;
} {
  let stopped = false;
  let tries = 0;
  let count = 0;

  async function untilAnswered(asked: Asked): Promise<void> {
    for (;;) {
      const way: Way = random() < 0.5 ? "rest" : "grpc";
      const instance = running[Math.floor(random() * running.length)];
      tries++;
      const reply = instance === undefined ? undefined : await send(instance.url, way, asked);
      onTry?.(reply !== undefined && reply.kind !== "failure");
      if (reply !== undefined && reply.kind !== "failure") return ledger.answered(asked, way, reply);
      if (!isSafe(asked)) return;
      await delay(20 + random() * 100);
    }
  }

  /** The ids of events are enough to send them again, even at the same moment. */
  const other = (asked: Asked): Asked =>
    asked.isNamed === true && random() < 0.5 ? { ...asked, idempotencyKey: undefined } : asked;

  async function client(): Promise<void> {
    while (!stopped) {
      const small = random() < 0.05;
      // Without a claim, a try that died may have used up the quota that the next one needs.
      const asked = newRequest(`r${++count}`, keys[small ? 1 : 0], !small && random() < 0.3, random);
      ledger.ask(asked);
      if (!small && isSafe(asked) && random() < 0.15) {
        await Promise.all([untilAnswered(asked), untilAnswered(other(asked))]);
      } else await untilAnswered(asked);
      if (isSafe(asked) && !small && random() < 0.2) await untilAnswered(other(asked));
      await delay(random() * 20);
    }
  }

  const loops = Array.from({ length: clients }, client);
  return {
    async stop() {
      stopped = true;
      await Promise.all(loops);
      return tries;
    },
  };
}

/** Whether it may be sent again. */
const isSafe = (asked: Asked) => asked.idempotencyKey !== undefined || isRepeated(asked);

/** @param isNamed whether its events have ids. */
function newRequest(tag: string, key: string, isNamed: boolean, random: () => number): Asked {
  const actorOf = () => {
    // Some known, some new; a new one often in two requests at once.
    const n = random() < 0.7 ? Math.floor(random() * 20) : 1000 + Math.floor(Number(tag.slice(1)) / 3);
    return { name: `a${n}`, actor: { externalId: `a${n}`, ...(random() < 0.5 ? { email: `a${n}@x.org` } : {}) } };
  };
  const time = () =>
    random() < 0.5 ? {} : { timestamp: new Date(1_780_000_000_000 + Math.floor(random() * 5) * 1000).toISOString() };
  if (random() < 0.3) {
    const { name, actor } = actorOf();
    const body = {
      snapshotType: `open_${Math.floor(random() * 2)}`,
      ...{ actor, ...time(), metrics: { tag, n: random() }, metadata: { tag, index: 0, actor: `${key}${name}` } },
    };
    return { tag, rpc: "snapshots", key, idempotencyKey: tag, body };
  }
  const events = Array.from({ length: 1 + Math.floor(random() ** 3 * 20) }, (_, index) => {
    const { name, actor } = actorOf();
    const eventType = random() < 0.9 || index === 0 ? "ticket.resolved" : "deploy.forbidden";
    return {
      eventType,
      category: "project_management",
      actor,
      ...time(),
      metadata: { tag, index, actor: `${key}${name}` },
      ...(isNamed ? { eventId: `${tag}/${index}` } : {}),
    };
  });
  const idempotencyKey = random() < (isNamed ? 0.5 : 0.9) ? tag : undefined;
  return { tag, rpc: "events", key, isNamed, idempotencyKey, body: { events } };
}

/** Repeats the latest requests over either protocol. Each must get its first answer. */
export async function replayAll(ledger: Ledger, running: readonly Instance[], random: () => number): Promise<void> {
  const left = ledger.replayable().slice(0, 3_000);
  const replay = async () => {
    for (let asked = left.pop(); asked !== undefined; asked = left.pop()) {
      if (!ledger.isReplayable(asked)) continue;
      const way: Way = random() < 0.5 ? "rest" : "grpc";
      const instance = running[Math.floor(random() * running.length)] as Instance;
      let reply = await send(instance.url, way, asked);
      // Repeat a failed one, as clients do: its key makes that safe.
      for (let tries = 1; tries < 3 && reply.kind === "failure"; tries++) reply = await send(instance.url, way, asked);
      if (reply.kind === "failure") ledger.problems.push(`${asked.tag}: no replay: ${reply.reason}`);
      else ledger.answered(asked, way, reply);
    }
  };
  await Promise.all(Array.from({ length: 8 }, replay));
}

/** Events accepted by day before and after a recount of everything. Killed instances have lost their last counts. */
async function countedByDay(db: Db): Promise<[before: number, after: number]> {
  const accepted = async () => {
    const counts = await usageDayCollection(db).find().toArray();
    return counts.reduce((sum, one) => sum + (one.accepted ?? 0), 0);
  };
  const before = await accepted();
  for (const { organizationId, month } of await usageCollection(db).find().toArray()) {
    // An instance may still have counts of the last replays in memory.
    await recount(db, organizationId, month, { quietMs: gatherMs + 500, patienceMs: 30_000 });
  }
  return [before, await accepted()];
}

/** The charge, with reservations. */
export async function chargedQuota(db: Db): Promise<number> {
  const documents = await usageCollection(db).find().toArray();
  return documents.reduce((sum, { events }) => sum + events, 0);
}

/** The charge after the service has counted the rows in doubt, which it does here without the wait of 15 minutes. */
export async function countedQuota(db: Db, rows: number): Promise<number> {
  const errors: unknown[] = [];
  const onError = (error: unknown) => errors.push(error);
  const keeper = new UsageKeeper(db, { usage: new UsageStore(db), now: Date.now, countAfterMs: 0, onError });
  const deadlineMs = performance.now() + 30_000;
  for (;;) {
    await keeper.look();
    const charged = await chargedQuota(db);
    if (errors.length > 0) throw errors[0];
    // Killed instances count as gone after some seconds.
    if (charged === rows || performance.now() > deadlineMs) return charged;
    await delay(500);
  }
}
