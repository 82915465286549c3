import type { Command } from "commander";
import type { OrganizationSettings } from "../admin/admin.ts";
import { parseCount, parseRate } from "./arguments.ts";
import { answer, answerPage } from "./database.ts";
import { type OutputFlags, type PageFlags, withJson, withPages } from "./output.ts";
import { printOrganization, printOrganizations, printUsage } from "./views.ts";

interface SettingFlags extends OutputFlags {
  name?: string;
  quota?: number;
  api?: boolean;
  keyRate?: number;
  orgRate?: number;
}

export function addOrg(program: Command): void {
  const org = program.command("org").description("create, change and list organisations");
  withJson(withSettings(org.command("create").description("create an organisation")))
    .requiredOption("--name <name>", "display name")
    .option("--init", "set up the database first if there is none")
    .action((flags: SettingFlags & { name: string; init?: boolean }) =>
      answer(flags, printOrganization, (admin) => admin.createOrganization({ ...settingsOf(flags), name: flags.name })),
    );
  withJson(withSettings(org.command("update <id>").description("change settings of an organisation; others stay")))
    .option("--name <name>", "display name")
    .action((id: string, flags: SettingFlags) =>
      answer(flags, printOrganization, (admin) => admin.updateOrganization(id, settingsOf(flags))),
    );
  withPages(org.command("list").description("list organisations")).action((flags: PageFlags) =>
    answerPage(flags, printOrganizations, (admin) => admin.listOrganizations(flags)),
  );
  withJson(org.command("usage <id>").description("show the events of each month, and the quota")).action(
    (id: string, flags: OutputFlags) => answer(flags, printUsage, (admin) => admin.usageOf(id)),
  );
}

/** Declares both --api and --no-api, so that leaving both out changes nothing. */
const withSettings = (command: Command): Command =>
  command
    .option("--quota <events>", "quota: events a calendar month", parseCount)
    .option("--api", "the plan includes the developer API (default)")
    .option("--no-api", "the plan does not include the developer API")
    .option("--key-rate <requests>", "limit for each key, in requests a second", parseRate)
    .option("--org-rate <requests>", "limit for all keys together, in requests a second", parseRate);

const settingsOf = ({ name, quota, api, keyRate, orgRate }: SettingFlags): OrganizationSettings => ({
  name,
  quotaEventsPerMonth: quota,
  api,
  keyRequestsPerSecond: keyRate,
  organizationRequestsPerSecond: orgRate,
});
