import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFile, copyFile, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { createCaller, createPoster } from "../../src/send/client.ts";
import { type ExportOptions, exportTimeline } from "../../src/send/export.ts";
import { Journal } from "../../src/send/journal.ts";
import { sourceKinds } from "../../src/send/kinds.ts";
import type { SendOptions } from "../../src/send/send.ts";
import { rowsBetween } from "../../src/store/events.ts";
import { claimCollection } from "../../src/store/idempotency.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { cli, runSend, sendInProcess } from "../support/send.ts";
import { bearer, createTenant, insertKey, type Tenant, useService } from "../support/service.ts";
import { storedRows } from "../support/rows.ts";

vi.setConfig({ testTimeout: 120_000 });

const suite = useService();
let directory: string;
beforeAll(async () => void (directory = await mkdtemp(join(tmpdir(), "ingest-again-"))));
afterAll(() => rm(directory, { recursive: true, force: true }));

let files = 0;
async function file(events: readonly unknown[]): Promise<string> {
  const path = join(directory, `${++files}.ndjson`);
  await writeFile(path, events.map((event) => `${JSON.stringify(event)}\n`).join(""));
  return path;
}

const event = (eventType: string, actor: object = { externalId: "al" }) => ({
  eventType,
  category: "project_management",
  actor,
});

const send = (key: string, path: string) => sendInProcess(key, suite.url, path);

async function storedTypes({ organizationId }: Tenant): Promise<string[]> {
  const rows = await storedRows(suite.service.app.db, rowsBetween(organizationId));
  return rows.map(({ type }) => type).sort();
}

test.concurrent(
  "after a change of the quota or the whitelist, the next run sends the lines that they refused",
  async () => {
    const { admin } = suite.service;
    const tenant = await createTenant(admin, { name: "Small", quotaEventsPerMonth: 2 });
    const types = ["ticket.a1", "ticket.a2", "ticket.a3", "deploy.x"];
    const path = await file(types.map((type) => event(type)));
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 2, rejected: 0, toSendAgain: 2 });
    // Without a change, the same lines are refused again, and none is stored twice.
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 0, alreadySent: 2, toSendAgain: 2 });

    await admin.updateOrganization(tenant.organizationId, { quotaEventsPerMonth: 1_000 });
    await vi.waitFor(async () => {
      expect(await send(tenant.key, path)).toMatchObject({ toSendAgain: 1, stopped: undefined });
    }, 60_000);
    expect(await storedTypes(tenant)).toEqual(["ticket.a1", "ticket.a2", "ticket.a3"]);

    await admin.allowTypes(tenant.appId, ["deploy.*"]);
    await vi.waitFor(async () => expect(await send(tenant.key, path)).toMatchObject({ toSendAgain: 0 }), 60_000);
    expect(await storedTypes(tenant)).toEqual(["deploy.x", "ticket.a1", "ticket.a2", "ticket.a3"]);
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 0, alreadySent: 4 });
  },
);

test.concurrent("the same holds for batches and snapshots that are refused completely", async () => {
  const { admin } = suite.service;
  const tenant = await createTenant(admin, { name: "None", quotaEventsPerMonth: 0 });
  const forbidden = await file([event("deploy.x"), event("deploy.y")]);
  expect(await send(tenant.key, forbidden)).toMatchObject({ accepted: 0, rejected: 0, toSendAgain: 2 });
  const events = await file([event("ticket.x"), event("ticket.y")]);
  const snapshots = await file([{ snapshotType: "open", actor: { externalId: "al" }, metrics: { n: 1 } }]);
  const sendSnapshots = () => sendInProcess(tenant.key, suite.url, snapshots, { kind: sourceKinds.snapshot });
  for (const result of [await send(tenant.key, events), await sendSnapshots()]) {
    expect(result).toMatchObject({ accepted: 0, rejected: 0, stopped: expect.stringContaining("quota of 0 events") });
    expect(result.toSendAgain).toBeGreaterThan(0);
  }
  await admin.updateOrganization(tenant.organizationId, { quotaEventsPerMonth: 1_000 });
  await admin.allowTypes(tenant.appId, ["deploy.*"]);
  for (const sendOne of [() => send(tenant.key, forbidden), () => send(tenant.key, events), sendSnapshots]) {
    await vi.waitFor(async () => expect(await sendOne()).toMatchObject({ toSendAgain: 0, stopped: undefined }), 60_000);
  }
  expect(await storedTypes(tenant)).toEqual(["deploy.x", "deploy.y", "open", "ticket.x", "ticket.y"]);
});

