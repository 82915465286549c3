import { randomBytes } from "node:crypto";
import { request as http1Request } from "node:http";
import { connect as http2Connect } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";
import { gunzipSync, gzipSync } from "node:zlib";
import { limits } from "../../src/limits.ts";
import * as wire from "../support/http2-wire.ts";
import { RawConnection } from "../support/raw-connection.ts";
import { keylessAttacks } from "./keyless-attacks.ts";
import { neighbourAttacks } from "./neighbours.ts";

/** The strength of an attack. */
export interface Scale {
  readonly connections: number;
  /** Longest time of a flood. */
  readonly floodMs: number;
  /**
   * Whether to wait until the service cuts the attacker off, and to fail if it does not; otherwise the attack lasts
   * `floodMs`.
   */
  readonly untilCut: boolean;
  /**
   * Milliseconds before each attack for the good caller's calm figures. 0: there are none, and its times have no limit.
   */
  readonly calmMs: number;
}

/** A customer within the usual limits. */
export interface Neighbour {
  /** Ten ingest keys of one organisation. */
  readonly keys: readonly string[];
  readonly readKey: string;
  /** Four more organisations that do the same. */
  readonly others: readonly { readonly key: string; readonly readKey: string }[];
}

export interface Target {
  readonly port: number;
  /** Address for operators. */
  readonly adminUrl: string;
  /** A valid key of an attacker, with rate limits far above the usual ones. */
  readonly key: string;
  readonly neighbour: Neighbour;
  readonly scale: Scale;
}

export interface Attack {
  readonly name: string;
  /**
   * The attacker uses the cores that it shares with the service. The good caller must still be served, but its times
   * have no limit, because they say little.
   */
  readonly fillsMachine?: true;
  /** Called before the calm figures are taken. */
  prepare?(target: Target): Promise<void>;
  /** Returns what was sent and its outcome, for the table. @throws Error if the service let something through. */
  run(target: Target): Promise<string>;
}

/** By then the service has cut off callers that hold something and do nothing. */
const cutWithinMs = 120_000;

export const attacks: readonly Attack[] = [
  { name: "idle connections", run: (target) => hold(target, target.scale.connections, () => {}) },
  {
    name: "half HTTP/2 prefaces",
    run: (target) => hold(target, share(target, 5), (one) => one.write(wire.preface.subarray(0, 17))),
  },
  {
    name: "whole HTTP/2 prefaces, then nothing",
    run: (target) => hold(target, share(target, 5), (one) => one.write(wire.preface)),
  },
  {
    name: "slow headers, a byte a second",
    run: (target) =>
      hold(
        target,
        share(target, 10),
        drip("GET /api/v1/ingest/ping HTTP/1.1\r\nHost: a\r\nX-Slow: " + "x".repeat(500)),
      ),
  },
  {
    name: "slow bodies over HTTP/1.1, a byte a second",
    run: (target) =>
      hold(target, share(target, 20), async (one) => {
        await one.write(
          `POST /api/v1/ingest/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${target.key}\r\n` +
            "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n",
        );
        await drip(" ".repeat(500))(one);
      }),
  },
  {
    name: "bodies of 1 MB but for their last byte",
    run: (target) =>
      hold(target, share(target, 10), async (one) => {
        await one.write(
          `POST /api/v1/ingest/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${target.key}\r\n` +
            `Content-Type: application/json\r\nContent-Length: ${limits.bodyBytesMax}\r\n\r\n`,
        );
        await one.write(Buffer.alloc(limits.bodyBytesMax - 1, " "));
      }),
  },
  { name: "slow bodies over HTTP/2, a byte a second", run: slowStreams },
  { name: "HTTP/2 headers without an end", run: endlessHeaders },
  { name: "oversized headers", run: oversizedHeaders },
  { name: "HTTP/2 rapid reset (CVE-2023-44487)", fillsMachine: true, run: rapidReset },
  { name: "HTTP/2 made-you-reset (CVE-2025-8671)", fillsMachine: true, run: madeYouReset },
  { name: "PING flood", fillsMachine: true, run: (target) => flood(target, () => wire.ping) },
  { name: "PING flood without reading", fillsMachine: true, run: (target) => flood(target, () => wire.ping, true) },
  { name: "SETTINGS flood", fillsMachine: true, run: (target) => flood(target, () => wire.settings([[3, 100]])) },
  {
    name: "SETTINGS flood without reading",
    fillsMachine: true,
    run: (target) => flood(target, () => wire.settings([[3, 100]]), true),
  },
  { name: "empty DATA frames (CVE-2019-9518)", fillsMachine: true, run: emptyData },
  {
    name: "PRIORITY and unknown frames",
    fillsMachine: true,
    run: (target) => flood(target, () => wire.frame(0x42, 0, 0, Buffer.alloc(16))),
  },
  { name: "CONTINUATION bomb (CVE-2024-27316)", fillsMachine: true, run: continuationBomb },
  { name: "HPACK bomb", fillsMachine: true, run: hpackBomb },
  { name: "readers that stall, HTTP/2 window 0", run: stalledStreams },
  { name: "readers that stall, HTTP/1.1 pipelines", run: stalledPipelines },
  { name: "gzip bombs, REST", run: (target) => gzipBombs(target, "rest") },
  { name: "gzip bombs, Connect", run: (target) => gzipBombs(target, "connect") },
  { name: "gzip bombs, gRPC", run: (target) => gzipBombs(target, "grpc") },
  { name: "gzip bombs, gRPC-Web", run: (target) => gzipBombs(target, "grpc-web") },
  { name: "malformed gRPC frames", run: malformedEnvelopes },
  { name: "invalid UTF-8", run: invalidUtf8 },
  { name: "deep and dense bodies", run: denseBodies },
  { name: "dense bodies at once", run: denseBodiesAtOnce },
  { name: "bytes that are no HTTP", run: garbage },
  { name: "connections opened and reset", run: churn },
  { name: "random keys", fillsMachine: true, run: randomKeys },
  { name: "a fresh Idempotency-Key a request", fillsMachine: true, run: idempotencyKeys },
  ...neighbourAttacks,
  ...keylessAttacks,
];

