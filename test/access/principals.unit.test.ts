import { randomBytes } from "node:crypto";
import { expect, test, vi } from "vitest";
import { hashOfKey, Principals } from "../../src/access/principal.ts";
import { testOrganizationOf } from "../../src/ids.ts";
import { cachedMsMax } from "../../src/store/changes.ts";
import type { KeyDocument, KeyRecord } from "../../src/store/keys.ts";

const newKey = () => `wp_live_${randomBytes(16).toString("hex")}`;
const createdAt = new Date();
const organization = {
  ...{ _id: `org_${"0".repeat(26)}`, name: "Known", api: true, quotaEventsPerMonth: 1, createdAt },
  ...{ keyRequestsPerSecond: 1, organizationRequestsPerSecond: 1 },
};
const app = { _id: "app_known", organizationId: organization._id, slug: "a", name: "A", allow: [], createdAt };

function recordOf(hash: string, restrictions: Partial<KeyDocument> = {}): KeyRecord {
  const key = {
    ...restrictions,
    _id: "key_known",
    organizationId: organization._id,
    appId: app._id,
    hash,
    hint: "",
    createdAt,
  };
  return { key: { ...key, expiresAt: null, revokedAt: null }, app, organization };
}

test("the next batch looks a known key up again, however many unknown keys wait", async () => {
  const key = newKey();
  const batches: { hashes: readonly string[]; end: () => void }[] = [];
  const exists = new Set([hashOfKey(key)]);
  const principals = new Principals({
    load: (hashes) =>
      new Promise((resolve) => {
        const records = () =>
          new Map(hashes.filter((hash) => exists.has(hash)).map((hash) => [hash, recordOf(hash)] as const));
        batches.push({ hashes, end: () => resolve({ records: records(), isConfirmed: true }) });
      }),
    freshAtMs: () => Number.NEGATIVE_INFINITY,
  });
  const find = async (one: string) => principals.find(`Bearer ${one}`);
  const endAll = async () => {
    for (const { end } of batches.splice(0)) end();
    await new Promise(setImmediate);
  };

  const first = find(key);
  await new Promise(setImmediate);
  await endAll();
  expect(await first).toMatchObject({ organizationId: organization._id });
  principals.forgetAll();

  const strangers = Promise.allSettled(Array.from({ length: 6_000 }, () => find(newKey())));
  await new Promise(setImmediate);
  const again = expect(find(key)).rejects.toThrow("does not exist");
  await endAll();
  expect(batches.flatMap(({ hashes }) => hashes)).toContain(hashOfKey(key));

  // The next batch asks for known keys again, and they may be gone.
  exists.clear();
  for (; batches.length > 0; await endAll());
  await strangers;
  await again;
  await expect(find(key)).rejects.toThrow("does not exist");
});

test("a key whose CIDR list is unreadable admits no address, and hinders no other key", async () => {
  const [broken, whole] = [newKey(), newKey()] as const;
  const records = new Map([
    [hashOfKey(broken), recordOf(hashOfKey(broken), { cidrs: ["10.0.0.0/33"] })],
    [hashOfKey(whole), recordOf(hashOfKey(whole), { cidrs: [] })],
  ]);
  const load = async () => ({ records, isConfirmed: true });
  const principals = new Principals({ load, freshAtMs: () => Number.NEGATIVE_INFINITY });
  const [first, second] = await Promise.all([broken, whole].map(async (key) => principals.find(`Bearer ${key}`)));
  expect(first?.admits?.("10.0.0.1")).toBe(false);
  expect(second?.admits).toBeUndefined();
});

test("a test key owns data apart, and shares the rates and turns of its organisation", async () => {
  const key = newKey();
  const records = new Map([[hashOfKey(key), recordOf(hashOfKey(key), { test: true })]]);
  const load = async () => ({ records, isConfirmed: true });
  const principals = new Principals({ load, freshAtMs: () => Number.NEGATIVE_INFINITY });
  expect(await principals.find(`Bearer ${key}`)).toMatchObject({
    organizationId: testOrganizationOf(organization._id),
    caller: { organizationId: organization._id, test: true },
    organizationBucket: { id: organization._id },
  });
});

test("a key is read again after a minute, so that an edit by hand acts without news", async () => {
  const key = newKey();
  const records = new Map([[hashOfKey(key), recordOf(hashOfKey(key))]]);
  const load = async () => ({ records, isConfirmed: false });
  const principals = new Principals({ load, freshAtMs: () => performance.now() });
  const find = async () => principals.find(`Bearer ${key}`);
  await find();
  records.clear();
  const startedMs = performance.now();
  const clock = vi.spyOn(performance, "now").mockReturnValue(startedMs + cachedMsMax - 1_000);
  try {
    expect(await find()).toMatchObject({ revoked: false });
    clock.mockReturnValue(startedMs + cachedMsMax);
    await expect(find()).rejects.toThrow("does not exist");
  } finally {
    clock.mockRestore();
  }
});
