import { expect, test } from "vitest";
import { faultFrom, unavailable } from "../src/errors.ts";
import { Failure } from "../src/exchange.ts";

test("requests of one batch share its fault, and each failure has the facts of its own request", () => {
  const fault = unavailable(new Error("the database is away"));
  const failures = ["req_1", "req_2"].map((requestId) => new Failure(fault, { requestId }));
  expect(failures.map(({ facts }) => facts)).toEqual([{ requestId: "req_1" }, { requestId: "req_2" }]);
  const { code, message, retryAfterSeconds, cause } = fault;
  for (const failure of failures) {
    expect(failure).toMatchObject({ code, message, retryAfterSeconds, cause, unavailable: true });
  }
  expect(fault).not.toBeInstanceOf(Failure);
});

test("facts of failures add up from the inside out", () => {
  const inner = { claim: "replayed", requestId: "req_1" } as const;
  const outer = { dryRun: true, requestId: "req_2" };
  const failed = new Failure(new Failure(faultFrom(new Error("a defect")), inner), outer);
  expect(failed.code).toBe("internal_error");
  expect(failed.facts).toEqual({ dryRun: true, claim: "replayed", requestId: "req_1" });
});