const share = ({ scale }: Target, part: number) => Math.max(10, Math.ceil(scale.connections / part));

/** Opens connections, runs `then` on each, and holds them until the service cuts them off. */
async function hold(
  target: Target,
  count: number,
  then: (connection: RawConnection) => void | Promise<void>,
): Promise<string> {
  const open: RawConnection[] = [];
  const startedMs = Date.now();
  try {
    for (let i = 0; i < count; i++) {
      const connection = await RawConnection.open(target.port);
      open.push(connection);
      void then(connection);
    }
    return await untilCut(target, open, startedMs);
  } finally {
    for (const connection of open) connection.destroy();
  }
}

async function untilCut({ scale }: Target, open: readonly RawConnection[], startedMs: number): Promise<string> {
  const all = Promise.all(open.map(({ closed }) => closed));
  await Promise.race([all, sleep(scale.untilCut ? cutWithinMs : scale.floodMs, undefined, { ref: false })]);
  const cut = open.filter(({ isClosed }) => isClosed).length;
  if (!scale.untilCut) return `${open.length} held`;
  if (cut < open.length) throw new Error(`${open.length - cut} of ${open.length} still open after ${cutWithinMs} ms`);
  return `${open.length} held, all cut off within ${Math.ceil((Date.now() - startedMs) / 1000)} s`;
}

const drip = (text: string) => async (connection: RawConnection) => {
  for (const byte of text) {
    if (connection.isClosed) return;
    await connection.write(byte);
    await sleep(1_000, undefined, { ref: false });
  }
};

async function openHttp2(port: number, values: readonly (readonly [number, number])[] = []): Promise<RawConnection> {
  const connection = await RawConnection.open(port);
  await connection.write(Buffer.concat([wire.preface, wire.settings(values), wire.settingsAck]));
  return connection;
}

const eventsPath = "/api/v1/ingest/events";
const rpcPath = "/ingest.v1.Ingest/Events";
const jsonPost = (key: string) => ({ authorization: `Bearer ${key}`, "content-type": "application/json" });
const grpcPost = (key: string) => ({
  authorization: `Bearer ${key}`,
  "content-type": "application/grpc",
  te: "trailers",
});

async function slowStreams(target: Target): Promise<string> {
  const streams = 10;
  const count = share(target, 100);
  const said = await hold(target, count, async (connection) => {
    await connection.write(Buffer.concat([wire.preface, wire.settings(), wire.settingsAck]));
    for (let i = 0; i < streams; i++) {
      const block =
        i % 2 === 0
          ? wire.requestFields("POST", eventsPath, jsonPost(target.key))
          : wire.requestFields("POST", rpcPath, grpcPost(target.key));
      await connection.write(wire.headers(2 * i + 1, block));
    }
    while (!connection.isClosed) {
      for (let i = 0; i < streams; i++) await connection.write(wire.data(2 * i + 1, Buffer.alloc(1)));
      await sleep(1_000, undefined, { ref: false });
    }
  });
  return `${said}, ${streams} streams each`;
}

