import { PassThrough } from "node:stream";
import { finished } from "node:stream/promises";
import { setImmediate as nextTurn, setTimeout as delay } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { expect, onTestFinished, test, vi } from "vitest";
import { FairTurns } from "../../../src/access/fair-turns.ts";
import { Principals } from "../../../src/access/principal.ts";
import { EventsRequestSchema } from "../../../src/gen/ingest/v1/ingest_pb.js";
import { readWhole } from "../../../src/transport/http/body.ts";
import type { Channel } from "../../../src/transport/http/channel.ts";
import { serverBounds } from "../../../src/transport/http/server-limits.ts";
import { BodyBudget, type BodyBudgetOptions, BodyLease } from "../../../src/transport/http/body-budget.ts";
import { errorCodeOf, send, type WireProtocol } from "../../fault/attacks.ts";
import { envelope } from "../../support/http2-wire.ts";
import { leaverVersions } from "../../support/leaver.ts";
import { eventsMessage } from "../../support/messages.ts";
import { scrape, sumOf } from "../../support/prometheus.ts";
import { bearer, createTenant, protocols, startService } from "../../support/service.ts";

test("an organisation may hold as much as it leaves free, and is refused as unavailable beyond that", () => {
  const budget = new BodyBudget({ ...serverBounds, bodiesBytesMax: 200, slowBodyMs: 60_000 });
  const open = (owner: string) =>
    budget.open(
      () => expect.unreachable("nothing is slow"),
      () => owner,
    );
  const first = open("greedy");
  expect(first.take(80)).toBeUndefined();
  const second = open("greedy");
  expect(second.take(50)).toMatchObject({ code: "internal_error", unavailable: true, retryAfterSeconds: 1 });
  second.release();
  expect(open("greedy").take(20)).toBeUndefined();
  // Others find room, however much the greedy one holds.
  expect(open("other").take(50)).toBeUndefined();
  expect(open("third").take(25)).toBeUndefined();
  first.release();
  expect(open("greedy").take(40)).toBeUndefined();
});

test("an organisation's oldest arriving body makes room for its new one, but a complete body never does", () => {
  const budget = new BodyBudget({ ...serverBounds, bodiesBytesMax: 240, slowBodyMs: -1 });
  const cut: string[] = [];
  const open = (name: string, owner = "own") =>
    budget.open(
      () => cut.push(name),
      () => owner,
    );
  open("of another", "other").take(20);
  const whole = open("whole");
  whole.take(40);
  whole.arrived();
  for (const name of ["slowest", "slow"]) open(name).take(30);
  expect(open("newcomer").take(20)).toBeUndefined();
  expect(cut).toEqual(["slowest"]);
  expect(open("large").take(90)?.code).toBe("internal_error");
  expect(cut).toEqual(["slowest", "slow", "newcomer"]);
});

test("the data of an abandoned body is refused, and takes no room", () => {
  const budget = new BodyBudget({ ...serverBounds, bodiesBytesMax: 200, slowBodyMs: 60_000 });
  const left = budget.open(() => {});
  left.take(10);
  left.release();
  // As if it were still being decompressed.
  expect(left.take(90)).toMatchObject({ code: "internal_error", unavailable: true });
  expect(left.bytes).toBe(0);
  expect(budget.open(() => {}).take(100)).toBeUndefined();
});

/** Complete bodies of the given sizes. */
function arrived(sizes: readonly number[], bounds: Partial<BodyBudgetOptions>): BodyLease[] {
  const budget = new BodyBudget({ ...serverBounds, ...bounds });
  return sizes.map((bytes) => {
    const hold = budget.open(() => {});
    hold.take(bytes);
    hold.arrived();
    return hold;
  });
}

const patience = { timeout: 10_000, interval: 1 };

test("large bodies are decoded in order, one in each event-loop tick, and small ones at once", async () => {
  const holds = arrived([100, 100, 100, 99], { largeBodyBytes: 100, largeBodiesMax: 3 });
  let turn = 0;
  let counter = setImmediate(function count() {
    turn++;
    counter = setImmediate(count);
  });
  const begun: { i: number; turn: number }[] = [];
  holds.slice(0, 3).forEach((hold, i) => void Promise.resolve(hold.turn()).then(() => begun.push({ i, turn })));
  expect(holds[3]?.turn()).toBeUndefined();
  await vi.waitFor(() => expect(begun).toHaveLength(3), patience);
  clearImmediate(counter);
  expect(begun.map(({ i }) => i)).toEqual([0, 1, 2]);
  expect(new Set(begun.map(({ turn }) => turn)).size).toBe(3);
});

