import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { buffer } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { expect, test } from "vitest";
import type { Route } from "../../../src/transport/http/route.ts";
import { leavesUpgradedBody } from "../../../src/transport/http/node-internals.ts";
import { startAdapter } from "../../support/adapter.ts";
import { createCertificate } from "../../support/certificate.ts";

/** More than the system buffers for a caller that does not read. */
const big = Buffer.alloc(20_000_000, "x");
const routes: Route[] = [
  { method: "GET", path: "/big", rpc: "", handle: () => ({ status: 200, body: big }) },
  {
    method: "POST",
    path: "/echo",
    rpc: "",
    handle: async (request) => ({ status: 200, body: await request.readBody(10_000) }),
  },
];

const ways = ["plain text", "TLS"];
const connectTo = (port: number, tls: { readonly cert: string } | undefined) =>
  tls === undefined
    ? connect(port, "127.0.0.1")
    : connectTls({ port, host: "127.0.0.1", servername: "localhost", ca: tls.cert });
/** A chunk without a valid size. */
const badChunk = "POST /late HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
const whole = (body: string) => `POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
const followers = {
  "stray bytes": "}\r\n\r\n",
  "a request of no HTTP": "GET / HTTP/9.9\r\n\r\n",
  "a body that cannot be read": badChunk,
};

test.each(ways.flatMap((over) => Object.entries(followers).map(([what, bytes]) => [over, what, bytes] as const)))(
  "over %s requests that were read as a whole get their own answers before %s gets one",
  async (over, _what, bytes) => {
    const tls = over === "TLS" ? await createCertificate() : undefined;
    const proceed = Promise.withResolvers<void>();
    let begun = 0;
    const late: Route = {
      method: "POST",
      path: "/late",
      rpc: "",
      async handle(request) {
        const body = await request.readBody(10_000);
        begun++;
        await proceed.promise;
        return { status: 200, body };
      },
    };
    await using adapter = await startAdapter({ routes: [late] }, tls === undefined ? {} : { tls });
    const socket = connectTo(adapter.port, tls);
    socket.write(`${whole("one")}${whole("two")}${bytes}`);
    await expect.poll(() => begun, { timeout: 10_000 }).toBe(2);
    // By now the server knows that the rest is invalid.
    await delay(100);
    proceed.resolve();
    const answers = (await buffer(socket)).toString("latin1");
    expect(answers.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200", "HTTP/1.1 200", "HTTP/1.1 400"]);
    expect(answers).toMatch(/\r\n\r\none.*\r\n\r\ntwo.*"code":"invalid_body"/s);
  },
);

test.each(ways)("requests that wait for an earlier answer end with their connection, over %s", async (over) => {
  const tls = over === "TLS" ? await createCertificate() : undefined;
  let [begun, closed] = [0, 0];
  const endless: Route = {
    method: "POST",
    path: "/late",
    rpc: "",
    async handle(request) {
      const body = await request.readBody(10_000);
      request.signal.addEventListener("abort", () => closed++);
      begun++;
      // The first one ends with its connection. The others are done, and wait for it.
      if (begun === 1) await once(request.signal, "abort");
      return { status: 200, body };
    },
  };
  await using adapter = await startAdapter({ routes: [endless] }, tls === undefined ? {} : { tls });
  const socket = connectTo(adapter.port, tls);
  socket.write(whole("x").repeat(20));
  await expect.poll(() => begun, { timeout: 10_000 }).toBe(20);
  expect(adapter.ends).toHaveLength(0);
  socket.destroy();
  await expect.poll(() => adapter.ends.length, { timeout: 10_000 }).toBe(20);
  expect(closed).toBe(20);
});

test("an unreadable body gets its answer at once if no request is before it", async () => {
  await using adapter = await startAdapter({ routes });
  const socket = connect(adapter.port, "127.0.0.1");
  socket.write(badChunk.replace("/late", "/echo"));
  expect((await buffer(socket)).toString("latin1")).toMatch(/^HTTP\/1\.1 400 /);
});

test.each(ways)("a request that begins before the last answer was read keeps its body, over %s", async (over) => {
  const tls = over === "TLS" ? await createCertificate() : undefined;
  await using adapter = await startAdapter({ routes }, tls === undefined ? {} : { tls });
  const socket = connectTo(adapter.port, tls);
  if ("setMaxSendFragment" in socket) {
    await once(socket, "secureConnect");
    // Head and body in separate records, which the server reads at once.
    socket.setMaxSendFragment(512);
  }
  socket.write("GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
  await once(socket, "readable");

  const body = "y".repeat(4_000);
  const head = ["POST /echo HTTP/1.1", "Host: x", "Connection: close", `Content-Length: ${body.length}`];
  socket.write(`${head.join("\r\n")}\r\n\r\n${body}`);
  await expect.poll(() => adapter.starts.length, { timeout: 10_000 }).toBe(2);

  const answers = (await buffer(socket)).toString("latin1");
  expect(answers.split("HTTP/1.1 200 OK").length - 1).toBe(2);
  expect(answers.endsWith(`\r\n\r\n${body}`)).toBe(true);
});

const asking = (method: string, headers: string, body = "") =>
  `${method} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nupgrade: h2c\r\n${headers}\r\n${body}`;

test.each(ways)("what follows a request that asks for another protocol is answered too, over %s", async (over) => {
  const tls = over === "TLS" ? await createCertificate() : undefined;
  await using adapter = await startAdapter({ routes }, tls === undefined ? {} : { tls });
  const socket = connectTo(adapter.port, tls);
  const sized = asking("POST /echo", "Content-Length: 3\r\n", "one");
  const chunked = asking("POST /echo", "Transfer-Encoding: chunked\r\n", "3\r\ntwo\r\n0\r\n\r\n");
  // The first answer is larger than what the system takes, and the caller ends its side before it reads.
  socket.end(
    [
      "GET /big HTTP/1.1\r\nHost: x\r\n\r\n",
      ...(leavesUpgradedBody ? [sized, chunked] : []),
      asking("GET /nothing", ""),
      asking("GET /nothing", ""),
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nthree",
    ].join(""),
  );
  const answers = (await buffer(socket)).toString("latin1");
  const expected = leavesUpgradedBody ? ["200", "200", "200", "404", "404", "200"] : ["200", "404", "404", "200"];
  expect(answers.match(/HTTP\/1\.1 \d+/g)?.map((status) => status.slice(9))).toEqual(expected);
  if (leavesUpgradedBody) expect(answers).toMatch(/\r\n\r\none.*\r\n\r\ntwo/s);
  expect(answers).toMatch(/\r\n\r\nthree$/s);
});

test.each(ways)("a request for an upgrade gets its answer, and its body is read, over %s", async (over) => {
  const tls = over === "TLS" ? await createCertificate() : undefined;
  await using adapter = await startAdapter({ routes }, tls === undefined ? {} : { tls });
  const socket = connectTo(adapter.port, tls);
  const body = "y".repeat(10_000);
  const request = asking("POST /echo", `Content-Length: ${body.length}\r\n`, body);
  for (let round = 0; round < 2; round++) {
    // The body comes in a separate packet.
    socket.write(request.slice(0, -5_000));
    await expect.poll(() => adapter.starts.length, { timeout: 10_000 }).toBe(round + 1);
    socket.write(request.slice(-5_000));
    await expect.poll(() => adapter.ends.length, { timeout: 10_000 }).toBe(round + 1);
  }
  socket.end();
  const answers = (await buffer(socket)).toString("latin1");
  expect(answers.split(`\r\n\r\n${body}`)).toHaveLength(3);
});

test.each(ways)("over %s a caller that connects before the adapter is ready gets its answer", async (over) => {
  const tls = over === "TLS" ? await createCertificate() : undefined;
  const early = Promise.withResolvers<Socket>();
  await using adapter = await startAdapter({ routes }, tls === undefined ? {} : { tls }, (port) => {
    const socket = connectTo(port, tls);
    early.resolve(socket.end("POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly"));
  });
  const socket = await early.promise;
  expect((await buffer(socket)).toString()).toMatch(/^HTTP\/1.1 200 [^]*early$/);
  expect(adapter.ends).toHaveLength(1);
});