function endlessHeaders(target: Target): Promise<string> {
  return hold(target, share(target, 20), async (connection) => {
    await connection.write(Buffer.concat([wire.preface, wire.settings(), wire.settingsAck]));
    await connection.write(wire.headers(1, wire.requestFields("GET", "/healthz"), wire.flag.endStream));
  });
}

async function oversizedHeaders(target: Target): Promise<string> {
  const count = share(target, 50);
  const seen = new Set<string>();
  for (let i = 0; i < count; i++) {
    const one = await RawConnection.open(target.port);
    await one.write(`GET /healthz HTTP/1.1\r\nHost: a\r\nX-Big: ${"x".repeat(1_000_000)}\r\n\r\n`);
    await one.closed;
    seen.add(`HTTP/1.1: ${statusLine(one.received)}`);
    const two = await openHttp2(target.port);
    const block = Buffer.concat([
      wire.requestFields("GET", "/healthz"),
      wire.hpackLiteral("x-big", "x".repeat(60_000)),
    ]);
    for (let from = 0; from < block.length; from += 16_000) {
      const last = from + 16_000 >= block.length;
      const part = block.subarray(from, from + 16_000);
      const flags = (last ? wire.flag.endHeaders : 0) | (from === 0 ? wire.flag.endStream : 0);
      const type = from === 0 ? wire.frameType.headers : wire.frameType.continuation;
      await two.write(wire.frame(type, flags, 1, part));
    }
    await two.write(wire.headers(3, wire.requestFields("GET", "/no-such-page"), 5));
    if (await two.sees("x-big", 0)) throw new Error("60 KB of headers were taken");
    two.destroy();
  }
  return `${count} of 1 MB over HTTP/1.1 and of 60 KB over HTTP/2; ${[...seen].join(", ")}`;
}

const statusLine = (received: Buffer) =>
  received.length === 0 ? "closed" : (received.toString("latin1").split("\r\n", 1)[0] as string);

/** Sends the output of `next` as fast as it is accepted, over a few connections that are replaced when cut off. */
async function flood(target: Target, next: (connection: number) => Buffer, blind = false): Promise<string> {
  return floodWith(target, () => next, blind);
}

async function floodWith(target: Target, start: () => (i: number) => Buffer, blind = false): Promise<string> {
  const end = Date.now() + target.scale.floodMs;
  let connections = 0;
  let frames = 0;
  let cut = 0;
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      while (Date.now() < end) {
        const connection = await openHttp2(target.port);
        connections++;
        if (blind) connection.stopReading();
        const next = start();
        for (let i = 0; Date.now() < end && !connection.isClosed;) {
          const batch = Array.from({ length: 50 }, () => next(i++));
          frames += batch.length;
          // A victim that has stopped reading must not prolong the attack.
          await Promise.race([connection.write(Buffer.concat(batch)), sleep(Math.max(1, end - Date.now()))]);
          await new Promise((resolve) => setImmediate(resolve));
        }
        if (connection.isClosed) cut++;
        connection.destroy();
      }
    }),
  );
  return `${frames} frames on ${connections} connections, ${cut} of them cut off`;
}

function rapidReset(target: Target): Promise<string> {
  const block = wire.requestFields("POST", rpcPath, grpcPost(target.key));
  return floodWith(target, () => (i) => {
    const streamId = 2 * i + 1;
    return Buffer.concat([wire.headers(streamId, block), wire.rstStream(streamId)]);
  });
}

/** The client breaks a rule of the stream, so that the server resets it and the client counts as the cause. */
function madeYouReset(target: Target): Promise<string> {
  const block = wire.requestFields("POST", rpcPath, grpcPost(target.key));
  return floodWith(target, () => (i) => {
    const streamId = 2 * i + 1;
    return Buffer.concat([wire.headers(streamId, block), wire.windowUpdate(streamId, 0)]);
  });
}

function emptyData(target: Target): Promise<string> {
  const block = wire.requestFields("POST", eventsPath, jsonPost(target.key));
  return floodWith(target, () => (i) => (i === 0 ? wire.headers(1, block) : wire.data(1, Buffer.alloc(0))));
}

function continuationBomb(target: Target): Promise<string> {
  const part = wire.hpackLiteral("x-more", "x".repeat(4_000));
  return floodWith(
    target,
    () => (i) =>
      i === 0
        ? wire.headers(1, wire.requestFields("GET", "/healthz"), 0)
        : wire.frame(wire.frameType.continuation, 0, 1, part),
  );
}

/** One large field in the peer's table, then thousands of references to it of one byte each. */
function hpackBomb(target: Target): Promise<string> {
  const bomb = Buffer.concat([
    wire.requestFields("GET", "/healthz"),
    wire.hpackLiteral("x-bomb", "x".repeat(4_000), true),
    Buffer.alloc(12_000, wire.hpackIndexed(62)),
  ]);
  return floodWith(target, () => (i) => wire.headers(2 * i + 1, bomb, 5));
}

