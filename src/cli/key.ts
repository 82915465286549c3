import { type Command, Option } from "commander";
import { type Scope, scopes } from "../access/scopes.ts";
import type { Admin } from "../admin/admin.ts";
import { parseDuration, parseTimeOrDate } from "./arguments.ts";
import { answer, answerPage } from "./context.ts";
import { type OutputFlags, type PageFlags, withJson, withPages } from "./output.ts";
import { printKey, printKeys, printNewKey } from "./old-views.ts";

export function addKey(program: Command): void {
  const key = program.command("key").description("create, list, rotate and revoke API keys");
  withJson(key.command("create").description("create a key and print it; it is not shown again"))
    .requiredOption("--app <id>", "id of the app")
    .option(
      "--expires <time>",
      "when it expires: a time with an offset, or a date (UTC); default: never",
      parseTimeOrDate,
    )
    .addOption(
      new Option("--scope <scope>", "ingest: send events and snapshots; read: read the timeline")
        .choices(scopes)
        .default("ingest" satisfies Scope),
    )
    .action((flags: OutputFlags & { app: string; expires?: Date; scope: Scope }) =>
      answer(flags, printNewKey, (admin) => admin.createKey(flags.app, flags.expires, flags.scope)),
    );
  withJson(
    withWait(key.command("revoke <id>").description("revoke a key: every instance refuses it within a second")),
  ).action((id: string, flags: ChangeFlags) =>
    answer(flags, printKey, (admin) => admin.revokeKey(id), waitIfAsked(flags)),
  );
  withJson(
    withWait(
      key.command("rotate <id>").description("create a key in place of another one, which then expires; print it"),
    ),
  )
    .requiredOption("--grace <duration>", "how long the old key still works, such as 24h, 30m or 0s", parseDuration)
    .action((id: string, flags: ChangeFlags & { grace: number }) =>
      answer(flags, printNewKey, (admin) => admin.rotateKey(id, flags.grace), waitIfAsked(flags)),
    );
  withPages(key.command("list").description("list the keys of an app: status, and last use to the minute"))
    .requiredOption("--app <id>", "id of the app")
    .action((flags: PageFlags & { app: string }) =>
      answerPage(flags, printKeys, (admin) => admin.listKeys(flags.app, flags)),
    );
}

interface ChangeFlags extends OutputFlags {
  readonly wait?: boolean;
}

const withWait = (command: Command) =>
  command.option("--wait", "return when every running instance has applied the change");

/** Waits only after the answer is printed, because a key that is never printed is lost. */
const waitIfAsked = ({ wait }: ChangeFlags) => (wait === true ? (admin: Admin) => admin.settle() : undefined);
