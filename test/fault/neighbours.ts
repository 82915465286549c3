import { randomBytes } from "node:crypto";
import { Agent, get, type IncomingMessage, request as http1Request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { timelineLimits } from "../../src/limits.ts";
import type { Attack, Target } from "./attacks.ts";

/**
 * How one customer can take everything within its rate limits: much work for each request, many keys, many streams. The
 * contract allows all of it, so most of it happens without malice.
 */
export const neighbourAttacks: readonly Attack[] = [
  {
    name: "ten keys of one organisation, 500 events a batch",
    run: (target) =>
      batchLoad(target, target.neighbour.keys, 40, () => batchOf(500, (i) => ({ externalId: `n-${i}` }))),
  },
  {
    name: "ten keys of one organisation, 500 events and an Idempotency-Key a batch",
    run: (target) =>
      batchLoad(
        target,
        target.neighbour.keys,
        40,
        () => batchOf(500, (i) => ({ externalId: `n-${i}` })),
        () => ({ "idempotency-key": randomBytes(16).toString("hex") }),
      ),
  },
  {
    name: "500 events of workers that do not exist, a batch",
    run: (target) =>
      batchLoad(target, target.neighbour.keys.slice(0, 1), 8, () =>
        batchOf(500, (i) => (i === 0 ? { externalId: "n-0" } : { workerId: `wrk_none_${i}` })),
      ),
  },
  {
    name: "external ids for 500 workers known by email, a batch",
    async prepare(target) {
      const [key] = target.neighbour.keys as [string];
      await stored(target, key, batchOf(500, emailOf));
    },
    run: (target) =>
      batchLoad(target, target.neighbour.keys.slice(0, 1), 8, () => {
        const run = randomBytes(6).toString("hex");
        return batchOf(500, (i) => ({ ...emailOf(i), externalId: `c-${run}-${i}` }));
      }),
  },
  {
    name: "500 new workers a batch",
    run: (target) =>
      batchLoad(target, target.neighbour.keys.slice(0, 1), 8, () => {
        const run = randomBytes(6).toString("hex");
        return batchOf(500, (i) => ({ externalId: `w-${run}-${i}`, email: `w-${run}-${i}@example.com` }));
      }),
  },
  {
    name: "pages of 500 rows of 16 KB",
    prepare: storeLargeRows,
    run: (target) => pageLoad(target, "pageSize=500"),
  },
  {
    name: "a filter that fits none of 10 000 rows",
    async prepare(target) {
      const [key] = target.neighbour.keys as [string];
      for (let i = 0; i < (target.scale.untilCut ? 20 : 1); i++) {
        await stored(
          target,
          key,
          batchOf(500, (j) => ({ externalId: `n-${j}` })),
        );
      }
    },
    run: (target) => pageLoad(target, "type=ticket.never"),
  },
  { name: "WatchEvents opened again and again", run: openAndClose },
  {
    name: "20 WatchEvents readers that catch up and stall",
    prepare: storeLargeRows,
    run: (target) => stalledReaders(target, [target.neighbour.readKey]),
  },
  {
    name: "100 WatchEvents readers of five organisations that catch up and stall",
    async prepare(target) {
      await storeLargeRows(target);
      for (const { key, readKey } of target.neighbour.others) await storeLargeRowsOf(target, key, readKey);
    },
    run: (target) =>
      stalledReaders(target, [target.neighbour.readKey, ...target.neighbour.others.map(({ readKey }) => readKey)]),
  },
];

const emailOf = (i: number) => ({ email: `known-${i}@example.com` });

function batchOf(count: number, actorOf: (i: number) => object, metadata?: object): string {
  const events = Array.from({ length: count }, (_, i) => ({
    eventType: "ticket.resolved",
    category: "project_management",
    actor: actorOf(i),
    metadata,
  }));
  return JSON.stringify({ events });
}

interface Answer {
  readonly status: number;
  readonly body: string;
}

function call(
  target: Target,
  key: string,
  agent: Agent,
  path: string,
  body?: string,
  extra: Record<string, string> = {},
): Promise<Answer> {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json", ...extra };
  const method = body === undefined ? "GET" : "POST";
  return new Promise((resolve, reject) => {
    const options = { host: "127.0.0.1", port: target.port, method, path, agent, headers };
    const sent = http1Request(options, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.once("error", reject);
      response.once("end", () =>
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString("utf8") }),
      );
    });
    sent.once("error", reject);
    sent.end(body);
  });
}

/** A customer waits when asked, but shorter than asked, so that it is back as soon as possible. */
const waitMs = 100;

const eventsPath = "/api/v1/ingest/events";

async function stored(target: Target, key: string, body: string): Promise<void> {
  const agent = new Agent();
  const { status, body: text } = await call(target, key, agent, eventsPath, body);
  agent.destroy();
  if (status !== 202) throw new Error(`a batch was answered with ${status}: ${text.slice(0, 300)}`);
}

