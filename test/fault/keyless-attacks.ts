import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { Agent, type IncomingMessage, request } from "node:http";
import { connect as http2Connect } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";
import * as wire from "../support/http2-wire.ts";
import { RawConnection } from "../support/raw-connection.ts";
import type { Attack, Target } from "./attacks.ts";

const grpc = { "content-type": "application/grpc", te: "trailers" };
const streamsPerConnection = 100;
const watch = "/grpc.health.v1.Health/Watch";
const check = "/grpc.health.v1.Health/Check";
const reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const emptyMessage = wire.envelope(Buffer.alloc(0));

/**
 * What a caller without a key can hold open. It holds each for a while, and the service must serve all others in that
 * time.
 */
export const keylessAttacks: readonly Attack[] = [
  {
    name: "watchers of the health, 100 a connection",
    run: (target) =>
      holdStreams(target, watch, (id) => wire.data(id, emptyMessage, wire.flag.endStream), wire.flag.endHeaders),
  },
  {
    name: "watchers of the health that send no message",
    run: (target) => holdStreams(target, watch, () => Buffer.alloc(0), wire.flag.endHeaders),
  },
  {
    name: "checks of the health that do not end",
    run: (target) => holdStreams(target, check, (id) => wire.data(id, emptyMessage), wire.flag.endHeaders),
  },
  {
    name: "refused streams that their caller does not end",
    run: (target) => holdStreams(target, "/ingest.v1.Ingest/Events", () => Buffer.alloc(0), wire.flag.endHeaders),
  },
  { name: "watchers of the health over HTTP/1.1", run: watchersOverHttp1 },
  { name: "reflection without end", run: reflectionFlood },
  { name: "paths and headers of 15 KB that begin like an address with a password", run: longTexts },
  { name: "paths that lead nowhere, another each time", run: (target) => asked(target, [404], randomPath, 4) },
  { name: "metrics, on the operators' port", run: metricsFlood },
];

interface Question {
  readonly url: URL;
  readonly method?: string;
  readonly headers?: Record<string, string>;
}

/** Sends requests over this many connections, each again after its answer. */
async function asked(
  { port, scale }: Pick<Target, "port" | "scale">,
  statuses: readonly number[],
  questionOf: (origin: string, connection: number) => Question,
  connections: number,
): Promise<string> {
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  const end = Date.now() + scale.floodMs;
  let count = 0;
  await Promise.all(
    Array.from({ length: connections }, async (_, connection) => {
      do {
        const { url, ...options } = questionOf(`http://127.0.0.1:${port}`, connection);
        const sent = request(url, { agent, ...options }).end();
        const [response] = (await once(sent, "response")) as [IncomingMessage];
        response.resume();
        await once(response, "close");
        const status = response.statusCode as number;
        if (!statuses.includes(status)) throw new Error(`${url.pathname.slice(0, 40)} was answered with ${status}`);
        count++;
      } while (Date.now() < end);
    }),
  );
  agent.destroy();
  return `${count} answered ${statuses.join(" or ")}`;
}

/** The pattern that finds passwords in addresses must not scan them repeatedly. */
function longTexts(target: Target): Promise<string> {
  const text = `${"a".repeat(15_000)}://`;
  const authorization = `Bearer ${target.key}`;
  const questions: readonly ((origin: string) => Question)[] = [
    (origin) => ({ url: new URL(`${origin}/${text}`) }),
    (origin) => ({
      url: new URL(`${origin}/ingest.v1.Ingest/Ping`),
      method: "POST",
      headers: { "content-type": text },
    }),
    (origin) => ({
      url: new URL(`${origin}/ingest.v1.Ingest/Ping`),
      method: "POST",
      headers: { authorization, "content-type": "application/json", "content-encoding": text },
    }),
    (origin) => ({
      url: new URL(`${origin}/ingest.v1.Ingest/Ping`),
      method: "POST",
      headers: { authorization, "content-type": "application/json", "connect-timeout-ms": text },
    }),
  ];
  return asked(target, [400, 404, 415, 501], (origin, i) => (questions[i] as (typeof questions)[number])(origin), 4);
}

const randomPath = (origin: string): Question => ({ url: new URL(`${origin}/${randomBytes(200).toString("hex")}`) });

