import { once } from "node:events";
import { type ClientHttp2Session, connect } from "node:http2";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { expect, onTestFinished, test } from "vitest";
import { ServerReflection } from "../../../src/gen/grpc/reflection/v1/reflection_pb.js";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../../src/gen/health/v1/health_pb.js";
import { Ingest } from "../../../src/gen/ingest/v1/ingest_pb.js";
import { healthRpcs, watcherPlaces } from "../../../src/transport/rpc/health.ts";
import { reflectionAnswersMax, reflectionPlaces } from "../../../src/transport/rpc/reflection.ts";
import { StreamPlaces } from "../../../src/transport/rpc/stream-places.ts";
import { startAdapter } from "../../support/adapter.ts";
import { envelope } from "../../support/http2-wire.ts";
import { scrape, sumOf } from "../../support/prometheus.ts";
import { bearer, useService } from "../../support/service.ts";

const suite = useService();

function session(): ClientHttp2Session {
  const opened = connect(suite.url);
  opened.on("error", () => {});
  onTestFinished(() => opened.destroy());
  return opened;
}

/** Begins a gRPC call. Returns its status, or undefined if it continues after its first message. */
async function call(over: ClientHttp2Session, path: string, ends: boolean): Promise<Code | undefined> {
  const headers = { "content-type": "application/grpc", te: "trailers" };
  const stream = over.request({ ":method": "POST", ":path": path, ...headers }, { endStream: false });
  stream.on("error", () => {});
  stream.write(envelope(Buffer.alloc(0), 0));
  if (ends) stream.end();
  let status: string | undefined;
  for (const name of ["response", "trailers"]) {
    stream.on(name, (head: Record<string, string>) => (status ??= head["grpc-status"]));
  }
  await Promise.race([once(stream, "data"), once(stream, "end"), once(stream, "close")]);
  return status === undefined ? undefined : Number(status);
}

const watchPath = "/grpc.health.v1.Health/Watch";

test("health watchers are limited by connection and by address, without effect on others", async () => {
  const { perConnectionMax, perAddressMax } = watcherPlaces;
  const counts = { watching: 0, refused: 0 };
  for (let i = 0; i < perAddressMax / perConnectionMax + 2; i++) {
    const over = session();
    for (let j = 0; j < perConnectionMax + 1; j++) {
      const status = await call(over, watchPath, true);
      // Any other code means an unhealthy server to a client that balances.
      if (status === Code.Unimplemented) counts.refused++;
      else if (status === undefined) counts.watching++;
      else throw new Error(`ended with ${status}`);
    }
  }
  expect(counts.watching).toBe(perAddressMax);
  const samples = await scrape(suite.service.app.adminUrl);
  expect(sumOf(samples, "ingest_streams", { kind: "health_watch" })).toBe(perAddressMax);
  expect(sumOf(samples, "ingest_streams_refused_total", { reason: "health_watch" })).toBe(counts.refused);
  // Over HTTP/1.1 a watch holds a connection, with the same limit.
  const http1 = createClient(Health, createConnectTransport({ baseUrl: suite.url, httpVersion: "1.1" }));
  await expect(http1.watch({})[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: Code.Unimplemented });
  const grpc = createGrpcTransport({ baseUrl: suite.url });
  expect((await createClient(Health, grpc).check({})).status).toBe(Status.SERVING);
  expect((await createClient(Ingest, grpc).ping({}, { headers: bearer(suite.tenant.key) })).ok).toBe(true);
});

test("the place of a watcher that has gone is free again", async () => {
  const places = new StreamPlaces({ max: 1, perConnectionMax: 1, perAddressMax: 1 });
  const closing = new AbortController().signal;
  const rpcs = healthRpcs({ ready: async () => true, services: [], closing, places });
  await using adapter = await startAdapter({ rpcs });
  const client = createClient(Health, createGrpcTransport({ baseUrl: adapter.url }));
  for (let i = 0; i < 3; i++) {
    const left = new AbortController();
    const watch = client.watch({}, { signal: left.signal })[Symbol.asyncIterator]();
    expect((await watch.next()).value?.status).toBe(Status.SERVING);
    await expect(client.watch({})[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: Code.Unimplemented });
    left.abort();
    await expect(watch.next()).rejects.toMatchObject({ code: Code.Canceled });
    await expect.poll(() => places.open, { timeout: 20_000 }).toBe(0);
  }
  expect(places.refused).toBe(3);
});

test("no watch lasts for ever", async () => {
  const places = new StreamPlaces(watcherPlaces);
  const closing = new AbortController().signal;
  const rpcs = healthRpcs({ ready: async () => true, services: [], closing, places, watchMs: 10 });
  await using adapter = await startAdapter({ rpcs });
  const client = createClient(Health, createGrpcTransport({ baseUrl: adapter.url }));
  const seen: Status[] = [];
  const watch = async () => {
    for await (const { status } of client.watch({})) seen.push(status);
  };
  await expect(watch()).rejects.toMatchObject({ code: Code.Unimplemented });
  expect(seen).toEqual([Status.SERVING]);
  expect(places.open).toBe(0);
});

test("reflection limits the answers of a stream, and the number of streams", async () => {
  const client = createClient(ServerReflection, createGrpcTransport({ baseUrl: suite.url }));
  async function* ask(count: number) {
    for (let i = 0; i < count; i++) yield { messageRequest: { case: "listServices" as const, value: "" } };
  }
  let answers = 0;
  const error = await (async () => {
    const stream = client.serverReflectionInfo(ask(reflectionAnswersMax + 50))[Symbol.asyncIterator]();
    while ((await stream.next()).done !== true) answers++;
    return undefined;
  })().catch(ConnectError.from);
  expect(error).toMatchObject({ code: Code.ResourceExhausted });
  expect(answers).toBe(reflectionAnswersMax);
  // An empty request gets an answer, too, and leaves the stream open.
  const over = session();
  const statuses: (Code | undefined)[] = [];
  for (let i = 0; i < reflectionPlaces.perConnectionMax + 1; i++) {
    statuses.push(await call(over, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", false));
  }
  expect(statuses).toEqual([...Array(reflectionPlaces.perConnectionMax).fill(undefined), Code.ResourceExhausted]);
});