/** Endless requests over this many connections. Only success and retryable refusals are right answers. */
async function load(target: Target, connections: number, send: (agent: Agent, i: number) => Promise<Answer>) {
  const end = Date.now() + target.scale.floodMs;
  const counts = new Map<number, number>();
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  await Promise.all(
    Array.from({ length: connections }, async (_, i) => {
      do {
        const { status, body } = await send(agent, i);
        if (![200, 202, 207, 429, 500].includes(status))
          throw new Error(`answered with ${status}: ${body.slice(0, 300)}`);
        counts.set(status, (counts.get(status) ?? 0) + 1);
        if (status === 429) await sleep(waitMs, undefined, { ref: false });
      } while (Date.now() < end);
    }),
  );
  agent.destroy();
  if (![200, 202, 207].some((status) => counts.has(status))) throw new Error("the neighbour itself was never served");
  return [...counts].map(([status, count]) => `${count} answered ${status}`).join(", ");
}

/** Connections at once; a short run takes a quarter of them. */
const share = ({ scale }: Target, connections: number) => (scale.untilCut ? connections : connections / 4);

const batchLoad = (
  target: Target,
  keys: readonly string[],
  connections: number,
  bodyOf: () => string,
  headersOf?: () => Record<string, string>,
) =>
  load(target, share(target, connections), (agent, i) =>
    call(target, keys[i % keys.length] as string, agent, eventsPath, bodyOf(), headersOf?.()),
  );

const pageLoad = (target: Target, query: string) =>
  load(target, share(target, 16), (agent) =>
    call(target, target.neighbour.readKey, agent, `/api/v1/timeline/events?${query}`),
  );

/** 500 rows of 16 KB, and the place before them for watchers. */
function storeLargeRows(target: Target): Promise<void> {
  return storeLargeRowsOf(target, target.neighbour.keys[0] as string, target.neighbour.readKey);
}

async function storeLargeRowsOf(target: Target, key: string, readKey: string): Promise<void> {
  const first = await openWatchWhenAllowed(target, readKey);
  resumeTokens.set(readKey, (JSON.parse(first.line) as { resumeToken: string }).resumeToken);
  first.response.destroy();
  const metadata = { text: "x".repeat(16_000) };
  for (let i = 0; i < (target.scale.untilCut ? 9 : 1); i++) {
    await stored(
      target,
      key,
      batchOf(60, (j) => ({ externalId: `n-${j}` }), metadata),
    );
  }
}

/** By read key. */
const resumeTokens = new Map<string, string>();

/** Opens a stream and waits for its first line. */
function openWatch(
  target: Target,
  readKey: string,
  query: string,
  signal?: AbortSignal,
): Promise<{ response: IncomingMessage; line: string }> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${readKey}` };
    const path = `/api/v1/timeline/events:watch?${query}`;
    const sent = get({ host: "127.0.0.1", port: target.port, path, headers, agent: false, signal }, (response) => {
      response.on("error", () => {});
      if (response.statusCode !== 200) {
        response.resume();
        return reject(new WatchRefused(response.statusCode ?? 0));
      }
      let text = "";
      response.on("data", (chunk: Buffer) => {
        text += chunk.toString("utf8");
        if (!text.includes("\n")) return;
        response.removeAllListeners("data");
        response.pause();
        resolve({ response, line: text.slice(0, text.indexOf("\n")) });
      });
    });
    sent.once("error", reject);
  });
}

/** The attack before may have used up the key's rate and the organisation's places. */
async function openWatchWhenAllowed(target: Target, readKey: string): ReturnType<typeof openWatch> {
  const end = Date.now() + 10_000;
  for (;;) {
    try {
      return await openWatch(target, readKey, "");
    } catch (error) {
      if (!(error instanceof WatchRefused) || error.status !== 429 || Date.now() > end) throw error;
      await sleep(waitMs, undefined, { ref: false });
    }
  }
}

class WatchRefused extends Error {
  readonly status: number;
  constructor(status: number) {
    super(`WatchEvents was answered with ${status}`);
    this.status = status;
  }
}

async function openAndClose(target: Target): Promise<string> {
  const end = Date.now() + target.scale.floodMs;
  let opened = 0;
  let refused = 0;
  await Promise.all(
    Array.from({ length: 16 }, async () => {
      do {
        try {
          (await openWatch(target, target.neighbour.readKey, "")).response.destroy();
          opened++;
        } catch (error) {
          if (!(error instanceof WatchRefused) || ![429, 500].includes(error.status)) throw error;
          refused++;
          await sleep(waitMs, undefined, { ref: false });
        }
      } while (Date.now() < end);
    }),
  );
  if (opened === 0) throw new Error("no stream was ever opened");
  return `${opened} opened, ${refused} refused`;
}

/**
 * The allowed number of readers of each organisation begin before the large rows and read only one line. Some never get
 * it, because they wait for a turn.
 */
async function stalledReaders(target: Target, readKeys: readonly string[]): Promise<string> {
  const end = new AbortController();
  const first = Promise.withResolvers<void>();
  let held = 0;
  let refused = 0;
  const opened = readKeys.flatMap((readKey) =>
    Array.from({ length: timelineLimits.organizationWatchersMax }, async () => {
      const query = `resumeToken=${encodeURIComponent(resumeTokens.get(readKey) as string)}`;
      try {
        await openWatch(target, readKey, query, end.signal);
        held++;
        first.resolve();
      } catch (error) {
        if (error instanceof WatchRefused) refused++;
        else if (!end.signal.aborted) throw error;
      }
    }),
  );
  const all = Promise.all(opened);
  await Promise.race([first.promise, all]);
  await sleep(target.scale.floodMs);
  end.abort();
  await all;
  if (held === 0) throw new Error("no reader was ever served");
  return `${held} held, ${refused} refused, ${opened.length - held - refused} waited for their turn`;
}