test.concurrent("the exit code is 0 only if all lines are stored, even if a run had nothing to send", async () => {
  const { key } = suite.tenant;
  const run = async (path: string) => await runSend(key, suite.url, [path], { asText: true }).ended;
  const refused = await file([event("ticket.x"), { eventType: "ticket.y" }]);
  const first = await run(refused);
  expect(first.code).toBe(1);
  expect(first.out).toBe(
    `Not all lines are stored.\n  1 stored\n  1 refused for good; fix them in ${refused}.rejected.ndjson and send that file\n`,
  );
  expect(first.err).toContain("invalid_body: 1 line, the first is line 2: category: must be one of");
  expect((await run(refused)).code).toBe(1);
  expect((await run(await file([event("ticket.x"), event("deploy.x")]))).code).toBe(3);
  const empty = await run(await file([]));
  expect(empty).toMatchObject({ code: 0, out: "The file is empty: nothing was sent.\n" });
});

test.concurrent("a CSV file whose columns were renamed is not the file that was sent", async () => {
  const tenant = await createTenant(suite.service.admin);
  const path = `${await file([])}.csv`;
  await writeFile(path, "eventType,category,externalId\nticket.x,other,a@example.com\n");
  expect(await send(tenant.key, path)).toMatchObject({ accepted: 1 });
  await writeFile(path, (await readFile(path, "utf8")).replace("externalId", "email"));
  const again = await send(tenant.key, path);
  expect(again).toMatchObject({
    isMistake: true,
    stopped: expect.stringContaining("From line 2 on, the file differs"),
  });
});

test.concurrent("each state has its own file of rejected lines, and none of the files may be another", async () => {
  const tenant = await createTenant(suite.service.admin);
  const path = await file([{ ...event("ticket.x"), duration: -1 }]);
  const state = `${path}.two`;
  const run = (...args: string[]) => runSend(tenant.key, suite.url, [path, ...args]).ended;
  expect((await run()).code).toBe(1);
  expect((await run("--state", state)).code).toBe(1);
  for (const own of [path, state]) expect(await readFile(`${own}.rejected.ndjson`, "utf8")).toMatch(/^\{.*\}\n$/);
  const before = await readFile(path, "utf8");
  for (const [args, says] of [
    [["--state", path, "--restart"], "The file and --state are the same file"],
    [["--rejected", path], "The file and --rejected are the same file"],
    [["--state", state, "--rejected", state], "--state and --rejected are the same file"],
  ] as const) {
    const refused = await run(...args);
    expect([refused.code, refused.err]).toEqual([2, expect.stringContaining(says)]);
  }
  expect(await readFile(path, "utf8")).toBe(before);
});

test.concurrent("a refused line begins a line of its own, also after one that an editor left open", async () => {
  const tenant = await createTenant(suite.service.admin);
  const path = await file([{ ...event("ticket.x"), duration: -1 }]);
  const rejected = `${path}.rejected.ndjson`;
  await writeFile(rejected, JSON.stringify({ line: 9, code: "x", message: "x", event: event("ticket.y") }));
  expect(await send(tenant.key, path)).toMatchObject({ rejected: 1 });
  const lines = (await readFile(rejected, "utf8")).trimEnd().split("\n");
  expect(lines.map((line) => JSON.parse(line).line)).toEqual([9, 1]);
});

test.concurrent("only its owner can read the file of rejected lines; fixed lines can be sent from it", async () => {
  const tenant = await createTenant(suite.service.admin);
  const path = await file([
    event("ticket.x"),
    { ...event("ticket.y"), category: "?" },
    { ...event("ticket.z"), duration: -1 },
  ]);
  const rejected = `${path}.rejected.ndjson`;
  await writeFile(rejected, "", { mode: 0o644 });
  expect(await send(tenant.key, path)).toMatchObject({ accepted: 1, rejected: 2 });
  expect((await stat(rejected)).mode & 0o777).toBe(0o600);
  expect((await stat(`${path}.ingest-state`)).mode & 0o777).toBe(0o600);
  const mended = (await readFile(rejected, "utf8")).replace('"?"', '"other"');
  await writeFile(
    rejected,
    `${mended}${JSON.stringify({ line: 9, code: "x", message: "x", event: JSON.stringify(event("ticket.text")) })}\n`,
  );
  expect(await send(tenant.key, rejected)).toMatchObject({ accepted: 2, rejected: 1 });
  expect(await storedTypes(tenant)).toEqual(["ticket.text", "ticket.x", "ticket.y"]);
  const again = JSON.parse(await readFile(`${rejected}.rejected.ndjson`, "utf8"));
  expect(again).toMatchObject({ line: 2, code: "invalid_body", event: { eventType: "ticket.z", duration: -1 } });
  // The next run of the first file does not touch lines that were fixed in place.
  const before = await readFile(rejected, "utf8");
  expect(await send(tenant.key, path)).toMatchObject({ accepted: 0, alreadySent: 1, rejected: 2 });
  expect(await readFile(rejected, "utf8")).toBe(before);
});

