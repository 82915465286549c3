import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createReadStream, existsSync } from "node:fs";
import { appendFile, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { PassThrough } from "node:stream";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { createCaller, createPoster } from "../../src/send/client.ts";
import { sourceKinds } from "../../src/send/kinds.ts";
import type { SendOptions } from "../../src/send/send.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { rowsBetween } from "../../src/store/events.ts";
import { type HereOptions, type RunOptions, runSend, sendInProcess } from "../support/send.ts";
import { createTenant, startService, type Tenant, type TestService } from "../support/service.ts";
import { storedRows } from "../support/rows.ts";

vi.setConfig({ testTimeout: 120_000 });

let service: TestService;
let directory: string;

beforeAll(async () => {
  service = await startService();
  directory = await mkdtemp(join(tmpdir(), "ingest-send-"));
});
afterAll(async () => {
  await service.app.close();
  await rm(directory, { recursive: true, force: true });
});

let files = 0;
async function file(text: string, ending = "ndjson"): Promise<string> {
  const path = join(directory, `${++files}.${ending}`);
  await writeFile(path, text);
  return path;
}

const event = (n: number, change: object = {}) => ({
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: `al-${n % 5}` },
  metadata: { n },
  ...change,
});
const lines = (events: readonly unknown[]) => events.map((one) => `${JSON.stringify(one)}\n`).join("");
const many = (count: number, from = 0) => lines(Array.from({ length: count }, (_, i) => event(from + i)));

const send = (key: string, args: readonly string[], url = service.app.url, options: RunOptions = {}) =>
  runSend(key, url, args, options);

/** The same in this process, which saves starting one. */
const sendHere = (
  key: string,
  path: string,
  { url = service.app.url, ...options }: HereOptions & { url?: string } = {},
) => sendInProcess(key, url, path, options);

const rejectedOf = async (path: string): Promise<any[]> =>
  (await readFile(`${path}.rejected.ndjson`, "utf8"))
    .trim()
    .split("\n")
    .map((text) => JSON.parse(text));

