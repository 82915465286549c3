import { randomBytes } from "node:crypto";
import { execFile, spawnSync } from "node:child_process";
import { createReadStream } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, type ClientHttp2Session } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

/** The result of one run of load. */
export interface Load {
  readonly requests: number;
  /** Answers other than 2xx, and requests without an answer. */
  readonly failed: number;
  readonly seconds: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export interface RestTarget {
  readonly url: string;
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly authorization: string;
  /** Sent in turn. */
  readonly bodies?: readonly string[];
  /** Whether each request has a new Idempotency-Key. */
  readonly isKeyed?: boolean;
  /** Whether each request has new event ids, in place of `freshId` in its body. */
  readonly isNamed?: boolean;
}

export interface GrpcTarget {
  readonly url: string;
  /** `/package.Service/Method`. */
  readonly path: string;
  readonly authorization: string;
  /** One message, without its envelope. */
  readonly message: Uint8Array;
  /** Concurrent calls on each connection. */
  readonly streams: number;
}

const run = promisify(execFile);
const isInstalled = (program: string) => spawnSync("which", [program]).status === 0;

/** The tools in use, for the table's heading. */
export const tools = {
  http: isInstalled("wrk") ? "wrk" : "autocannon",
  grpc: isInstalled("h2load") ? "h2load" : "node:http2",
} as const;

/** Stands in a body where a part of an event id is that differs in each request. It has as many characters. */
export const freshId = "@EVENT-ID@";
const idPrefix = () => randomBytes(2).toString("hex");

let runs = 0;
/** Differs from that of any other run on the same database. */
const keyPrefix = () => `bench-${process.pid}-${Date.now()}-${runs++}-`;

/** Calls as fast as answers come, over `connections` HTTP/1.1 connections. */
export function restLoad(target: RestTarget, connections: number, seconds: number): Promise<Load> {
  return tools.http === "wrk" ? wrk(target, connections, seconds) : cannon(target, connections, seconds);
}

async function wrk(target: RestTarget, connections: number, seconds: number): Promise<Load> {
  return withDirectory(async (directory) => {
    const bodies = target.bodies === undefined ? "-" : join(directory, "bodies");
    if (target.bodies !== undefined) await writeFile(bodies, target.bodies.join("\n"));
    const script = new URL("wrk.lua", import.meta.url).pathname;
    const keys = target.isKeyed ? keyPrefix() : "-";
    const options = ["-t1", `-c${connections}`, `-d${seconds}s`, "--timeout", "10s", "-s", script];
    const { method, path, authorization } = target;
    const args = [method, path, bodies, authorization, keys, target.isNamed ? idPrefix() : "-"];
    const { stdout } = await run("wrk", [...options, target.url, "--", ...args]);
    const line = stdout.split("\n").findLast((one) => one.startsWith("{"));
    if (line === undefined) throw new Error(`wrk answered nothing to read:\n${stdout}`);
    return JSON.parse(line) as Load;
  });
}

async function cannon(target: RestTarget, connections: number, seconds: number): Promise<Load> {
  // It has no types.
  const { default: autocannon } = await import("autocannon" as string);
  const [prefix, ids] = [keyPrefix(), idPrefix()];
  let sent = 0;
  const result = await autocannon({
    url: target.url + target.path,
    connections,
    duration: seconds,
    requests: (target.bodies ?? [undefined]).map((body) => ({
      method: target.method,
      headers: { authorization: target.authorization, "content-type": "application/json" },
      ...(body === undefined ? {} : { body }),
      setupRequest(request: { headers: object; body?: string }) {
        sent++;
        if (target.isNamed) {
          const id = ids + String(sent).padStart(freshId.length - ids.length, "0");
          return { ...request, body: request.body?.replaceAll(freshId, id) };
        }
        return target.isKeyed
          ? { ...request, headers: { ...request.headers, "idempotency-key": prefix + sent } }
          : request;
      },
    })),
  });
  return {
    requests: result.requests.total,
    failed: result.non2xx + result.errors,
    seconds: result.duration,
    p50Ms: result.latency.p50,
    p99Ms: result.latency.p99,
  };
}

/** The same over gRPC: h2load with a prepared message or, without h2load, our own client. */
export async function grpcLoad(target: GrpcTarget, connections: number, seconds: number): Promise<Load> {
  // h2load sees only HTTP statuses, and those of gRPC are always 200.
  const probe = connect(target.url);
  const code = await grpcCall(probe, target).finally(() => probe.close());
  if (code !== "0") return { requests: 1, failed: 1, seconds, p50Ms: 0, p99Ms: 0 };
  return tools.grpc === "h2load" ? h2load(target, connections, seconds) : ownClient(target, connections, seconds);
}

async function h2load(target: GrpcTarget, connections: number, seconds: number): Promise<Load> {
  return withDirectory(async (directory) => {
    const [data, log] = [join(directory, "message"), join(directory, "log")];
    await writeFile(data, enveloped(target.message));
    const options = ["-t1", `-c${connections}`, `-m${target.streams}`, `-D${seconds}`, "-d", data, `--log-file=${log}`];
    const headers = ["content-type: application/grpc+proto", "te: trailers", `authorization: ${target.authorization}`];
    const sent = headers.flatMap((header) => ["-H", header]);
    const { stdout } = await run("h2load", [...options, ...sent, target.url + target.path]);
    const counts = /(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout/.exec(stdout);
    if (counts === null) throw new Error(`h2load answered nothing to read:\n${stdout}`);
    const [, , failed, errored, timeout] = counts.map(Number);
    const latenciesMs: number[] = [];
    let refused = 0;
    for await (const line of createInterface({ input: createReadStream(log) })) {
      const [, status, durationUs] = line.split("\t").map(Number);
      if (status === undefined || durationUs === undefined) continue;
      if (status >= 200 && status < 300) latenciesMs.push(durationUs / 1000);
      else refused++;
    }
    const lost = Math.max(refused, (failed ?? 0) + (errored ?? 0) + (timeout ?? 0));
    return { requests: latenciesMs.length, failed: lost, seconds, ...percentiles(latenciesMs) };
  });
}

async function ownClient(target: GrpcTarget, connections: number, seconds: number): Promise<Load> {
  const sessions = Array.from({ length: connections }, () => connect(target.url));
  const latenciesMs: number[] = [];
  let failed = 0;
  const start = performance.now();
  const end = start + seconds * 1000;
  const caller = async (session: ClientHttp2Session) => {
    while (performance.now() < end) {
      const sentAt = performance.now();
      if ((await grpcCall(session, target)) === "0") latenciesMs.push(performance.now() - sentAt);
      else failed++;
    }
  };
  await Promise.all(sessions.flatMap((session) => Array.from({ length: target.streams }, () => caller(session))));
  for (const session of sessions) session.close();
  const took = (performance.now() - start) / 1000;
  return { requests: latenciesMs.length, failed, seconds: took, ...percentiles(latenciesMs) };
}

/** One unary call; returns its grpc-status, or "lost". */
export function grpcCall(session: ClientHttp2Session, target: GrpcTarget): Promise<string> {
  return new Promise((resolve) => {
    const stream = session.request({
      ":method": "POST",
      ":path": target.path,
      "content-type": "application/grpc+proto",
      te: "trailers",
      authorization: target.authorization,
    });
    let code = "lost";
    const see = (headers: Record<string, unknown>) => {
      if (headers["grpc-status"] !== undefined) code = String(headers["grpc-status"]);
    };
    stream
      .on("response", see)
      .on("trailers", see)
      .on("error", () => {});
    stream.on("close", () => resolve(code));
    stream.resume();
    stream.end(enveloped(target.message));
  });
}

function enveloped(message: Uint8Array): Buffer {
  const envelope = Buffer.alloc(5 + message.length);
  envelope.writeUInt32BE(message.length, 1);
  envelope.set(message, 5);
  return envelope;
}

/** Median and 99th percentile. */
export function percentiles(latenciesMs: readonly number[]): { p50Ms: number; p99Ms: number } {
  const sorted = Float64Array.from(latenciesMs).sort();
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
  return { p50Ms: at(0.5), p99Ms: at(0.99) };
}

async function withDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), "ingest-bench-load-"));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
