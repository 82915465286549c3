import { type Command, Option } from "commander";
import { parseCount, parseRate, parseRetainDays } from "./arguments.ts";
import { type UsageGroup, usageGroups } from "../store/usage-days.ts";
import {
  call,
  callPage,
  type ClientFlags,
  type ClientPageFlags,
  given,
  maskOf,
  withClient,
  withClientPages,
} from "./client.ts";
import { answer } from "./context.ts";
import { printDailyUsage, printUsage } from "./old-views.ts";
import { type OutputFlags, withJson } from "./output.ts";
import { printOrganization, printOrganizations } from "./views.ts";

interface SettingFlags extends ClientFlags {
  name?: string;
  quota?: number;
  api?: boolean;
  keyRate?: number;
  orgRate?: number;
  retainDays?: number | "default";
}

interface UsageFlags extends OutputFlags {
  by?: UsageGroup;
  month?: string;
}

export function addOrg(program: Command): void {
  const org = program.command("org").description("create, change and list organisations");
  withClient(withSettings(org.command("create").description("create an organisation")))
    .requiredOption("--name <name>", "display name")
    .option("--init", "set up the database first if there is none")
    .action((flags: SettingFlags & { name: string }) =>
      call("createOrganization", { ...settingsOf(flags), name: flags.name }, flags, printOrganization),
    );
  withClient(withSettings(org.command("update <id>").description("change settings of an organisation; others stay")))
    .option("--name <name>", "display name")
    .action((organizationId: string, flags: SettingFlags) => {
      const settings = settingsOf(flags);
      const paths = [...Object.keys(settings), ...(flags.retainDays === "default" ? ["retentionDays"] : [])];
      const request = { organizationId, ...settings, ...(paths.length === 0 ? {} : { updateMask: maskOf(paths) }) };
      return call("updateOrganization", request, flags, printOrganization);
    });
  withClientPages(org.command("list").description("list organisations, the newest first")).action(
    (flags: ClientPageFlags) => callPage("listOrganizations", {}, flags, printOrganizations),
  );
  withClient(org.command("show <id>").description("show an organisation")).action(
    (organizationId: string, flags: ClientFlags) =>
      call("getOrganization", { organizationId }, flags, printOrganization),
  );
  withJson(org.command("usage <id>").description("show the events of each month and the quota, or a month's details"))
    .addOption(new Option("--by <what>", "sum up the outcomes of a month's events by this").choices(usageGroups))
    .addOption(new Option("--month <YYYY-MM>", "month in UTC, by default this one").implies({ by: "day" }))
    .action((id: string, { by, month, ...flags }: UsageFlags) =>
      by === undefined
        ? answer(flags, printUsage, (admin) => admin.usageOf(id))
        : answer(flags, printDailyUsage(by), (admin) => admin.dailyUsageOf(id, by, month)),
    );
}

/** Declares both --api and --no-api, so that leaving both out changes nothing. */
const withSettings = (command: Command): Command =>
  command
    .option("--quota <events>", "quota: events a calendar month", parseCount)
    .option("--api", "the plan includes the developer API (default)")
    .option("--no-api", "the plan does not include the developer API")
    .option("--key-rate <requests>", "limit for each key, in requests a second", parseRate)
    .option("--org-rate <requests>", "limit for all keys together, in requests a second", parseRate)
    .option("--retain-days <days>", "days to keep events; 0: for ever; default: as RETAIN_DAYS says", parseRetainDays);

const settingsOf = ({ name, quota, api, keyRate, orgRate, retainDays }: SettingFlags) =>
  given({
    name,
    quotaEventsPerMonth: quota,
    api,
    keyRequestsPerSecond: keyRate,
    organizationRequestsPerSecond: orgRate,
    retentionDays: retainDays === "default" ? undefined : retainDays,
  });
