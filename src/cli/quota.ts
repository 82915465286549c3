import type { Command } from "commander";
import { monthOf } from "../store/usage.ts";
import { answer } from "./database.ts";
import { type OutputFlags, withJson } from "./output.ts";
import { printRecount } from "./views.ts";

export function addQuota(program: Command): void {
  const quota = program.command("quota").description("monthly quota");
  withJson(
    quota
      .command("recount")
      .description("set a month's usage to the number of events stored in it, without waiting until the service does"),
  )
    .requiredOption("--org <id>", "id of the organisation")
    .option("--month <YYYY-MM>", "month, UTC", monthOf(new Date()))
    .action((flags: OutputFlags & { org: string; month: string }) =>
      answer(flags, printRecount, (admin) => admin.recount(flags.org, flags.month)),
    );
}
