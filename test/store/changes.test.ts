import { type Db, MongoClient } from "mongodb";
import { afterAll, beforeAll, expect, inject, onTestFinished, test } from "vitest";
import { ChangeFeed } from "../../src/store/changes.ts";
import type { Beat } from "../../src/store/instances.ts";
import { announce, latestMax, revisionCollection, workersOf } from "../../src/store/revisions.ts";
import { unique } from "../support/requests.ts";

let client: MongoClient;
beforeAll(async () => {
  client = await MongoClient.connect(inject("mongodbUri"));
});
afterAll(() => client.close());

interface Heard {
  readonly news: string[];
  readonly feed: ChangeFeed;
  readonly revisions: { revision: number; workersRevision: number };
  beat: Beat | undefined;
}

function listen(db: Db): Heard {
  const news: string[] = [];
  const revisions = { revision: -1, workersRevision: -1 };
  const onError = (error: unknown) => void news.push(String(error));
  const heard: Heard = {
    news,
    revisions,
    beat: undefined,
    feed: new ChangeFeed(db, { lastBeat: () => heard.beat, onError }),
  };
  heard.feed.start({
    accessChanged: (id) => void news.push(id),
    workersChanged: (id) => void news.push(`workers ${id}`),
    newsMissed: () => void news.push("missed"),
    revisionsHeard: (now) => void Object.assign(revisions, now),
  });
  onTestFinished(() => heard.feed.stop());
  return heard;
}

const newDb = () => {
  const db = client.db(unique("changes").replaceAll(".", "-"));
  onTestFinished(async () => void (await db.dropDatabase()));
  return db;
};
const within = { timeout: 30_000, interval: 20 };
const idsOf = (count: number) => Array.from({ length: count }, (_, i) => `key_${i}`);

test("a feed tells each change once, in the order of the commits, and those from before it as missed", async () => {
  const db = newDb();
  await announce(db, ["key_before"]);
  const heard = listen(db);
  const { news, feed } = heard;
  await expect.poll(() => news, within).toEqual(["missed"]);
  const { operationTime: time } = await db.command({ ping: 1 });
  const session = client.startSession();
  session.startTransaction();
  await announce(db, ["app_second"], session);
  heard.beat = { sentAtMs: performance.now(), time };
  await expect.poll(() => feed.freshAtMs, within).toBe(heard.beat.sentAtMs);
  expect(news, "news of a change before its commit").toEqual(["missed"]);
  await session.commitTransaction();
  await session.endSession();
  await announce(db, [workersOf("org_third"), "org_fourth"]);
  await expect.poll(() => news, within).toEqual(["missed", "app_second", "workers org_third", "org_fourth"]);
});

test("a feed says that it missed news after too many changes, and after a restore", async () => {
  const db = newDb();
  await announce(db, ["key_first"]);
  const { news } = listen(db);
  await expect.poll(() => news, within).toEqual(["missed"]);
  await announce(db, idsOf(latestMax));
  await expect.poll(() => news, within).toHaveLength(1 + latestMax);
  news.length = 0;
  await announce(db, idsOf(latestMax + 1));
  await expect.poll(() => news, within).toEqual(["missed"]);
  await revisionCollection(db).updateOne({ _id: "access" }, { $set: { changes: 3 } });
  await expect.poll(() => news, within).toEqual(["missed", "missed"]);
  // Only the last ids stay.
  expect((await revisionCollection(db).findOne())?.latest).toHaveLength(latestMax);
});

test("news is as fresh as the last beat that a majority stored, and names a time to read from", async () => {
  const db = newDb();
  const heard = listen(db);
  await expect.poll(() => heard.revisions, within).toEqual({ revision: 0, workersRevision: 0 });
  expect(heard.feed.freshAtMs).toBe(Number.NEGATIVE_INFINITY);
  expect(heard.feed.heardTime).toBeUndefined();
  const sentAtMs = performance.now();
  const { operationTime: time } = await db.command({ ping: 1 });
  heard.beat = { sentAtMs, time };
  await expect.poll(() => heard.feed.freshAtMs, within).toBe(sentAtMs);
  expect(heard.feed.heardTime?.toBigInt()).toBeGreaterThanOrEqual(time.toBigInt());
  await revisionCollection(db).updateOne(
    { _id: "access" },
    { $inc: { revision: 2, workersRevision: 3 } },
    { upsert: true },
  );
  await expect.poll(() => heard.revisions, within).toEqual({ revision: 2, workersRevision: 3 });
});