test("a body that is refused while it arrives waits for no turn, whose refusal would end the process", async () => {
  const budget = new BodyBudget({ ...serverBounds, largeBodyBytes: 100, largeBodiesMax: 1 });
  const other = budget.open(() => {});
  other.take(100);
  other.arrived();
  await other.turn();
  const lease = budget.open(() => {});
  const source = new PassThrough();
  const channel = { headers: {}, source, hasArrived: false } as unknown as Channel;
  const reading = readWhole(channel, { bytesMax: 100, encoding: "identity", lease });
  source.write(Buffer.alloc(100));
  source.end(Buffer.alloc(1));
  await expect(reading).rejects.toMatchObject({ code: "batch_too_large" });
  await finished(source);
  const unhandled = vi.fn();
  process.on("unhandledRejection", unhandled);
  onTestFinished(() => void process.off("unhandledRejection", unhandled));
  lease.release();
  await nextTurn();
  expect(unhandled).not.toHaveBeenCalled();
});

test("slow decoding is followed by an equally long pause for others", async () => {
  const [first, second] = arrived([100, 100], { largeBodyBytes: 100 }) as [BodyLease, BodyLease];
  const busyMs = 60;
  let decodedMs = 0;
  const decoded = Promise.resolve(first.turn()).then(() => {
    for (const untilMs = performance.now() + busyMs; performance.now() < untilMs;);
    decodedMs = performance.now();
  });
  await Promise.all([decoded, second.turn()]);
  // A timer may fire a millisecond early.
  expect(performance.now() - decodedMs).toBeGreaterThanOrEqual(busyMs - 1);
});

test("only the allowed number of large bodies is decoded and unanswered; a caller that leaves makes room", async () => {
  const holds = arrived([100, 100, 100, 100, 100], { largeBodyBytes: 100, largeBodiesMax: 2 });
  const begun: number[] = [];
  holds.forEach(
    (hold, i) => void Promise.resolve(hold.turn()).then((refusal) => begun.push(refusal === undefined ? i : -i)),
  );
  const seen = async (so: number[]) => {
    await vi.waitFor(() => expect(begun.length).toBeGreaterThanOrEqual(so.length), patience);
    expect(begun).toEqual(so);
  };
  await seen([0, 1]);
  holds[0]!.done();
  holds[0]!.done();
  await seen([0, 1, 2]);
  // The waiting one gets no turn, and the one with a turn passes it on.
  holds[3]!.release();
  await seen([0, 1, 2, -3]);
  holds[1]!.release();
  await seen([0, 1, 2, -3, 4]);
});

test("a large body that waits too long is refused as unavailable", async () => {
  const [first, second] = arrived([100, 100], { largeBodyBytes: 100, largeBodiesMax: 1, largeBodyWaitMs: 5 });
  expect(await first!.turn()).toBeUndefined();
  expect(await second!.turn()).toMatchObject({ code: "internal_error", unavailable: true });
});

/** Counts the turns of large bodies from now on. */
function watchLargeTurns(): () => number {
  const entered = vi.spyOn(FairTurns.prototype, "enter");
  return () => entered.mock.calls.filter(([, cost]) => cost >= serverBounds.largeBodyBytes).length;
}

test.for(Object.entries(protocols))("large bodies over %s wait for their turn", async ([, send]) => {
  const service = await startService();
  const large = watchLargeTurns();
  const ends = vi.spyOn(BodyLease.prototype, "done");
  try {
    const { key } = await createTenant(service.admin);
    const event = (text: string) => ({
      eventType: "ticket.resolved",
      category: "project_management",
      actor: { externalId: "e" },
      metadata: { text },
    });
    const answers = await Promise.all(
      Array.from({ length: 10 }, () =>
        send(service.app.url, "events", { events: Array(40).fill(event("x".repeat(8_000))) }, bearer(key)),
      ),
    );
    expect(answers.map(({ body }) => body?.accepted)).toEqual(Array(10).fill(40));
    expect(large()).toBe(10);
    expect(ends.mock.calls.length).toBeGreaterThanOrEqual(10);
    await send(service.app.url, "events", { events: [event("small")] }, bearer(key));
    expect(large()).toBe(10);
  } finally {
    vi.restoreAllMocks();
    await service.app.close();
  }
});

