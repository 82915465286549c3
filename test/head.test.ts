import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { connect } from "node:net";
import { expect, onTestFinished, test, vi } from "vitest";
import { writeHead } from "../src/transport/head.ts";

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const headers = { "x-request-id": "req_1", "content-type": "text/plain", "content-length": "2" };

type Answer = (response: ServerResponse, write: typeof writeHead) => void;

const cases: Record<string, { readonly sent: string; readonly answer: Answer; readonly takesText: boolean }> = {
  "an answer": { sent: get, answer: ok(200), takesText: true },
  "a partial success": { sent: get, answer: ok(207), takesText: true },
  "an error": { sent: get, answer: ok(429), takesText: true },
  bytes: { sent: get, answer: ok(200, Buffer.from("hi")), takesText: true },
  "an answer written in parts": {
    sent: get,
    answer(response, write) {
      write(response, 200, headers, Date.now());
      response.write("h");
      response.end("i");
    },
    takesText: true,
  },
  "requests in a pipeline": { sent: get.repeat(3), answer: ok(200), takesText: true },
  "a caller of HTTP/1.0 that keeps its connection": {
    sent: "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    answer: ok(200),
    takesText: true,
  },
  "an answer to HEAD": { sent: "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", answer: ok(200), takesText: true },
  "a caller of HTTP/1.0": { sent: "GET / HTTP/1.0\r\n\r\n", answer: ok(200), takesText: false },
  "a caller's last request": {
    sent: "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    answer: ok(200),
    takesText: false,
  },
  "the last answer of a connection": {
    sent: get,
    answer(response, write) {
      response.setHeader("connection", "close");
      ok(200)(response, write);
    },
    takesText: false,
  },
  "no content": { sent: get, answer: none(204), takesText: false },
  "nothing new": { sent: get, answer: none(304), takesText: false },
};

function ok(status: number, body: string | Buffer = "hi"): Answer {
  return (response, write) => {
    write(response, status, headers, Date.now());
    response.end(response.req.method === "HEAD" ? undefined : body);
  };
}

function none(status: number): Answer {
  return (response, write) => {
    write(response, status, { "x-request-id": "req_1" }, Date.now());
    response.end();
  };
}

/** All that a caller gets until the connection is quiet, or has ended. */
async function received(answer: Answer, sent: string, write: typeof writeHead): Promise<string> {
  const server = createServer({ keepAliveTimeout: 0 }, (_request, response) => answer(response, write));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
  let text = "";
  socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
  // A request that is refused ends the connection; its answer comes last.
  socket.write(`${sent}END\r\n\r\n`);
  await once(socket, "close");
  return text.replaceAll(/Date: .*/g, "Date: now");
}

test.each(Object.entries(cases))(
  "the head of %s is Node's own, byte for byte",
  async (_, { sent, answer, takesText }) => {
    const native = vi.fn();
    const ours = await received(answer, sent, (response, ...rest) => {
      const writeNative = response.writeHead;
      response.writeHead = ((...given: Parameters<typeof writeNative>) => {
        native();
        return writeNative.apply(response, given);
      }) as typeof writeNative;
      writeHead(response, ...rest);
    });
    const nodes = await received(answer, sent, (response, status, all) => void response.writeHead(status, all));
    expect(ours).toBe(nodes);
    expect(ours).toMatch(/^HTTP\/1\.1 \d{3} [^]*Date: now/);
    expect(native.mock.calls.length).toBe(takesText ? 0 : 1);
  },
);

test("Date is the time that is given", async () => {
  const at = Date.UTC(2026, 3, 19, 12, 5, 0, 999);
  const server = createServer((_request, response) => {
    writeHead(response, 200, headers, at);
    response.end("hi");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  const answer = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  expect(answer.headers.get("date")).toBe("Sun, 19 Apr 2026 12:05:00 GMT");
});
