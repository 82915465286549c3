import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { setTimeout as delay } from "node:timers/promises";
import { text } from "node:stream/consumers";
import { expect, onTestFinished, test } from "vitest";
import type { Route } from "../../../src/transport/http/route.ts";
import { startAdapter } from "../../support/adapter.ts";
import { createCertificate } from "../../support/certificate.ts";

const tls = await createCertificate();
const bigBody = "x".repeat(2_000_000);
let streamsEnded = 0;

const routes: Route[] = [
  {
    method: "POST",
    path: "/echo",
    rpc: "",
    async handle(request) {
      const body = await request.readBody(1_000_000);
      // Let the server see the end of the caller's side before the answer.
      await delay(50);
      return { status: 202, body: JSON.stringify(body.toString()) };
    },
  },
  { method: "GET", path: "/never", rpc: "", handle: () => new Promise<never>(() => {}) },
  { method: "GET", path: "/big", rpc: "", handle: () => ({ status: 200, body: bigBody }) },
  {
    method: "GET",
    path: "/stream",
    rpc: "",
    async handle(request) {
      request.signal.addEventListener("abort", () => streamsEnded++);
      const never = once(request.signal, "abort");
      return {
        status: 200,
        body: (async function* () {
          yield "first\n";
          await never;
        })(),
      };
    },
  },
];

const ways = {
  "plain text": (port: number): Socket => connect({ port, host: "127.0.0.1", allowHalfOpen: true }),
  TLS: (port: number): Socket =>
    connectTls({ port, host: "127.0.0.1", servername: "localhost", ca: tls.cert, allowHalfOpen: true } as object),
};

for (const [way, open] of Object.entries(ways)) {
  const start = () => startAdapter({ routes }, way === "TLS" ? { tls } : {});
  const request = (path: string, body = ""): string =>
    `${body === "" ? "GET" : "POST"} ${path} HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`;

  test(`over ${way} a caller that ends its side at once gets its answer`, async () => {
    await using adapter = await start();
    for (let i = 0; i < 10; i++) {
      const socket = open(adapter.port);
      onTestFinished(() => void socket.destroy());
      socket.end(request("/echo", `body ${i}`));
      // The answer, and then the end of the connection.
      expect(await text(socket)).toMatch(new RegExp(`^HTTP/1\\.1 202 [^]*"body ${i}"$`));
    }
    expect(adapter.ends.map(({ status }) => status)).toEqual(Array(10).fill(202));
  });

  test(`over ${way} it gets the answers to all its requests, and large ones completely`, async () => {
    await using adapter = await start();
    const socket = open(adapter.port);
    onTestFinished(() => void socket.destroy());
    socket.end(request("/echo", "first") + request("/echo", "second") + request("/big"));
    const answers = await text(socket);
    expect(answers).toMatch(/"first"[^]*"second"/);
    expect(answers.endsWith(bigBody)).toBe(true);
  });

  test(`over ${way} the reader of a stream counts as gone when it ends its side`, async () => {
    await using adapter = await start();
    const socket = open(adapter.port);
    onTestFinished(() => void socket.destroy());
    socket.write(request("/stream"));
    await new Promise((resolve) => socket.once("data", resolve));
    const before = streamsEnded;
    socket.end();
    await expect.poll(() => streamsEnded, { timeout: 20_000 }).toBe(before + 1);
    expect(adapter.starts[0]?.isAbandoned()).toBe(true);
  });

  test(`over ${way} the service notices a caller that leaves during a long answer`, async () => {
    await using adapter = await start();
    const socket = open(adapter.port);
    socket.write(request("/never"));
    await expect.poll(() => adapter.starts.length, { timeout: 20_000 }).toBe(1);
    socket.destroy();
    await expect.poll(() => adapter.starts[0]?.isAbandoned(), { timeout: 20_000 }).toBe(true);
  });

  test(`over ${way} an incomplete request is refused`, async () => {
    await using adapter = await start();
    const socket = open(adapter.port);
    onTestFinished(() => void socket.destroy());
    socket.end("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nnot all");
    expect(await text(socket)).toMatch(/^(HTTP\/1\.1 400 |$)/);
    await expect.poll(() => adapter.ends.length, { timeout: 20_000 }).toBeGreaterThan(0);
  });
}
