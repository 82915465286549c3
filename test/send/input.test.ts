import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, open, readdir, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { answerOf } from "../../src/send/answers.ts";
import { itemsOf } from "../../src/send/batches.ts";
import { createCaller, createPoster, ownerOf, parseBaseUrl } from "../../src/send/client.ts";
import { exportTimeline } from "../../src/send/export.ts";
import { sourceKinds } from "../../src/send/kinds.ts";
import { createProgressView } from "../../src/send/progress.ts";
import type { SourceFormat } from "../../src/send/formats.ts";
import { readRecords } from "../../src/send/records.ts";
import { type SourceRecord, UnusableSource } from "../../src/send/source.ts";
import { cli, runSend, sendInProcess } from "../support/send.ts";

vi.setConfig({ testTimeout: 60_000 });

const key = `wp_live_${"0".repeat(32)}`;
const event = { eventType: "ticket.x", category: "other", actor: { externalId: "a" } };
const line = (change: object = {}) => `${JSON.stringify({ ...event, ...change })}\n`;

let directory: string;
beforeAll(async () => void (directory = await mkdtemp(join(tmpdir(), "ingest-input-"))));
afterAll(() => rm(directory, { recursive: true, force: true }));

async function itemsIn(
  bytes: string | Buffer,
  format: SourceFormat = "ndjson",
  { kind = "event", strict = false } = {},
  chunkBytes = Number.POSITIVE_INFINITY,
) {
  const sourceKind = sourceKinds[kind as "event"];
  const all = Buffer.from(bytes);
  const size = Math.min(chunkBytes, all.length);
  const chunks = Array.from({ length: Math.ceil(all.length / size) }, (_, i) => all.subarray(i * size, (i + 1) * size));
  const records: SourceRecord[] = [];
  for await (const record of readRecords(Readable.from(chunks), format, sourceKind)) records.push(record);
  return itemsOf(records, sourceKind, { strict, sourceName: "file" });
}

test("a line with a misspelt member or a rounded number is reported, and refused with --strict", async () => {
  const input =
    line() +
    line({ metdata: {}, actor: { externalId: "a", mail: "x" } }) +
    line({ metadata: { id: 0 } }).replace("0}", "9007199254740993}");
  const items = await itemsIn(input);
  expect(items.map(({ refusal }) => refusal)).toEqual([undefined, undefined, undefined]);
  expect(items.map(({ losses }) => losses.map(({ code }) => code))).toEqual([[], ["ignored"], ["rounded"]]);
  expect(items[1]?.losses[0]?.message).toContain("metdata");
  expect(items[1]?.losses[0]?.message).toContain("actor.mail");
  expect(items[2]?.losses[0]?.message).toContain("9007199254740993 would be stored as 9007199254740992");
  const strict = await itemsIn(input, "ndjson", { strict: true });
  expect(strict.map(({ refusal }) => refusal?.code)).toEqual([undefined, "strict", "strict"]);
  // The file of rejected lines keeps the digits, and so does the file from sending that one.
  let value = strict[2]?.value;
  for (let times = 0; times < 2; times++) {
    const rejected = `${JSON.stringify({ line: 3, code: "strict", message: "", event: value })}\n`;
    const [again] = await itemsIn(rejected, "ndjson", { strict: true });
    expect(again?.losses.map(({ code }) => code)).toEqual(["rounded"]);
    value = again?.value;
  }
});

test("text that is not UTF-8 is refused with its line and byte", async () => {
  const latin1 = Buffer.from(`${line()}{"x":"Müller"}\n`, "latin1");
  await expect(itemsIn(latin1)).rejects.toThrow("Line 2 is not UTF-8: its byte 8 is 0xFC.");
  const csv = Buffer.from("eventType,category,externalId\nticket.x,other,Müller\n", "latin1");
  await expect(itemsIn(csv, "csv")).rejects.toThrow("Line 2 is not UTF-8: its byte 17 is 0xFC.");
  await expect(itemsIn(Buffer.from(line(), "utf16le"))).rejects.toThrow("its byte 2 is 0x00");
});