function metricsFlood(target: Target): Promise<string> {
  const { port } = new URL(target.adminUrl);
  return asked({ ...target, port: Number(port) }, [200], (origin) => ({ url: new URL(`${origin}/metrics`) }), 16);
}

async function holdStreams(
  target: Target,
  path: string,
  message: (streamId: number) => Buffer,
  flags: number,
): Promise<string> {
  // One more than the streams that the service accepts at full size.
  const count = Math.max(10, Math.min(101, Math.ceil(target.scale.connections / 10)));
  const open: RawConnection[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const connection = await RawConnection.open(target.port);
      open.push(connection);
      const parts = [wire.preface, wire.settings(), wire.settingsAck];
      for (let j = 0; j < streamsPerConnection; j++) {
        const streamId = 2 * j + 1;
        parts.push(wire.headers(streamId, wire.requestFields("POST", path, grpc), flags), message(streamId));
      }
      await connection.write(Buffer.concat(parts));
    }
    await sleep(target.scale.floodMs);
    return `${count * streamsPerConnection} streams on ${count} connections; ${await othersAreServed(target)}`;
  } finally {
    for (const connection of open) connection.destroy();
  }
}

async function watchersOverHttp1(target: Target): Promise<string> {
  const body = Buffer.concat([wire.envelope(Buffer.from("{}"))]);
  const count = Math.max(10, Math.ceil(target.scale.connections / 5));
  const open: RawConnection[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const connection = await RawConnection.open(target.port);
      open.push(connection);
      await connection.write(
        `POST ${watch} HTTP/1.1\r\nHost: a\r\nContent-Type: application/connect+json\r\nContent-Length: ${body.length}\r\n\r\n`,
      );
      await connection.write(body);
    }
    await sleep(target.scale.floodMs);
    const served = await othersAreServed(target);
    const watching = open.filter(({ received }) => received.includes("SERVING")).length;
    return `${watching} of ${count} watch; ${served}`;
  } finally {
    for (const connection of open) connection.destroy();
  }
}

/** Requests the largest file as fast as it takes the answers. */
async function reflectionFlood(target: Target): Promise<string> {
  // file_containing_symbol = 4.
  const name = Buffer.from("ingest.v1.Ingest");
  const question = wire.envelope(Buffer.concat([Buffer.from([0x22, name.length]), name]));
  let bytes = 0;
  const end = Date.now() + target.scale.floodMs;
  await Promise.all(
    Array.from({ length: 8 }, async () => {
      while (Date.now() < end) {
        const session = http2Connect(`http://127.0.0.1:${target.port}`).on("error", () => {});
        const stream = session.request({ ":method": "POST", ":path": reflection, ...grpc });
        stream.on("error", () => {}).on("data", (chunk: Buffer) => (bytes += chunk.length));
        const closed = once(stream, "close").catch(() => {});
        for (let i = 0; i < 1_000 && !stream.closed; i++) stream.write(question);
        await Promise.race([closed, sleep(Math.max(1, end - Date.now()))]);
        session.destroy();
      }
    }),
  );
  return `${Math.round(bytes / 1_000)} KB of answers in ${target.scale.floodMs / 1_000} s; ${await othersAreServed(target)}`;
}

/** New callers over gRPC and HTTP/1.1. @throws if one is not served. */
async function othersAreServed({ port, key }: Target): Promise<string> {
  const ready = await fetch(`http://127.0.0.1:${port}/readyz`, { headers: { connection: "close" } });
  if (ready.status !== 200) throw new Error(`/readyz answers ${ready.status}`);
  const session = http2Connect(`http://127.0.0.1:${port}`);
  const failed = new Promise<never>((_resolve, reject) => session.once("error", reject));
  failed.catch(() => {});
  try {
    for (const [path, authorization] of [
      ["/ingest.v1.Ingest/Ping", `Bearer ${key}`],
      [check, undefined],
    ] as const) {
      const headers = { ":method": "POST", ":path": path, ...grpc, ...(authorization && { authorization }) };
      const stream = session.request(headers);
      let status: unknown;
      stream.on("trailers", (trailers) => (status = trailers["grpc-status"]));
      stream.resume().end(emptyMessage);
      await Promise.race([once(stream, "close"), failed]);
      if (status !== "0") throw new Error(`a newcomer's ${path} is answered ${String(status)}`);
    }
  } finally {
    session.destroy();
  }
  return "newcomers served";
}
