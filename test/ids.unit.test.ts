import { expect, test } from "vitest";
import {
  createIdSource,
  idOf,
  isTestOrganization,
  liveOrganizationOf,
  testOrganizationOf,
  ulidOf,
} from "../src/ids.ts";

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
