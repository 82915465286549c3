import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { type Db, MongoClient } from "mongodb";
import { ulidOf } from "../../src/ids.ts";
import { collections } from "../../src/store/collections.ts";
import { createClient } from "../../src/store/database.ts";
import { migrate } from "../../src/store/migrations.ts";
import { eventCollection, rowOf, rowsBetween } from "../../src/store/events.ts";
import { usageCollection } from "../../src/store/usage.ts";
import { runIngest } from "../support/processes.ts";
import { watchers } from "../support/timeline.ts";
import { chargedQuota, countedQuota, replayAll, seeded, smallQuotaEvents, startLoad, tenant } from "./crash.ts";
import { type Instance, startInstance } from "./instance.ts";
import { Ledger } from "./ledger.ts";
import { ReplicaSet } from "./replica-set.ts";
import { Setup } from "../support/setup.ts";

/** The faults of the primary. */
export const faults = {
  "steps down": async (set, primary) => {
    await set.stepDown(primary);
    await set.primary();
  },
  "is killed": async (set, primary) => {
    await set.end(primary, "SIGKILL");
    await set.primary();
    await set.restart(primary);
  },
  stalls: async (set, primary) => {
    set.freeze(primary);
    await delay(4_000);
    set.thaw(primary);
  },
  "is cut off, and heals": async (set, primary) => {
    set.cutOff(primary);
    await set.primary();
    await delay(500);
    set.heal();
  },
  "is cut off, and killed": async (set, primary) => {
    set.cutOff(primary);
    // The others never receive what it stores now.
    await delay(700);
    await set.end(primary, "SIGKILL");
    await set.primary();
    set.heal();
    await set.restart(primary);
  },
  "is cut off, and forced to step down": async (set, primary) => {
    set.cutOff(primary);
    await delay(700);
    await set.stepDown(primary).catch(() => {});
    await set.primary();
    set.heal();
  },
} satisfies Record<string, (set: ReplicaSet, primary: number) => Promise<void>>;

export type Fault = keyof typeof faults;

export interface FailoverOptions {
  readonly set: ReplicaSet;
  readonly seed: number;
  readonly instances: number;
  readonly clients: number;
  /** In this order. */
  readonly faults: readonly Fault[];
  /** The number of rolling restarts of all members, as in an upgrade. */
  readonly rollingRestarts: number;
  /** Time without faults at the beginning, in milliseconds; its figures are the baseline. */
  readonly calmMs: number;
  /** Pause between two writes of the bare driver, and of the probe; the longest times without an answer need short ones. */
  readonly probeMs: number;
  readonly report: (line: string) => void;
}

/** A stretch of the run. */
export interface Stretch {
  readonly name: string;
  readonly seconds: number;
  /** Longest time without an answer of the service to any of its clients, and without one to the bare driver. */
  readonly serviceGapMs: number;
  readonly driverGapMs: number;
  readonly tries: number;
  readonly failedTries: number;
  /** From a stored revocation to the last request that any instance then accepted; 0 if there was none. */
  readonly revocationMs: number | undefined;
  /** Requests a second that one limited key got through on all instances together. */
  readonly passedPerSecond: number;
}

export interface FailoverResult {
  readonly seed: number;
  readonly seconds: number;
  readonly stretches: readonly Stretch[];
  readonly rollbacks: number;
  readonly answered: number;
  readonly namedWithKey: number;
  readonly namedWithoutKey: number;
  readonly replays: number;
  readonly acknowledgedEvents: number;
  readonly rows: number;
  readonly lost: number;
  readonly doubled: number;
  readonly unasked: number;
  readonly wrongCards: number;
  readonly quotaBefore: number;
  readonly quotaAfter: number;
  /** Lines that `ingest send` has stored, each once. */
  readonly sentLines: number;
  /** Rows that WatchEvents and `ingest tail` have reported, each once. */
  readonly watchedRows: number;
  readonly tailedRows: number;
  readonly problems: readonly string[];
}

/** The rate limit of the key under test, in requests a second. */
const limitPerSecond = 20;
/** Longest delay of a revocation, in milliseconds, under any fault of the set. */
const revocationMsMax = 5_000;

