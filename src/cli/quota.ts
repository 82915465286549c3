import type { Command } from "commander";
import { monthOf } from "../time.ts";
import { answer } from "./context.ts";
import { type OutputFlags, withJson } from "./output.ts";
import { printRecount } from "./old-views.ts";

export function addQuota(program: Command): void {
  const quota = program.command("quota").description("correct the count of a month's events");
  withJson(quota.command("recount").description("set a month's usage, and its counts by day, to the stored events"))
    .requiredOption("--org <id>", "id of the organisation")
    .option("--month <YYYY-MM>", "month in UTC", monthOf(new Date()))
    .action((flags: OutputFlags & { org: string; month: string }) =>
      answer(flags, printRecount, (admin) => admin.recount(flags.org, flags.month)),
    );
}