test.concurrent(
  "--restart forgets what has been sent, and --strict refuses lines that were only warned of",
  async () => {
    const tenant = await createTenant(suite.service.admin);
    const path = await file([event("ticket.x"), { ...event("ticket.y"), metdata: {} }]);
    const run = async (...flags: string[]) => {
      const { code, out } = await runSend(tenant.key, suite.url, [path, ...flags]).ended;
      return { code, ...JSON.parse(out) };
    };
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 2, rejected: 0 });
    const strict = await run("--restart", "--strict");
    expect(strict).toMatchObject({ code: 1, accepted: 1, alreadySent: 0, rejected: 1 });
    expect(strict.reasons).toMatchObject([
      { code: "strict", firstLine: 2, message: expect.stringContaining("metdata") },
    ]);
    expect(await run("--restart")).toMatchObject({ code: 0, accepted: 2, duplicates: 2, alreadySent: 0, rejected: 0 });
    expect(await storedTypes(tenant)).toEqual(["ticket.x", "ticket.y"]);
  },
);

/** Forgets what a crash, a new machine or an operator may lose: the state, and the service's Idempotency-Keys. */
async function forget(path: string, { organizationId }: Tenant): Promise<void> {
  await rm(`${path}.ingest-state`);
  await claimCollection(suite.service.app.db).deleteMany({ organizationId });
}

test.concurrent(
  "a file that is sent again stores nothing twice, also if it has grown, was edited or has equal lines",
  async () => {
    const tenant = await createTenant(suite.service.admin);
    const lines = [event("ticket.same"), event("ticket.same"), { ...event("ticket.own"), eventId: "own" }];
    const others = Array.from({ length: 600 }, (_, i) => event(`ticket.n${i}`));
    const path = await file([...lines, ...others]);
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 603, duplicates: 0 });
    const first = await storedTypes(tenant);
    expect(first).toHaveLength(603);
    await forget(path, tenant);
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 603, duplicates: 603, alreadySent: 0 });
    await appendFile(path, `${JSON.stringify(event("ticket.same"))}\n`);
    await forget(path, tenant);
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 604, duplicates: 603 });
    await writeFile(path, (await readFile(path, "utf8")).replace('ticket.n7"', 'ticket.edited"'));
    await forget(path, tenant);
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 604, duplicates: 603, losses: new Map() });
    expect(await storedTypes(tenant)).toEqual([...first, "ticket.edited", "ticket.same"].sort());
    // Another file may say the same of something else.
    const other = `${path}.other.ndjson`;
    await copyFile(path, other);
    expect(await send(tenant.key, other)).toMatchObject({ accepted: 604, duplicates: 1 });
    // An id of the caller's with other content keeps the first event, and the run says so.
    const conflict = await send(tenant.key, await file([{ ...event("ticket.other"), eventId: "own" }]));
    expect(conflict).toMatchObject({ accepted: 1, duplicates: 1 });
    expect([...conflict.losses]).toMatchObject([["conflict", { lines: 1, firstLine: 1 }]]);
  },
);

