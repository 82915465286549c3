import type { Command } from "commander";
import { answer, answerPage } from "./context.ts";
import { type OutputFlags, type PageFlags, withJson, withPages } from "./output.ts";
import { printApp, printApps } from "./views.ts";

export function addApp(program: Command): void {
  const app = program.command("app").description("create and list apps, and change their whitelists");
  withJson(app.command("create").description("create an app"))
    .requiredOption("--org <id>", "id of the organisation")
    .requiredOption("--slug <slug>", "short name, unique within the organisation")
    .requiredOption("--name <name>", "display name")
    .requiredOption("--allow <type...>", "event types that the app may send; * at the end matches anything")
    .action((flags: OutputFlags & { org: string; slug: string; name: string; allow: string[] }) =>
      answer(flags, printApp, (admin) => admin.createApp(flags.org, flags.slug, flags.name, flags.allow)),
    );
  withJson(app.command("allow <id> <type...>").description("add event types to the whitelist of an app")).action(
    (id: string, types: string[], flags: OutputFlags) =>
      answer(flags, printApp, (admin) => admin.allowTypes(id, types)),
  );
  withJson(app.command("deny <id> <type...>").description("remove event types from the whitelist of an app")).action(
    (id: string, types: string[], flags: OutputFlags) => answer(flags, printApp, (admin) => admin.denyTypes(id, types)),
  );
  withPages(app.command("list").description("list apps"))
    .option("--org <id>", "only apps of this organisation")
    .action((flags: PageFlags & { org?: string }) =>
      answerPage(flags, printApps(flags.org), (admin) => admin.listApps(flags.org, flags)),
    );
}
