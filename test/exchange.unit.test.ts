import { expect, test } from "vitest";
import { unavailable } from "../src/errors.ts";
import { Failure, knowing } from "../src/exchange.ts";

test("requests of one batch share its fault, and each failure has the facts of its own request", async () => {
  const fault = unavailable(new Error("the database is away"));
  const fail = (requestId: string) => knowing({ requestId }, () => Promise.reject(fault)).catch((error) => error);
  const failures = await Promise.all([fail("req_1"), fail("req_2")]);
  expect(failures.map(({ facts }) => facts)).toEqual([{ requestId: "req_1" }, { requestId: "req_2" }]);
  const { code, message, retryAfterSeconds, cause } = fault;
  for (const failure of failures) {
    expect(failure).toMatchObject({ code, message, retryAfterSeconds, cause, unavailable: true });
  }
  expect(fault).not.toBeInstanceOf(Failure);
});

test("facts add up from the inside out, in outcomes and in failures", async () => {
  const inner = { claim: "replayed", requestId: "req_1" } as const;
  const outer = { dryRun: true, requestId: "req_2" };
  const all = { dryRun: true, claim: "replayed", requestId: "req_1" };
  const done = await knowing(outer, async () => ({ answer: 1, facts: inner }));
  expect(done).toEqual({ answer: 1, facts: all });
  const failed = knowing(outer, () => knowing(inner, () => Promise.reject(new Error("a defect"))));
  await expect(failed).rejects.toMatchObject({ code: "internal_error", facts: all });
});