test.concurrent(
  "a run that was killed before the answers came goes on after any time, and doubles nothing",
  async () => {
    const tenant = await createTenant(suite.service.admin);
    const path = await file(Array.from({ length: 1_200 }, (_, i) => event(`ticket.n${i}`)));
    const post = createPoster(createCaller(suite.url, tenant.key), sourceKinds.event);
    // Every request is stored, and no answer arrives.
    const cut: SendOptions["post"] = async (lines) => {
      await post(lines);
      return { kind: "none", trouble: "cut" };
    };
    const killed = await sendInProcess(tenant.key, suite.url, path, { post: cut, giveUpSeconds: 0 });
    expect(killed).toMatchObject({ accepted: 0, stopped: expect.stringContaining("has not answered for 0 s: cut.") });
    await claimCollection(suite.service.app.db).deleteMany({ organizationId: tenant.organizationId });
    const types = await storedTypes(tenant);
    expect(types.length).toBeGreaterThan(0);
    const { key } = await suite.service.admin.createKey(tenant.appId);
    expect(await send(key, path)).toMatchObject({ accepted: 1_200, duplicates: types.length, stopped: undefined });
    expect(new Set(await storedTypes(tenant)).size).toBe(1_200);
    expect(await storedTypes(tenant)).toHaveLength(1_200);
  },
);

test.concurrent("a file keeps its name under every path, while a pipe is new each time", async () => {
  const tenant = await createTenant(suite.service.admin);
  const path = await file([event("ticket.x"), event("ticket.y")]);
  const link = `${path}.link.ndjson`;
  await symlink(path, link);
  const content = await readFile(path, "utf8");
  const run = async (args: string[], input = "") => {
    const { code, out, err } = await runSend(tenant.key, suite.url, args, { input }).ended;
    expect(code, err).toBe(0);
    return JSON.parse(out).duplicates;
  };
  expect(await Promise.all([run([path]), run(["-"], content), run(["-"], content)])).toEqual([0, 0, 0]);
  expect(await run([link])).toBe(2);
  expect(await storedTypes(tenant)).toHaveLength(6);

  const open = async (options: object) => {
    const journal = await Journal.open(`${path}.state`, `${path}.rejected`, { defaultSourceName: "new", ...options });
    await journal.close();
    return journal.sourceName;
  };
  expect(await open({ sourceName: "feed" })).toBe("feed");
  expect(await open({})).toBe("feed");
  expect(await open({ restart: true })).toBe("feed");
  await expect(open({ sourceName: "other" })).rejects.toThrow("has the progress of feed. Leave out --name");
  expect(await open({ sourceName: "other", restart: true })).toBe("other");
});

test.concurrent(
  "what one app has is not skipped for another one, nor what a test key sent for a live key",
  async () => {
    const [tenant, other] = [await createReader(), await createReader()];
    const trial = (await insertKey(suite.service, tenant, { test: true })).key;
    const path = await file([event("ticket.x")]);
    const state = async () => await readFile(`${path}.ingest-state`, "utf8");
    expect(await send(tenant.key, path)).toMatchObject({ accepted: 1 });
    const { key } = await suite.service.admin.createKey(tenant.appId);
    expect(await send(key, path)).toMatchObject({ accepted: 0, alreadySent: 1, stopped: undefined });
    const before = await state();
    for (const [wrong, app] of [
      [other.key, other.appId],
      [trial, `${tenant.appId} (test)`],
    ] as const) {
      const message = `that of sending to ${tenant.appId}, and the key belongs to ${app}. Give another file with --state`;
      const refused = await send(wrong, path);
      expect(refused).toMatchObject({ isMistake: true, stopped: expect.stringContaining(message) });
    }
    expect((await state()).startsWith(before)).toBe(true);
    const run = await runSend(other.key, suite.url, [path, "--state", `${path}.other`]).ended;
    expect(JSON.parse(run.out)).toMatchObject({ accepted: 1, alreadySent: 0 });
    expect(await storedTypes(other)).toEqual(["ticket.x"]);

    const copy = join(directory, "of-one.ndjson");
    expect(await exportHere(tenant.readKey, copy)).toBe(1);
    const organization = `belongs to an export of ${tenant.organizationId}`;
    await expect(exportHere(other.readKey, copy)).rejects.toThrow(organization);
    const trialReader = (await insertKey(suite.service, tenant, { test: true, scopes: ["read"] })).key;
    await expect(exportHere(trialReader, copy)).rejects.toThrow(organization);
  },
);

