import { once } from "node:events";
import { connect } from "node:http2";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { encodeEnvelope } from "@connectrpc/connect/protocol";
import { describe, expect, test } from "vitest";
import { Fault } from "../../../src/errors.ts";
import { Ingest } from "../../../src/gen/ingest/v1/ingest_pb.js";
import type { RouteReply } from "../../../src/transport/http/route.ts";
import { unary, type RpcContext } from "../../../src/transport/rpc/rpc.ts";
import { startAdapter } from "../../support/adapter.ts";
import { RawConnection } from "../../support/socket.ts";

const never = () => new Promise<never>(() => {});

/** Ping in three forms: it never admits, it never answers, or it answers at once. */
const ping = (admit: (context: RpcContext) => unknown, call: () => object | Promise<object> = () => ({ ok: true })) => [
  unary(Ingest.method.ping, admit, call as never),
];

const transports: Readonly<Record<string, (baseUrl: string) => Transport>> = {
  "Connect over HTTP/1.1": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1" }),
  "Connect over HTTP/2": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "2" }),
  "gRPC-Web": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
  gRPC: (baseUrl) => createGrpcTransport({ baseUrl }),
  "gRPC in JSON": (baseUrl) => createGrpcTransport({ baseUrl, useBinaryFormat: false }),
};

describe.each(Object.entries(transports))("over %s", (name, transportOf) => {
  // Without the client's own timer, so that only the header tells the server.
  const headers: Record<string, string> = name.startsWith("Connect")
    ? { "connect-timeout-ms": "200" }
    : { "grpc-timeout": "200m" };

  test.each([
    ["the caller is being admitted", ping(never)],
    ["the call is at work", ping(() => undefined, never)],
  ])("a deadline that passes while %s gets deadline_exceeded", async (_when, rpcs) => {
    await using adapter = await startAdapter({ rpcs: rpcs });
    const client = createClient(Ingest, transportOf(adapter.url));
    const error = await client.ping({}, { headers }).catch(ConnectError.from);
    expect(error).toMatchObject({ code: Code.DeadlineExceeded });
    expect(adapter.starts[0]?.deadlineMs).toBeLessThanOrEqual(Date.now());
  });

  test("a call whose deadline has passed gets its error, and a distant deadline does no harm", async () => {
    const work = async () => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      return { ok: true };
    };
    await using adapter = await startAdapter({ rpcs: ping(() => undefined, work) });
    const client = createClient(Ingest, transportOf(adapter.url));
    // More than the longest timer of Node.
    const far = name.startsWith("Connect") ? { "connect-timeout-ms": "9999999999" } : { "grpc-timeout": "99999999H" };
    expect((await client.ping({}, { headers: far })).ok).toBe(true);
    const slow = ping(() => undefined, never);
    await using late = await startAdapter({ rpcs: slow });
    const passed = name.startsWith("Connect") ? { "connect-timeout-ms": "0" } : { "grpc-timeout": "1n" };
    const error = await createClient(Ingest, transportOf(late.url))
      .ping({}, { headers: passed })
      .catch(ConnectError.from);
    expect(error).toMatchObject({ code: Code.DeadlineExceeded });
  });

  test("no work begins for a call without time, however fast it would be", async () => {
    let begun = 0;
    const work = async () => (begun++, { ok: true });
    await using adapter = await startAdapter({ rpcs: ping(() => undefined, work) });
    const none = name.startsWith("Connect") ? { "connect-timeout-ms": "0" } : { "grpc-timeout": "0n" };
    const call = createClient(Ingest, transportOf(adapter.url)).ping({}, { headers: none });
    await expect(call).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    expect(begun).toBe(0);
  });

  test("the service notices a caller that leaves, and ends its work", async () => {
    let asked: (context: RpcContext) => void = () => {};
    const arrived = new Promise<RpcContext>((resolve) => (asked = resolve));
    await using adapter = await startAdapter({
      rpcs: ping((context) => {
        asked(context);
        return once(context.signal, "abort");
      }),
    });
    const abort = new AbortController();
    const call = createClient(Ingest, transportOf(adapter.url)).ping({}, { signal: abort.signal });
    const { start } = (await arrived).request;
    expect(start.isAbandoned()).toBe(false);
    abort.abort();
    await expect(call).rejects.toMatchObject({ code: Code.Canceled });
    await expect.poll(() => start.isAbandoned(), { timeout: 10_000 }).toBe(true);
    await expect.poll(() => adapter.ends.map(({ status }) => status), { timeout: 10_000 }).toEqual([0]);
  });

  test("a defect while an error is made becomes internal, and the observers learn of it", async () => {
    const defect = new Error("a defect");
    const refuse = () => {
      throw new Fault("plan_disabled", "Refused.");
    };
    await using adapter = await startAdapter({
      rpcs: ping(refuse),
      errorOf() {
        throw defect;
      },
    });
    const client = createClient(Ingest, transportOf(adapter.url));
    for (let count = 1; count <= 2; count++) {
      expect(await client.ping({}).catch(ConnectError.from)).toMatchObject({ code: Code.Internal });
      await expect.poll(() => adapter.ends).toHaveLength(count);
      expect(adapter.ends.at(-1)).toMatchObject({
        code: Code.Internal,
        fault: { code: "internal_error", cause: defect },
      });
    }
  });
});