/** Pages that are requested but never read. */
const largePages = ["/openapi/v1.yaml", "/docs", "/docs/errors/invalid_body"];

function stalledStreams(target: Target): Promise<string> {
  const streams = 200;
  return hold(target, share(target, 50), async (connection) => {
    await connection.write(
      Buffer.concat([wire.preface, wire.settings([[wire.settingId.initialWindowSize, 0]]), wire.settingsAck]),
    );
    for (let i = 0; i < streams; i++) {
      await connection.write(wire.headers(2 * i + 1, wire.requestFields("GET", largePages[i % 3] as string), 5));
      // The number of held connections matters here, not the number of requests.
      if (target.scale.untilCut) await sleep(50, undefined, { ref: false });
    }
    // It is not silent: a session that only sends PING must not live for ever.
    while (!connection.isClosed) {
      await connection.write(wire.ping);
      await sleep(1_000, undefined, { ref: false });
    }
  });
}

function stalledPipelines(target: Target): Promise<string> {
  return hold(target, share(target, 50), async (connection) => {
    connection.stopReading();
    const pipeline = largePages.map((page) => `GET ${page} HTTP/1.1\r\nHost: a\r\n\r\n`).join("");
    for (let i = 0; i < 100 && !connection.isClosed; i++) await connection.write(pipeline);
    // A caller that does not read notices the cut when it writes. An empty line is not a request.
    for (; !connection.isClosed; await sleep(1_000, undefined, { ref: false })) await connection.write("\r\n");
  });
}

export type WireProtocol = "rest" | "connect" | "grpc" | "grpc-web";

/** The reply over any protocol: the HTTP status and everything about the error. */
export interface Reply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Buffer;
}

/** Sends a request with exactly this body. gRPC goes over HTTP/2, the others over HTTP/1.1. */
export function send(
  port: number,
  protocol: WireProtocol,
  path: string,
  headers: Readonly<Record<string, string>>,
  body: Buffer,
): Promise<Reply> {
  return protocol === "grpc" ? sendHttp2(port, path, headers, body) : sendHttp1(port, path, headers, body);
}

function sendHttp1(
  port: number,
  path: string,
  headers: Readonly<Record<string, string>>,
  body: Buffer,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const sent = http1Request({ port, host: "127.0.0.1", method: "POST", path, headers, agent: false }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.once("error", reject);
      response.once("end", () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) }),
      );
    });
    sent.once("error", reject);
    sent.end(body);
  });
}

function sendHttp2(
  port: number,
  path: string,
  headers: Readonly<Record<string, string>>,
  body: Buffer,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const session = http2Connect(`http://127.0.0.1:${port}`);
    session.once("error", reject);
    const stream = session.request({ ":method": "POST", ":path": path, ...headers });
    const chunks: Buffer[] = [];
    let heads: Record<string, string | string[] | undefined> = {};
    stream.on("response", (head) => (heads = { ...(head as typeof heads) }));
    stream.on("trailers", (trailers) => Object.assign(heads, trailers));
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.once("error", reject);
    stream.once("close", () => {
      session.destroy();
      resolve({ status: Number(heads[":status"] ?? 0), headers: heads, body: Buffer.concat(chunks) });
    });
    stream.end(body);
  });
}

/** The API's error code in a reply, or undefined. For gRPC it searches the text of the binary details. */
export function errorCodeOf(protocol: WireProtocol, reply: Reply): string | undefined {
  const { headers } = reply;
  const body = headers["content-encoding"] === "gzip" ? gunzipSync(reply.body) : reply.body;
  if (protocol === "rest") return parsed(body)?.error?.code;
  if (protocol === "connect") {
    const details = (parsed(body)?.details ?? []) as { type: string; value: string }[];
    const info = details.find(({ type }) => type === "google.rpc.ErrorInfo");
    return info === undefined ? undefined : reasonOf(Buffer.from(info.value, "base64"));
  }
  const text = trailersOf(protocol, reply)["grpc-status-details-bin"];
  if (text === undefined) return undefined;
  const status = Buffer.from(String(text), "base64");
  const at = status.indexOf("google.rpc.ErrorInfo");
  // In google.protobuf.Any the value, an ErrorInfo, follows its type, after a tag and a length of one or two bytes.
  if (at < 0) return undefined;
  const value = status.subarray(at + "google.rpc.ErrorInfo".length);
  return reasonOf(value.subarray((value[1] as number) < 128 ? 2 : 3));
}

