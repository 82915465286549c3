import { expect, test, vi } from "vitest";
import { serverBounds } from "../src/transport/bounds.ts";
import { BodyBudget, type BodyBudgetOptions, BodyHold } from "../src/transport/body-budget.ts";
import { bearer, createTenant, protocols, startService } from "./support/service.ts";

test("bodies beyond the budget are refused as unavailable while none of those that arrive is slow", () => {
  const budget = new BodyBudget({ ...serverBounds, bodiesBytesMax: 100, slowBodyMs: 60_000 });
  const first = budget.open(() => expect.unreachable("it is not slow"));
  expect(first.take(80)).toBeUndefined();
  const second = budget.open(() => {});
  const refused = second.take(30);
  expect(refused).toMatchObject({ code: "internal_error", unavailable: true, retryAfterSeconds: 1 });
  second.release();
  const third = budget.open(() => {});
  expect(third.take(20)).toBeUndefined();
  first.release();
  expect(third.take(80)).toBeUndefined();
});

test("the body that has been arriving longest makes room, but never one that is here already", () => {
  const budget = new BodyBudget({ ...serverBounds, bodiesBytesMax: 100, slowBodyMs: -1 });
  const cut: string[] = [];
  const open = (name: string) => budget.open(() => cut.push(name));
  const whole = open("whole");
  whole.take(40);
  whole.arrived();
  const slowest = open("slowest");
  slowest.take(30);
  const slow = open("slow");
  slow.take(30);
  expect(open("newcomer").take(20)).toBeUndefined();
  expect(cut).toEqual(["slowest"]);
  expect(open("large").take(70)?.code).toBe("internal_error");
  expect(cut).not.toContain("whole");
});

/** Bodies of the given sizes that have arrived. */
function arrived(sizes: readonly number[], bounds: Partial<BodyBudgetOptions>): BodyHold[] {
  const budget = new BodyBudget({ ...serverBounds, ...bounds });
  return sizes.map((bytes) => {
    const hold = budget.open(() => {});
    hold.take(bytes);
    hold.arrived();
    return hold;
  });
}

const tick = () => new Promise<void>((resolve) => setImmediate(resolve));

test("large bodies are decoded one in a turn of the event loop, in order, and small ones at once", async () => {
  const holds = arrived([100, 100, 100, 99], { largeBodyBytes: 100, largeBodiesMax: 3 });
  const begun: number[] = [];
  holds.slice(0, 3).forEach((hold, i) => void hold.turn()?.then(() => begun.push(i)));
  expect(holds[3]?.turn()).toBeUndefined();
  for (const so of [[0], [0, 1], [0, 1, 2]]) {
    await Promise.resolve();
    await Promise.resolve();
    expect(begun).toEqual(so);
    await tick();
  }
});

test("no more large bodies than are allowed are decoded and not answered; one whose caller leaves makes room", async () => {
  const holds = arrived([100, 100, 100, 100, 100], { largeBodyBytes: 100, largeBodiesMax: 2 });
  const begun: number[] = [];
  holds.forEach((hold, i) => void hold.turn()?.then((refusal) => begun.push(refusal === undefined ? i : -i)));
  const settled = async () => {
    for (let i = 0; i < 10; i++) await tick();
    return begun;
  };
  expect(await settled()).toEqual([0, 1]);
  holds[0]!.done();
  holds[0]!.done();
  expect(await settled()).toEqual([0, 1, 2]);
  // The one that waits gets no turn, the one that has one gives it to the next.
  holds[3]!.release();
  holds[1]!.release();
  expect(await settled()).toEqual([0, 1, 2, -3, 4]);
});

test("a large body that waits too long is refused as unavailable", async () => {
  const [first, second] = arrived([100, 100], { largeBodyBytes: 100, largeBodiesMax: 1, largeBodyWaitMs: 5 });
  expect(await first!.turn()).toBeUndefined();
  expect(await second!.turn()).toMatchObject({ code: "internal_error", unavailable: true });
});

test.for(Object.entries(protocols))("large bodies over %s wait for their turn", async ([, send]) => {
  const service = await startService();
  const turns = vi.spyOn(BodyHold.prototype, "begin");
  const ends = vi.spyOn(BodyHold.prototype, "done");
  try {
    const { key } = await createTenant(service.admin);
    const event = (text: string) => ({
      eventType: "ticket.resolved",
      category: "support",
      actor: { externalId: "e" },
      metadata: { text },
    });
    const answers = await Promise.all(
      Array.from({ length: 10 }, () =>
        send(service.app.url, "events", { events: Array(40).fill(event("x".repeat(8_000))) }, bearer(key)),
      ),
    );
    expect(answers.map(({ body }) => body?.accepted)).toEqual(Array(10).fill(40));
    expect(turns).toHaveBeenCalledTimes(10);
    expect(ends.mock.calls.length).toBeGreaterThanOrEqual(10);
    await send(service.app.url, "events", { events: [event("small")] }, bearer(key));
    expect(turns).toHaveBeenCalledTimes(10);
  } finally {
    vi.restoreAllMocks();
    await service.app.close();
  }
});