test("gzip and zstd are unpacked; other files are refused by name", async () => {
  for (const packed of [gzipSync(line()), zstdCompressSync(line())]) {
    expect(await itemsIn(packed)).toMatchObject([{ value: event, refusal: undefined }]);
  }
  // Several members or frames, as appending makes them; in one chunk and cut anywhere.
  for (const pack of [gzipSync, zstdCompressSync]) {
    const appended = Buffer.concat([1, 2, 3].map(() => pack(line())));
    for (const chunkBytes of [appended.length, 7, 1])
      expect(await itemsIn(appended, "ndjson", {}, chunkBytes)).toHaveLength(3);
    const cut = pack(Array.from({ length: 1_000 }, (_, i) => `${line()}${i}`).join("")).subarray(0, -6);
    await expect(itemsIn(cut)).rejects.toThrow("The file is broken");
  }
  for (const [bytes, reason] of [
    [gzipSync(line()).subarray(0, 30), "cannot be unpacked with gzip"],
    [Buffer.from("PK\u0003\u0004"), "a ZIP archive"],
    [Buffer.from("BZh9"), "bzip2"],
    [`[${line().trim()}]`, "one JSON array"],
    ["{\n}\n", "JSON over several lines"],
  ] as const) {
    await expect(itemsIn(bytes), reason).rejects.toThrow(reason);
  }
});

test("in CSV only canonical numbers become numbers, and a stray quote breaks only its own row", async () => {
  const header = "snapshotType,externalId,metrics.a,metrics.b,metrics.c,metrics.d";
  const numbers = await itemsIn(`${header}\nopen,s,02134,12345678901234567890,1e999,-1.5\n`, "csv", {
    kind: "snapshot",
  });
  expect(numbers).toMatchObject([
    { value: { metrics: { a: "02134", b: "12345678901234567890", c: "1e999", d: -1.5 } }, refusal: undefined },
  ]);
  const broken = itemsIn('event"Type,category\nticket.x,other\n', "csv");
  await expect(broken).rejects.toThrow("Line 1, which names the columns, has a quote in a cell");
  await expect(broken).rejects.toBeInstanceOf(UnusableSource);
  const quotes = await itemsIn(
    'eventType,category,email,displayName\nticket.x,other,a@b.c,Al "Al" C\nticket.x,other,b@b.c,ok\n',
    "csv",
  );
  expect(quotes.map(({ line, refusal }) => [line, refusal?.code])).toEqual([
    [2, "invalid_body"],
    [3, undefined],
  ]);
});

test("only the service compares a time with its clock", async () => {
  const [item] = await itemsIn(line({ timestamp: new Date(Date.now() + 3 * 86_400_000).toISOString() }));
  expect(item).toMatchObject({ refusal: undefined, sent: { json: expect.stringContaining("timestamp") } });
});

test("a host that has answered once counts as away, not as misspelt, if its name is unknown for a moment", async () => {
  const answers = [() => new Response("{}", { status: 503 }), () => Promise.reject(unknownHost)];
  const unknownHost = new TypeError("fetch failed", {
    cause: Object.assign(new Error("no such name"), { code: "ENOTFOUND" }),
  });
  const fetching = vi.spyOn(globalThis, "fetch").mockImplementation(async () => (answers.shift() as () => Response)());
  onTestFinished(() => fetching.mockRestore());
  const call = createCaller("http://service.example", key);
  const post = createPoster(call, sourceKinds.event);
  expect((await ownerOf(call, key)).kind).toBe("none");
  expect((await post([{ json: line() }])).kind).toBe("none");
});

