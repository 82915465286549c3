import { once } from "node:events";
import { connect } from "node:net";
import { buffer } from "node:stream/consumers";
import { connect as connectTls } from "node:tls";
import { expect, test } from "vitest";
import type { Route } from "../src/transport/route.ts";
import { startAdapter } from "./support/adapter.ts";
import { createCertificate } from "./support/certificate.ts";

/** More than the system takes at once for a caller that does not read. */
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

test.each(["plain text", "TLS"])(
  "a request that begins before the last answer is read keeps its body, over %s",
  async (over) => {
    const tls = over === "TLS" ? await createCertificate() : undefined;
    await using adapter = await startAdapter({ routes }, tls === undefined ? {} : { tls });
    const socket =
      tls === undefined
        ? connect(adapter.port, "127.0.0.1")
        : connectTls({ port: adapter.port, host: "127.0.0.1", servername: "localhost", ca: tls.cert });
    if ("setMaxSendFragment" in socket) {
      await once(socket, "secureConnect");
      // Head and body in records of their own that the server reads at once.
      socket.setMaxSendFragment(512);
    }
    socket.write("GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
    await once(socket, "readable");

    const body = "y".repeat(4_000);
    const head = ["POST /echo HTTP/1.1", "Host: x", "Connection: close", `Content-Length: ${body.length}`];
    socket.write(`${head.join("\r\n")}\r\n\r\n${body}`);
    await expect.poll(() => adapter.exchanges.length, { timeout: 10_000 }).toBe(2);

    const answers = (await buffer(socket)).toString("latin1");
    expect(answers.split("HTTP/1.1 200 OK").length - 1).toBe(2);
    expect(answers.endsWith(`\r\n\r\n${body}`)).toBe(true);
  },
);