const rpcPath = "/ingest.v1.Ingest/Events";
const largeEvents = (category: string) => ({
  events: Array(40).fill({
    eventType: "ticket.resolved",
    category,
    actor: { externalId: "e" },
    metadata: { text: "x".repeat(8_000) },
  }),
});
const message = toBinary(
  EventsRequestSchema,
  create(EventsRequestSchema, eventsMessage(largeEvents("project_management"))),
);
const json = { "content-type": "application/json", "content-encoding": "gzip" };
const compressed: readonly (readonly [WireProtocol, string, Record<string, string>, Buffer])[] = [
  ["rest", "/api/v1/ingest/events", json, gzipSync(JSON.stringify(largeEvents("project_management")))],
  ["connect", rpcPath, json, gzipSync(JSON.stringify(largeEvents("EVENT_CATEGORY_PROJECT_MANAGEMENT")))],
  ...(["grpc", "grpc-web"] as const).map(
    (protocol) =>
      [
        protocol,
        rpcPath,
        { "content-type": `application/${protocol}+proto`, "grpc-encoding": "gzip" },
        envelope(gzipSync(message), 1),
      ] as const,
  ),
];

test.for(compressed)(
  "over %s a body that is large once decompressed waits for its turn",
  async ([protocol, path, headers, body]) => {
    const service = await startService();
    const large = watchLargeTurns();
    const ends = vi.spyOn(BodyLease.prototype, "done");
    const takes = vi.spyOn(BodyLease.prototype, "take");
    try {
      const { key } = await createTenant(service.admin);
      expect(body.length).toBeLessThan(10_000);
      const reply = await send(service.app.port, protocol, path, { ...bearer(key), ...headers }, body);
      expect([200, 202]).toContain(reply.status);
      expect(errorCodeOf(protocol, reply)).toBeUndefined();
      expect(large()).toBe(1);
      // The budget learns of the bytes while they come, not when all are there.
      for (const [bytes] of takes.mock.calls) expect(bytes).toBeLessThanOrEqual(65_536);
      expect(ends).toHaveBeenCalled();
    } finally {
      vi.restoreAllMocks();
      await service.app.close();
    }
  },
);

/** Records the leases of all bodies of this process's services from now on. */
function watchHolds() {
  const opened = vi.spyOn(BodyBudget.prototype, "open");
  const released = vi.spyOn(BodyLease.prototype, "release");
  onTestFinished(() => void vi.restoreAllMocks());
  const holds = () => opened.mock.results.map(({ value }) => value as BodyLease);
  return {
    count: () => holds().length,
    /** Leases that are not released, or that hold something after their release. */
    left: () => holds().filter((hold) => !released.mock.contexts.includes(hold) || hold.bytes > 0).length,
  };
}

/** Protocols with an HTTP version of their own use that one. */
const leavers = compressed.flatMap(([protocol, path, headers, body]) =>
  Object.entries(leaverVersions)
    .filter(([version]) => protocol !== "grpc" || version === "HTTP/2")
    .map(([version, call]) => [protocol, version, call, { ":path": path, ...headers }, body] as const),
);

test.for(leavers)(
  "over %s and %s callers that leave while their body is decompressed leave nothing behind",
  async ([, , call, headers, body]) => {
    const service = await startService();
    onTestFinished(() => service.app.close());
    const { key } = await createTenant(service.admin);
    const holds = watchHolds();
    const rounds = 30;
    for (let i = 0; i < rounds || holds.count() === 0; i++) {
      const caller = call(service.app.url, { ...bearer(key), ...headers }, body);
      // Leaves at every stage. No single delay fits every machine; a slow one needs longer.
      await delay((i % 6) * (1 + Math.floor(i / rounds)));
      caller.leave();
    }
    await vi.waitFor(() => expect(holds.left()).toBe(0), { timeout: 20_000, interval: 20 });
    // The server knows by now that the next request is valid.
    await delay(200);
    expect(holds.left()).toBe(0);
    expect(holds.count()).toBeGreaterThan(0);
  },
);

test.for(Object.entries(leaverVersions))(
  "over %s callers that leave while their key is looked up leave nothing behind",
  async ([, call]) => {
    const service = await startService();
    onTestFinished(() => service.app.close());
    const { key } = await createTenant(service.admin);
    const holds = watchHolds();
    const { find } = Principals.prototype;
    const asked = Promise.withResolvers<void>();
    const gone = Promise.withResolvers<void>();
    vi.spyOn(Principals.prototype, "find").mockImplementation(async function (this: Principals, authorization) {
      asked.resolve();
      await gone.promise;
      return find.call(this, authorization);
    });
    const path = { ":path": "/api/v1/ingest/events", "content-type": "application/json" };
    const caller = call(service.app.url, { ...path, ...bearer(key) }, Buffer.from("{}"));
    await asked.promise;
    caller.leave();
    const open = async () => sumOf(await scrape(service.app.adminUrl), "ingest_connections");
    await expect.poll(open, { timeout: 20_000 }).toBe(0);
    gone.resolve();
    await vi.waitFor(() => expect(holds.count()).toBe(1), patience);
    await vi.waitFor(() => expect(holds.left()).toBe(0), patience);
  },
);