async function stored({ organizationId }: Tenant): Promise<number[]> {
  const rows = await storedRows(service.app.db, rowsBetween(organizationId));
  return rows.map(({ metadata }) => Number(metadata?.n)).sort((a, b) => a - b);
}
/** Forwards to the service and answers with the result of `answerTo`; hangs up if there is none. */
async function startProxy(answerTo: (ask: () => Promise<Response>) => Promise<Response | undefined>) {
  const server = createServer(async (request, response) => {
    const body = await new Response(request as never).arrayBuffer();
    const { host, connection, ...headers } = request.headers as Record<string, string>;
    const isPost = request.method === "POST";
    const ask = () =>
      fetch(service.app.url + request.url, { method: request.method!, headers, ...(isPost ? { body } : {}) });
    // What the key belongs to is asked first.
    const answer = await (isPost ? answerTo(ask) : ask());
    if (answer === undefined) return void request.socket.destroy();
    const retryAfter = answer.headers.get("retry-after");
    response.writeHead(answer.status, retryAfter === null ? {} : { "retry-after": retryAfter });
    response.end(await answer.text());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: () => void server.close(),
  };
}

const upTo = (count: number) => Array.from({ length: count }, (_, n) => n);

test.concurrent("a completely sent file is not sent again; a second run sends only added lines", async () => {
  const tenant = await createTenant(service.admin);
  const path = await file(many(1_234));
  const first = await send(tenant.key, [path]).ended;
  expect(first.code, first.err).toBe(0);
  expect(JSON.parse(first.out)).toMatchObject({ accepted: 1_234, rejected: 0, alreadySent: 0, stopped: null });
  expect(await sendHere(tenant.key, path)).toMatchObject({ accepted: 0, alreadySent: 1_234 });
  await appendFile(path, many(10, 1_234));
  expect(await sendHere(tenant.key, path)).toMatchObject({ accepted: 10, alreadySent: 1_234 });
  expect(await stored(tenant)).toEqual(upTo(1_244));
  const changed = (await readFile(path, "utf8")).replace('"n":7}', '"n":70000}');
  await writeFile(path, changed);
  expect(await sendHere(tenant.key, path)).toMatchObject({
    stopped: expect.stringContaining("differs from what an earlier run has sent"),
    isMistake: true,
  });
  expect(await stored(tenant)).toEqual(upTo(1_244));
});

test.concurrent("after any number of kills it continues, and stores every event once", async () => {
  const tenant = await createTenant(service.admin);
  const total = 15_000;
  const path = await file(many(total));
  const done = async () => (await readFile(`${path}.ingest-state`, "utf8").catch(() => "")).split('{"done"').length - 1;
  for (let kills = 0; kills < 2; kills++) {
    const before = await done();
    const { process: child, ended } = send(tenant.key, [path, "--concurrency", "3"]);
    await vi.waitFor(async () => expect(await done()).toBeGreaterThan(before + kills), {
      timeout: 60_000,
      interval: 2,
    });
    child.kill("SIGKILL");
    await ended;
  }
  expect(await stored(tenant)).not.toHaveLength(total);
  const last = await send(tenant.key, [path]).ended;
  expect(last.code, last.err).toBe(0);
  expect(await stored(tenant)).toEqual(upTo(total));
});

test.concurrent(
  "lines that cannot be accepted are recorded with line and reason, and all others are sent",
  async () => {
    const tenant = await createTenant(service.admin);
    const path = await file(
      [
        JSON.stringify(event(0)),
        "{ not json",
        "",
        JSON.stringify(event(1, { duration: -1 })),
        JSON.stringify(event(2, { eventType: "deploy.x" })),
        JSON.stringify(event(3, { actor: { workerId: "wrk_x" } })),
        JSON.stringify(event(4)),
      ].join("\r\n"),
    );
    const run = await send(tenant.key, [path]).ended;
    expect(run.code, run.err).toBe(3);
    expect(JSON.parse(run.out)).toMatchObject({
      accepted: 2,
      rejected: 2,
      toSendAgain: 2,
      rejectedFile: `${path}.rejected.ndjson`,
    });
    expect(JSON.parse(run.out).reasons).toMatchObject([
      { code: "invalid_body", lines: 2, firstLine: 2 },
      { code: "forbidden_event_type", lines: 1, firstLine: 5, message: "eventType 'deploy.x' is not whitelisted." },
      { code: "worker_not_found", lines: 1, firstLine: 6 },
    ]);
    expect(await stored(tenant)).toEqual([0, 4]);
    const rejected = await rejectedOf(path);
    expect(rejected.map(({ line, code }) => [line, code])).toEqual([
      [2, "invalid_body"],
      [4, "invalid_body"],
    ]);
    expect(rejected[1].event).toEqual(event(1, { duration: -1 }));
    expect(rejected[1].message).toMatch(/^duration: /);
  },
);

test.concurrent("only \n ends a line, whatever JSON allows in it and wherever a chunk ends", async () => {
  const tenant = await createTenant(service.admin);
  const note = "\u2028ä\u2029😀";
  const texts = [...upTo(3).map((n) => JSON.stringify(event(n, { metadata: { n, note } }))), "{ not json"];
  const path = await file(`\uFEFF${texts[0]}\r\n\n${texts[1]}\n${texts[3]}\n${texts[2]}`);
  // One byte at a time.
  const source = createReadStream(path, { highWaterMark: 1 });
  expect(await sendHere(tenant.key, path, { source })).toMatchObject({ accepted: 3, rejected: 1 });
  expect(await rejectedOf(path)).toMatchObject([{ line: 4, code: "invalid_body" }]);
  const rows = await storedRows(service.app.db, rowsBetween(tenant.organizationId));
  expect(rows.map(({ metadata }) => metadata?.note)).toEqual([note, note, note]);
});

test.concurrent("if the service refuses a batch for one event, halving finds that event", async () => {
  const tenant = await createTenant(service.admin);
  const path = await file(many(20));
  const post = createPoster(createCaller(service.app.url, tenant.key), sourceKinds.event);
  const refused = { kind: "refused", refusal: { code: "invalid_body", message: "13" } } as const;
  // A service with a rule that this program does not know.
  const strict: SendOptions["post"] = (events) =>
    events.some(({ json }) => json.includes('"n":13}')) ? Promise.resolve(refused) : post(events);
  expect(await sendHere(tenant.key, path, { post: strict })).toMatchObject({ accepted: 19, rejected: 1 });
  expect(await stored(tenant)).toEqual(upTo(20).filter((n) => n !== 13));
  expect(await rejectedOf(path)).toEqual([{ line: 14, code: "invalid_body", message: "13", event: event(13) }]);
});

test.concurrent("CSV is sent by the names of its columns; an unknown column is refused", async () => {
  const tenant = await createTenant(service.admin);
  const header = "eventType,category,email,duration,timestamp,metadata,metadata.note";
  const path = await file(
    `\uFEFF${header}\nticket.resolved,project_management,Al@x.org,60,2026-04-19T12:05:00Z,"{""n"":0}","two\nlines, ""quoted"""\nticket.resolved,project_management,bo@x.org,,,"{""n"":1}",\nticket.resolved,support\n`,
    "csv",
  );
  expect(await sendHere(tenant.key, path)).toMatchObject({ accepted: 2, rejected: 1 });
  const [first] = await storedRows(service.app.db, { ...rowsBetween(tenant.organizationId), "metadata.n": 0 });
  expect(first).toMatchObject({ durationSeconds: 60, metadata: { n: 0, note: 'two\nlines, "quoted"' } });
  expect(first?.timestamp.toISOString()).toBe("2026-04-19T12:05:00.000Z");
  expect(await rejectedOf(path)).toMatchObject([{ line: 5, code: "invalid_body" }]);
  const wrong = await file("eventType,catgory\nticket.x,support\n", "csv");
  expect(await sendHere(tenant.key, wrong)).toMatchObject({
    stopped: expect.stringContaining("catgory"),
    isMistake: true,
  });
});

test.concurrent("it waits as the rate limit says, and reads standard input", async () => {
  const tenant = await createTenant(service.admin, { name: "Slow", keyRequestsPerSecond: 2 });
  const args = ["-", "--rejected", join(directory, "stdin.rejected"), "--concurrency", "8"];
  const run = await send(tenant.key, args, service.app.url, { input: many(2_100) }).ended;
  expect(run.code, run.err).toBe(0);
  expect(await stored(tenant)).toEqual(upTo(2_100));
});

test.concurrent("a refused key or an exhausted quota stops it; once fixed, it continues", async () => {
  const tenant = await createTenant(service.admin, { name: "Small", quotaEventsPerMonth: 700 });
  const path = await file(many(1_500));
  const wrong = await sendHere(`wp_live_${"0".repeat(32)}`, path);
  expect(wrong.stopped).toContain("invalid_key");
  const small = await sendHere(tenant.key, path, { concurrency: 1 });
  expect(small).toMatchObject({ accepted: 700, rejected: 0, toSendAgain: 300 });
  expect(small.stopped).toContain("quota of 700 events");
  await service.admin.updateOrganization(tenant.organizationId, { quotaEventsPerMonth: 5_000 });
  await vi.waitFor(async () => expect((await sendHere(tenant.key, path)).stopped).toBeUndefined(), {
    timeout: 20_000,
  });
  expect(await stored(tenant)).toEqual(upTo(1_500));
});

test.concurrent("it retries when the service fails or hangs up halfway, and stores nothing twice", async () => {
  const tenant = await createTenant(service.admin);
  let requests = 0;
  // The proxy fails before or after the service has stored the request.
  const between = await startProxy(async (ask) => {
    const number = ++requests;
    if (number % 4 === 1) return undefined;
    if (number % 4 === 2) return new Response("not even JSON", { status: 500, headers: { "retry-after": "1" } });
    const answer = await ask();
    return number % 4 === 3 ? undefined : answer;
  });
  try {
    const result = await sendHere(tenant.key, await file(many(1_300)), { url: between.url });
    expect(result).toMatchObject({ accepted: 1_300, rejected: 0, stopped: undefined });
    expect(requests).toBeGreaterThan(3);
    expect(await stored(tenant)).toEqual(upTo(1_300));
  } finally {
    between.close();
  }
});

test.concurrent("without a service it gives up; a wrong command line gets another exit code", async () => {
  const tenant = await createTenant(service.admin);
  const path = await file(many(3));
  const nobody = await send(tenant.key, [path, "--give-up", "1"], "http://127.0.0.1:11111").ended;
  expect(nobody.code).toBe(3);
  expect(JSON.parse(nobody.out).stopped).toContain("has not answered for 1 s");
  expect(await sendHere(tenant.key, path)).toMatchObject({ accepted: 3 });
  expect(await stored(tenant)).toEqual(upTo(3));
  for (const [args, reason] of [
    [[path, "--concurrency", "0"], "from 1 to"],
    [[`${path}.missing`], "There is no such file."],
    [[dirname(path)], "It is a directory"],
  ] as const) {
    const refused = await send(tenant.key, [...args]).ended;
    expect(refused.code).toBe(2);
    expect(refused.err).toContain(reason);
  }
  expect(existsSync(`${path}.missing.rejected.ndjson`)).toBe(false);
});

test.concurrent("a failed write ends it with the reason, even while it waits for more input", async () => {
  const tenant = await createTenant(service.admin);
  const input = `{ not json\n${many(499)}`;
  for (const args of [[await file(input + many(2_000, 499))], ["-"]]) {
    const rejected = join(directory, "missing", "rejected.ndjson");
    const run = send(tenant.key, [...args, "--rejected", rejected], service.app.url, { input, isOpen: true });
    const { code, out, err } = await run.ended;
    expect(code, err).toBe(3);
    expect(err.trimEnd().split("\n").at(-1)).toBe(`ENOENT: no such file or directory, open '${rejected}'`);
    expect(out).toBe("");
  }
});

test.concurrent("interrupted while it waits for more input, it ends with the results so far", async () => {
  const tenant = await createTenant(service.admin);
  const path = join(directory, "idle");
  const args = ["-", "--state", `${path}.state`, "--rejected", `${path}.rejected`];
  const { process: child, ended } = send(tenant.key, args, service.app.url, { input: many(520), isOpen: true });
  await vi.waitFor(async () => expect(await stored(tenant)).toHaveLength(500), { timeout: 60_000 });
  child.kill("SIGTERM");
  const { code, out, err } = await ended;
  expect(code, err).toBe(3);
  expect(JSON.parse(out)).toMatchObject({ accepted: 500, rejected: 0, stopped: "It was interrupted." });
  expect(await stored(tenant)).toEqual(upTo(500));
  const again = await send(tenant.key, args, service.app.url, { input: many(530) }).ended;
  expect(again.code, again.err).toBe(0);
  expect(JSON.parse(again.out)).toMatchObject({ accepted: 30, alreadySent: 500, stopped: null });
  expect(await stored(tenant)).toEqual(upTo(530));
});

test.concurrent("a stop never waits for more input", async () => {
  const tenant = await createTenant(service.admin);
  const wrongKey = `wp_live_${"0".repeat(32)}`;
  const csv = `eventType,category,email\n${"ticket.resolved,project_management,al@x.org\n".repeat(510)}`;
  for (const [ending, text] of [
    ["ndjson", many(510)],
    ["csv", csv],
  ] as const) {
    const idle = () => {
      const source = new PassThrough();
      source.write(text);
      return source;
    };
    const refused = await sendHere(wrongKey, await file("", ending), { source: idle() });
    expect(refused.stopped).toContain("invalid_key");
    const interrupt = new AbortController();
    const { signal } = interrupt;
    // Requests in flight finish.
    const post: SendOptions["post"] = (events) => {
      interrupt.abort();
      return createPoster(createCaller(service.app.url, tenant.key), sourceKinds.event)(events);
    };
    const interrupted = await sendHere(tenant.key, await file("", ending), { source: idle(), post, signal });
    expect(interrupted).toMatchObject({ accepted: 500, stopped: "It was interrupted." });
    const early = await sendHere(tenant.key, await file("", ending), { source: idle(), signal });
    expect(early).toMatchObject({ accepted: 0, stopped: "It was interrupted." });
  }
});

test.concurrent("interrupted while it waits for the last answers, it still counts as complete", async () => {
  const tenant = await createTenant(service.admin);
  const interrupt = new AbortController();
  const post = createPoster(createCaller(service.app.url, tenant.key), sourceKinds.event);
  const late: SendOptions["post"] = async (events) => {
    const reply = await post(events);
    interrupt.abort();
    return reply;
  };
  const sent = await sendHere(tenant.key, await file(many(3)), { post: late, signal: interrupt.signal });
  expect(sent).toMatchObject({ accepted: 3, stopped: undefined });
});

const snapshot = (n: number, change: object = {}) => ({
  snapshotType: "tickets_open",
  actor: { externalId: `al-${n % 5}` },
  metrics: { open: n },
  metadata: { n },
  ...change,
});

test.concurrent(
  "a file of snapshots is sent one by one: each once despite kills, the refused ones with reasons",
  async () => {
    const tenant = await createTenant(service.admin);
    const total = 600;
    const refused = [
      snapshot(0, { metrics: {} }),
      snapshot(0, { actor: {} }),
      snapshot(0, { actor: { workerId: "wrk_x" } }),
      event(0),
    ];
    const path = await file(lines([...refused, ...Array.from({ length: total }, (_, n) => snapshot(n))]));
    const done = async () =>
      (await readFile(`${path}.ingest-state`, "utf8").catch(() => "")).split('{"done"').length - 1;
    const { process: child, ended } = send(tenant.key, [path, "--snapshots"]);
    await vi.waitFor(async () => expect(await done()).toBeGreaterThan(20), { timeout: 60_000, interval: 2 });
    child.kill("SIGKILL");
    await ended;
    expect(await stored(tenant)).not.toHaveLength(total);
    const last = await send(tenant.key, [path, "--snapshots"]).ended;
    expect(last.code, last.err).toBe(3);
    expect(await stored(tenant)).toEqual(upTo(total));
    const rejected = (await rejectedOf(path)).sort((a, b) => a.line - b.line);
    expect(rejected.map(({ line, code }) => [line, code])).toEqual([
      [1, "invalid_body"],
      [2, "missing_actor"],
      [4, "invalid_body"],
    ]);
    expect(rejected[1].snapshot).toEqual(refused[1]);
    const kind = sourceKinds.snapshot;
    expect(await sendHere(tenant.key, path, { kind })).toMatchObject({
      accepted: 0,
      alreadySent: total,
      rejected: 3,
      toSendAgain: 1,
    });
    // Without the flag, the run must not report that all was sent.
    expect((await sendHere(tenant.key, path)).stopped).toContain("differs from what an earlier run has sent");
  },
);

test.concurrent("CSV of snapshots has a column for each metric", async () => {
  const tenant = await createTenant(service.admin);
  const kind = sourceKinds.snapshot;
  const header = "snapshotType,email,timestamp,metrics.open,metrics.mood,metrics,metadata.note";
  const path = await file(
    `${header}\ntickets,al@x.org,2026-04-19T12:05:00Z,-1.5,calm,"{""age"":{""value"":3,""unit"":""minutes""}}",x\ntickets,bo@x.org,,,,5,\n`,
    "csv",
  );
  expect(await sendHere(tenant.key, path, { kind })).toMatchObject({ accepted: 1, rejected: 1 });
  const cards = await cardCollection(service.app.db).find({ organizationId: tenant.organizationId }).toArray();
  expect(cards).toMatchObject([
    { metrics: { open: -1.5, mood: "calm", age: { value: 3, unit: "minutes" } }, metadata: { note: "x" } },
  ]);
  expect(await rejectedOf(path)).toMatchObject([{ line: 3, message: "metrics: must be an object" }]);
  const wrong = await file("snapshotType,category\ntickets,project_management\n", "csv");
  expect((await sendHere(tenant.key, wrong, { kind })).stopped).toContain("category");
});

test.concurrent("a second run on one file says which process sends it, and changes nothing", async () => {
  const tenant = await createTenant(service.admin);
  const path = await file(many(2_000));
  const state = () => readFile(`${path}.ingest-state`, "utf8").catch(() => "");
  let requests = 0;
  const open = Promise.withResolvers<void>();
  const between = await startProxy(async (ask) => {
    if (++requests > 1) await open.promise;
    return ask();
  });
  try {
    const first = send(tenant.key, [path, "--concurrency", "1"], between.url);
    await vi.waitFor(async () => expect(await state()).toContain('{"done"'), { timeout: 60_000, interval: 20 });
    for (const args of [[], ["--restart"]]) {
      const second = await send(tenant.key, [path, ...args]).ended;
      expect(second.code).toBe(3);
      expect(second.err).toContain(`process ${first.process.pid} holds ${path}.ingest-state`);
    }
    expect(await state()).toContain('{"done":{"from":0,');
    open.resolve();
    expect((await first.ended).code).toBe(0);
  } finally {
    open.resolve();
    between.close();
  }
  expect(await stored(tenant)).toEqual(upTo(2_000));
  expect(await readdir(directory)).not.toContain(`${basename(path)}.ingest-state.lock`);
  expect(await sendHere(tenant.key, path)).toMatchObject({ accepted: 0, alreadySent: 2_000 });
});

// The `script` of util-linux, which runs a command on a pseudo-terminal. Other systems have other options.
const hasScript = spawnSync("script", ["--version"], { encoding: "utf8" }).stdout?.includes("util-linux") === true;

test.concurrent("on a terminal, a bar shows share, counts, rate and time left", { skip: !hasScript }, async () => {
  const tenant = await createTenant(service.admin, { name: "Slow", keyRequestsPerSecond: 1 });
  const path = await file(many(1_500));
  const cli = join(import.meta.dirname, "../../src/cli.ts");
  const command = `stty cols 120 && exec '${process.execPath}' '${cli}' send '${path}' --url '${service.app.url}' --concurrency 1`;
  const terminal = spawn("script", ["--quiet", "--return", "--command", command, "/dev/null"], {
    env: { ...process.env, TERM: "xterm", WEPEOPLE_API_KEY: tenant.key },
    stdio: ["ignore", "pipe", "inherit"],
  });
  let shown = "";
  terminal.stdout.on("data", (chunk) => (shown += chunk));
  const [code] = await once(terminal, "close");
  expect(code, shown).toBe(0);
  // If a batch gets a late answer, the next one may follow before the bar is drawn.
  expect(shown).toMatch(/█+░+ (3\d% \| 500|6\d% \| 1000) accepted, 0 rejected, \d+\/s \| [1-9]\d*s left/);
  expect(shown).toMatch(/█{40} 100% \| 1500 accepted, 0 rejected, \d+\/s \| 0s left/);
  // The cursor is visible again.
  expect(shown.lastIndexOf("\u001B[?25h")).toBeGreaterThan(shown.lastIndexOf("\u001B[?25l"));
});
