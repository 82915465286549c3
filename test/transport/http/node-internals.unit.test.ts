import { EventEmitter } from "node:events";
import { IncomingMessage, ServerResponse } from "node:http";
import { Socket } from "node:net";
import { Writable } from "node:stream";
import { expect, test } from "vitest";
import { beginAnswer, endWith, missingInternals, takeOver } from "../../../src/transport/http/node-internals.ts";

test("this Node behaves as the server relies on", () => {
  expect(missingInternals()).toEqual([]);
});

test("a listener is taken over only if it is the only one", () => {
  const server = new EventEmitter();
  expect(takeOver(server, "connection")).toBeUndefined();
  const own = () => {};
  server.on("connection", own);
  expect(takeOver(server, "connection")).toBe(own);
  expect(server.listeners("connection")).toEqual([]);
  server.on("connection", own).on("connection", () => {});
  expect(takeOver(server, "connection")).toBeUndefined();
  expect(server.listeners("connection")).toHaveLength(2);
});

/** What a caller of HTTP/1.1 reads when `answer` has answered, with another date. */
async function bytesOf(answer: (response: ServerResponse) => void): Promise<string> {
  const request = new IncomingMessage(new Socket());
  Object.assign(request, { httpVersionMajor: 1, httpVersionMinor: 1 });
  const response = new ServerResponse(request);
  let text = "";
  const socket = new Writable({
    decodeStrings: false,
    write(chunk: string | Buffer, encoding, done) {
      text += typeof chunk === "string" ? Buffer.from(chunk, encoding).toString("latin1") : chunk.toString("latin1");
      done();
    },
  });
  response.assignSocket(socket as Socket);
  answer(response);
  await new Promise((resolve) => response.once("finish", resolve));
  return text.replace(/Date: [^\r]+/, "Date: …");
}

test.each([
  ["JSON", 202, { "x-request-id": "req_1", "content-length": "2" }, "{}"],
  ["text beyond ASCII", 200, { "content-type": "text/plain; charset=utf-8", "content-length": "2" }, "ö"],
  ["bytes", 200, { "content-length": "2" }, Buffer.from("ö")],
  ["an answer without a known length", 200, { "content-type": "text/plain" }, "chunked"],
  ["an answer without a body", 204, { "x-request-id": "req_1" }, ""],
  ["the last answer", 503, { connection: "close", "content-length": "2" }, "{}"],
])("%s leaves as Node would send it", async (_name, status, headers, body) => {
  const ours = await bytesOf((response) => {
    beginAnswer(response, status, headers as Record<string, string>);
    endWith(response, body);
  });
  const nodes = await bytesOf((response) => response.writeHead(status, headers as Record<string, string>).end(body));
  expect(ours).toBe(nodes);
  expect(ours).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
});

test("Node refuses a header that would end its line", () => {
  const response = new ServerResponse(new IncomingMessage(new Socket()));
  const headers = { "x-note": "one\r\nset-cookie: two", "content-length": "0" };
  expect(() => beginAnswer(response, 200, headers)).toThrow("Invalid character");
});
