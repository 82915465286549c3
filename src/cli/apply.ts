import type { Command } from "commander";
import { withClient } from "./client.ts";
import type { ApplyFlags } from "./run/apply.ts";

const help = `
The file lists organisations (by name or id), their apps (by slug) and the apps'
keys (by name). A member that it lacks stays as it is; null clears a limit, and
an empty list removes all entries. docs/cli.md has an example.

It prints each change before it makes any: + creates, ~ changes, - removes. You
can interrupt it and run it again at any time. The secret of a new key goes to
DIR/ORGANISATION-APP-KEY, which only its owner can read, and is never printed.

Exit codes: 0 everything is as wanted, 4 --dry-run found changes to make.`;

export function addApply(program: Command): void {
  withClient(program.command("apply").description("make organisations, apps and keys as a file wants them"))
    .requiredOption("-f, --file <file>", "YAML or JSON; - is standard input")
    .option("--dry-run", "print the changes, and make none")
    .option("--prune", "delete apps and revoke keys that the file lacks, in the organisations that it names")
    .option("--secrets <folder>", "folder for the secrets of new keys")
    .addHelpText("after", help)
    .action(async (flags: ApplyFlags) => {
      const { apply } = await import("./run/apply.ts");
      await apply(flags);
    });
}
