import { type Command, Option } from "commander";
import { type Scope, scopes } from "../access/scopes.ts";
import { parseTime } from "./arguments.ts";
import { answer } from "./database.ts";
import { type OutputFlags, withJson } from "./output.ts";

export function addKey(program: Command): void {
  const key = program.command("key").description("API keys");
  withJson(key.command("create").description("make a key and print it, this once"))
    .requiredOption("--app <id>", "app")
    .option("--expires <time>", "ISO 8601 time from which it is refused; default never", parseTime)
    .addOption(
      new Option("--scope <scope>", "what it is for: to send, or to read the timeline")
        .choices(scopes)
        .default("ingest" satisfies Scope),
    )
    .action((flags: OutputFlags & { app: string; expires?: Date; scope: Scope }) =>
      answer(flags, (admin) => admin.createKey(flags.app, flags.expires, flags.scope)),
    );
  withJson(key.command("revoke <id>").description("revoke a key; acts on every instance within a second")).action(
    (id: string, flags: OutputFlags) => answer(flags, (admin) => admin.revokeKey(id)),
  );
  withJson(key.command("list").description("list the keys of an app"))
    .requiredOption("--app <id>", "app")
    .action((flags: OutputFlags & { app: string }) => answer(flags, (admin) => admin.listKeys(flags.app)));
}