/** gRPC's trailers: from HTTP/2's trailers (or headers), or from gRPC-Web's last envelope. */
export function trailersOf(protocol: WireProtocol, { headers, body }: Reply): Reply["headers"] {
  if (protocol === "grpc") return headers;
  for (let at = 0; at + 5 <= body.length; at += 5 + body.readUInt32BE(at + 1)) {
    const flags = body[at] as number;
    if ((flags & 0x80) === 0) continue;
    const data = body.subarray(at + 5, at + 5 + body.readUInt32BE(at + 1));
    const lines = (flags & 1 ? gunzipSync(data) : data).toString("latin1").trim().split("\r\n");
    return Object.fromEntries(
      lines.map((line) => [line.split(":", 1)[0]?.toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
    );
  }
  return headers;
}

/** ErrorInfo's first field. */
const reasonOf = (errorInfo: Buffer) => errorInfo.subarray(2, 2 + (errorInfo[1] as number)).toString("utf8");

function parsed(body: Buffer): any {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch {
    return undefined;
  }
}

const paths: Record<WireProtocol, string> = { rest: eventsPath, connect: rpcPath, grpc: rpcPath, "grpc-web": rpcPath };

function headersOf(protocol: WireProtocol, key: string): Record<string, string> {
  switch (protocol) {
    case "rest":
      return jsonPost(key);
    case "connect":
      return { ...jsonPost(key), "connect-protocol-version": "1" };
    case "grpc":
      return grpcPost(key);
    case "grpc-web":
      return { authorization: `Bearer ${key}`, "content-type": "application/grpc-web+proto" };
  }
}

/** Sends requests that must be refused, and counts their codes. */
async function refused(
  target: Target,
  protocol: WireProtocol,
  cases: readonly (readonly [what: string, codes: readonly string[], body: Buffer, headers?: Record<string, string>])[],
): Promise<string> {
  for (const [what, codes, body, extra] of cases) {
    const reply = await send(
      target.port,
      protocol,
      paths[protocol],
      { ...headersOf(protocol, target.key), ...extra },
      body,
    );
    const code = errorCodeOf(protocol, reply);
    if (code === undefined || !codes.includes(code)) {
      throw new Error(`${protocol}, ${what}: answered ${code} (${reply.status} ${reply.body.subarray(0, 300)})`);
    }
  }
  return `${cases.length} requests`;
}

/** Bodies that grow when they are decompressed; `megabytes` is the size of the largest. */
function bombsOf(megabytes: number) {
  const bytes = megabytes * limits.bodyBytesMax;
  const zeros = gzipSync(Buffer.alloc(bytes));
  const empty = gzipSync(Buffer.alloc(0));
  return {
    megabytes,
    zeros,
    spaces: gzipSync(Buffer.alloc(bytes / 2, " ")),
    members: Buffer.concat(
      Array.from({ length: 2 * megabytes }, () => gzipSync(Buffer.alloc(limits.bodyBytesMax, " "))),
    ),
    nested: gzipSync(zeros),
    flood: Buffer.concat(Array.from({ length: 60_000 }, () => empty)),
    empties: Buffer.concat(Array.from({ length: 50_000 }, () => empty)),
    cut: zeros.subarray(0, 5_000),
    noise: randomBytes(5_000),
  };
}
let madeBombs: ReturnType<typeof bombsOf> | undefined;

async function gzipBombs(target: Target, protocol: WireProtocol): Promise<string> {
  const { untilCut } = target.scale;
  const megabytes = untilCut ? 100 : 10;
  if (madeBombs?.megabytes !== megabytes) madeBombs = bombsOf(megabytes);
  const bombs = madeBombs;
  const enveloped = protocol === "grpc" || protocol === "grpc-web";
  const wrapped = (bytes: Buffer) => (enveloped ? wire.envelope(bytes, 1) : bytes);
  const extra: Record<string, string> = enveloped ? { "grpc-encoding": "gzip" } : { "content-encoding": "gzip" };
  const tooLarge = ["batch_too_large"];
  // A small message of gzip in gzip just cannot be decoded; its inner part is never decompressed.
  const wrong = ["invalid_body", "missing_actor", "batch_too_large"];
  const rounds = untilCut ? 20 : 1;
  for (let round = 0; round < rounds; round++) {
    await refused(target, protocol, [
      ["zeros", tooLarge, wrapped(bombs.zeros), extra],
      ["spaces", tooLarge, wrapped(bombs.spaces), extra],
      ["members of 1 MB", tooLarge, wrapped(bombs.members), extra],
      ["a bomb within gzip", wrong, wrapped(bombs.nested), extra],
      ["50 000 empty members", wrong, wrapped(bombs.empties), extra],
      ["more than 1 MB of empty members", tooLarge, wrapped(bombs.flood), extra],
      ["cut short", wrong, wrapped(bombs.cut), extra],
      ["not gzip", wrong, wrapped(bombs.noise), extra],
    ]);
  }
  return `${rounds * 8} bodies, the largest of ${megabytes} MB, all refused`;
}

async function malformedEnvelopes(target: Target): Promise<string> {
  const event = Buffer.from("0a1d0a0f7469636b65742e7265736f6c766564100222081206676f6f642d31", "hex");
  // A truncated message looks like a caller that left, so any refusal is right.
  const any = ["invalid_body", "internal_error", "batch_too_large", "missing_actor"];
  let count = 0;
  for (const protocol of ["grpc", "grpc-web"] as const) {
    const cases = [
      ["unknown flags", any, wire.envelope(event, 0x7e)],
      ["compressed without an encoding", any, wire.envelope(gzipSync(event), 1)],
      ["4 GB announced", ["batch_too_large"], wire.envelope(event, 0, 0xffff_ffff)],
      ["one byte over the limit announced", ["batch_too_large"], wire.envelope(event, 0, limits.bodyBytesMax + 1)],
      ["more announced than sent", any, wire.envelope(event, 0, event.length + 10)],
      ["fewer announced than sent", any, wire.envelope(event, 0, event.length - 3)],
      ["a prefix cut short", any, Buffer.from([0, 0, 0])],
      ["nothing", any, Buffer.alloc(0)],
      ["two messages", any, Buffer.concat([wire.envelope(event), wire.envelope(event)])],
      ["no protobuf", ["invalid_body"], wire.envelope(Buffer.alloc(100, 0xff))],
      ["a length beyond the message", ["invalid_body"], wire.envelope(Buffer.from("0affffffff0f", "hex"))],
      ["groups without an end", ["invalid_body"], wire.envelope(Buffer.alloc(200_000, 0x0b))],
      ["an unknown encoding", any, wire.envelope(event, 1), { "grpc-encoding": "br" }],
    ] as const;
    await refused(target, protocol, cases as never);
    count += cases.length;
  }
  return `${count} requests, all refused`;
}

async function invalidUtf8(target: Target): Promise<string> {
  const bad = Buffer.from([0xc3, 0x28, 0xa0, 0xff]);
  const json = Buffer.concat([
    Buffer.from('{"events":[{"eventType":"ticket.resolved","category":"project_management","actor":{"externalId":"'),
    bad,
    Buffer.from('"}}]}'),
  ]);
  const surrogate = Buffer.from(
    '{"events":[{"eventType":"ticket.resolved","category":"project_management","actor":{"externalId":"\\ud800"}}]}',
  );
  const type = Buffer.concat([Buffer.from([0x0a, bad.length]), bad]);
  const message = Buffer.concat([Buffer.from([0x0a, type.length]), type]);
  const wrong = ["invalid_body"];
  await refused(target, "rest", [
    ["bytes", wrong, json],
    ["a lone surrogate", wrong, surrogate],
  ]);
  await refused(target, "connect", [
    ["bytes", wrong, json],
    ["a lone surrogate", wrong, surrogate],
  ]);
  await refused(target, "grpc", [["a string field", wrong, wire.envelope(message)]]);
  await refused(target, "grpc-web", [["a string field", wrong, wire.envelope(message)]]);
  const connection = await RawConnection.open(target.port);
  await connection.write("GET /api/v1/ingest/ping HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ");
  await connection.write(Buffer.concat([bad, Buffer.from("\r\nX-\xc3: y\r\n\r\n", "latin1")]));
  await Promise.race([connection.closed, connection.sees("\r\n\r\n")]);
  const answered = statusLine(connection.received);
  connection.destroy();
  if (!/^HTTP\/1.1 4\d\d/.test(answered)) throw new Error(`an invalid header was answered with '${answered}'`);
  const session = await openHttp2(target.port);
  await session.write(
    wire.headers(
      1,
      Buffer.concat([wire.requestFields("GET", "/healthz"), wire.hpackLiteral(bad, "x"), wire.hpackLiteral("x", bad)]),
      5,
    ),
  );
  await session.sees("never", 200);
  session.destroy();
  return `7 requests, all refused`;
}

async function denseBodies(target: Target): Promise<string> {
  const event = (metadata: string) =>
    Buffer.from(
      `{"events":[{"eventType":"ticket.resolved","category":"project_management","actor":{"externalId":"e"},"metadata":${metadata}}]}`,
    );
  const fill = (unit: string) => unit.repeat(Math.floor((limits.bodyBytesMax - 1_000) / unit.length));
  const wrong = ["invalid_body"];
  const rest = [
    ["arrays in arrays", wrong, Buffer.from(fill("["))],
    ["arrays in arrays, closed", wrong, event(`{"a":${"[".repeat(400_000)}${"]".repeat(400_000)}}`)],
    ["objects in objects", wrong, event(`${'{"a":'.repeat(100_000)}1${"}".repeat(100_000)}`)],
    ["objects side by side", wrong, event(`{"a":[${fill("{},")}{}]}`)],
    ["one key many times", wrong, event(`{${'"a":1,'.repeat(100_000)}"b":"${"x".repeat(20_000)}"}`)],
    ["many keys", wrong, event(`{${Array.from({ length: 80_000 }, (_, i) => `"${i}":1`).join(",")}}`)],
    ["a long number", wrong, event(`{"a":${"9".repeat(500_000)}}`)],
    ["many empty events", ["batch_too_large"], Buffer.from(`{"events":[${fill("{},")}{}]}`)],
  ] as const;
  const rounds = target.scale.untilCut ? 10 : 1;
  for (let round = 0; round < rounds; round++) {
    await refused(target, "rest", rest as never);
    await refused(target, "connect", rest.slice(0, 3) as never);
    await refused(target, "grpc", [
      ["many empty events", ["batch_too_large"], wire.envelope(Buffer.alloc(1_000_000, Buffer.from([0x0a, 0])))],
      ["lists in lists", wrong, wire.envelope(nestedLists(10_000))],
    ]);
  }
  return `${rounds * 13} requests, all refused`;
}

/** Bodies of nearly 1 MB with as many objects as possible, some hundred thousand each. */
async function denseBodiesAtOnce(target: Target): Promise<string> {
  const deep = `{"a":[${`${"[".repeat(29)}${"]".repeat(29)},`.repeat(270)}1]}`;
  const event = (category: string) =>
    `{"eventType":"ticket.resolved","category":"${category}","actor":{"externalId":"e"},"metadata":${deep}}`;
  const body = (category: string) => Buffer.from(`{"events":[${Array(60).fill(event(category)).join(",")}]}`);
  const bodies = [
    ["rest", body("project_management")] as const,
    ["connect", body("EVENT_CATEGORY_PROJECT_MANAGEMENT")] as const,
  ];
  const count = target.scale.untilCut ? 100 : 2;
  const replies = await Promise.all(
    Array.from({ length: count }, async (_, i) => {
      const [protocol, bytes] = bodies[i % 2] as (typeof bodies)[number];
      const reply = send(target.port, protocol, paths[protocol], headersOf(protocol, target.key), bytes);
      // A body that is still arriving is cut off if there is no room.
      return reply.then(
        ({ status }) => status,
        () => 0,
      );
    }),
  );
  const taken = replies.filter((status) => status === 200 || status === 202).length;
  const refused = replies.filter((status) => status === 500 || status === 503).length;
  const cut = replies.filter((status) => status === 0).length;
  if (taken === 0 || taken + refused + cut < count) throw new Error(`dense bodies were answered ${replies.join(", ")}`);
  return `${count} requests, ${taken} taken, ${refused} refused as unavailable, ${cut} cut off`;
}

/** An event whose metadata has lists in lists: each level costs a few bytes. */
function nestedLists(levels: number): Buffer {
  const field = (number: number, content: Buffer) =>
    Buffer.concat([
      wire.hpackIndexed(0).subarray(0, 0),
      Buffer.from([(number << 3) | 2]),
      varint(content.length),
      content,
    ]);
  let value: Buffer = Buffer.alloc(0);
  // ListValue.values = 1 within Value.list_value = 6.
  for (let i = 0; i < levels; i++) value = field(6, field(1, value));
  const entry = field(1, Buffer.concat([field(1, Buffer.from("a")), field(2, value)]));
  return field(1, field(6, entry));
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 0x80);
  return Buffer.from([...bytes, value]);
}

/** Input that is not a request must end its own connection and nothing else. */
async function garbage(target: Target): Promise<string> {
  const texts: (string | Buffer)[] = [
    "\0\0\0\0",
    "\r\n\r\n\r\n",
    "GET / HTTP/9.9\r\n\r\n",
    "GET /api/v1/ingest/ping HTTP/1.0\r\n\r\n",
    "GET /api/v1/ingest/ping HTTP/1.1\r\nHost: a|b\r\n\r\n",
    "GET /api/v1/ingest/ping HTTP/1.1\r\nHost: x:abc\r\n\r\n",
    "POST /ingest.v1.Ingest/Ping HTTP/1.1\r\nHost: a|b\r\nContent-Length: 0\r\n\r\n",
    "GET //[ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://[::1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAA\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n",
    `POST ${eventsPath} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n`,
    `POST ${eventsPath} HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n`,
    `POST ${eventsPath} HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nxx`,
    `POST ${eventsPath} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n`,
    `POST ${eventsPath} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n`,
    `GET /${"x".repeat(100_000)} HTTP/1.1\r\nHost: a\r\n\r\n`,
    `GET / HTTP/1.1\r\nHost: a\r\n${"X: y\r\n".repeat(5_000)}\r\n`,
    Buffer.concat([wire.preface, Buffer.alloc(100, 0xff)]),
    Buffer.concat([wire.preface, wire.data(1, Buffer.alloc(10))]),
    Buffer.concat([wire.preface, wire.settings(), wire.headers(1, Buffer.alloc(50, 0xff), 5)]),
    Buffer.concat([wire.preface, wire.settings(), wire.headers(2, wire.requestFields("GET", "/"), 5)]),
    Buffer.concat([wire.preface, wire.settings(), wire.headers(0, wire.requestFields("GET", "/"), 5)]),
    Buffer.concat([wire.preface, wire.settings(), wire.headers(1, wire.hpack({ ":path": "/" }), 5)]),
    Buffer.concat([wire.preface, wire.settings(), wire.headers(1, wire.requestFields("GET", "//[ |"), 5)]),
    Buffer.concat([wire.preface, wire.frame(4, 0, 0, Buffer.alloc(6), 0xff_ffff)]),
    Buffer.from("16030100050100000100", "hex"),
    ...Array.from({ length: 100 }, () => randomBytes(200)),
  ];
  for (const text of texts) {
    const connection = await RawConnection.open(target.port);
    await connection.write(text);
    await Promise.race([connection.closed, connection.sees("HTTP/1.1 ", 100)]);
    if (/^HTTP\/1.1 5/.test(statusLine(connection.received))) {
      throw new Error(`${JSON.stringify(text.toString("latin1").slice(0, 60))}: ${statusLine(connection.received)}`);
    }
    connection.destroy();
  }
  return `${texts.length} kinds`;
}

async function churn(target: Target): Promise<string> {
  const end = Date.now() + target.scale.floodMs;
  let count = 0;
  await Promise.all(
    Array.from({ length: 8 }, async () => {
      for (; Date.now() < end; count++) {
        const connection = await RawConnection.open(target.port);
        void connection.write(count % 2 === 0 ? wire.preface : "POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc");
        connection.destroy();
      }
    }),
  );
  return `${count} connections`;
}

/** Endless requests over a few HTTP/2 sessions. `fields` makes the next one's fields, and every answer has `status`. */
async function requestFlood(
  target: Target,
  method: "GET" | "POST",
  path: string,
  fields: () => Record<string, string>,
  body: string | undefined,
  statuses: readonly number[],
): Promise<string> {
  const end = Date.now() + target.scale.floodMs;
  const counts = new Map<number, number>();
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      const session = http2Connect(`http://127.0.0.1:${target.port}`);
      session.on("error", () => {});
      await Promise.all(
        Array.from({ length: 32 }, async () => {
          while (Date.now() < end && !session.closed) {
            const status = await new Promise<number>((resolve, reject) => {
              const stream = session.request({ ":method": method, ":path": path, ...fields() });
              stream.once("response", (head) => resolve(Number(head[":status"])));
              stream.once("error", reject);
              stream.once("close", () => reject(new Error("no answer")));
              stream.resume();
              stream.end(body);
            });
            counts.set(status, (counts.get(status) ?? 0) + 1);
          }
        }),
      );
      session.close();
    }),
  );
  const wrong = [...counts.keys()].filter((status) => !statuses.includes(status));
  if (wrong.length > 0) throw new Error(`answered with ${wrong.join(", ")}`);
  return [...counts].map(([status, count]) => `${count} answered ${status}`).join(", ");
}

function randomKeys(target: Target): Promise<string> {
  return requestFlood(
    target,
    "GET",
    "/api/v1/ingest/ping",
    () => ({ authorization: `Bearer wp_live_${randomBytes(16).toString("hex")}` }),
    undefined,
    [401],
  );
}

function idempotencyKeys(target: Target): Promise<string> {
  return requestFlood(
    target,
    "POST",
    eventsPath,
    () => ({ ...jsonPost(target.key), "idempotency-key": randomBytes(100).toString("hex") }),
    '{"events":[{"eventType":"ticket.resolved","category":"project_management","actor":{"externalId":"e"}}]}',
    [202, 429],
  );
}
