import { setTimeout as delay } from "node:timers/promises";
import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { limits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { claimCollection } from "../../src/store/idempotency.ts";
import { eventCollection } from "../../src/store/events.ts";
import { runIngest, ServiceProcess } from "../support/processes.ts";
import { scrape, sumOf } from "../support/prometheus.ts";
import { event, snapshot, unique } from "../support/requests.ts";
import { bearer, createExpiredKey, protocols, type Send, useService } from "../support/service.ts";

/** The paths of libfaketime on Debian and elsewhere. */
const faketime = [
  "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
  "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
  "/usr/lib/faketime/libfaketimeMT.so.1",
  "/usr/lib64/faketime/libfaketimeMT.so.1",
].find((path) => existsSync(path));
if (faketime === undefined) console.log("libfaketime is not installed: instances with wrong clocks were not tried");

/** How far the clocks of the instances' machines are off, in seconds. */
const skews = { "5 minutes ahead": 300, "11 minutes behind": -660 };
const rest = protocols.REST as Send;
const windowMs = limits.idempotencyWindowSeconds * 1000;

describe.skipIf(faketime === undefined)("beside an instance whose clock is right", () => {
  const suite = useService();
  const wrong = new Map<string, ServiceProcess>();
  const environment = (seconds: number) => ({
    ...{ MONGODB_URI: inject("mongodbUri"), MONGODB_DB: suite.service.app.db.databaseName },
    ...{ LD_PRELOAD: faketime, FAKETIME: `${seconds < 0 ? "" : "+"}${seconds}s`, FAKETIME_DONT_FAKE_MONOTONIC: "1" },
  });
  beforeAll(async () => {
    const starting = Object.entries(skews).map(async ([name, seconds]) => {
      wrong.set(name, await ServiceProcess.start({ ...environment(seconds), LOG_LEVEL: "silent" }));
    });
    await Promise.all(starting);
  });
  afterAll(() => Promise.all([...wrong.values()].map((service) => service.end())));

  describe.each(Object.entries(skews))("one that is %s", (name, seconds) => {
    const wrongUrl = () => (wrong.get(name) as ServiceProcess).url;
    const wrongAdminUrl = () => (wrong.get(name) as ServiceProcess).adminUrl;

    test("takes no Idempotency-Key that another has taken, and loses none of its own", async () => {
      const db = suite.service.app.db;
      for (const order of [
        [suite.url, wrongUrl(), suite.url],
        [wrongUrl(), suite.url, wrongUrl()],
      ]) {
        const eventType = unique("ticket.skew");
        const headers = { ...bearer(suite.tenant.key), "idempotency-key": unique("key") };
        const answers = [];
        for (const url of order) answers.push(await rest(url, "events", { events: [event({ eventType })] }, headers));
        for (const answer of answers) expect(answer.body).toEqual(answers[0]?.body);
        expect(answers.map(({ headers }) => headers.get("idempotency-replayed"))).toEqual([null, "true", "true"]);
        expect(await eventCollection(db).countDocuments({ type: eventType })).toBe(1);
        // By the server's clock, which its sweep and every instance use.
        const [left] = await claimCollection(db)
          .aggregate<{ ms: number }>([
            { $match: { requestId: answers[0]?.body.requestId } },
            { $project: { ms: { $subtract: ["$expiresAt", "$$NOW"] } } },
          ])
          .toArray();
        expect(Math.abs((left?.ms ?? 0) - windowMs)).toBeLessThan(30_000);
      }
    });

    test("lets the later of two snapshots without a timestamp win, on either instance", async () => {
      const snapshotType = unique("skew");
      const put = (url: string, open: number) =>
        rest(url, "snapshots", snapshot({ snapshotType, metrics: { open } }), bearer(suite.tenant.key));
      for (const [open, url] of [wrongUrl(), suite.url, wrongUrl(), suite.url].entries()) {
        // Later by more than the error of a busy machine's clock measurement.
        await delay(300);
        expect((await put(url, open)).status).toBe(202);
        expect((await cardCollection(suite.service.app.db).findOne({ snapshotType }))?.metrics).toEqual({ open });
      }
    });

    test("treats an expired key and a valid one as the other instance does", async () => {
      const gone = await createExpiredKey(suite.service, suite.tenant.appId);
      const good = await suite.service.admin.createKey(suite.tenant.appId, new Date(Date.now() + 60_000));
      for (const url of [suite.url, wrongUrl()]) {
        expect((await rest(url, "ping", {}, bearer(gone))).error?.code).toBe("key_expired");
        expect((await rest(url, "ping", {}, bearer(good.key))).error).toBeUndefined();
      }
    });

    test("is not ready, and says why, as does its metric", async () => {
      const ready = await fetch(`${wrongUrl()}/readyz`);
      expect(ready.status).toBe(503);
      const [, told, where] =
        /^not ready: the clock of this machine is ([\d.]+) s (ahead of|behind) the database's; at most 2\.0 s are allowed; synchronise both \(NTP\)\n$/.exec(
          await ready.text(),
        ) ?? [];
      expect(where).toBe(seconds > 0 ? "ahead of" : "behind");
      expect(Math.abs(Number(told) - Math.abs(seconds))).toBeLessThan(2);
      const skew = sumOf(await scrape(wrongAdminUrl()), "ingest_clock_skew_seconds");
      expect(Math.abs(skew - seconds)).toBeLessThan(2);
    });
  });

  test("a command with a wrong clock rotates a key with a grace by the database's clock", async () => {
    const { id } = await suite.service.admin.createKey(suite.tenant.appId);
    const args = ["key", "rotate", id, "--grace", "1h", "--json"];
    const { code, stdout, stderr } = await runIngest(args, environment(skews["11 minutes behind"]));
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const graceMs = Date.parse(JSON.parse(stdout).replaced.expiresAt) - Date.now();
    expect(Math.abs(graceMs - 3_600_000)).toBeLessThan(60_000);
  });

  test("the instance with the right clock is ready", async () => {
    expect(await (await fetch(`${suite.url}/readyz`)).text()).toBe("ready\n");
  });
});
