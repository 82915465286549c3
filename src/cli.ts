#!/usr/bin/env node
import { Command, InvalidArgumentError } from "commander";
import { Admin, AdminError, type OrganizationSettings } from "./admin/admin.ts";
import { collections } from "./store/collections.ts";
import { parseConfig } from "./config.ts";
import { createIdSource } from "./ids.ts";
import { createClient, createIndexes } from "./store/database.ts";
import { monthOf } from "./store/usage.ts";

/** Exit codes: 0 done, 1 the wish could not be granted, 2 the command line is wrong, 3 the database cannot be reached. */
const exitCodes = { refused: 1, usage: 2, failed: 3 } as const;

type Json = { json?: boolean };

/** Runs `work` on the configured database, and prints what it answers: JSON for machines, a table for people. */
async function withAdmin(options: Json, work: (admin: Admin) => Promise<object>): Promise<void> {
  const config = parseConfig(process.env);
  const report = (line: string) => process.stderr.write(`${line}\n`);
  const embedded =
    config.MONGODB_URI === undefined
      ? await (
          await import("./store/embedded/embedded.ts")
        ).openEmbeddedDatabase({ dataDir: config.DATA_DIR, env: process.env, report })
      : undefined;
  const client = createClient(config.MONGODB_URI ?? (embedded?.uri as string));
  try {
    const db = client.db(config.MONGODB_DB);
    await createIndexes(db, collections);
    const result = await work(new Admin(db, createIdSource()));
    if (options.json === true) process.stdout.write(`${JSON.stringify(result)}\n`);
    else printTable(Array.isArray(result) ? result : [result]);
  } finally {
    await client.close();
    await embedded?.close();
  }
}

function printTable(rows: readonly object[]): void {
  if (rows.length === 0) return void process.stdout.write("(none)\n");
  const names = Object.keys(rows[0] as object);
  const lines = [names, ...rows.map((row) => names.map((name) => cell((row as Record<string, unknown>)[name])))];
  const widths = names.map((_, column) => Math.max(...lines.map((line) => (line[column] ?? "").length)));
  for (const line of lines) {
    process.stdout.write(
      `${line
        .map((text, column) => text.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd()}\n`,
    );
  }
}

