import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exitCodeOf, exitCodes } from "../../src/serve/exit.ts";
import { insertToken } from "../support/admin.ts";
import { runInProcess, type Target } from "../support/command.ts";
import { runIngest } from "../support/processes.ts";
import { bearer, protocols, startService, type TestService } from "../support/service.ts";

/** `ingest apply`, on a service that runs elsewhere. */
let service: TestService;
let target: Target;
let folder: string;

beforeAll(async () => {
  service = await startService();
  target = { url: service.app.adminUrl, token: (await insertToken(service, "operator")).token };
  folder = mkdtempSync(join(tmpdir(), "ingest-apply-"));
});
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await service.app.close();
});

/** Runs a command; its error becomes a message and an exit code. */
async function run(...args: string[]) {
  const { printed, notes, error } = await runInProcess(target, args);
  return { printed, notes, message: error?.message, code: error === undefined ? 0 : exitCodeOf(error) };
}
const json = async (...args: string[]) => JSON.parse((await run(...args, "--json")).printed);

/** Writes the file and applies it. */
function apply(text: string, ...flags: string[]) {
  const file = join(folder, "ingest.yaml");
  writeFileSync(file, text);
  return run("apply", "-f", file, ...flags);
}

const nameOf = () => `Org ${randomBytes(4).toString("hex")}`;

test("makes what the file wants, once, and then follows its changes", { timeout: 120_000 }, async () => {
  const name = nameOf();
  const secrets = join(folder, "secrets");
  const wanted = (allow: string, quota: number) => `
organizations:
  - name: ${name}
    quotaEventsPerMonth: ${quota}
    apps:
      - slug: crm
        allow: ${allow}
        keys:
          - { name: Build server, eventTypes: [ticket.a], cidrs: [127.0.0.0/8, "::1"] }
          - { name: Reader, scopes: [read], expiresAt: 2030-01-01 }
`;
  const first = wanted("[ticket.*]", 7);
  const dry = await apply(first, "--dry-run");
  expect(dry.code).toBe(exitCodes.differs.code);
  expect(dry.printed.split("\n").filter((line) => line.startsWith("+"))).toEqual([
    `+ organisation ${name}`,
    `+ app ${name}/crm`,
    `+ key ${name}/crm/Build server`,
    `+ key ${name}/crm/Reader`,
  ]);
  expect((await run("org", "list")).printed).not.toContain(name);
  expect(await apply(first)).toMatchObject({
    code: exitCodes.usage.code,
    message: expect.stringContaining("--secrets"),
  });
  expect((await run("org", "list")).printed).not.toContain(name);

  const done = await apply(first, "--secrets", secrets);
  expect(done).toMatchObject({ code: 0, notes: "4 changes made.\n" });
  const files = readdirSync(secrets).map((file) => join(secrets, file));
  expect(files.map((file) => statSync(file).mode & 0o777)).toEqual([0o600, 0o600]);
  const [builder = ""] = files.filter((file) => file.includes("Build"));
  const secret = readFileSync(builder, "utf8").trim();
  expect(done.printed + done.notes).not.toContain(secret);
  const event = { eventType: "ticket.a", category: "other", actor: { externalId: "x" } };
  const sent = await protocols.REST?.(service.app.url, "events", { events: [event] }, bearer(secret));
  expect(sent).toMatchObject({ status: 202 });

  for (const flags of [["--secrets", secrets], ["--dry-run"], ["--prune", "--secrets", secrets]]) {
    expect(await apply(first, ...flags)).toMatchObject({ code: 0, printed: "", notes: "Everything is as wanted.\n" });
  }
  expect(readFileSync(builder, "utf8").trim()).toBe(secret);

  const changed = await apply(wanted("[ticket.*, build.done]", 8));
  expect(changed.printed).toBe(
    `~ organisation ${name}\n    quotaEventsPerMonth: 7 → 8\n~ app ${name}/crm\n    allow: ["ticket.*"] → ["ticket.*","build.done"]\n`,
  );
  const [{ actor }] = await json("audit", "--limit", "1");
  expect(actor).toMatchObject({ kind: "token", role: "operator" });
});

