import { randomBytes } from "node:crypto";
import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify, stripVTControlCharacters } from "node:util";
import { type Command, CommanderError } from "commander";
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { newAccessToken } from "../../src/access/access-token.ts";
import { type Exit, exitCodeOf, exitCodes } from "../../src/serve/exit.ts";
import { examplesOf, pathOf } from "../../src/cli/examples.ts";
import { createProgram } from "../../src/cli/program.ts";
import { configVariables } from "../../src/config.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { workerCollection } from "../../src/store/workers.ts";
import { schemaVersion } from "../../src/store/schema-version.ts";
import { insertToken } from "../support/admin.ts";
import { runInProcess } from "../support/command.ts";
import { databaseFolder } from "../support/database-folder.ts";
import { eventually, runIngest } from "../support/processes.ts";
import { snapshot } from "../support/requests.ts";
import { bearer, createTenant, protocols, startService, type TestService } from "../support/service.ts";

/** The real command, run as a process, on the database of a running service. */
const database = `test-${randomBytes(6).toString("hex")}`;
let service: TestService;

beforeAll(async () => {
  service = await startService({ database });
});
afterAll(() => service.app.close());

const ingest = (...args: string[]) => runIngest(args, { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database });

/** Runs a command in this process and returns its output. */
async function inProcess(...args: readonly string[]): Promise<string> {
  const { printed, error } = await runInProcess(database, args);
  if (error !== undefined) throw error;
  return printed;
}

const json = async (...args: string[]): Promise<any> => JSON.parse(await inProcess(...args, "--json"));

const ping = (key: string) => protocols.REST?.(service.app.url, "ping", undefined, bearer(key));
const send = (key: string, eventType: string) =>
  protocols.REST?.(
    service.app.url,
    "events",
    {
      events: [
        { eventType, category: "project_management", actor: { externalId: "crm-user-42", displayName: "Alex Chen" } },
      ],
    },
    bearer(key),
  );

/** Waits until the running service answers with this code; the contract allows a second. */
const answers = (ask: () => ReturnType<typeof send>, code: string | undefined) =>
  eventually(async () => (await ask())?.error?.code === code, `the service answers ${code ?? "without error"}`);