/**
 * Loads instances while the set loses its primary in one way after another. Then it compares the whole database with
 * the requests and answers. At the same time a bare driver writes, keys are revoked, and a key exceeds its limit.
 * `ingest send` sends files, and WatchEvents and `ingest tail` follow the rows.
 */
export async function failover(options: FailoverOptions): Promise<FailoverResult> {
  const { set, seed, report } = options;
  const startedMs = performance.now();
  const rollbacksBefore = await set.rollbacks();
  const client = createClient(set.uri);
  const running: Instance[] = [];
  const directory = await mkdtemp(join(tmpdir(), "ingest-failover-files-"));
  try {
    const database = `failover-${seed}`;
    const db = client.db(database);
    await migrate(db, collections);
    const admin = new Setup(db);
    const [large, small] = [await tenant(admin, 100_000_000), await tenant(admin, smallQuotaEvents)];
    const env = { MONGODB_URI: set.uri, MONGODB_DB: database };
    for (let i = 0; i < options.instances; i++) running.push(await startInstance(env));
    const urls = running.map(({ url }) => url);

    const watcher = await startWatcher(admin, large, urls);
    const tail = await startTail(env, large.organizationId);

    const ledger = new Ledger();
    const random = seeded(seed);
    const service = new Meter();
    const driver = new Meter();
    const tries = { all: 0, failed: 0 };
    const load = startLoad({
      ...{ ledger, random, running, keys: [large.key, small.key], clients: options.clients },
      onTry(isAnswered) {
        tries.all++;
        if (isAnswered) service.hit();
        else tries.failed++;
      },
    });
    const bare = startDriver(set.uri, driver, options.probeMs);
    const probe = await startProbe(admin, urls, service, options.probeMs);
    const limited = await startLimited(admin, urls);
    const sender = await startSender(admin, urls[0] as string, directory);

    const problems: string[] = [];
    const stretches: Stretch[] = [];
    const measure = async (name: string, work: () => Promise<unknown>, revocation?: Promise<number>) => {
      const begun = { ms: performance.now(), tries: { ...tries }, passed: limited.passed() };
      await work();
      const revocationMs = await revocation;
      const endMs = performance.now();
      const seconds = (endMs - begun.ms) / 1000;
      stretches.push({
        ...{ name, seconds, revocationMs },
        serviceGapMs: service.longestGap(begun.ms, endMs),
        driverGapMs: driver.longestGap(begun.ms, endMs),
        tries: tries.all - begun.tries.all,
        failedTries: tries.failed - begun.tries.failed,
        passedPerSecond: (limited.passed() - begun.passed) / seconds,
      });
      if ((revocationMs ?? 0) > revocationMsMax) problems.push(`${name}: a revocation acted after ${revocationMs} ms`);
    };

    await measure("nothing", () => delay(options.calmMs));
    const fail = async (fault: Fault) => {
      const revoke = await prepareRevocation(admin, large.appId, urls);
      const begun = Promise.withResolvers<void>();
      const revocation = begun.promise.then(() => delay(random() * 1_500)).then(revoke);
      const work = async () => {
        begun.resolve();
        await faults[fault](set, await set.primary());
        await set.whole();
        await service.hitAfter(performance.now());
      };
      await measure(`the primary ${fault}`, work, revocation);
      report(`${stretches.length - 1} of ${options.faults.length} faults, ${ledger.counts.answered} requests answered`);
    };
    for (const fault of options.faults) await fail(fault);
    // On a busy machine an election may have come just before.
    for (let more = 0; more < 3 && (await set.rollbacks()) === rollbacksBefore; more++)
      await fail("is cut off, and killed");
    for (let i = 0; i < options.rollingRestarts; i++) {
      await measure("all members are restarted in turn", () => restartInTurn(set));
    }
    const tried = await load.stop();
    await bare.stop();
    await probe.stop();
    await limited.stop();
    const sent = await sender.stop();
    await replayAll(ledger, running, random);

    const [rate, seconds] = [options.instances * limitPerSecond, stretches.reduce((sum, one) => sum + one.seconds, 0)];
    // Each instance admits requests alone while it cannot reach the others, and a burst follows each fault.
    if (limited.passed() > rate * (seconds + 2 * stretches.length)) {
      problems.push(`the limited key passed ${limited.passed()} times in ${seconds} s`);
    }
    const quotaBefore = await chargedQuota(db);
    const audit = await ledger.audit(db, {
      org: { $in: [large, small].map(({ organizationId }) => ulidOf(organizationId)) },
    });
    const sentRows = await eventCollection(db).countDocuments(rowsBetween(sender.organizationId));
    if (sentRows !== sent) problems.push(`ingest send says that ${sent} lines are stored; ${sentRows} rows are`);
    // Including those of the probe.
    const allRows = await eventCollection(db).countDocuments();
    const quotaAfter = await countedQuota(db, allRows);
    if (quotaAfter !== allRows) problems.push(`quota ${quotaAfter} after all was counted, ${allRows} rows`);
    const smallRows = await eventCollection(db).countDocuments(rowsBetween(small.organizationId));
    const smallUsage = await usageCollection(db).findOne({ organizationId: small.organizationId });
    if ((smallUsage?.events ?? 0) !== smallRows)
      problems.push(`usage says ${smallUsage?.events} events, ${smallRows} rows`);
    const watched = await watcher.stop(db, large.organizationId);
    const tailed = await tail.stop(db, large.organizationId);
    ledger.problems.push(...problems, ...watched.problems, ...tailed.problems, ...sender.problems);
    report(`${tried} tries`);
    return {
      ...{ seed, seconds: Math.round((performance.now() - startedMs) / 1000), stretches },
      rollbacks: (await set.rollbacks()) - rollbacksBefore,
      ...ledger.counts,
      ...audit,
      ...{ quotaBefore, quotaAfter, sentLines: sent, watchedRows: watched.rows, tailedRows: tailed.rows },
      problems: ledger.problems,
    };
  } finally {
    await Promise.all(running.map((instance) => instance.kill()));
    await client.close();
    await rm(directory, { recursive: true, force: true });
  }
}