test.concurrent(
  "the file of rejected lines keeps what other runs and the user wrote, and a killed run doubles none",
  async () => {
    const bad = { ...event("ticket.x"), duration: -1 };
    const folder = await mkdtemp(join(directory, "rejected-"));
    const pipe = async (...args: string[]) => {
      const options = { input: `${JSON.stringify(bad)}\n`, cwd: folder };
      const run = await runSend(suite.tenant.key, suite.url, ["-", ...args], options).ended;
      expect(run.code, run.err).toBe(1);
      return JSON.parse(run.out).rejectedFile as string;
    };
    // Without a name, all pipes share a file; with a state, each has its own.
    const shared = [await pipe(), await pipe()];
    expect(new Set([...shared, await pipe("--state", "b.state")]).size).toBe(2);
    expect(await pipe("--state", "c.state", "--rejected", shared[0] as string)).toBe(shared[0]);
    const linesIn = async (path: string) => (await readFile(path, "utf8")).split("\n").length - 1;
    expect(await linesIn(join(folder, shared[0] as string))).toBe(3);

    const path = join(folder, "own");
    const [batch, none] = [
      { from: 0, records: [], bytes: 0, digest: "" },
      { stored: 0, again: [] },
    ];
    const rejected = [{ line: 1, code: "x", message: "x" }];
    const open = () => Journal.open(`${path}.state`, `${path}.rejected`, { defaultSourceName: "own" });
    const first = await open();
    await first.finished(batch, { ...none, rejected });
    await first.close();
    // The user fixes the line in place, which makes it longer.
    await writeFile(`${path}.rejected`, `${"fixed".repeat(30)}\n`);
    const copyOf = async (name: string) => {
      await copyFile(`${path}.state`, `${path}.${name}.state`);
      await copyFile(`${path}.rejected`, `${path}.${name}.rejected`);
      return Journal.open(`${path}.${name}.state`, `${path}.${name}.rejected`, { defaultSourceName: "own" });
    };
    const second = await open();
    await second.finished(batch, { ...none, rejected });
    // Killed between the rejected line and the journal's entry of it.
    await appendFile(`${path}.rejected`, '{"line": 2');
    const third = await copyOf("after");
    await third.close();
    const whole = await readFile(`${path}.after.rejected`, "utf8");
    expect(whole).toBe(`${"fixed".repeat(30)}\n${JSON.stringify(rejected[0])}\n`);
    await second.close();
  },
);

test.concurrent("a state file of another version is refused with one sentence, and left unchanged", async () => {
  const path = await file([event("ticket.x")]);
  const old = '{"ingestSendState":2}\n{"sending":{"from":0,"count":1,"digest":"x","atMs":1,"key":"x"}}\n';
  await writeFile(`${path}.ingest-state`, old);
  const run = await runSend(suite.tenant.key, suite.url, [path]).ended;
  expect(run.code).toBe(2);
  expect(run.err).toContain(`${path}.ingest-state was not written by this version of ingest send.`);
  expect(await readFile(`${path}.ingest-state`, "utf8")).toBe(old);
});

const noFilters = { workerId: undefined, type: undefined, startTime: undefined, endTime: undefined };

const exportHere = (key: string, path: string, options: Partial<ExportOptions> = {}) =>
  exportTimeline({
    ...{ baseUrl: suite.url, key, kind: "event", filters: noFilters, path, giveUpSeconds: 60 },
    onProgress: () => {},
    onTrouble: () => {},
    ...options,
  });

/** A tenant with a key to read, too. */
async function createReader() {
  const tenant = await createTenant(suite.service.admin);
  return { ...tenant, readKey: (await suite.service.admin.createKey(tenant.appId, undefined, "read")).key };
}

/** All pages of the timeline, without what belongs to one installation. Workers are numbered as they appear. */
async function listed(key: string): Promise<string[]> {
  const rows: any[] = [];
  for (let pageToken = ""; ;) {
    const token = pageToken === "" ? "" : `&pageToken=${pageToken}`;
    const answer = await fetch(`${suite.url}/api/v1/timeline/events?pageSize=500${token}`, { headers: bearer(key) });
    const page = (await answer.json()) as any;
    rows.push(...page.events);
    pageToken = page.nextPageToken;
    if (pageToken === "") break;
  }
  const workers = [...new Set(rows.map(({ workerId }) => workerId))];
  return rows.map(({ workerId, id, appId, requestId, receivedAt, ...row }) =>
    JSON.stringify({ ...row, worker: workers.indexOf(workerId) }),
  );
}