function cell(value: unknown): string {
  if (value === null || value === undefined) return "-";
  if (value instanceof Date) return value.toISOString();
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function positive(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError("It must be a whole number, 0 or more.");
  return value;
}

function rate(text: string): number {
  const value = Number(text);
  if (!Number.isFinite(value) || value < 1)
    throw new InvalidArgumentError("It must be a number of requests a second, at least 1.");
  return value;
}

function time(text: string): Date {
  const value = new Date(text);
  if (Number.isNaN(value.getTime()))
    throw new InvalidArgumentError("It must be an ISO 8601 time, such as 2027-01-01T00:00:00Z.");
  return value;
}

interface OrganizationFlags extends Json {
  name?: string;
  quota?: number;
  api?: boolean;
  keyRate?: number;
  orgRate?: number;
}

const settingsOf = ({ name, quota, api, keyRate, orgRate }: OrganizationFlags): OrganizationSettings => ({
  name,
  quotaEventsPerMonth: quota,
  api,
  keyRequestsPerSecond: keyRate,
  organizationRequestsPerSecond: orgRate,
});

function organizationFlags(command: Command): Command {
  return command
    .option("--quota <events>", "events a calendar month", positive)
    .option("--api", "the plan includes the developer API (the default of a new organisation)")
    .option("--no-api", "the plan does not include the developer API")
    .option("--key-rate <requests>", "requests a second of one key", rate)
    .option("--org-rate <requests>", "requests a second of the organisation", rate);
}

export function createProgram(): Command {
  const program = new Command("ingest").description("Runs and administers Ingest.").exitOverride();
  const noun = (name: string, description: string) => program.command(name).description(description);
  const json = (command: Command) => command.option("--json", "print JSON");

  program
    .command("serve")
    .description("run the service until SIGTERM or SIGINT")
    .action(async () => {
      const { serve } = await import("./main.ts");
      process.exitCode = await serve(process.env);
    });

  const org = noun("org", "organisations");
  json(
    organizationFlags(org.command("create").description("make an organisation")).requiredOption(
      "--name <name>",
      "name",
    ),
  )
    // Commander reads --no-api as "api, by default true"; undefined must stay "as it was".
    .action((flags: OrganizationFlags & { name: string }) =>
      withAdmin(flags, (admin) => admin.createOrganization({ ...settingsOf(flags), name: flags.name })),
    );
  json(
    organizationFlags(org.command("update <id>").description("change an organisation")).option("--name <name>", "name"),
  ).action((id: string, flags: OrganizationFlags) =>
    withAdmin(flags, (admin) => admin.updateOrganization(id, settingsOf(flags))),
  );
  json(org.command("list").description("list organisations")).action((flags: Json) =>
    withAdmin(flags, (admin) => admin.listOrganizations()),
  );
  json(org.command("usage <id>").description("show the events of each month")).action((id: string, flags: Json) =>
    withAdmin(flags, (admin) => admin.usageOf(id)),
  );

  const app = noun("app", "apps of an organisation");
  json(app.command("create").description("make an app"))
    .requiredOption("--org <id>", "organisation")
    .requiredOption("--slug <slug>", "short name, unique in the organisation")
    .requiredOption("--name <name>", "name")
    .requiredOption("--allow <type...>", "event types the app may send; a trailing * stands for anything")
    .action((flags: Json & { org: string; slug: string; name: string; allow: string[] }) =>
      withAdmin(flags, (admin) => admin.createApp(flags.org, flags.slug, flags.name, flags.allow)),
    );
  json(app.command("allow <id> <type...>").description("put event types on the whitelist")).action(
    (id: string, types: string[], flags: Json) => withAdmin(flags, (admin) => admin.allowTypes(id, types)),
  );
  json(app.command("deny <id> <type...>").description("take event types off the whitelist")).action(
    (id: string, types: string[], flags: Json) => withAdmin(flags, (admin) => admin.denyTypes(id, types)),
  );
  json(app.command("list").description("list apps"))
    .option("--org <id>", "organisation")
    .action((flags: Json & { org?: string }) => withAdmin(flags, (admin) => admin.listApps(flags.org)));

  const key = noun("key", "API keys");
  json(key.command("create").description("make a key and print it, this once"))
    .requiredOption("--app <id>", "app")
    .option("--expires <time>", "ISO 8601 time after which it is refused", time)
    .action((flags: Json & { app: string; expires?: Date }) =>
      withAdmin(flags, (admin) => admin.createKey(flags.app, flags.expires)),
    );
  json(key.command("revoke <id>").description("revoke a key; acts on every instance within a second")).action(
    (id: string, flags: Json) => withAdmin(flags, (admin) => admin.revokeKey(id)),
  );
  json(key.command("list").description("list keys"))
    .requiredOption("--app <id>", "app")
    .action((flags: Json & { app: string }) => withAdmin(flags, (admin) => admin.listKeys(flags.app)));

  const worker = noun("worker", "workers");
  json(worker.command("list").description("list workers"))
    .requiredOption("--org <id>", "organisation")
    .action((flags: Json & { org: string }) => withAdmin(flags, (admin) => admin.listWorkers(flags.org)));
  json(worker.command("show <id>").description("show a worker with its cards")).action((id: string, flags: Json) =>
    withAdmin(flags, (admin) => admin.showWorker(id)),
  );

  const quota = noun("quota", "monthly quota");
  json(quota.command("recount").description("set a month's usage to the events stored in it; mends what a crash left"))
    .requiredOption("--org <id>", "organisation")
    .option("--month <YYYY-MM>", "month, UTC", monthOf(new Date()))
    .action((flags: Json & { org: string; month: string }) =>
      withAdmin(flags, (admin) => admin.recount(flags.org, flags.month)),
    );

  return program;
}

try {
  await createProgram().parseAsync();
} catch (error) {
  if (error instanceof Error && "exitCode" in error) process.exitCode = error.exitCode === 0 ? 0 : exitCodes.usage;
  else {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = error instanceof AdminError ? exitCodes.refused : exitCodes.failed;
  }
}
// Open handles (an attached database's sockets) must not keep a finished command alive.
process.exit();