describe("a defect", () => {
  const defect = new Error("a defect");
  const fails = () => {
    throw defect;
  };
  const page = (reply: () => RouteReply) => ({ method: "GET", path: "/page", rpc: "", handle: reply }) as const;
  const routes = [page(() => ({ status: 200, body: "fine" }))];

  test("in a reply's headers becomes internal_error", async () => {
    const headers = { location: "/two\nlines" };
    await using adapter = await startAdapter({ routes: [page(() => ({ status: 308, headers, body: "" }))] });
    const response = await fetch(`${adapter.url}/page`);
    expect([response.status, await response.json()]).toMatchObject([500, { error: { code: "internal_error" } }]);
    expect(adapter.ends).toMatchObject([{ status: 500, fault: { cause: { code: "ERR_INVALID_CHAR" } } }]);
  });

  test("in a page for a refusal becomes internal_error", async () => {
    await using adapter = await startAdapter({ routes, refusalPage: fails });
    expect((await fetch(`${adapter.url}/nowhere`)).status).toBe(500);
    expect(adapter.ends).toMatchObject([{ status: 500, fault: { code: "internal_error", cause: defect } }]);
    expect((await fetch(`${adapter.url}/page`)).status).toBe(200);
  });

  test("before a request has begun cuts it off, and is told", async () => {
    await using adapter = await startAdapter({ routes, onBegin: fails });
    await expect(fetch(`${adapter.url}/page`)).rejects.toThrow();
    expect(adapter.errors).toEqual([defect]);
  });

  test("in an observer harms no answer, and is told", async () => {
    await using adapter = await startAdapter({ routes, onEnd: fails });
    const broken = await RawConnection.open(adapter.port);
    broken.send(["NO HTTP"]);
    expect((await broken.answer()).status).toBe(400);
    expect(await (await fetch(`${adapter.url}/page`)).text()).toBe("fine");
    await expect.poll(() => adapter.errors).toEqual([defect, defect]);
  });
});

describe("a message that does not arrive", () => {
  test("ends at the deadline over HTTP/1.1", async () => {
    await using adapter = await startAdapter({ rpcs: ping(() => undefined) });
    const connection = await RawConnection.open(adapter.port);
    connection.send(
      [
        "POST /ingest.v1.Ingest/Ping HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        "Content-Length: 1000",
        "Connect-Timeout-Ms: 200",
      ],
      "{",
    );
    const { status, body } = await connection.answer();
    expect([status, JSON.parse(body).code]).toEqual([504, "deadline_exceeded"]);
    connection.close();
  });

  test("ends at the deadline over gRPC", async () => {
    await using adapter = await startAdapter({ rpcs: ping(() => undefined) });
    const session = connect(adapter.url);
    const stream = session.request({
      ":method": "POST",
      ":path": "/ingest.v1.Ingest/Ping",
      "content-type": "application/grpc",
      "grpc-timeout": "200m",
    });
    stream.write(encodeEnvelope(0, new Uint8Array(10)).subarray(0, 7));
    stream.resume();
    const [trailers] = await once(stream, "trailers");
    expect(trailers["grpc-status"]).toBe(String(Code.DeadlineExceeded));
    session.destroy();
  });
});
