import { createServer, connect, type AddressInfo } from "node:net";
import { once } from "node:events";
import { MongoClient } from "mongodb";
import { expect, inject, onTestFinished, test, vi } from "vitest";
import { ServerClock } from "../../src/store/server-clock.ts";

/** A client whose answers come `lateMs` late. */
async function lateClient(lateMs: () => number): Promise<MongoClient> {
  const { host, port } = new URL(inject("mongodbUri").replace("mongodb:", "http:")) as unknown as {
    host: string;
    port: string;
  };
  const server = createServer((caller) => {
    const mongod = connect({ host: host.split(":")[0] as string, port: Number(port) });
    for (const socket of [caller, mongod]) socket.setNoDelay(true).on("error", () => {});
    caller.on("data", (chunk) => mongod.write(chunk)).on("close", () => mongod.destroy());
    mongod.on("data", (chunk) => setTimeout(() => caller.write(chunk), lateMs())).on("close", () => caller.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const client = new MongoClient(
    `mongodb://127.0.0.1:${(server.address() as AddressInfo).port}/?directConnection=true`,
  );
  onTestFinished(async () => {
    await client.close();
    server.close();
  });
  return client;
}

test("a late answer does not move the clock, and a wrong clock is corrected", async () => {
  let lateMs = 0;
  const clock = await ServerClock.start((await lateClient(() => lateMs)).db("clock"));
  for (let i = 0; i < 5; i++) await clock.measure();
  const before = clock.now() - performance.now();
  lateMs = 400;
  await clock.measure();
  expect(Math.abs(clock.now() - performance.now() - before)).toBeLessThan(3);

  // A clock that was measured only with a late answer is off by up to the delay, until a fast answer comes.
  const other = await ServerClock.start((await lateClient(() => lateMs)).db("clock"));
  lateMs = 0;
  await vi.waitFor(async () => {
    await other.measure();
    expect(Math.abs(other.now() - clock.now())).toBeLessThan(50);
  });
});

test("a step of the machine's clock changes the skew but not the clock", async () => {
  const clock = await ServerClock.start((await lateClient(() => 0)).db("clock"));
  const before = clock.now();
  const { now } = Date;
  vi.spyOn(Date, "now").mockImplementation(() => now() + 3_600_000);
  onTestFinished(() => void vi.restoreAllMocks());
  expect(clock.skewMs).toBeGreaterThan(3_500_000);
  expect(clock.now() - before).toBeLessThan(60_000);
});