test(
  "removes what the file lacks only with --prune, and only where the file says so",
  { timeout: 120_000 },
  async () => {
    const [name, other] = [nameOf(), nameOf()];
    const secrets = join(folder, "pruned");
    const all = (organization: string) => `
  - name: ${organization}
    apps:
      - { slug: kept, allow: ["*"], keys: [{ name: one }, { name: two }] }
      - { slug: gone, allow: ["*"], keys: [{ name: three }] }
`;
    await apply(`organizations:${all(name)}${all(other)}`, "--secrets", secrets);
    const [{ id: organizationId }] = (await json("org", "list")).filter((one: { name: string }) => one.name === name);
    const fewer = `
organizations:
  - id: ${organizationId}
    apps: [{ slug: kept, keys: [{ name: two }] }]
`;
    const left = await apply(fewer);
    expect(left).toMatchObject({
      printed: "",
      notes: `The file lacks, and --prune would remove: key ${name}/kept/one, app ${name}/gone.\nEverything is as wanted.\n`,
    });
    const [kept] = (await json("app", "list", "--org", organizationId)).filter(
      (one: { slug: string }) => one.slug === "kept",
    );
    expect((await apply(fewer, "--prune", "--dry-run")).code).toBe(exitCodes.differs.code);
    expect(await apply(fewer, "--prune")).toMatchObject({
      printed: `- key ${name}/kept/one\n- app ${name}/gone\n`,
      notes: "2 changes made.\n",
    });
    const keys: { name: string; status: string }[] = await json("key", "list", "--app", kept.id);
    expect(Object.fromEntries(keys.map((key) => [key.name, key.status]))).toEqual({ one: "revoked", two: "active" });
    expect(await apply(fewer, "--prune")).toMatchObject({ printed: "", code: 0 });
    // The other organisation, and apps of which the file lists no keys, keep everything.
    expect(await apply(`organizations:${all(other)}`, "--prune", "--dry-run")).toMatchObject({ printed: "", code: 0 });
    const noKeys = `organizations: [{ id: ${organizationId}, apps: [{ slug: kept }] }]`;
    expect(await apply(noKeys, "--prune", "--dry-run")).toMatchObject({ printed: "", code: 0 });
  },
);

test("never overwrites a secret, and replaces a key whose secret an interrupted run has lost", async () => {
  const name = nameOf();
  const secrets = join(folder, "kept");
  const file = `organizations: [{ name: ${name}, apps: [{ slug: a, allow: ["*"], keys: [{ name: k }] }] }]`;
  await apply(file, "--secrets", secrets);
  const [path = ""] = readdirSync(secrets).map((one) => join(secrets, one));
  const [organization] = (await json("org", "list")).filter((one: { name: string }) => one.name === name);
  const [app] = await json("app", "list", "--org", organization.id);
  const [key] = await json("key", "list", "--app", app.id);
  await run("key", "revoke", key.id);
  const before = readFileSync(path, "utf8");
  const refused = await apply(file, "--secrets", secrets);
  expect(refused).toMatchObject({ code: exitCodes.refused.code, message: expect.stringContaining(`${path} exists`) });
  expect(readFileSync(path, "utf8")).toBe(before);

  rmSync(path);
  await apply(file, "--secrets", secrets);
  // As a run leaves it that is killed between the creation of the key and the writing of its secret.
  writeFileSync(path, "pending: ingest apply was interrupted here; run it again\n");
  const repaired = await apply(file, "--secrets", secrets);
  expect(repaired.printed.split("\n").filter((line) => /^[-+]/.test(line))).toEqual([
    `- key ${name}/a/k`,
    `+ key ${name}/a/k`,
  ]);
  const ping = await protocols.REST?.(service.app.url, "ping", undefined, bearer(readFileSync(path, "utf8").trim()));
  expect(ping?.error).toBeUndefined();
  expect(existsSync(`${path}.${process.pid}`)).toBe(false);
});

test("makes a new key in place of one that was rotated out, which may have leaked", async () => {
  const name = nameOf();
  const file = (key: string) =>
    `organizations: [{ name: ${name}, apps: [{ slug: a, allow: ["*"], keys: [{ name: k${key} }] }] }]`;
  await apply(file(""), "--secrets", join(folder, "rotated"));
  const [organization] = (await json("org", "list")).filter((one: { name: string }) => one.name === name);
  const [app] = await json("app", "list", "--org", organization.id);
  const [old] = await json("key", "list", "--app", app.id);
  const { key } = await json("key", "rotate", old.id, "--grace", "0s");
  expect(await apply(file(""), "--dry-run")).toMatchObject({ code: 0, printed: "" });
  await run("key", "revoke", key.id);
  for (const wanted of [file(""), file(", expiresAt: 2030-01-01")]) {
    const { code, printed } = await apply(wanted, "--dry-run");
    expect([code, printed.split("\n")[0]]).toEqual([exitCodes.differs.code, `+ key ${name}/a/k`]);
  }
});

