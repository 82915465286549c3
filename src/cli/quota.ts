import type { Command } from "commander";
import { call, type ClientFlags, given, withClient } from "./client.ts";
import { printRecount } from "./views.ts";

export function addQuota(program: Command): void {
  const quota = program.command("quota").description("correct the count of a month's events");
  withClient(quota.command("recount").description("set a month's usage, and its counts by day, to the stored events"))
    .requiredOption("--org <id>", "id of the organisation")
    .option("--month <YYYY-MM>", "month in UTC, by default this one")
    .action(({ org, month, ...flags }: ClientFlags & { org: string; month?: string }) =>
      call("recountUsage", { organizationId: org, ...given({ month }) }, flags, printRecount),
    );
}