test.concurrent(
  "an export that was killed goes on, and what it wrote makes the same timeline elsewhere, however often it is sent",
  async () => {
    const [from, to] = [await createReader(), await createReader()];
    const metadata = { "a.b": [1.5, "é\u2028\u007f", null], __proto__x: { $c: true } };
    // Half of them share one timestamp, across the border of two pages.
    const times = (i: number) => (i < 300 ? 0 : i < 700 ? 1 : i);
    const events = Array.from({ length: 1_200 }, (_, i) => ({
      ...event("ticket.moved", { externalId: `person-${i % 3}` }),
      ...{ timestamp: new Date(Date.UTC(2026, 3, 1) + 1_001 * times(i)).toISOString(), duration: i, metadata },
    }));
    const inOrder = { concurrency: 1 };
    const loaded = await sendInProcess(from.key, suite.url, await file(events), inOrder);
    expect(loaded).toMatchObject({ accepted: 1_200 });
    const snapshots = [1, 2].map((n) => ({
      ...{ snapshotType: "open", actor: { externalId: "person-1" }, timestamp: "2026-04-01T12:00:00Z" },
      metrics: { n, m: { value: 2, unit: "minutes" } },
    }));
    const ofSnapshots = { kind: sourceKinds.snapshot, ...inOrder };
    const figured = await sendInProcess(from.key, suite.url, await file(snapshots), ofSnapshots);
    expect(figured).toMatchObject({ accepted: 2 });

    const path = join(directory, "export.ndjson");
    const die = () => {
      throw new Error("killed");
    };
    // Each run dies after a page: it has written half a line more than it has noted.
    for (let pages = 0; pages < 3; pages++) {
      await expect(exportHere(from.readKey, path, { onProgress: die })).rejects.toThrow("killed");
      await appendFile(path, '{"eventType": "half a li');
    }
    expect(await exportHere(from.readKey, path)).toBe(1_200);
    expect((await readFile(path, "utf8")).trimEnd().split("\n")).toHaveLength(1_200);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    // A complete export stays as it is.
    expect(await exportHere(from.readKey, path)).toBe(1_200);
    const other = exportHere(from.readKey, path, { filters: { ...noFilters, type: "x" } });
    await expect(other).rejects.toThrow("belongs to an export with other filters");
    await expect(exportHere(from.readKey, await file([]))).rejects.toThrow("exists already");
    const figures = join(directory, "figures.ndjson");
    expect(await exportHere(from.readKey, figures, { kind: "snapshot" })).toBe(2);

    await sendInProcess(to.key, suite.url, figures, ofSnapshots);
    expect(await sendInProcess(to.key, suite.url, path, inOrder)).toMatchObject({ accepted: 1_200, duplicates: 0 });
    const original = await listed(from.readKey);
    expect(original).toHaveLength(1_202);
    expect(await listed(to.readKey)).toEqual(original);
    // A second export to a second file, and the first file without its state.
    const second = join(directory, "second.ndjson");
    await exportHere(from.readKey, second);
    await rm(`${path}.ingest-state`);
    for (const one of [second, path]) {
      expect(await send(to.key, one)).toMatchObject({ accepted: 1_200, duplicates: 1_200, rejected: 0 });
    }
    expect(await listed(to.readKey)).toEqual(original);
    // Snapshots have no ids: a second import adds to the history, and changes no card.
    const cards = () => cardCollection(suite.service.app.db).find({ organizationId: to.organizationId }).toArray();
    expect(await cards()).toMatchObject([{ metrics: { n: 2 } }]);
    await forget(figures, to);
    await sendInProcess(to.key, suite.url, figures, ofSnapshots);
    expect(await cards()).toMatchObject([{ metrics: { n: 2 } }]);
    expect(await listed(to.readKey)).toHaveLength(original.length + 2);
  },
);

test.concurrent("an export that was killed twice while newer events came writes no line twice", async () => {
  const { key, readKey } = await createReader();
  const at = (ms: number) => new Date(Date.UTC(2026, 3, 2) + ms).toISOString();
  const old = Array.from({ length: 600 }, (_, i) => ({ ...event("ticket.old"), timestamp: at(Math.max(0, i - 499)) }));
  await sendInProcess(key, suite.url, await file(old));
  const path = join(directory, "twice.ndjson");
  const die = () => {
    throw new Error("killed");
  };
  // The last ones of the first page wait for the next page, because they share one timestamp.
  await expect(exportHere(readKey, path, { onProgress: die })).rejects.toThrow("killed");
  const newer = Array.from({ length: 500 }, (_, i) => ({ ...event("ticket.new"), timestamp: at(10_000 + i) }));
  await sendInProcess(key, suite.url, await file(newer));
  await expect(exportHere(readKey, path, { onProgress: die })).rejects.toThrow("killed");
  expect(await exportHere(readKey, path)).toBe(600);
  const lines = (await readFile(path, "utf8")).trimEnd().split("\n");
  expect(new Set(lines.map((line) => JSON.parse(line).eventId)).size).toBe(lines.length);
  expect(lines).toHaveLength(600);
});

