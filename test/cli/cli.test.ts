import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type Command, CommanderError } from "commander";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { exitCodes } from "../../src/serve/exit.ts";
import { createProgram } from "../../src/cli/program.ts";
import { schemaVersion } from "../../src/store/migrations.ts";
import { eventually, runIngest } from "../support/processes.ts";
import { bearer, protocols, startService, type TestService } from "../support/service.ts";

/** The real command, as a process of its own, on the database that a running service uses too. */
const database = `test-${randomBytes(6).toString("hex")}`;
let service: TestService;

beforeAll(async () => {
  service = await startService({ database });
});
afterAll(() => service.app.close());

const ingest = (...args: string[]) => runIngest(args, { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database });

async function json(...args: string[]): Promise<any> {
  const { code, stdout, stderr } = await ingest(...args, "--json");
  expect({ code, stderr }).toEqual({ code: exitCodes.done.code, stderr: "" });
  return JSON.parse(stdout);
}

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

/** Waits until the running service answers so: the contract gives it a second. */
const answers = (ask: () => ReturnType<typeof send>, code: string | undefined) =>
  eventually(async () => (await ask())?.error?.code === code, `the service answers ${code ?? "without error"}`);

describe("ingest", { timeout: 120_000 }, () => {
  test("makes an organisation, an app and a key that the running service knows, and shows what they did", async () => {
    const organization = await json("org", "create", "--name", "Acme", "--quota", "5", "--key-rate", "50");
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
    const key = await json("key", "create", "--app", app.id);
    expect(key).toMatchObject({ id: expect.stringMatching(/^key_/), key: expect.stringMatching(/^wp_live_/) });
    expect((await ping(key.key))?.body).toMatchObject({ organizationId: organization.id, app: { id: app.id } });

    expect((await send(key.key, "ticket.resolved"))?.status).toBe(202);
    const [worker] = await json("worker", "list", "--org", organization.id);
    expect(worker).toMatchObject({ id: expect.stringMatching(/^wrk_/), displayName: "Alex Chen" });
    expect(await json("worker", "show", worker.id)).toMatchObject({ ...worker, cards: [] });
    expect(await json("org", "usage", organization.id)).toEqual([
      { month: new Date().toISOString().slice(0, 7), events: 1, quotaEventsPerMonth: 5 },
    ]);
    expect(await json("app", "list", "--org", organization.id)).toEqual([app]);

    const keys = await ingest("key", "list", "--app", app.id, "--json");
    expect(JSON.parse(keys.stdout)).toMatchObject([{ id: key.id, hint: `${key.key.slice(0, 12)}…`, revokedAt: null }]);
    expect(keys.stdout).not.toContain(key.key);
  });

  test("changes the whitelist, the plan and a key, and the running service follows", async () => {
    const organization = await json("org", "create", "--name", "Acme");
    const app = await json(
      ...["app", "create", "--org", organization.id, "--slug", "a", "--name", "A", "--allow", "ticket.*"],
    );
    const { id, key } = await json("key", "create", "--app", app.id);
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
    expect((await json("key", "revoke", id)).revokedAt).not.toBeNull();
    await answers(() => ping(key), "key_revoked");
    const expired = await json("key", "create", "--app", app.id, "--expires", "2020-01-01T00:00:00Z");
    await answers(() => ping(expired.key), "key_expired");
    expect(await json("quota", "recount", "--org", organization.id)).toMatchObject({ organizationId: organization.id });
  });

  test("prints tables for people: a list with a head line, one thing as names and values", async () => {
    const { id } = await json("org", "create", "--name", "Table & Co");
    const list = (await ingest("org", "list")).stdout.split("\n");
    expect(list[0]).toMatch(/^id +name +api +quotaEventsPerMonth/);
    expect(list.find((line) => line.startsWith(id))).toMatch(/ {2}Table & Co {2,}true {2,}1000000/);
    const one = await ingest("org", "update", id, "--quota", "7");
    expect(one.stdout.split("\n")).toContain("quotaEventsPerMonth            7");
    expect((await ingest("app", "list", "--org", id)).stdout).toBe("(none)\n");
  });

  test.each([
    ["an unknown noun", ["organisation"], "unknown command 'organisation'"],
    ["an unknown verb", ["org", "delete", "x"], "unknown command 'delete'"],
    ["a missing flag", ["org", "create"], "required option '--name <name>' not specified"],
    ["an unknown flag", ["org", "list", "--yaml"], "unknown option '--yaml'"],
    ["an argument too many", ["key", "revoke", "a", "b"], "too many arguments"],
    ["a quota that is no number", ["org", "create", "--name", "x", "--quota", "1e3"], "It must be a whole number"],
    ["a rate below 1", ["org", "create", "--name", "x", "--key-rate", "0"], "a number of requests a second, from 1"],
    ["a time without offset", ["key", "create", "--app", "x", "--expires", "2027-01-01T00:00"], "with an offset"],
    ["a day that does not exist", ["key", "create", "--app", "x", "--expires", "2027-02-30"], "a time that exists"],
  ])("refuses %s, saying what is allowed", async (_, args, message) => {
    const said: string[] = [];
    const output = {
      writeErr: (text: string) => void said.push(text),
      writeOut: (text: string) => void said.push(text),
    };
    const program = createProgram();
    for (const command of everyCommand(program)) command.configureOutput(output);
    await expect(program.parseAsync(args, { from: "user" })).rejects.toBeInstanceOf(CommanderError);
    expect(said.join("")).toContain(message);
  });

  test("ends with 2 for a wrong command line, and says so on standard error alone", async () => {
    const { code, stdout, stderr } = await ingest("org", "list", "--yaml");
    expect({ code, stdout }).toEqual({ code: exitCodes.usage.code, stdout: "" });
    expect(stderr).toContain("unknown option '--yaml'");
  });

  test("cannot do what makes no sense, with exit code 1 and what was given and is allowed", async () => {
    const { id } = await json("org", "create", "--name", "Acme");
    const createApp = (slug: string, type: string) =>
      ingest("app", "create", "--org", id, "--slug", slug, "--name", "X", "--allow", type);
    await createApp("taken", "ticket.*");
    const refusals = await Promise.all([
      ingest("org", "create", "--name", " "),
      ingest("org", "update", id),
      ingest("org", "usage", "org_unknown"),
      ingest("key", "revoke", "key_unknown"),
      ingest("worker", "show", "wrk_unknown"),
      createApp("Bad Slug", "ticket.*"),
      createApp("good", "*.bad"),
      createApp("taken", "ticket.*"),
      ingest("quota", "recount", "--org", id, "--month", "2026-13"),
    ]);
    expect(refusals.map(({ code }) => code)).toEqual(refusals.map(() => exitCodes.refused.code));
    expect(refusals.map(({ stderr }) => stderr.trim())).toEqual([
      "name is ' '; it must have 1 to 200 characters.",
      "Nothing to change: give at least one setting.",
      "There is no organisation with the id 'org_unknown'.",
      "There is no key with the id 'key_unknown'.",
      "There is no worker with the id 'wrk_unknown'.",
      "slug is 'Bad Slug'; it must match ^[a-z0-9][a-z0-9-]{0,62}$.",
      "'*.bad' is not an event type such as 'ticket.resolved' or 'ticket.*'.",
      "The organisation has an app with the slug 'taken' already.",
      "month is '2026-13'; it must be YYYY-MM.",
    ]);
  });

  test("ends with 3 when the database cannot be reached, and with 2 when the configuration is wrong", async () => {
    const unreachable = await runIngest(["org", "list"], { MONGODB_URI: "mongodb://127.0.0.1:1/?replicaSet=x" });
    expect(unreachable.code).toBe(exitCodes.failed.code);
    expect(unreachable.stderr).toMatch(/^The database cannot be reached: .*ECONNREFUSED/);
    const wrong = await runIngest(["org", "list"], { MONGODB_DB: "a b", LOG_LEVEL: "loud" });
    expect(wrong.code).toBe(exitCodes.usage.code);
    expect(wrong.stderr).toMatch(/MONGODB_DB: [\s\S]*LOG_LEVEL: /);
  });

  test("works on the embedded database of DATA_DIR when no service runs on it, and makes one only with --init", async () => {
    const dataDir = join(mkdtempSync(join(tmpdir(), "ingest-cli-")), "data");
    try {
      for (const command of [["org", "list"], ["org", "create", "--name", "Alone"], ["migrate"], ["tail"]]) {
        const { code, stdout, stderr } = await runIngest(command, { DATA_DIR: dataDir });
        expect({ code, stdout }).toEqual({ code: exitCodes.failed.code, stdout: "" });
        expect(stderr).toMatch(/^There is no database in .*: set DATA_DIR .*, MONGODB_URI .*`ingest serve`\.\n$/);
        expect(existsSync(dataDir)).toBe(false);
      }
      const init = ["org", "create", "--name", "Alone", "--init", "--json"];
      const created = await runIngest(init, { DATA_DIR: dataDir });
      expect(created.code, created.stderr).toBe(exitCodes.done.code);
      // Progress goes where it does not get into what a machine reads.
      expect(created.stderr).toContain("Database: embedded MongoDB");
      const listed = await runIngest(["org", "list", "--json"], { DATA_DIR: dataDir });
      expect(JSON.parse(listed.stdout)).toEqual([JSON.parse(created.stdout)]);
    } finally {
      rmSync(dirname(dataDir), { recursive: true, force: true });
    }
  });

  test("makes nothing in a database that is not its own, and says so", async () => {
    const wrong = `wrong-${process.pid}`;
    const on = (...args: string[]) => runIngest(args, { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: wrong });
    const { code, stdout, stderr } = await on("org", "list");
    expect({ code, stdout }).toEqual({ code: exitCodes.failed.code, stdout: "" });
    expect(stderr).toBe(
      `The database '${wrong}' is not set up for Ingest: check MONGODB_URI and MONGODB_DB, or run \`ingest migrate\` to set it up.\n`,
    );
    const db = service.app.db.client.db(wrong);
    expect(await db.listCollections().toArray()).toEqual([]);
    expect(JSON.parse((await on("migrate", "--json")).stdout)).toEqual({
      ...{ database: wrong, schemaVersion, changes: [] },
    });
    expect((await on("org", "list")).stdout).toBe("(none)\n");
    await db.dropDatabase();
  });

  test("points out a misspelt variable", async () => {
    const refused = await runIngest(["org", "list"], { MONGODB_URL: "mongodb://x" });
    expect(refused.code).toBe(exitCodes.usage.code);
    expect(refused.stderr).toContain("MONGODB_URL: is no variable of Ingest; did you mean MONGODB_URI?");
    const env = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database, LOGLEVEL: "x" };
    expect((await runIngest(["app", "list"], env)).stderr).toContain("did you mean LOG_LEVEL?");
  });

  test("explains every command with --help, and lists the exit codes", async () => {
    const { code, stdout } = await ingest("--help");
    expect(code).toBe(exitCodes.done.code);
    for (const exit of Object.values(exitCodes)) expect(stdout).toContain(`  ${exit.code}  ${exit.meaning}`);
    expect((await ingest("org", "create", "--help")).stdout).toContain("--quota <events>");

    const commands = everyCommand(createProgram());
    expect(commands.length).toBeGreaterThan(20);
    for (const command of commands) {
      expect(command.description(), command.name()).not.toBe("");
      for (const option of command.options) expect(option.description, option.flags).not.toBe("");
    }
  });
});

const everyCommand = (command: Command): Command[] => [command, ...command.commands.flatMap(everyCommand)];

test("a caller's text acts on no terminal and forges no row, in a table and in JSON", async () => {
  const organization = await json("org", "create", "--name", "Hostile");
  const app = await json("app", "create", "--org", organization.id, "--slug", "h", "--name", "H", "--allow", "*");
  const { key } = await json("key", "create", "--app", app.id);
  const displayName = "a\u001b]0;title\u0007\nforged row\u009b31m\u202eb";
  const events = [{ eventType: "ticket.opened", category: "other", actor: { externalId: "h", displayName } }];
  await protocols.REST?.(service.app.url, "events", { events }, bearer(key));
  // oxlint-disable-next-line no-control-regex
  const acting = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e]/;
  const table = await ingest("worker", "list", "--org", organization.id);
  expect(table.stdout).not.toMatch(acting);
  expect(table.stdout.trimEnd().split("\n")).toHaveLength(2);
  const list = await ingest("worker", "list", "--org", organization.id, "--json");
  expect(list.stdout).not.toMatch(acting);
  expect(JSON.parse(list.stdout)[0].displayName).toBe(displayName);
});
