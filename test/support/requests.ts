import { expect } from "vitest";
import { type ErrorCode, errorTable } from "../../src/errors.ts";
import { HelpSchema, RequestInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import type { Answer } from "./service.ts";

let counter = 0;
/** A name that no other test uses. */
export const unique = (name: string) => `${name}-${++counter}`;
/** A valid event, changed as given. */
export const event = (change: object = {}) => ({
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: "crm-user-42" },
  ...change,
});
/** A valid snapshot, changed as given. */
export const snapshot = (change: object = {}) => ({
  snapshotType: "tickets_open",
  actor: { externalId: "crm-user-42" },
  metrics: { open: 7 },
  ...change,
});

/** Checks that the answer is the error `code` in every respect: status, shape, details, headers, page. */
export function expectError(url: string, answer: Answer, code: ErrorCode): void {
  expect(answer.error?.code, answer.error?.message).toBe(code);
  if (answer.status === 0) {
    const { details } = answer.error as NonNullable<Answer["error"]>;
    expect(answer.error?.connect).toBe(errorTable[code].connect);
    const [info] = details?.findDetails(RequestInfoSchema) ?? [];
    expect(info?.requestId).toMatch(/^req_[0-9A-HJKMNP-TV-Z]{26}$/);
    expect(details?.findDetails(HelpSchema)[0]?.links[0]?.url).toBe(`${url}/docs/errors/${code}`);
  } else {
    expect(answer.status).toBe(errorTable[code].http);
    expect(Object.keys(answer.body)).toEqual(["error"]);
    expect(Object.keys(answer.body.error)).toEqual(["code", "message", "requestId", "docsUrl"]);
    expect(answer.body.error.requestId).toBe(answer.headers.get("x-request-id"));
    expect(answer.body.error.docsUrl).toBe(`${url}/docs/errors/${code}`);
  }
  expect(answer.headers.get("x-api-version")).toBe("2026-04-01");
}
