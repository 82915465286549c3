import { type Command, Option } from "commander";
import { parseCount, parseRate, parseRetainDays } from "./arguments.ts";
import { UsageGroup, UsageGroupSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { restNames } from "../message-json.ts";
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
import { printOrganization, printOrganizations, printTraffic, printUsage } from "./views.ts";

interface SettingFlags extends ClientFlags {
  name?: string;
  quota?: number;
  api?: boolean;
  keyRate?: number;
  orgRate?: number;
  retainDays?: number | "default";
}

interface UsageFlags extends ClientFlags {
  by: string;
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
  withClient(org.command("usage <id>").description("show a month's events, the quota and the outcomes"))
    .addOption(new Option("--by <what>", "sum the outcomes up by this").choices(groups).default("day"))
    .option("--month <YYYY-MM>", "month in UTC, by default this one")
    .action((organizationId: string, { by, month, ...flags }: UsageFlags) => {
      const request = { organizationId, by: UsageGroup[by.toUpperCase() as "DAY"], ...given({ month }) };
      return call("getUsage", request, flags, printUsage(by));
    });
  withClient(
    org.command("traffic <id>").description("show the requests of the last hour and how long they took"),
  ).action((organizationId: string, flags: ClientFlags) => call("getTraffic", { organizationId }, flags, printTraffic));
}

const groups = restNames(UsageGroupSchema);

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