test.concurrent("an export whose file is gone or shorter says so, and changes nothing", async () => {
  const { key, readKey } = await createReader();
  await sendInProcess(key, suite.url, await file([event("ticket.x"), event("ticket.x")]));
  const path = join(directory, "gone.ndjson");
  expect(await exportHere(readKey, path)).toBe(2);
  const whole = await readFile(path, "utf8");
  await writeFile(path, whole.slice(0, 100));
  await expect(exportHere(readKey, path)).rejects.toThrow(
    `${path} has 100 bytes, and ${path}.export-state says that ${whole.length} were written`,
  );
  expect(await readFile(path, "utf8")).toBe(whole.slice(0, 100));
  await rm(path);
  await expect(exportHere(readKey, path)).rejects.toThrow(`${path} has 0 bytes`);
  await expect(stat(path)).rejects.toThrow("ENOENT");
  await writeFile(path, whole);
  expect(await exportHere(readKey, path)).toBe(2);
});

test.concurrent("an export has the rows of the chosen worker, type and time only", async () => {
  const { key, readKey, organizationId } = await createReader();
  const events = Array.from({ length: 24 }, (_, i) => ({
    ...event(`ticket.${"ab"[i % 2]}`, { externalId: `person-${i % 3}` }),
    ...{ timestamp: `2026-04-01T${String(i).padStart(2, "0")}:00:00Z`, metadata: { i } },
  }));
  await send(key, await file(events));
  const rows = await storedRows(suite.service.app.db, rowsBetween(organizationId));
  const { workerId } = rows[0] as { workerId: string };
  const startTime = "2026-04-01T06:00:00Z";
  const endTime = "2026-04-01T18:00:00Z";
  for (const [filters, isWanted] of [
    [{ workerId }, (i: number) => i % 3 === 0],
    [{ type: "ticket.b" }, (i: number) => i % 2 === 1],
    [{ startTime, endTime }, (i: number) => i >= 6 && i < 18],
    [{ workerId, type: "ticket.b", startTime, endTime }, (i: number) => i % 6 === 3 && i >= 6 && i < 18],
  ] as const) {
    const path = join(directory, `${Object.keys(filters).join("-")}.ndjson`);
    await exportHere(readKey, path, { filters: { ...noFilters, ...filters } });
    const lines = (await readFile(path, "utf8")).trimEnd().split("\n");
    const wanted = events.map(({ metadata }) => metadata.i).filter(isWanted);
    expect(lines.map((line) => JSON.parse(line).metadata.i)).toEqual(wanted.reverse());
  }
  const refused = exportHere(key, join(directory, "refused.ndjson"));
  await expect(refused).rejects.toThrow("The service refuses with forbidden_scope");
});

test.concurrent("an export piped to send stores each row once, however often it runs", async () => {
  const [from, to] = [await createReader(), await createReader()];
  // What acts on a terminal is escaped on standard output, and stays the same in JSON.
  const metadata = { note: "\u202e\u0085\u001b[2J" };
  const events = Array.from({ length: 700 }, (_, i) => ({ ...event(`ticket.n${i}`), metadata }));
  await send(from.key, await file(events));
  const pipe = '"$0" "$1" export - --key "$READ_KEY" | "$0" "$1" send -';
  const env = {
    PATH: process.env.PATH,
    ...{ READ_KEY: from.readKey, WEPEOPLE_API_KEY: to.key, WEPEOPLE_BASE_URL: suite.url },
  };
  const run = () =>
    spawn("bash", ["--norc", "-c", pipe, process.execPath, cli], { env, cwd: directory, stdio: "pipe" });
  const first = run();
  const [code] = await once(first, "close");
  expect(code).toBe(0);
  const original = await listed(from.readKey);
  expect(original).toHaveLength(700);
  const second = run();
  const [out] = await Promise.all([text(second.stdout), once(second, "close")]);
  expect(out).toContain("700 stored before, under the same id");
  expect((await listed(to.readKey)).sort()).toEqual(original.sort());
});