test("a name with line breaks forges no line of the plan, of a note or of an error", async () => {
  const name = nameOf();
  const file = (...keys: string[]) =>
    `organizations: [{ name: ${name}, apps: [{ slug: a, allow: ["*"], keys: [${keys.join(", ")}] }] }]`;
  const key = '{ name: "k\\n- app forged" }';
  const forged = /^- app forged/m;
  const done = await apply(file(key), "--secrets", join(folder, "forged"));
  expect(done).toMatchObject({ code: 0, notes: "3 changes made.\n" });
  expect(done.printed).toContain(`+ key ${name}/a/k\\u000a- app forged\n`);
  expect(done.printed).not.toMatch(forged);
  expect((await apply(file())).notes).not.toMatch(forged);
  for (const keys of [[key, key], ['{ name: "k\\n- app forged", test: true }']]) {
    const { code, message } = await apply(file(...keys));
    expect(code).not.toBe(0);
    expect(message).toContain("- app forged");
    expect(message).not.toMatch(forged);
  }
});

test("reads the file from standard input, also from a socket", async () => {
  const env = { INGEST_URL: service.app.adminUrl, INGEST_TOKEN: (await insertToken(service, "operator")).token };
  const args = ["apply", "-f", "-", "--dry-run"];
  const { code, stdout, stderr } = await runIngest(args, env, "organizations: [{ name: From a pipe }]");
  expect([code, stdout.split("\n")[0]], stderr).toEqual([exitCodes.differs.code, "+ organisation From a pipe"]);
});

test.each([
  ["bad YAML", "organizations:\n  - name: [a\n", /ingest\.yaml:\d: /],
  ["a duplicate member", "organizations: []\norganizations: []\n", /ingest\.yaml:2: .*unique/],
  [
    "an unknown member",
    "organizations:\n  - name: A\n    quota: 5\n",
    /ingest\.yaml:3: organizations\[0\]\.quota: is not a/,
  ],
  ["no organisations", "apps: []\n", /ingest\.yaml:1: /],
  ["two organisations of one name", "organizations:\n  - name: A\n  - name: A\n", /ingest\.yaml:3: .*'A' comes twice/],
  [
    "two apps of one slug",
    "organizations:\n  - name: A\n    apps:\n      - slug: a\n      - slug: b\n      - slug: a\n",
    /ingest\.yaml:6: organizations\[0\]\.apps\[2\]\.slug: 'a' comes twice/,
  ],
  [
    "two keys of one name",
    "organizations:\n  - name: A\n    apps:\n      - slug: a\n        keys:\n          - name: k\n          - name: k\n",
    /ingest\.yaml:7: organizations\[0\]\.apps\[0\]\.keys\[1\]\.name: 'k' comes twice/,
  ],
  [
    "an invalid slug",
    "organizations:\n  - name: A\n    apps:\n      - slug: A B\n",
    /ingest\.yaml:4: .*must have 1 to 63 of a-z/,
  ],
  [
    "an invalid type",
    "organizations:\n  - name: A\n    apps:\n      - slug: a\n        allow:\n          - ok.a\n          - '*.x'\n",
    /ingest\.yaml:7: .*allow\[1\]: must be an event type/,
  ],
  [
    "an invalid time",
    "organizations:\n  - name: A\n    apps: [{ slug: a, keys: [{ name: k, expiresAt: soon }] }]\n",
    /ingest\.yaml:3: .*ISO 8601/,
  ],
  [
    "a wrong id",
    "organizations: [{ id: app_1 }]\n",
    /ingest\.yaml:1: organizations\[0\]\.id: must be the id of an organisation/,
  ],
])("refuses %s with its line, and changes nothing", async (_, text, message) => {
  expect(await apply(text)).toMatchObject({
    code: exitCodes.usage.code,
    printed: "",
    message: expect.stringMatching(message),
  });
});