test("an export waits before it asks again, whatever the service says", async () => {
  let asked = 0;
  const server = createServer((_request, response) => {
    asked++;
    response.writeHead(503, { "retry-after": "0" }).end();
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  onTestFinished(() => void server.close());
  const { port } = server.address() as AddressInfo;
  const filters = { workerId: undefined, type: undefined, startTime: undefined, endTime: undefined };
  const exporting = exportTimeline({
    ...{ baseUrl: `http://127.0.0.1:${port}`, key, kind: "event", filters, path: undefined, giveUpSeconds: 1 },
    ...{ onProgress: () => {}, onTrouble: () => {} },
  });
  await expect(exporting).rejects.toThrow("The service gives no answer");
  expect(asked).toBeGreaterThan(1);
  expect(asked).toBeLessThanOrEqual(6);
});

test("Retry-After counts only in whole seconds, and another server's answer does not count", () => {
  const reply = (change: object) =>
    answerOf({ status: 503, text: "", retryAfter: null, location: null, ...change }, sourceKinds.event, 1);
  expect(reply({ retryAfter: "86400" })).toMatchObject({ kind: "none", retryAfterSeconds: 86_400 });
  for (const retryAfter of ["-1", "1e9", "1.5", "soon", "", "Sun, 29 Nov 2026 08:00:00 GMT", "9999999999"]) {
    expect(reply({ retryAfter }), retryAfter).toMatchObject({ kind: "none", retryAfterSeconds: undefined });
  }
  for (const text of ["<html>Welcome</html>", "null", "[]", "{}", '{"accepted":1}', ""]) {
    expect(reply({ status: 202, text }), text).toMatchObject({ kind: "none" });
  }
  expect(reply({ status: 404, text: "<html>" })).toMatchObject({ kind: "mistake" });
  expect(reply({ status: 302, location: "https://x" })).toMatchObject({ kind: "mistake" });
});

test("--give-up and a timer's range limit the longest wait", async () => {
  for (const [retryAfter, giveUpSeconds] of [
    ["2592000", 60],
    ["86400", 60],
    ["999999999", 10_000_000],
  ] as const) {
    const path = join(directory, `${retryAfter}.ndjson`);
    await (await open(path, "w")).close();
    const waits: number[] = [];
    let nowMs = 0;
    const reply = { status: 503, text: "", retryAfter, location: null };
    const result = await sendInProcess(key, "http://localhost", path, {
      source: Readable.from([Buffer.from(line())]),
      owner: async () => ({ kind: "owner", app: "app_x", organization: "org_x" }),
      post: async () => answerOf(reply, sourceKinds.event, 1),
      giveUpSeconds,
      now: () => nowMs,
      wait: async (ms) => void (waits.push(ms), (nowMs += ms)),
    });
    expect(result.stopped).toContain(`has not answered for ${giveUpSeconds} s`);
    expect(Math.max(...waits)).toBeLessThanOrEqual(Math.min(giveUpSeconds * 1000, 3_600_000));
    expect(Math.min(...waits)).toBeGreaterThanOrEqual(250);
  }
});

test("while the service is away a line says why at once, then every five seconds; progress is told in between", () => {
  let nowMs = 0;
  const said: string[] = [];
  const output = {} as NodeJS.WriteStream;
  const view = createProgressView({ totalBytes: 100, output, now: () => nowMs, say: (text) => said.push(text) });
  const tick = (ms: number, retry: number) => {
    nowMs += ms;
    view.wait("it is\u001b[2J away", retry);
  };
  tick(0, 1);
  tick(4_999, 2);
  tick(1, 3);
  nowMs += 5_000;
  view.show("10 accepted, 1 rejected, 1/s", 50);
  tick(1, 1);
  expect(said).toEqual([
    "waiting: it is\\u001b[2J away, retry 1",
    "waiting: it is\\u001b[2J away, retry 3",
    "10 accepted, 1 rejected, 1/s, 50 %",
    "waiting: it is\\u001b[2J away, retry 1",
  ]);
});

describe("a command line", () => {
  let url: string;
  let server: Server;
  let bodies: string[];
  beforeAll(async () => {
    bodies = [];
    server = createServer(async (request, response) => {
      bodies.push(await text(request));
      const message = "it is\u001b[2J away";
      response
        .writeHead(503, { "retry-after": "1" })
        .end(JSON.stringify({ error: { code: "internal_error", message } }));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(() => void server.close());

  test.each([
    ["process substitution", 1, '"$0" "$1" send <(cat events) --url "$2" --give-up 1 --json'],
    ["/dev/stdin, which is a file", 0, '"$0" "$1" send /dev/stdin --url "$2" --give-up 0 --json < events'],
    ["/dev/stdin, which is a pipe", 0, 'cat events | "$0" "$1" send /dev/stdin --url "$2" --give-up 0 --json'],
  ])("reads %s, keeps no progress for it, and says why it waits", async (_what, giveUpSeconds, command) => {
    const cwd = await mkdtemp(join(directory, "shell-"));
    await writeFile(join(cwd, "events"), line({ metadata: { command } }));
    const env = { PATH: process.env.PATH, WEPEOPLE_API_KEY: key };
    const child = spawn("bash", ["--norc", "-c", command, process.execPath, cli, url], { cwd, env });
    const [out, err, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]);
    const waiting = giveUpSeconds === 0 ? "" : "waiting: it is [2J away, retry 1\n";
    expect({ code, err }).toEqual({ code: 3, err: waiting });
    expect(JSON.parse(out).stopped).toBe(`The service has not answered for ${giveUpSeconds} s: it is [2J away.`);
    expect(bodies.some((body) => JSON.parse(body).events[0].metadata.command === command)).toBe(true);
    expect(await readdir(cwd)).toEqual(["events"]);
    expect(existsSync("/dev/stdin.ingest-state")).toBe(false);
  });

  test("shows the file's texts without what acts on a terminal", async () => {
    const columns = "eventType,cat\u001b]52;c;ZXZpbA==\u0007\u009b31m\u202eegory\n";
    const { code, err } = await runSend(key, url, ["-", "--format", "csv"], { input: columns, asText: true }).ended;
    expect(code).toBe(2);
    expect(err).toContain("cat\\u001b]52;c;ZXZpbA==\\u0007\\u009b31m\\u202eegory");
  });
});

test("a wrong address or key ends the run at once with the reason", async () => {
  for (const url of ["localhost:8080", "ftp://x", "foo", "", "http://a:b@x", "http://x/?a=1", "http:x"]) {
    expect(() => parseBaseUrl(url), url).toThrow(/must/);
  }
  const server = createServer((_request, response) => response.writeHead(404).end("nothing"));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  try {
    for (const [url, reason] of [
      [`https://127.0.0.1:${port}`, "does not speak TLS"],
      [`http://127.0.0.1:${port}`, "not Ingest's"],
      ["http://nobody.invalid", "no host nobody.invalid"],
      ["http://127.0.0.1:6000", "port 6000"],
    ] as const) {
      const answer = await createPoster(createCaller(url, key), sourceKinds.event)([{ json: line() }]);
      // Without a resolver, a machine cannot tell that a name is wrong.
      if (answer.kind === "none" && answer.trouble.includes("EAI_AGAIN")) continue;
      expect(answer).toMatchObject({ kind: "mistake", message: expect.stringContaining(reason) });
    }
  } finally {
    server.close();
  }
  const hint = await runSend("wp_live_ab12…", `http://127.0.0.1:${port}`, ["-"]).ended;
  expect(hint).toMatchObject({ code: 2, err: expect.stringContaining("only the hint of a key") });
});

test("the first signal ends the wait for an idle pipe, and no journal is left", async () => {
  const folder = await mkdtemp(join(directory, "pipe-"));
  const pipe = join(folder, "pipe");
  expect(spawnSync("mkfifo", [pipe]).status).toBe(0);
  const { process: child, ended } = runSend(key, "http://127.0.0.1:11111", [pipe], { cwd: folder });
  // Opening the write end waits until the command reads.
  const writer = await open(pipe, "w");
  try {
    await writer.write(line().repeat(501));
    await once(child.stderr as Readable, "data");
    child.kill("SIGINT");
    expect(JSON.parse((await ended).out)).toMatchObject({ accepted: 0, stopped: "It was interrupted." });
    expect(await readdir(folder)).toEqual(["pipe"]);
  } finally {
    await writer.close();
  }
});
