import { expect, test } from "vitest";
import {
  createIdSource,
  idOf,
  isTestOrganization,
  liveOrganizationOf,
  testOrganizationOf,
  timeOfId,
  ulidOf,
} from "../src/ids.ts";

test("ids ascend when the clock steps back a little, and follow it when it steps back far", () => {
  let nowMs = Date.parse("2026-04-19T12:00:00Z");
  const ids = createIdSource(() => nowMs);
  const made = [ids.next("req")];
  nowMs -= 50;
  made.push(ids.next("req"));
  expect(made.toSorted()).toEqual(made);
  nowMs -= 3_600_000;
  made.push(ids.next("req"), ids.next("req"));
  expect(made.slice(2).map((id) => timeOfId(id).getTime())).toEqual([nowMs, nowMs]);
  nowMs += 1_000;
  made.push(ids.next("req"));
  expect(timeOfId(made.at(-1) as string).getTime()).toBe(nowMs);
  expect(new Set(made).size).toBe(5);
});

test("an organisation's test data has an id of its own, which tells whose it is", () => {
  const times = [0, Date.now(), Date.parse("6429-01-01T00:00:00Z")];
  for (const id of times.map((ms) => createIdSource(() => ms).next("org"))) {
    const other = testOrganizationOf(id);
    expect(other).not.toBe(id);
    expect([id, other].map(isTestOrganization)).toEqual([false, true]);
    expect([id, other].map(liveOrganizationOf)).toEqual([id, id]);
    // Rows keep it as bytes.
    expect(idOf("org", ulidOf(other))).toBe(other);
    expect(() => testOrganizationOf(other)).toThrow(other);
  }
  expect(() => testOrganizationOf("org_known")).toThrow("'org_known' is not the id of a live organisation");
  expect(isTestOrganization("org_known")).toBe(false);
});
