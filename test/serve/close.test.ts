import { once } from "node:events";
import { connect } from "node:http2";
import { connect as connectSocket } from "node:net";
import { buffer } from "node:stream/consumers";
import { encodeEnvelope } from "@connectrpc/connect/protocol";
import { expect, test } from "vitest";
import { Ingest } from "../../src/gen/ingest/v1/ingest_pb.js";
import type { Route } from "../../src/transport/http/route.ts";
import { unary } from "../../src/transport/rpc/rpc.ts";
import { startAdapter } from "../support/adapter.ts";
import { RawConnection } from "../support/socket.ts";

/** Longer than any test. A close that waits for this has failed. */
const longMs = 600_000;

/** Answers on command. */
function held() {
  const { promise, resolve } = Promise.withResolvers<void>();
  const arrived = Promise.withResolvers<void>();
  const wait = async () => {
    arrived.resolve();
    await promise;
  };
  const route: Route = {
    method: "GET",
    path: "/held",
    rpc: "",
    handle: async () => {
      await wait();
      return { status: 200, body: "done" };
    },
  };
  const rpc = unary(
    Ingest.method.ping,
    () => undefined,
    async () => {
      await wait();
      return { ok: true };
    },
  );
  return { route, rpc, arrived: arrived.promise, release: resolve };
}

async function isRefused(port: number): Promise<boolean> {
  const socket = connectSocket(port, "127.0.0.1");
  const [event] = await Promise.race([
    once(socket, "connect").then(() => ["connect"]),
    once(socket, "close").then(() => ["close"]),
  ]).catch(() => ["close"]);
  socket.destroy();
  return event === "close";
}

test("on close, running HTTP/1.1 answers are the last on their connections, and idle connections end", async () => {
  const work = held();
  await using adapter = await startAdapter({ routes: [work.route] });
  const idle = await RawConnection.open(adapter.port);
  idle.send(["GET /nowhere HTTP/1.1", "Host: x"]);
  await idle.answer();
  const busy = await RawConnection.open(adapter.port);
  busy.send(["GET /held HTTP/1.1", "Host: x"]);
  await work.arrived;

  const closed = adapter.close(longMs);
  await idle.ended();
  expect(await isRefused(adapter.port)).toBe(true);
  work.release();
  const answer = await busy.answer();
  expect([answer.status, answer.body, answer.headers.get("connection")]).toEqual([200, "done", "close"]);
  await busy.ended();
  for (const connection of [idle, busy]) connection.close();
  await closed;
});

test("close does not cut an answer that its caller reads slowly", async () => {
  const body = Buffer.alloc(50_000_000, "x");
  const route: Route = { method: "GET", path: "/big", rpc: "", handle: () => ({ status: 200, body }) };
  await using adapter = await startAdapter({ routes: [route] });
  const socket = connectSocket(adapter.port, "127.0.0.1");
  socket.write("GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
  await once(socket, "readable");
  const closed = adapter.close(longMs);
  // Gives the server time to act. A slow machine only makes the test weaker.
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect((await buffer(socket)).length).toBeGreaterThan(body.length);
  await closed;
});

test.each([
  ["application/grpc", 1],
  ["application/grpc-web+proto", 0],
])("on close, HTTP/2 sessions get GOAWAY and their calls finish (%s)", async (contentType) => {
  const work = held();
  await using adapter = await startAdapter({ rpcs: [work.rpc] });
  const session = connect(adapter.url);
  const call = () => {
    const headers = { ":method": "POST", ":path": "/ingest.v1.Ingest/Ping", "content-type": contentType };
    const stream = session.request(headers);
    stream.end(encodeEnvelope(0, new Uint8Array()));
    return stream;
  };
  const stream = call();
  await work.arrived;

  const goneAway = once(session, "goaway");
  const closed = adapter.close(longMs);
  expect((await goneAway)[0]).toBe(0);
  expect(await isRefused(adapter.port)).toBe(true);
  work.release();
  const [head] = await once(stream, "response");
  expect(head[":status"]).toBe(200);
  stream.resume();
  await once(stream, "close");
  expect(stream.rstCode).toBe(0);
  await closed;
});

test("requests that outlast the drain are cut", async () => {
  const work = held();
  await using adapter = await startAdapter({ routes: [work.route], rpcs: [work.rpc] });
  const busy = await RawConnection.open(adapter.port);
  busy.send(["GET /held HTTP/1.1", "Host: x"]);
  const session = connect(adapter.url).on("error", () => {});
  session.request({ ":path": "/held" }).on("error", () => {});
  await work.arrived;
  await expect.poll(() => adapter.starts.length).toBe(2);
  await Promise.all([adapter.close(100), busy.ended(), once(session, "close")]);
  work.release();
  busy.close();
  await expect.poll(() => adapter.ends.map(({ status }) => status), { timeout: 10_000 }).toEqual([0, 0]);
  session.destroy();
});
