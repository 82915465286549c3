import type { Command } from "commander";
import { parseTime } from "./arguments.ts";
import { answer } from "./database.ts";
import { type OutputFlags, withJson } from "./output.ts";

export function addKey(program: Command): void {
  const key = program.command("key").description("API keys");
  withJson(key.command("create").description("make a key and print it, this once"))
    .requiredOption("--app <id>", "app")
    .option("--expires <time>", "ISO 8601 time from which it is refused; default never", parseTime)
    .action((flags: OutputFlags & { app: string; expires?: Date }) =>
      answer(flags, (admin) => admin.createKey(flags.app, flags.expires)),
    );
  withJson(key.command("revoke <id>").description("revoke a key; acts on every instance within a second")).action(
    (id: string, flags: OutputFlags) => answer(flags, (admin) => admin.revokeKey(id)),
  );
  withJson(key.command("list").description("list the keys of an app"))
    .requiredOption("--app <id>", "app")
    .action((flags: OutputFlags & { app: string }) => answer(flags, (admin) => admin.listKeys(flags.app)));
}
