import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { beforeAll, expect, onTestFinished, test } from "vitest";
import { type ServerBounds, serverBounds } from "../../../src/transport/http/server-limits.ts";
import type { Route } from "../../../src/transport/http/route.ts";
import { startAdapter } from "../../support/adapter.ts";
import { type Certificate, createCertificate } from "../../support/certificate.ts";

/** More than the system buffers for a caller that does not read. */
const bigBody = Buffer.alloc(20_000_000, "x");
const routes: Route[] = [
  { method: "GET", path: "/", rpc: "", handle: () => ({ status: 200, body: "small" }) },
  { method: "GET", path: "/big", rpc: "", handle: () => ({ status: 200, body: bigBody }) },
  { method: "POST", path: "/read", rpc: "", handle: async (r) => ({ status: 200, body: await r.readBody(10_000) }) },
];

let tls: Certificate;
beforeAll(async () => {
  tls = await createCertificate();
});

const tcp = (port: number): Socket => connect(port, "127.0.0.1").on("error", () => {});
const secure = (port: number, protocol = "http/1.1"): Socket =>
  connectTls({ port, host: "127.0.0.1", servername: "localhost", ca: tls.cert, ALPNProtocols: [protocol] }).on(
    "error",
    () => {},
  );

/** Everything received until the connection ends, by FIN or reset. */
async function received(socket: Socket): Promise<string> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(socket, "close");
  return Buffer.concat(chunks).toString("latin1");
}

interface Holder {
  /** The one limit that can end it during the test. */
  readonly bounds: Partial<ServerBounds>;
  readonly open: (port: number) => Socket;
  readonly sends: string | Buffer;
  /** Whether it continues, one byte at a time. */
  readonly drips?: boolean;
  readonly ends: RegExp;
}

const shortMs = 200;
const timedOut = /^HTTP\/1\.1 408 [^]*connection: close\r\n[^]*"code":"invalid_body"/;
const holders: Record<string, Holder> = {
  "a connection without a handshake": {
    bounds: { firstByteMs: shortMs },
    open: tcp,
    sends: "",
    ends: /^$/,
  },
  "an unfinished handshake": {
    bounds: { firstByteMs: shortMs },
    open: tcp,
    // The head of a ClientHello that announces more than follows.
    sends: Buffer.from("16030102000100", "hex"),
    ends: /^$/,
  },
  "a connection that is silent after its handshake": {
    bounds: { headersMs: shortMs },
    open: secure,
    sends: "",
    ends: timedOut,
  },
  "a session that is silent after its handshake": {
    bounds: { sessionIdleMs: shortMs },
    open: (port) => secure(port, "h2"),
    sends: "",
    ends: /^/,
  },
  "a request with headers byte by byte": {
    bounds: { headersMs: shortMs },
    open: secure,
    sends: "GET / HTTP/1.1\r\nX-Slow: ",
    drips: true,
    ends: timedOut,
  },
  "a request with a body byte by byte": {
    bounds: { headersMs: shortMs, requestMs: shortMs },
    open: secure,
    sends: "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n",
    drips: true,
    ends: timedOut,
  },
  "a connection without a second request": {
    bounds: { keepAliveMs: shortMs },
    open: secure,
    sends: "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ends: /^HTTP\/1\.1 200 [^]*small$/,
  },
};
const unlimited = Object.fromEntries(
  Object.keys(serverBounds)
    .filter((name) => name.endsWith("Ms"))
    .map((name) => [name, 600_000]),
);

// Each test uses its own context: hooks of the module belong to no single test when several run at once.
test.concurrent.for(Object.entries(holders))("over TLS %s is ended", async ([, holder], own) => {
  const { bounds, open, sends, drips, ends } = holder;
  const adapter = await startAdapter({ routes }, { tls, bounds: { ...unlimited, ...bounds } });
  const socket = open(adapter.port);
  const drip = setInterval(() => drips && socket.writable && socket.write("x"), 50);
  own.onTestFinished(async () => {
    clearInterval(drip);
    socket.destroy();
    await adapter.close(0);
  });
  if (sends.length > 0) socket.write(sends);
  own.expect(await received(socket)).toMatch(ends);
});

test("over TLS an answer that its caller does not read is cut", async () => {
  await using adapter = await startAdapter({ routes }, { tls, bounds: { ...unlimited, stallMs: shortMs } });
  const socket = secure(adapter.port);
  socket.write("GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
  await expect.poll(() => adapter.ends.length, { timeout: 20_000 }).toBe(1);
  expect((await received(socket)).length).toBeLessThan(bigBody.length);
});

test.each(["plain text", "TLS"])(
  "near the bound on connections, over %s, idle ones make room and no answer under way is cut",
  async (over) => {
    const bounds = { ...unlimited, connectionsMax: 12 };
    const held = Promise.withResolvers<{ status: number; body: string }>();
    const waiting: Route = { method: "GET", path: "/held", rpc: "", handle: () => held.promise };
    await using adapter = await startAdapter(
      { routes: [...routes, waiting] },
      over === "TLS" ? { tls, bounds } : { bounds },
    );
    const { port } = adapter;
    const sockets: Socket[] = [];
    onTestFinished(() => sockets.forEach((socket) => socket.destroy()));
    const open = (path?: string): Socket => {
      const socket = over === "TLS" && path !== undefined ? secure(port) : tcp(port);
      if (path !== undefined) socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`);
      sockets.push(socket);
      return socket;
    };

    const slow = open("/big");
    await once(slow, "readable");
    const busy = open("/held");
    const idle = open("/");
    const silent = open();
    await expect.poll(() => adapter.starts.length, { timeout: 20_000 }).toBe(3);
    const newcomers = setInterval(() => open().resume(), 100);
    onTestFinished(() => clearInterval(newcomers));
    await Promise.all([received(idle), received(silent)]);

    held.resolve({ status: 200, body: "held" });
    expect((await once(busy, "data")).toString()).toMatch(/^HTTP\/1\.1 200 [^]*held$/);
    let bytes = 0;
    slow.on("data", (chunk: Buffer) => (bytes += chunk.length));
    await expect.poll(() => bytes, { timeout: 20_000 }).toBeGreaterThan(bigBody.length);
  },
);
