import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import { type AddressInfo, connect } from "node:net";
import fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { errorTable, type ErrorCode, Fault } from "../../../src/errors.ts";
import type { Exchange } from "../../../src/exchange.ts";
import { createAdapter } from "../../../src/transport/http/adapter.ts";
import { answerHeaders, answerLines } from "../../../src/transport/http/answer-headers.ts";
import { leaveTogether } from "../../../src/transport/http/outbox.ts";
import type { ExchangeEnd, RouteReply } from "../../../src/transport/http/route.ts";
import { writeWhole } from "../../../src/transport/http/whole-answer.ts";

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const lines = "x-request-id: req_1\r\ncontent-type: text/plain\r\n";
const headers = { "x-request-id": "req_1", "content-type": "text/plain" };

interface Case {
  readonly sent: string;
  readonly status?: number;
  readonly body?: string;
  /** Done to the response before. */
  readonly before?: (response: ServerResponse) => void;
  /** Whether the answer is written as one text. */
  readonly isPlain: boolean;
}

const cases: Record<string, Case> = {
  "an answer": { sent: get, isPlain: true },
  "a partial success": { sent: get, status: 207, isPlain: true },
  "an error": { sent: get, status: 429, isPlain: true },
  "an answer without a character": { sent: get, body: "", isPlain: true },
  "requests in a pipeline": { sent: get.repeat(3), isPlain: true },
  "a caller of HTTP/1.0 that keeps its connection": {
    sent: "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    isPlain: true,
  },
  "a body that is not ASCII": { sent: get, body: "hé", isPlain: false },
  "a caller of HTTP/1.0": { sent: "GET / HTTP/1.0\r\n\r\n", isPlain: false },
  "a caller's last request": { sent: "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", isPlain: false },
  "the last answer of a connection": {
    sent: get,
    before: (response) => response.setHeader("connection", "close"),
    isPlain: false,
  },
  "no content": { sent: get, status: 204, body: "", isPlain: false },
  "nothing new": { sent: get, status: 304, body: "", isPlain: false },
};

/** All that a caller gets until the connection is quiet, or has ended. */
async function received(sent: string, answer: (response: ServerResponse) => void): Promise<string> {
  const server = createServer({ keepAliveTimeout: 0 }, (_request, response) => answer(response));
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
  "%s is Node's own, byte for byte",
  async (_, { sent, status = 200, body = "hi", before, isPlain }) => {
    const hasBody = status !== 204 && status !== 304;
    const length = hasBody ? { "content-length": String(Buffer.byteLength(body)) } : {};
    const native = (response: ServerResponse) => response.writeHead(status, { ...headers, ...length }).end(body);
    const written: boolean[] = [];
    const ours = await received(sent, (response) => {
      before?.(response);
      written.push(writeWhole(response, status, lines, body, Date.now()));
      if (written.at(-1)) response.end();
      else native(response);
    });
    const nodes = await received(sent, (response) => {
      before?.(response);
      native(response);
    });
    expect(ours).toBe(nodes);
    expect(ours).toMatch(/^HTTP\/1\.1 \d{3} [^]*Date: now/);
    expect(new Set(written)).toEqual(new Set([isPlain]));
  },
);

test("Date is the time that is given", async () => {
  const at = Date.UTC(2026, 3, 19, 12, 5, 0, 999);
  const server = createServer((_request, response) => {
    writeWhole(response, 200, lines, "hi", at);
    response.end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  const answer = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  expect(answer.headers.get("date")).toBe("Sun, 19 Apr 2026 12:05:00 GMT");
  expect(await answer.text()).toBe("hi");
});

test("the headers of an answer are the same as text and as an object", () => {
  const codes = Object.keys(errorTable) as ErrorCode[];
  const exchange = fc.record({
    requestId: fc.stringMatching(/^req_[0-9A-Z]{26}$/),
    rateLimit: fc.option(fc.record({ limit: fc.nat(), remaining: fc.nat() }), { nil: undefined }),
    claim: fc.constantFrom("taken", "replayed", "conflict", undefined),
    dryRun: fc.boolean(),
    ignoredMembers: fc.array(fc.string({ unit: "binary" }), { maxLength: 3 }),
    fault: fc.option(
      fc
        .tuple(fc.constantFrom(...codes), fc.option(fc.nat(), { nil: undefined }))
        .map(([code, retryAfterSeconds]) => new Fault(code, "m", { retryAfterSeconds } as object)),
      { nil: undefined },
    ),
  });
  fc.assert(
    fc.property(exchange, (some) => {
      const object = answerHeaders(some as unknown as Exchange);
      const text = Object.entries(object).map(([name, value]) => `${name}: ${value}\r\n`);
      expect(answerLines(some as unknown as Exchange)).toBe(text.join(""));
    }),
  );
});

test("answers leave in order at the end of their turn; what becomes ready as they leave, at the end of the next", async () => {
  const left: number[] = [];
  leaveTogether({
    leave() {
      left.push(1);
      leaveTogether({ leave: () => left.push(3) });
    },
  });
  leaveTogether({ leave: () => left.push(2) });
  expect(left).toEqual([]);
  await new Promise((resolve) => setImmediate(resolve));
  expect(left).toEqual([1, 2]);
  await new Promise((resolve) => setImmediate(resolve));
  expect(left).toEqual([1, 2, 3]);
});

const done: RouteReply = { status: 200, body: "done" };

test.each<[string, () => RouteReply | Promise<RouteReply>]>([
  ["at once", () => done],
  ["later", async () => done],
])(
  "a caller that goes away while its answer, there %s, is about to leave is counted as gone, once",
  async (_, handle) => {
    const ends: ExchangeEnd[] = [];
    const adapter = createAdapter({
      routes: [{ method: "GET", path: "/", rpc: "", handle }],
      unary: [],
      services: () => {},
      publicUrl: "http://localhost",
      newRequestId: () => "req_1",
      now: Date.now,
      onEnd: (_exchange, end) => void ends.push(end),
    });
    const gone = Promise.withResolvers<void>();
    const server = createServer((request, response) => {
      adapter.request(request, response);
      request.socket.once("close", () => gone.resolve()).destroy();
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => void server.close());
    const socket = connect((server.address() as AddressInfo).port, "127.0.0.1").on("error", () => {});
    socket.write(get);
    await gone.promise;
    for (let turns = 0; turns < 3; turns++) await new Promise((resolve) => setImmediate(resolve));
    expect(ends).toEqual([expect.objectContaining({ path: "/", status: 0 })]);
    socket.destroy();
  },
);