/** The times of answers. */
class Meter {
  readonly #atMs: number[] = [];
  #next = Promise.withResolvers<void>();

  hit(): void {
    this.#atMs.push(performance.now());
    this.#next.resolve();
    this.#next = Promise.withResolvers();
  }

  /** Waits for the first answer after the moment. */
  async hitAfter(ms: number): Promise<void> {
    while ((this.#atMs.at(-1) ?? 0) < ms) await this.#next.promise;
  }

  /** The longest time without an answer that overlaps the stretch, in milliseconds. */
  longestGap(fromMs: number, toMs: number): number {
    const before = this.#atMs.findLast((ms) => ms < fromMs) ?? fromMs;
    const within = this.#atMs.filter((ms) => ms >= fromMs && ms <= toMs);
    const all = [before, ...within, toMs];
    return Math.round(Math.max(...all.slice(1).map((ms, i) => ms - (all[i] as number))));
  }
}

/** The most concurrent requests of the probe, and of the bare driver. */
const underWayMax = 400;

/**
 * The best that a database client can do: a majority insert every `everyMs`, however many hang. Each is repeated until it
 * is acknowledged.
 */
function startDriver(uri: string, meter: Meter, everyMs: number): { stop: () => Promise<void> } {
  const client = new MongoClient(uri, { appName: "bare", serverSelectionTimeoutMS: 2_000, maxPoolSize: underWayMax });
  const collection = client
    .db("bare")
    .collection<{ _id: string }>("rows", { writeConcern: { w: "majority", j: true } });
  const run = performance.now();
  const underWay = new Set<Promise<void>>();
  let stopped = false;
  const insert = (_id: string): Promise<void> =>
    collection.insertOne({ _id }).then(
      () => meter.hit(),
      async () => {
        await delay(20);
        // An insert whose acknowledgement was lost is stored.
        if (!stopped) await insert(`${_id}+`);
      },
    );
  const beginning = (async () => {
    for (let i = 0; !stopped; i++) {
      if (underWay.size < underWayMax) {
        const one = insert(`${run}/${i}`).finally(() => underWay.delete(one));
        underWay.add(one);
      }
      await delay(everyMs);
    }
  })();
  return {
    async stop() {
      stopped = true;
      await beginning;
      await Promise.all(underWay);
      await client.close();
    },
  };
}

/** An event every `everyMs`, to one instance after another, however many hang; compared with the bare driver. */
async function startProbe(admin: Setup, urls: readonly string[], meter: Meter, everyMs: number) {
  const { key } = await tenant(admin, 100_000_000);
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const actor = { externalId: "probe" };
  const body = JSON.stringify({ events: [{ eventType: "ticket.probe", category: "other", actor }] });
  const underWay = new Set<Promise<void>>();
  let stopped = false;
  const send = (url: string): Promise<void> =>
    fetch(`${url}/api/v1/ingest/events`, { method: "POST", headers, body }).then(
      async (response) => {
        await response.arrayBuffer();
        if (response.status === 202) meter.hit();
      },
      () => {},
    );
  const sending = (async () => {
    for (let i = 0; !stopped; i++) {
      if (underWay.size < underWayMax) {
        const one = send(urls[i % urls.length] as string).finally(() => underWay.delete(one));
        underWay.add(one);
      }
      await delay(everyMs);
    }
  })();
  return {
    async stop() {
      stopped = true;
      await sending;
      await Promise.all(underWay);
    },
  };
}

const ping = (url: string, key: string) =>
  fetch(`${url}/api/v1/ingest/ping`, { headers: { authorization: `Bearer ${key}` } }).then(
    async (response) => (await response.arrayBuffer(), response.status),
    () => 0,
  );

/**
 * Creates a key that every instance has cached. Returns a function that revokes it, and reports how long after that the
 * last accepted request was sent.
 */
async function prepareRevocation(admin: Setup, appId: string, urls: readonly string[]): Promise<() => Promise<number>> {
  const { id, key } = await admin.createKey(appId);
  for (const url of urls) while ((await ping(url, key)) !== 200) await delay(20);
  return async () => {
    const last = urls.map(() => 0);
    const asking = urls.map(async (url, i) => {
      for (;;) {
        const sentMs = performance.now();
        const status = await ping(url, key);
        if (status === 401) return;
        if (status === 200) last[i] = sentMs;
        await delay(20);
      }
    });
    while (!(await admin.revokeKey(id).then(...asBoolean))) await delay(20);
    const revokedMs = performance.now();
    await Promise.all(asking);
    return Math.max(0, Math.round(Math.max(...last) - revokedMs));
  };
}

const asBoolean = [() => true, () => false] as const;

/** Sends one key more often than its limit allows, to every instance. */
async function startLimited(admin: Setup, urls: readonly string[]) {
  const { id } = await admin.createOrganization({ name: "Limited", keyRequestsPerSecond: limitPerSecond });
  const { key } = await admin.createKey((await admin.createApp(id, "limited", "Limited", ["ticket.*"])).id);
  let stopped = false;
  let passed = 0;
  const loops = urls.map(async (url) => {
    while (!stopped) {
      if ((await ping(url, key)) === 200) passed++;
      await delay(25);
    }
  });
  return {
    passed: () => passed,
    async stop() {
      stopped = true;
      await Promise.all(loops);
    },
  };
}

const linesOfFile = 400;

/** Sends file after file with `ingest send`; `stop` waits for the last one and returns the number of stored lines. */
async function startSender(admin: Setup, url: string, directory: string) {
  const { organizationId, key } = await tenant(admin, 100_000_000);
  const problems: string[] = [];
  let stopped = false;
  let lines = 0;
  const sending = (async () => {
    for (let file = 0; !stopped; file++) {
      const path = join(directory, `${file}.ndjson`);
      const line = JSON.stringify({
        ...{ eventType: "ticket.sent", category: "project_management", actor: { externalId: `file-${file}` } },
      });
      await writeFile(path, `${line}\n`.repeat(linesOfFile));
      const { code, stderr } = await runIngest(["send", path, "--url", url, "--key", key], {});
      if (code === 0) lines += linesOfFile;
      else problems.push(`ingest send ended with ${code}: ${stderr}`);
      await delay(500);
    }
  })();
  return {
    organizationId,
    problems,
    async stop() {
      stopped = true;
      await sending;
      return lines;
    },
  };
}

/** Watches the organisation's rows on one instance after another, each time from where the last one ended. */
async function startWatcher(admin: Setup, { appId }: { appId: string }, urls: readonly string[]) {
  const { key } = await admin.createKey(appId, undefined, "read");
  const seen: string[] = [];
  const stop = new AbortController();
  let resumeToken: string | undefined;
  const opened = Promise.withResolvers<void>();
  const watching = (async () => {
    for (let turn = 0; !stop.signal.aborted; turn++) {
      const query = resumeToken === undefined ? {} : { resumeToken };
      const headers = { authorization: `Bearer ${key}` };
      try {
        const stream = watchers["REST lines"]!(urls[turn % urls.length] as string, query, headers, stop.signal);
        for await (const told of stream as AsyncIterable<{ events: { id: string }[]; resumeToken: string }>) {
          resumeToken = told.resumeToken;
          opened.resolve();
          seen.push(...told.events.map(({ id }) => id));
        }
      } catch {
        await delay(100);
      }
    }
  })();
  await opened.promise;
  return {
    async stop(db: Db, organizationId: string) {
      const told = await tellsAll("WatchEvents", seen, db, organizationId);
      stop.abort();
      await watching;
      return told;
    },
  };
}

async function startTail(env: Record<string, string>, organizationId: string) {
  const child: ChildProcess = spawn(process.execPath, ["src/cli.ts", "tail", "--json", "--org", organizationId], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let said = "";
  child.stderr?.on("data", (data: Buffer) => (said = `${said}${data.toString()}`.slice(-2_000)));
  const ended = once(child, "close").then(([code]) => `ingest tail ended with ${code}: ${said}`);
  const seen: string[] = [];
  createInterface({ input: child.stdout as NodeJS.ReadableStream }).on("line", (line) => {
    const { row } = JSON.parse(line) as { row?: { id: string } };
    if (row !== undefined) seen.push(row.id);
  });
  await new Promise<void>((resolve) => {
    createInterface({ input: child.stderr as NodeJS.ReadableStream }).on("line", (line) => {
      if (line.includes("Waiting for events")) resolve();
    });
  });
  return {
    async stop(db: Db, id: string) {
      const early = child.exitCode === null ? [] : [await ended];
      const told = await tellsAll("ingest tail", seen, db, id);
      child.kill("SIGINT");
      await ended;
      return { ...told, problems: [...told.problems, ...early] };
    },
  };
}

/** Waits until a stream has reported every row, and returns its errors. */
async function tellsAll(name: string, seen: readonly string[], db: Db, organizationId: string) {
  const rows = await eventCollection(db)
    .find(rowsBetween(organizationId), { readConcern: "majority" })
    .map((row) => rowOf(row).id)
    .toArray();
  const missing = () => {
    const told = new Set(seen);
    return rows.filter((id) => !told.has(id));
  };
  const deadlineMs = performance.now() + 20_000;
  while (missing().length > 0 && performance.now() < deadlineMs) await delay(200);
  const [stored, problems] = [new Set(rows), [] as string[]];
  const strangers = seen.filter((id) => !stored.has(id));
  if (strangers.length > 0)
    problems.push(`${name} told of ${strangers.length} rows that are not stored: ${strangers[0]}`);
  const twice = seen.length - new Set(seen).size;
  if (twice > 0) problems.push(`${name} told of ${twice} rows twice`);
  if (missing().length > 0) problems.push(`${name} has not told of ${missing().length} rows: ${missing()[0]}`);
  return { rows: seen.length, problems };
}

/** As in an upgrade: the secondaries first, then the primary after it has stepped down. */
async function restartInTurn(set: ReplicaSet): Promise<void> {
  const primary = await set.primary();
  for (const index of [0, 1, 2].filter((one) => one !== primary)) {
    await set.end(index, "SIGTERM");
    await set.restart(index);
    await set.whole();
  }
  await set.stepDown(primary);
  await set.primary();
  await set.end(primary, "SIGTERM");
  await set.restart(primary);
  await set.whole();
}
