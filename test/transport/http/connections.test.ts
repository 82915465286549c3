import { once } from "node:events";
import { createServer, type Http2Server } from "node:http2";
import { type AddressInfo, connect, type Socket } from "node:net";
import { expect, onTestFinished, test, vi } from "vitest";
import { type ServerBounds, serverBounds } from "../../../src/transport/http/server-limits.ts";
import { type ConnectionCounts, Connections, sweepMs } from "../../../src/transport/http/connections.ts";
import * as wire from "../../support/http2-wire.ts";

/** An HTTP/2 server with these bounds that does not answer requests. */
async function listen(bounds: Partial<ServerBounds>): Promise<Http2Server & { counts(): ConnectionCounts }> {
  const connections = new Connections({ ...serverBounds, ...bounds });
  const server = createServer({ settings: { maxHeaderListSize: serverBounds.headerBytesMax } });
  server.on("session", (session) => {
    connections.addSession(session);
    session.on("error", () => {});
  });
  server.on("stream", (stream, headers) => {
    const path = headers[":path"] ?? "";
    if (!connections.addStream(stream, path.startsWith("/keyless") ? { ":status": 503 } : undefined)) return;
    stream.on("error", () => {}).resume();
    // Other requests wait.
    if (path.endsWith("/")) stream.respond({ ":status": 204 }, { endStream: true });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    connections.stop();
    server.close();
  });
  return Object.assign(server, { counts: () => connections.counts() });
}

/** A caller that reads everything and never ends its side. */
async function open(server: Http2Server): Promise<{ socket: Socket; received: () => Buffer }> {
  const { port } = server.address() as AddressInfo;
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  const chunks: Buffer[] = [];
  socket.on("error", () => {}).on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(socket, "connect");
  socket.write(Buffer.concat([wire.preface, wire.settings(), wire.settingsAck]));
  onTestFinished(() => void socket.destroy());
  return { socket, received: () => Buffer.concat(chunks) };
}

const connectionsOf = (server: Http2Server) =>
  new Promise<number>((resolve, reject) =>
    server.getConnections((error, count) => (error === null ? resolve(count) : reject(error))),
  );
const patience = { timeout: 20_000, interval: 50 };

/** A block whose fields are a hundred times the allowed size. */
const bomb = Buffer.concat([
  wire.requestFields("GET", "/"),
  wire.hpackLiteral("x-bomb", "x".repeat(4_000), true),
  Buffer.alloc(500, wire.hpackIndexed(62)),
]);
const goaway = (code: number) => {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(code);
  return payload;
};
const enhanceYourCalm = goaway(0x0b);

test("a session ends with ENHANCE_YOUR_CALM when its streams keep being refused for their headers", async () => {
  const server = await listen({ refusedStreamsMax: 20, refusedStreamsPerSecond: 0 });
  const { socket, received } = await open(server);
  for (let i = 0; i < 20; i++) socket.write(wire.headers(2 * i + 1, bomb, 5));
  // The allowed number of bad streams, then a good one, which gets an answer.
  socket.write(wire.headers(41, wire.requestFields("GET", "/"), 5));
  await vi.waitFor(() => expect(frames(received())).toContainEqual({ type: 1, streamId: 41 }), patience);
  expect(await connectionsOf(server)).toBe(1);
  socket.write(wire.headers(43, bomb, 5));
  await vi.waitFor(async () => expect(await connectionsOf(server)).toBe(0), patience);
  expect(frames(received()).at(-1)?.type).toBe(wire.frameType.goaway);
  expect(received().subarray(-4)).toEqual(enhanceYourCalm);
});

test("refused streams below the allowed rate have no effect", async () => {
  vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "performance"] });
  onTestFinished(() => void vi.useRealTimers());
  const server = await listen({ refusedStreamsMax: 5, refusedStreamsPerSecond: 5 });
  const { socket, received } = await open(server);
  const refused = (streamId: number) => ({ type: wire.frameType.rstStream, streamId });
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 5; i++) socket.write(wire.headers(2 * (5 * round + i) + 1, bomb, 5));
    const last = 2 * (5 * round + 4) + 1;
    await vi.waitFor(() => expect(frames(received())).toContainEqual(refused(last)), patience);
    vi.advanceTimersByTime(2 * sweepMs);
  }
  expect(await connectionsOf(server)).toBe(1);
});