describe("ingest", { timeout: 120_000 }, () => {
  test("creates an organisation, an app and a key that the running service accepts, and shows them", async () => {
    const created = await ingest("org", "create", "--name", "Acme", "--quota", "5", "--key-rate", "50", "--json");
    expect(created).toMatchObject({ code: exitCodes.done.code, stderr: "" });
    const organization = JSON.parse(created.stdout);
    expect(organization).toMatchObject({
      id: expect.stringMatching(/^org_/),
      name: "Acme",
      api: true,
      quotaEventsPerMonth: 5,
      keyRequestsPerSecond: 50,
      organizationRequestsPerSecond: 600,
    });
    const allow = ["ticket.*", "deploy.shipped"];
    const app = await json(
      ...["app", "create", "--org", organization.id, "--slug", "crm-hub", "--name", "CRM Hub", "--allow", ...allow],
    );
    expect(app).toMatchObject({ id: expect.stringMatching(/^app_/), slug: "crm-hub", allow });
    const { key, secret } = await json("key", "create", "--app", app.id);
    expect(key).toMatchObject({ id: expect.stringMatching(/^key_/), appId: app.id, scopes: ["ingest"] });
    expect((await ping(secret))?.body).toMatchObject({ organizationId: organization.id, app: { id: app.id } });

    expect((await send(secret, "ticket.resolved"))?.status).toBe(202);
    const [worker] = await json("worker", "list", "--org", organization.id);
    expect(worker).toMatchObject({ id: expect.stringMatching(/^wrk_/), displayName: "Alex Chen" });
    expect(await json("worker", "show", worker.id)).toMatchObject({ ...worker, cards: [] });
    const month = new Date().toISOString().slice(0, 7);
    const rows = [{ day: expect.stringMatching(month), accepted: 1, rejected: 0, replayed: 0, duplicates: 0 }];
    await expect
      .poll(() => json("org", "usage", organization.id))
      .toEqual({ organizationId: organization.id, month, events: 1, quotaEventsPerMonth: 5, rows });
    expect(await json("app", "list", "--org", organization.id)).toEqual([app]);

    const keys = await ingest("key", "list", "--app", app.id, "--json");
    expect(JSON.parse(keys.stdout)).toMatchObject([{ id: key.id, hint: `${secret.slice(0, 12)}…`, status: "active" }]);
    expect(keys.stdout).not.toContain(secret);
  });

  test("every command works with a service elsewhere and no MONGODB_URI, or says why it cannot", async () => {
    const { token } = await insertToken(service, "operator");
    const target = { url: service.app.adminUrl, token };
    const ran = new Set<string>();
    const run = async (...args: string[]) => {
      ran.add(args.slice(0, 2).join(" ")).add(args[0] as string);
      const { printed, error } = await runInProcess(target, [...args, "--json"]);
      if (error !== undefined) throw error;
      return printed === "" ? undefined : JSON.parse(printed);
    };
    const organization = await run("org", "create", "--name", "Elsewhere");
    expect(await run("org", "update", organization.id, "--quota", "7")).toMatchObject({ quotaEventsPerMonth: 7 });
    expect(await run("org", "show", organization.id)).toMatchObject({ name: "Elsewhere", quotaEventsPerMonth: 7 });
    expect((await run("org", "list", "--limit", "1"))[0].id).toBe(organization.id);
    const app = await run("app", "create", "--org", organization.id, "--slug", "a", "--allow", "ticket.*");
    expect((await run("app", "allow", app.id, "build.*")).allow).toEqual(["ticket.*", "build.*"]);
    expect((await run("app", "deny", app.id, "build.*")).allow).toEqual(["ticket.*"]);
    expect(await run("app", "update", app.id, "--name", "B")).toMatchObject({ name: "B", allow: ["ticket.*"] });
    expect(await run("app", "list", "--org", organization.id)).toEqual([await run("app", "show", app.id)]);
    const { key, secret } = await run(
      "key",
      "create",
      "--app",
      app.id,
      "--event-type",
      "ticket.a",
      "--cidr",
      "::1/128",
    );
    expect(key).toMatchObject({ eventTypes: ["ticket.a"], cidrs: ["::1/128"] });
    const cleared = await run("key", "update", key.id, "--name", "K", "--clear", "event-type", "cidr");
    expect(cleared).toMatchObject({ name: "K", eventTypes: [], cidrs: [] });
    const rotated = await run("key", "rotate", key.id, "--grace", "1h", "--wait");
    expect(rotated).toMatchObject({ replaced: { id: key.id, status: "rotating" }, actedAfterMs: expect.any(Number) });
    expect((await run("key", "list", "--app", app.id)).map((one: { id: string }) => one.id)).toEqual([
      rotated.key.id,
      key.id,
    ]);
    for (const externalId of ["a", "b"]) {
      const actor = { externalId, displayName: externalId };
      const body = { actor, snapshotType: "weekly", timestamp: "2026-04-19T12:00:00Z", metrics: { open: 1 } };
      const answer = await protocols.REST?.(service.app.url, "snapshots", body, bearer(rotated.secret));
      expect(answer?.error).toBeUndefined();
    }
    const ofOrganization = ["--org", organization.id];
    const [worker] = await run("worker", "list", ...ofOrganization, "--external-id", "a");
    const [other] = await run("worker", "list", ...ofOrganization, "--name", "B");
    expect(await run("worker", "rename", worker.id, "Alex")).toMatchObject({ id: worker.id, displayName: "Alex" });
    expect((await run("worker", "merge", worker.id, other.id)).merged).toMatchObject([{ id: other.id }]);
    expect((await run("worker", "show", other.id)).cards).toMatchObject([{ snapshotType: "weekly" }]);
    const { requestId } = (await send(rotated.secret, "deploy.shipped"))?.body.error ?? {};
    expect(await run("request", "show", requestId)).toMatchObject({ requestId, code: "forbidden_event_type" });
    // Its record is written a moment after the answer.
    await expect
      .poll(() => run("request", "list", ...ofOrganization, "--outcome", "refused"))
      .toMatchObject([{ requestId }]);
    expect(await run("app", "preview", app.id, "deploy.*")).toMatchObject({ accepted: 1, refused: 0 });
    await run("worker", "drop-card", worker.id, "--app", app.id, "--type", "weekly");
    expect(await run("worker", "erase", worker.id)).toMatchObject({ state: "done", counts: { events: 2, workers: 2 } });
    const file = join(mkdtempSync(join(tmpdir(), "ingest-key-")), "key");
    writeFileSync(file, `${secret}\n`);
    const found = await run("key", "find", "--file", file, "--revoke");
    expect(found).toMatchObject({ key: { id: key.id, status: "revoked" }, organization: { name: "Elsewhere" } });
    expect(await run("key", "show", key.id)).toEqual(found.key);
    rmSync(dirname(file), { recursive: true });
    expect(await run("key", "revoke", rotated.key.id)).toMatchObject({ status: "revoked" });
    expect(await run("org", "usage", organization.id, "--by", "code")).toHaveProperty("rows");
    expect(await run("org", "traffic", organization.id)).toMatchObject({ requests: expect.any(Number) });
    expect(await run("quota", "recount", "--org", organization.id)).toHaveProperty("before");
    const wanted = join(tmpdir(), `ingest-${randomBytes(4).toString("hex")}.yaml`);
    writeFileSync(wanted, `organizations: [{ id: ${organization.id}, apps: [{ slug: a, name: B }] }]`);
    expect(await run("apply", "-f", wanted)).toEqual([]);
    rmSync(wanted);
    const made = await run("token", "create", "--name", "T", "--role", "manager", "--org", organization.id);
    const own = await runInProcess({ url: target.url, token: made.secret }, ["whoami", "--json"]);
    expect(JSON.parse(own.printed)).toMatchObject({ id: made.token.id, role: "manager" });
    expect(await run("token", "list", "--org", organization.id)).toMatchObject([
      { id: made.token.id, role: "manager" },
    ]);
    expect(await run("token", "revoke", made.token.id)).toHaveProperty("revokedAt");
    expect(await run("whoami")).toMatchObject({ kind: "token", role: "operator" });
    expect(await run("instances")).toContainEqual(expect.objectContaining({ running: true }));
    expect(await run("app", "delete", app.id)).toEqual({});
    const entries: { action: string }[] = await run("audit", "--org", organization.id);
    expect(entries.map(({ action }) => action)).toEqual([
      ...["DeleteApp", "RevokeToken", "CreateToken", "RevokeKey", "FindKey", "EraseWorker", "DropCard"],
      ...["MergeWorkers", "UpdateWorker", "RotateKey", "UpdateKey", "CreateKey"],
      ...["UpdateApp", "UpdateApp", "UpdateApp", "CreateApp", "UpdateOrganization", "CreateOrganization"],
    ]);

    for (const command of ["serve", "migrate", "check"]) {
      const { error } = await runInProcess(target, [command]);
      expect([error?.message, exitCodeOf(error)]).toEqual([
        expect.stringContaining(`\`ingest ${command}\` needs the database itself`),
        exitCodes.usage.code,
      ]);
      ran.add(command);
    }
    // It runs until a signal: test/observe/requests.test.ts follows a service with it.
    await expect(run("tail", "--app", "app_x")).rejects.toThrow("There is no app with the id 'app_x'.");
    const leaves = everyCommand(createProgram()).filter(({ commands }) => commands.length === 0);
    const names = leaves.map((command) => pathOf(command).slice("ingest ".length));
    expect(names.filter((name) => !ran.has(name) && !callsIngest.has(name) && name !== "tail")).toEqual([]);
  });

  test("`ingest audit --follow` prints each change once, also over two runs", async () => {
    const { token } = await insertToken(service, "operator");
    const folder = mkdtempSync(join(tmpdir(), "ingest-audit-"));
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
    const organization = await json("org", "create", "--name", "Followed");
    const flags = ["--follow", "--json", "--org", organization.id, "--state", join(folder, "state")];
    const env = { PATH: process.env.PATH, INGEST_URL: service.app.adminUrl, INGEST_TOKEN: token };
    /** Follows while `work` runs, until that many lines are there; without a count, until nobody takes its lines. */
    const follow = async (work: () => Promise<unknown>, count?: number) => {
      const child = spawn(process.execPath, ["src/cli.ts", "audit", ...flags], { env });
      const written = { stdout: "", stderr: "" };
      for (const name of ["stdout", "stderr"] as const)
        child[name].on("data", (text) => (written[name] += String(text)));
      const closed = once(child, "close");
      await eventually(async () => written.stderr.includes("Waiting for changes"), "it follows");
      if (count === undefined) child.stdout.destroy();
      await work();
      const lines = () => written.stdout.split("\n").filter((line) => line !== "");
      if (count !== undefined) {
        await eventually(async () => lines().length >= count, "it prints the changes");
        child.kill("SIGINT");
      }
      expect((await closed)[0]).toBe(0);
      return lines().map((line) => JSON.parse(line).after.name);
    };
    const rename = (name: string) => json("org", "update", organization.id, "--name", name);
    expect(await follow(async () => {}, 0)).toEqual([]);
    await rename("One");
    expect(await follow(() => rename("Two"), 2)).toEqual(["One", "Two"]);
    expect(await follow(() => rename("Three"), 1)).toEqual(["Three"]);
    expect(await follow(() => rename("Unread"))).toEqual([]);
    expect(await follow(async () => {}, 1)).toEqual(["Unread"]);
    const { error } = await runInProcess(database, ["audit", "--state", join(folder, "state")]);
    expect([error?.message, exitCodeOf(error)]).toEqual([
      "--state records the place of --follow: add that.",
      exitCodes.usage.code,
    ]);
  });

  /** Runs a command as a process, with this standard output. */
  async function withOutput(stdout: number | "nobody reads it", ...args: string[]) {
    const env = { ...process.env, MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database };
    const output = typeof stdout === "number" ? stdout : "pipe";
    const child = spawn(process.execPath, ["src/cli.ts", ...args], { env, stdio: ["ignore", output, "pipe"] });
    child.stdout?.destroy();
    let stderr = "";
    child.stderr?.on("data", (text) => (stderr += String(text)));
    const [code] = await once(child, "close");
    return { code, stderr };
  }

  test("finishes what it changes if nobody reads its output, and says if its output cannot be written", async () => {
    const folder = mkdtempSync(join(tmpdir(), "ingest-output-"));
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
    const [name, file] = ["Nobody reads", join(folder, "ingest.yaml")];
    writeFileSync(file, `organizations: [{ name: ${name}, apps: [{ slug: one, allow: ["*"] }] }]`);
    expect((await withOutput("nobody reads it", "apply", "-f", file)).code).toBe(exitCodes.done.code);
    const { id } = (await json("org", "list", "--limit", "500")).find((one: { name: string }) => one.name === name);
    expect(await json("app", "list", "--org", id)).toMatchObject([{ slug: "one" }]);
    if (!existsSync("/dev/full")) return;
    const full = await withOutput(openSync("/dev/full", "w"), "org", "list");
    expect(full).toEqual({
      code: exitCodes.failed.code,
      stderr: expect.stringMatching(/^Standard output cannot be written: .*ENOSPC.*\n$/),
    });
  });

  test("finds a key that comes through a pipe after a while", async () => {
    const organization = await json("org", "create", "--name", "Pipe");
    const app = await json("app", "create", "--org", organization.id, "--slug", "a", "--name", "A", "--allow", "*");
    const { key, secret } = await json("key", "create", "--app", app.id);
    const command = `(sleep 1; printf %s ${secret}) | "$NODE" src/cli.ts key find --json`;
    const env = { ...process.env, NODE: process.execPath, MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database };
    const found = await promisify(execFile)("sh", ["-c", command], { env });
    expect(JSON.parse(found.stdout)).toMatchObject({ key: { id: key.id } });
  });

  test("says what is wrong with the address or the token of a service, and what to do", async () => {
    const { token } = await insertToken(service, "viewer");
    const url = service.app.adminUrl;
    const org = await service.admin.createOrganization({ name: "Acme" });
    const list = ["org", "list"];
    const cases: readonly (readonly [where: { url: string; token: string }, args: string[], says: string, Exit])[] = [
      [{ url, token: "" }, list, "set INGEST_TOKEN, or name a file with --token-file", "usage"],
      [{ url, token: "wp_adm_1" }, list, "INGEST_TOKEN is no access token: it has 1 characters after wp_adm_", "usage"],
      [{ url, token: newAccessToken() }, list, "The access token does not exist.", "usage"],
      [{ url: "localhost:1", token }, list, "--url (INGEST_URL) must begin with http:// or https://", "usage"],
      [{ url: "http://127.0.0.1:1", token }, list, "http://127.0.0.1:1 cannot be reached: ", "failed"],
      [{ url: `${url}/elsewhere`, token }, list, "does not serve the administration API", "failed"],
      [{ url, token }, ["org", "update", org.id, "--name", "x"], "needs the role 'manager'", "refused"],
      [{ url, token }, ["org", "create", "--name", "x", "--init"], "--init sets up a database", "usage"],
    ];
    for (const [where, args, says, exit] of cases) {
      const { error } = await runInProcess(where, args);
      expect([error?.message, exitCodeOf(error)]).toEqual([expect.stringContaining(says), exitCodes[exit].code]);
      if (where.token !== "") expect(error?.message).not.toContain(where.token);
    }
    const file = join(mkdtempSync(join(tmpdir(), "ingest-token-")), "token");
    writeFileSync(file, `${token}\n`);
    const flags = ["--url", url, "--token-file", file, "--json"];
    const { printed, error } = await runInProcess(database, ["org", "show", org.id, ...flags]);
    expect(error).toBeUndefined();
    expect(JSON.parse(printed)).toMatchObject({ id: org.id });
    rmSync(dirname(file), { recursive: true });
  });

  test("changes the whitelist, the plan and a key, and the running service follows", async () => {
    const organization = await json("org", "create", "--name", "Acme");
    const app = await json(
      ...["app", "create", "--org", organization.id, "--slug", "a", "--name", "A", "--allow", "ticket.*"],
    );
    const { key: created, secret: key } = await json("key", "create", "--app", app.id);
    await answers(() => send(key, "deploy.shipped"), "forbidden_event_type");
    expect((await json("app", "allow", app.id, "deploy.shipped", "build.*")).allow).toHaveLength(3);
    await answers(() => send(key, "deploy.shipped"), undefined);
    expect((await json("app", "deny", app.id, "deploy.shipped", "build.*")).allow).toEqual(["ticket.*"]);
    await answers(() => send(key, "deploy.shipped"), "forbidden_event_type");
    expect(await json("org", "update", organization.id, "--no-api")).toMatchObject({ api: false, name: "Acme" });
    await answers(() => ping(key), "plan_disabled");
    expect(await json("org", "update", organization.id, "--api", "--name", "New")).toMatchObject({
      api: true,
      name: "New",
    });
    await answers(() => ping(key), undefined);
    expect(await json("org", "update", organization.id, "--retain-days", "400")).toMatchObject({ retentionDays: 400 });
    expect(await json("org", "update", organization.id, "--retain-days", "default")).not.toHaveProperty(
      "retentionDays",
    );
    expect(await json("key", "revoke", created.id, "--wait")).toMatchObject({ actedAfterMs: expect.any(Number) });
    expect((await ping(key))?.error?.code).toBe("key_revoked");
    const old = await json("key", "create", "--app", app.id);
    await json("key", "rotate", old.key.id, "--grace", "0s");
    await answers(() => ping(old.secret), "key_expired");
    expect(await json("quota", "recount", "--org", organization.id)).toMatchObject({ organizationId: organization.id });
  });

  test("prints tables on a terminal: a list with a head line, one object as names and values", async () => {
    const { id } = await json("org", "create", "--name", "Table & Co");
    const list = (await inProcess("org", "list")).split("\n");
    expect(list[0]).toMatch(/^id +name +API +events\/month +created +key rate\/s +org rate\/s$/);
    const time = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`;
    expect(list.find((line) => line.startsWith(id))).toMatch(
      RegExp(`  Table & Co {2,}yes {2,}1000000 {2,}${time} {2,}60 {2,}600$`),
    );
    const one = await inProcess("org", "update", id, "--quota", "7");
    expect(one.split("\n")).toContain("events/month  7");
    expect(await inProcess("app", "list", "--org", id)).toBe("(none)\n");
  });

  test("lists a page at a time, and says how to get the next one", async () => {
    const { admin } = service;
    const { id } = await admin.createOrganization({ name: "Pages" });
    const apps = [];
    for (const slug of ["a", "b", "c"]) apps.push(await admin.createApp(id, slug, slug, ["*"]));
    const ids = apps.map((app) => app.id) as [string, string, string];
    const page = async (...args: string[]) => {
      const { printed, notes } = await runInProcess(database, [...args, "--json"]);
      const [, token] = /^There are more: use --page-token (\S+) to see them\.\n$/.exec(notes) ?? [];
      const rows: { id: string }[] = JSON.parse(printed);
      return { ids: rows.map((row) => row.id), token, more: notes !== "" };
    };
    const list = ["app", "list", "--org", id, "--limit", "2"];
    const one = await page(...list);
    expect(one).toMatchObject({ ids: [ids[2], ids[1]], token: expect.any(String) });
    expect(await page(...list, "--page-token", one.token ?? "")).toEqual({ ids: [ids[0]], more: false });
    await expect(inProcess(...list, "--page-token", "x")).rejects.toThrow(
      "pageToken: must be an unchanged nextPageToken",
    );
    expect(await said("org", "list", "--limit", "501")).toContain("from 1 to 500");
    expect(await page("org", "list", "--limit", "1")).toMatchObject({ ids: [expect.any(String)], more: true });
  });

  test("renames a worker for running services, drops a card but not its history, and erases", async () => {
    const { admin, app } = service;
    const tenant = await createTenant(admin);
    const put = async (timestamp: string) => {
      const actor = { externalId: "crm-user-7", displayName: "As sent" };
      const body = { actor, snapshotType: "weekly", timestamp, metrics: { open: 1 } };
      return (await protocols.REST?.(app.url, "snapshots", body, bearer(tenant.key)))?.body.worker;
    };
    const { id } = await put("2026-04-19T12:00:00Z");
    expect(await json("worker", "rename", id, "By hand")).toMatchObject({ id, displayName: "By hand" });
    await eventually(
      async () => (await put("2026-04-19T12:00:00Z")).displayName === "By hand",
      "answers have the new name",
    );
    await expect(inProcess("worker", "rename", id, "x".repeat(201))).rejects.toThrow(
      "displayName: must have at most 200 characters",
    );
    const drop = ["worker", "drop-card", id, "--app", tenant.appId, "--type"];
    await expect(inProcess(...drop, "other")).rejects.toThrow("no card of type 'other'");
    expect(await json(...drop, "weekly")).toMatchObject({ id, displayName: "By hand" });
    expect((await json("worker", "show", id)).cards).toEqual([]);
    const { key } = await admin.createKey(tenant.appId, undefined, "read");
    const history = await fetch(`${app.url}/api/v1/timeline/events?workerId=${id}`, { headers: bearer(key) });
    expect(((await history.json()) as { events: unknown[] }).events.length).toBeGreaterThan(1);
    await put("2026-04-18T12:00:00Z");
    expect((await json("worker", "show", id)).cards).toMatchObject([{ timestamp: "2026-04-18T12:00:00Z" }]);
    const erase = ["worker", "erase", "--external-id", "crm-user-7"];
    expect(await said(...erase)).toContain("--external-id together with --app");
    const receipt = await json(...erase, "--app", tenant.appId);
    expect(receipt).toMatchObject({ organizationId: tenant.organizationId, counts: { cards: 1, workers: 1 } });
    const again = await runInProcess(database, [...erase, "--app", tenant.appId, "--json"]);
    expect([JSON.parse(again.printed), again.notes]).toEqual([receipt, "The worker was erased already.\n"]);
    expect(await json(...erase, "--app", tenant.appId, "--allow-again")).toMatchObject({ allowedNames: 2 });
    const nobody = ["worker", "erase", "--email", "nobody@example.com", "--app", tenant.appId];
    await expect(inProcess(...nobody)).rejects.toThrow(`The app '${tenant.appId}' knows no worker with this email.`);
  });

  test("erases nobody whom a deleted app of the same slug knew by the external id", async () => {
    const { admin, app } = service;
    const first = await createTenant(admin);
    const put = async (key: string) => {
      const actor = { externalId: "42" };
      return (await protocols.REST?.(app.url, "snapshots", snapshot({ actor }), bearer(key)))?.body.worker.id;
    };
    const worker = await put(first.key);
    await inProcess("app", "delete", first.appId);
    const second = await admin.createApp(first.organizationId, "crm-hub", "CRM Hub", ["ticket.*"]);
    const erase = ["worker", "erase", "--external-id", "42", "--app", second.id];
    await expect(inProcess(...erase)).rejects.toThrow("knows no worker with this external id");
    const own = await put((await admin.createKey(second.id)).key);
    expect(await json(...erase)).toMatchObject({ counts: { workers: 1 } });
    const left = await json("worker", "list", "--org", first.organizationId);
    expect(left).toMatchObject([{ id: worker, links: [{ appId: first.appId, externalId: "42" }] }]);
    expect(own).not.toBe(worker);
  });

  test("shows the newest cards of a worker", async () => {
    const { app } = service;
    const _id = "wrk_cards";
    await workerCollection(app.db).insertOne({ _id, organizationId: "org_cards", links: [], createdAt: new Date() });
    const cards = Array.from({ length: 101 }, (_, n) => ({
      ...{ _id: `${_id}/app_1/type${n}`, organizationId: "org_cards", workerId: _id, appId: "app_1" },
      ...{
        snapshotType: `type${n}`,
        requestId: `req_${n}`,
        timestamp: new Date(n),
        receivedAt: new Date(n),
        metrics: {},
      },
    }));
    await cardCollection(app.db).insertMany(cards);
    const shown: { cards: { snapshotType: string }[] } = await json("worker", "show", _id);
    expect(shown.cards.map(({ snapshotType }) => snapshotType)).toEqual(
      cards
        .slice(1)
        .map(({ snapshotType }) => snapshotType)
        .reverse(),
    );
  });

  test("fits the terminal: at 80 columns, the list of keys has one line for each key, with its status", async () => {
    const { admin } = service;
    const { id: organizationId } = await admin.createOrganization({ name: "Acme" });
    const { id: appId } = await admin.createApp(organizationId, "keys", "Keys", ["*"]);
    const [active, ending, rotating, revoked] = await Promise.all([
      admin.createKey(appId),
      admin.createKey(appId, new Date(Date.now() + 3.5 * 86_400_000)),
      admin.createKey(appId),
      admin.createKey(appId),
    ]);
    const { id: next } = await admin.rotateKey(rotating.id, 1.5 * 3_600_000);
    const { id: expired } = await admin.createKey(appId);
    await admin.rotateKey(expired, 0);
    await admin.revokeKey(revoked.id);
    const command = `stty cols 80; exec ${process.execPath} src/cli.ts key list --app ${appId}`;
    const env = { ...process.env, MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database, DATA_DIR: undefined };
    const shown = execFileSync("script", ["--quiet", "--return", "--command", command, "/dev/null"], {
      env,
      timeout: 60_000,
    });
    const [heads = "", ...lines] = stripVTControlCharacters(String(shown)).trimEnd().split("\r\n");
    expect(heads).toMatch(/^id +hint +scope +status$/);
    expect(lines.pop()).toBe(
      "The terminal is too narrow for: last used, created, expires, name. Use --json to see all.",
    );
    for (const line of lines) expect(line.length).toBeLessThanOrEqual(80);
    expect(
      Object.fromEntries(lines.map((line) => line.split(/ {2,}/)).map(([id, , , status]) => [id, status])),
    ).toMatchObject({
      [active.id]: "active",
      [ending.id]: "expires in 3 d",
      [rotating.id]: "rotating, 1 h left",
      [next]: "active",
      [expired]: "expired",
      [revoked.id]: "revoked",
    });
  });

  test.each([
    ["an unknown noun", ["organisation"], "unknown command 'organisation'"],
    ["an unknown verb", ["org", "delete", "x"], "unknown command 'delete'"],
    ["a missing flag", ["org", "create"], "required option '--name <name>' not specified"],
    ["an unknown flag", ["org", "list", "--yaml"], "unknown option '--yaml'"],
    ["one argument too many", ["key", "revoke", "a", "b"], "too many arguments"],
    ["an invalid quota", ["org", "create", "--name", "x", "--quota", "1e3"], "It must be a whole number"],
    ["a rate below 1", ["org", "create", "--name", "x", "--key-rate", "0"], "a number of requests a second, from 1"],
    ["a time without offset", ["key", "create", "--app", "x", "--expires", "2027-01-01T00:00"], "with an offset"],
    ["a day that does not exist", ["key", "create", "--app", "x", "--expires", "2027-02-30"], "a time that exists"],
  ])("refuses %s, and says what is allowed", async (_, args, message) => {
    expect(await said(...args)).toContain(message);
  });

  test("prints its version", async () => {
    const { version } = JSON.parse(readFileSync("package.json", "utf8"));
    expect(await Promise.all([said("--version"), said("-V")])).toEqual([`${version}\n`, `${version}\n`]);
  });

  test("refuses an unknown id in every argument and option that takes an id", async () => {
    const { admin } = service;
    const organization = await admin.createOrganization({ name: "Known" });
    const app = await admin.createApp(organization.id, "known", "Known", ["*"]);
    const known: Readonly<Record<string, string>> = {
      "--org": organization.id,
      "--app": app.id,
      "--grace": "1h",
      "--role": "viewer",
    };
    const prefixes: Readonly<Record<string, string>> = { worker: "wrk", request: "req", token: "tok" };
    const worker = { _id: "wrk_known", organizationId: organization.id, links: [], createdAt: new Date() };
    await workerCollection(service.app.db).insertOne(worker);
    const tried: string[] = [];
    const refused = async (args: readonly string[], slot: string, id: string) => {
      tried.push(slot);
      const running = inProcess(...args);
      await expect(running, slot).rejects.toThrow(id);
      expect(exitCodeOf(await running.catch((error: unknown) => error)), slot).toBe(exitCodes.refused.code);
    };
    for (const command of everyCommand(createProgram()).filter(({ commands }) => commands.length === 0)) {
      const path = pathOf(command).split(" ").slice(1);
      const noun = path[0] as string;
      const needed = command.options.filter(({ mandatory }) => mandatory).map(({ long }) => long as string);
      const valueOf = (flag: string) => [flag, known[flag] ?? "x"];
      const [argument, ...further] = command.registeredArguments.map((one) => one.name());
      if (argument === "id") {
        const id = `${prefixes[noun] ?? noun}_01HP3K5V4J3M9NVT8XZKQ9YQ2E`;
        await refused(
          [
            ...path,
            id,
            ...further.map((name) => (name === "other" ? worker._id : "ticket.opened")),
            ...needed.flatMap(valueOf),
          ],
          `${path.join(" ")} <id>`,
          id,
        );
      }
      // An external id is a caller's: it has no prefix of ours.
      for (const { long } of command.options.filter(({ flags }) => /(?<!external-id) <id>$/.test(flags))) {
        const flag = long as string;
        const others = needed.filter((one) => one !== flag).flatMap(valueOf);
        const id = `${flag.slice(2)}_01HP3K5V4J3M9NVT8XZKQ9YQ2E`;
        const isNamedOtherwise = command.options.some(({ long }) => long === "--external-id");
        const thing = isNamedOtherwise ? ["--external-id", "x"] : argument === "id" ? [worker._id] : [];
        await refused([...path, ...thing, ...others, flag, id], `${path.join(" ")} ${flag}`, id);
      }
    }
    expect(tried).toContain("tail --app");
    expect(tried).toContain("app list --org");
    expect(tried.length).toBeGreaterThan(15);
    const other = await admin.createOrganization({ name: "Other" });
    const mixed = inProcess("tail", "--org", other.id, "--app", app.id);
    await expect(mixed).rejects.toThrow(`There is no app with the id '${app.id}'.`);
    await expect(inProcess("app", "list", "--org", app.id)).rejects.toThrow("Such an id begins with org_.");
  });

  test("says what it left unchanged, and refuses a change without the intended effect", async () => {
    const { id: organizationId } = await json("org", "create", "--name", "Acme");
    const create = ["app", "create", "--org", organizationId, "--slug", "a", "--allow", "ticket.*", "build.done"];
    const app = await json(...create);
    const notesOf = async (...args: string[]) => {
      const { notes, error } = await runInProcess(database, [...args, "--json"]);
      return error?.message ?? notes;
    };
    expect(await notesOf("app", "allow", app.id, "ticket.*", "x.y")).toBe("'ticket.*' was on the whitelist already.\n");
    expect(await notesOf("app", "deny", app.id, "nothing.*", "x.y")).toBe("'nothing.*' was not on the whitelist.\n");
    expect((await json("app", "show", app.id)).allow).toEqual(["ticket.*", "build.done"]);
    expect(await notesOf("app", "deny", app.id, "ticket.resolved")).toBe(
      "'ticket.resolved' is still allowed: the entry 'ticket.*' of the whitelist covers it.",
    );
    const { key } = await json("key", "create", "--app", app.id);
    const { revokedAt } = await json("key", "revoke", key.id);
    expect((await json("key", "revoke", key.id)).revokedAt).toBe(revokedAt);
    expect(await notesOf("key", "revoke", key.id)).toBe(`The key '${key.id}' was revoked already.\n`);
    const soon = new Date(Date.now() + 60_000).toISOString();
    const ending = await json("key", "create", "--app", app.id, "--expires", soon);
    expect(await notesOf("key", "rotate", ending.key.id, "--grace", "1h")).toBe(
      `The old key expires at ${soon}, before the grace is over: it had to anyway.\n`,
    );
    expect(await notesOf("key", "create", "--app", app.id, "--expires", "2020-01-01")).toContain("expiresAt: ");
  });

  test("two changes of a whitelist at once both hold", async () => {
    const { id } = await json("org", "create", "--name", "Both");
    const app = await json("app", "create", "--org", id, "--slug", "a", "--allow", "ticket.*");
    const types = ["a.a", "b.b", "c.c", "d.d"];
    // Of a service, because processes that start together on a loaded machine may not find the database in time.
    const { token } = await insertToken(service, "operator");
    const env = { INGEST_URL: service.app.adminUrl, INGEST_TOKEN: token };
    const changed = await Promise.all(types.map((type) => runIngest(["app", "allow", app.id, type], env)));
    expect(changed.map(({ code, stderr }) => [code, stderr])).toEqual(types.map(() => [exitCodes.done.code, ""]));
    expect((await json("app", "show", app.id)).allow.toSorted()).toEqual([...types, "ticket.*"]);
  });

  test("ends with 2 for a wrong command line, and explains it on standard error only", async () => {
    const { code, stdout, stderr } = await ingest("org", "list", "--yaml");
    expect({ code, stdout }).toEqual({ code: exitCodes.usage.code, stdout: "" });
    expect(stderr).toContain("unknown option '--yaml'");
  });

  test("refuses impossible requests with exit code 1, and says what was given and what is allowed", async () => {
    const { id } = await service.admin.createOrganization({ name: "Acme" });
    const taken = await service.admin.createApp(id, "taken", "Taken", ["ticket.*"]);
    const createApp = (slug: string, type: string) => [
      "app",
      "create",
      "--org",
      id,
      "--slug",
      slug,
      "--name",
      "X",
      "--allow",
      type,
    ];
    const refusals: readonly (readonly [args: readonly string[], message: string])[] = [
      [["org", "create", "--name", " "], "name: must not be blank; it is ' '"],
      [["org", "create", "--name", "x".repeat(201)], "name: must have at most 200 characters"],
      [["org", "update", id], "body: has nothing to change; allowed: name, api"],
      [createApp("Bad Slug", "ticket.*"), "slug: must have 1 to 63 of a-z, 0-9 and -"],
      [createApp("good", "*.bad"), "allow[0]: must be an event type such as 'ticket.resolved'"],
      [createApp("taken", "ticket.*"), `The app '${taken.id}' has the slug 'taken' already.`],
      [
        ["quota", "recount", "--org", id, "--month", "2026-13"],
        "month: must be a month such as 2026-04; it is '2026-13'",
      ],
    ];
    for (const [args, message] of refusals) {
      const { error } = await runInProcess(database, args);
      expect([error?.message, exitCodeOf(error)]).toEqual([expect.stringContaining(message), exitCodes.refused.code]);
    }
    const { code, stdout, stderr } = await ingest("org", "usage", "org_unknown");
    expect({ code, stdout }).toEqual({ code: exitCodes.refused.code, stdout: "" });
    expect(stderr).toBe("There is no organisation with the id 'org_unknown'.\n");
  });

  test("ends with 3 if the database cannot be reached, and with 2 if the configuration is wrong", async () => {
    const unreachable = await runIngest(["org", "list"], { MONGODB_URI: "mongodb://127.0.0.1:1/?replicaSet=x" });
    expect(unreachable.code).toBe(exitCodes.failed.code);
    expect(unreachable.stderr).toMatch(/^The database cannot be reached: .*ECONNREFUSED/);
    const wrong = await runIngest(["org", "list"], { MONGODB_DB: "a b", LOG_LEVEL: "loud" });
    expect(wrong.code).toBe(exitCodes.usage.code);
    expect(wrong.stderr).toMatch(/MONGODB_DB: [\s\S]*LOG_LEVEL: /);
  });

  test("uses the embedded database of DATA_DIR without a service, and creates one only with --init", async () => {
    const dataDir = join(await databaseFolder("cli"), "data");
    try {
      for (const command of [["org", "list"], ["org", "create", "--name", "Alone"], ["migrate"], ["tail"]]) {
        const { printed, error } = await runInProcess({ dataDir }, command);
        expect({ code: exitCodeOf(error), printed }).toEqual({ code: exitCodes.failed.code, printed: "" });
        expect(error?.message).toMatch(/^There is no database in .*: set DATA_DIR .*, MONGODB_URI .*`ingest serve`\.$/);
        expect(existsSync(dataDir)).toBe(false);
      }
      const init = ["org", "create", "--name", "Alone", "--init", "--json"];
      const created = await runIngest(init, { DATA_DIR: dataDir });
      expect(created.code, created.stderr).toBe(exitCodes.done.code);
      // Progress goes to standard error, so that programs can parse standard output.
      expect(created.stderr).toContain("Database: embedded MongoDB");
      const listed = await runIngest(["org", "list", "--json"], { DATA_DIR: dataDir });
      expect(JSON.parse(listed.stdout)).toEqual([JSON.parse(created.stdout)]);
    } finally {
      rmSync(dirname(dataDir), { recursive: true, force: true });
    }
  });

  test("changes nothing in a database of another program, and says so", async () => {
    const wrong = `wrong-${process.pid}`;
    const on = (...args: string[]) => runInProcess(wrong, args);
    const { printed, error } = await on("org", "list");
    expect({ code: exitCodeOf(error), printed }).toEqual({ code: exitCodes.failed.code, printed: "" });
    expect(error?.message).toBe(
      `The database '${wrong}' is not set up for Ingest: check MONGODB_URI and MONGODB_DB, or run \`ingest migrate\` to set it up.`,
    );
    const db = service.app.db.client.db(wrong);
    expect(await db.listCollections().toArray()).toEqual([]);
    expect(JSON.parse((await on("migrate", "--json")).printed)).toEqual({
      ...{ database: wrong, schemaVersion, changes: [] },
    });
    expect((await on("org", "list")).printed).toBe("(none)\n");
    await db.dropDatabase();
  });

  test("points out a misspelt variable", async () => {
    const refused = await runIngest(["org", "list"], { MONGODB_URL: "mongodb://x" });
    expect(refused.code).toBe(exitCodes.usage.code);
    expect(refused.stderr).toContain("MONGODB_URL: is not a variable of Ingest; did you mean MONGODB_URI?");
    const env = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database, LOGLEVEL: "x" };
    expect((await runIngest(["app", "list"], env)).stderr).toContain("did you mean LOG_LEVEL?");
  });

  test("explains every command with --help, and lists the exit codes", async () => {
    const { code, stdout } = await ingest("--help");
    expect(code).toBe(exitCodes.done.code);
    for (const exit of Object.values(exitCodes)) expect(stdout).toContain(`  ${exit.code}  ${exit.meaning}`);
    const commands = everyCommand(createProgram());
    expect(commands.length).toBeGreaterThan(20);
    for (const command of commands) {
      expect(command.description(), command.name()).not.toBe("");
      for (const option of command.options) expect(option.description, option.flags).not.toBe("");
      const help = await said(...pathOf(command).split(" ").slice(1), "--help");
      const examples = examplesOf(command);
      expect(examples, pathOf(command)).not.toEqual([]);
      for (const example of examples) expect(help).toContain(`\n  ${example}\n`);
    }
    const help = await said("serve", "--help");
    for (const { name } of configVariables()) expect(help).toMatch(RegExp(`^  ${name} `, "m"));
  });

  test("shows examples that its own parser accepts", async () => {
    vi.stubEnv("WEPEOPLE_BASE_URL", "http://localhost:8080");
    vi.stubEnv("WEPEOPLE_API_KEY", "wp_live_x");
    vi.stubEnv("WEPEOPLE_READ_KEY", "x");
    onTestFinished(() => void vi.unstubAllEnvs());
    let ran: string | undefined;
    const program = createProgram();
    const commands = everyCommand(program);
    for (const command of commands) {
      // Only parsing matters here, not whether the file exists.
      for (const argument of command.registeredArguments) if (!argument.variadic) argument.argParser((text) => text);
      if (command.commands.length === 0) command.action(() => void (ran = pathOf(command)));
    }
    for (const command of commands) {
      for (const example of examplesOf(command).filter((line) => !line.startsWith("export "))) {
        const [, line = ""] = /\b(ingest .*?)( +#.*)?$/.exec(example) ?? [];
        const words = [...line.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, word]) => (quoted ?? word) as string);
        ran = undefined;
        await program.parseAsync(words.slice(1), { from: "user" });
        if (command.commands.length === 0) expect(ran, example).toBe(pathOf(command));
        else expect(ran, example).toBeDefined();
      }
    }
  });
});

