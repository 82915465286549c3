import type { Command } from "commander";
import type { OrganizationSettings } from "../admin/admin.ts";
import { parseCount, parseRate } from "./arguments.ts";
import { answer } from "./database.ts";
import { type OutputFlags, withJson } from "./output.ts";
import { printOrganization, printOrganizations, printUsage } from "./views.ts";

interface SettingFlags extends OutputFlags {
  name?: string;
  quota?: number;
  api?: boolean;
  keyRate?: number;
  orgRate?: number;
}

export function addOrg(program: Command): void {
  const org = program.command("org").description("organisations");
  withJson(withSettings(org.command("create").description("create an organisation")))
    .requiredOption("--name <name>", "name")
    .option("--init", "set up the database first, where there is none yet")
    .action((flags: SettingFlags & { name: string; init?: boolean }) =>
      answer(flags, printOrganization, (admin) => admin.createOrganization({ ...settingsOf(flags), name: flags.name })),
    );
  withJson(withSettings(org.command("update <id>").description("change the given settings of an organisation")))
    .option("--name <name>", "name")
    .action((id: string, flags: SettingFlags) =>
      answer(flags, printOrganization, (admin) => admin.updateOrganization(id, settingsOf(flags))),
    );
  withJson(org.command("list").description("list organisations")).action((flags: OutputFlags) =>
    answer(flags, printOrganizations, (admin) => admin.listOrganizations()),
  );
  withJson(org.command("usage <id>").description("show the events of each month")).action(
    (id: string, flags: OutputFlags) => answer(flags, printUsage, (admin) => admin.usageOf(id)),
  );
}

/** With both --api and --no-api declared, neither given means undefined: left as it is. */
const withSettings = (command: Command): Command =>
  command
    .option("--quota <events>", "events a calendar month", parseCount)
    .option("--api", "the plan includes the developer API (the default of a new organisation)")
    .option("--no-api", "the plan does not include the developer API")
    .option("--key-rate <requests>", "requests a second of one key", parseRate)
    .option("--org-rate <requests>", "requests a second of the organisation", parseRate);

const settingsOf = ({ name, quota, api, keyRate, orgRate }: SettingFlags): OrganizationSettings => ({
  name,
  quotaEventsPerMonth: quota,
  api,
  keyRequestsPerSecond: keyRate,
  organizationRequestsPerSecond: orgRate,
});