test("an idle session gets a GOAWAY and is then ended, even if its caller keeps its side open", async () => {
  const server = await listen({ sessionIdleMs: 100 });
  const { received } = await open(server);
  await vi.waitFor(async () => expect(await connectionsOf(server)).toBe(1), patience);
  await vi.waitFor(async () => expect(await connectionsOf(server)).toBe(0), patience);
  expect(frames(received()).map(({ type }) => type)).toContain(wire.frameType.goaway);
});

const { headers: headersFrame, rstStream } = wire.frameType;
/** Begins requests that do not end, on streams from `first` on. */
function begin(socket: Socket, path: string, first: number, count: number): void {
  for (let i = 0; i < count; i++) socket.write(wire.headers(first + 2 * i, wire.requestFields("POST", path), 4));
}

test("an answered stream takes no place, even if its caller does not end it, and ends soon", async () => {
  const server = await listen({ streamsMax: 5, lingerMs: 100 });
  const { socket, received } = await open(server);
  begin(socket, "/", 1, 20);
  await vi.waitFor(() => expect(frames(received())).toContainEqual({ type: headersFrame, streamId: 39 }), patience);
  expect(frames(received()).filter(({ type }) => type === rstStream)).toEqual([]);
  expect(server.counts().streams).toEqual({ open: 0, unfinished: 20 });
  await vi.waitFor(() => {
    expect(frames(received()).filter(({ type }) => type === rstStream)).toHaveLength(20);
    expect(server.counts().streams.unfinished).toBe(0);
  }, patience);
  expect(server.counts().refused).toMatchObject({ full: 0, unfinished: 20 });
});

test("waiting streams are refused past their limit, and streams without a key take none of their places", async () => {
  const server = await listen({
    streamsMax: 5,
    unfinishedStreamsMax: 10,
    keylessStreamsPerSessionMax: 100,
    keylessCallsPerSecond: 100,
  });
  const { socket, received } = await open(server);
  begin(socket, "/keyless", 1, 30);
  await vi.waitFor(() => expect(server.counts().streams).toEqual({ open: 0, unfinished: 10 }), patience);
  // The oldest streams made room.
  const cut = () => frames(received()).filter(({ type }) => type === rstStream);
  const oldest = Array.from({ length: 20 }, (_, i) => 2 * i + 1);
  await vi.waitFor(() => expect(cut().map(({ streamId }) => streamId)).toEqual(oldest), patience);
  begin(socket, "/waits", 61, 5);
  await vi.waitFor(() => expect(server.counts().streams.open).toBe(5), patience);
  begin(socket, "/waits", 71, 1);
  await vi.waitFor(() => expect(frames(received())).toContainEqual({ type: rstStream, streamId: 71 }), patience);
  expect(server.counts().refused).toMatchObject({ full: 1, unfinished: 20 });
  // A new caller without a key still finds room.
  socket.write(wire.headers(73, wire.requestFields("GET", "/keyless/"), 5));
  await vi.waitFor(() => expect(frames(received())).toContainEqual({ type: headersFrame, streamId: 73 }), patience);
});

test("calls without a key past their session's limit are refused, and others on it are served", async () => {
  const server = await listen({ keylessStreamsPerSessionMax: 3, keylessCallsPerSecond: 5 });
  const { socket, received } = await open(server);
  begin(socket, "/keyless", 1, 10);
  await vi.waitFor(() => expect(server.counts().refused.keyless).toBe(7), patience);
  socket.write(wire.headers(21, wire.requestFields("GET", "/"), 5));
  await vi.waitFor(() => expect(frames(received())).toContainEqual({ type: headersFrame, streamId: 21 }), patience);
  // Also limited by rate, even if each of them ends at once.
  const another = await open(server);
  for (let i = 0; i < 20; i++) {
    another.socket.write(wire.headers(2 * i + 1, wire.requestFields("GET", "/keyless/"), 5));
  }
  await vi.waitFor(() => expect(server.counts().refused.keyless).toBeGreaterThan(7), patience);
});

/** The frames that a server has sent. */
function frames(bytes: Buffer): { type: number; streamId: number }[] {
  const found = [];
  for (let at = 0; at + 9 <= bytes.length; at += 9 + bytes.readUIntBE(at, 3)) {
    found.push({ type: bytes.readUInt8(at + 3), streamId: bytes.readUInt32BE(at + 5) });
  }
  return found;
}