/** Clients of ingest.v1, with an address and a key of their own. */
const callsIngest = new Set(["send", "export"]);
const everyCommand = (command: Command): Command[] => [command, ...command.commands.flatMap(everyCommand)];

/** Commander's answer to a command line: help, the version, or an error. */
async function said(...args: readonly string[]): Promise<string> {
  const texts: string[] = [];
  const output = {
    writeErr: (text: string) => void texts.push(text),
    writeOut: (text: string) => void texts.push(text),
  };
  const program = createProgram();
  for (const command of everyCommand(program)) command.configureOutput(output);
  await expect(program.parseAsync(args, { from: "user" })).rejects.toBeInstanceOf(CommanderError);
  return texts.join("");
}

test("a caller's text cannot control the terminal or forge a row, in tables and in JSON", async () => {
  const organization = await json("org", "create", "--name", "Hostile");
  const app = await json("app", "create", "--org", organization.id, "--slug", "h", "--name", "H", "--allow", "*");
  const { secret: key } = await json("key", "create", "--app", app.id);
  const displayName = "a\u001b]0;title\u0007\nforged row\u009b31m\u202eb";
  const events = [{ eventType: "ticket.opened", category: "other", actor: { externalId: "h", displayName } }];
  await protocols.REST?.(service.app.url, "events", { events }, bearer(key));
  // oxlint-disable-next-line no-control-regex
  const acting = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e]/;
  const table = await inProcess("worker", "list", "--org", organization.id);
  expect(table).not.toMatch(acting);
  expect(table.trimEnd().split("\n")).toHaveLength(2);
  const list = await inProcess("worker", "list", "--org", organization.id, "--json");
  expect(list).not.toMatch(acting);
  expect(JSON.parse(list)[0].displayName).toBe(displayName);
});
