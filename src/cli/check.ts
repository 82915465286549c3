import { readFile } from "node:fs/promises";
import { type Command, Option } from "commander";
import { replaceFile } from "../files.ts";
import { CommandError } from "../serve/exit.ts";
import { parseTimeOrDate } from "./arguments.ts";
import { assertDatabase, withDatabase } from "./context.ts";
import { output, type OutputFlags, withJson } from "./output.ts";
import { printCheck, printState } from "./database-views.ts";

const help = `
It changes nothing in the database. The exit code is 1 if anything needs
attention. A file of --record names nobody and has no secret.`;

interface CheckFlags extends OutputFlags {
  readonly since?: Date;
  readonly against?: string;
  readonly record?: string;
}

export function addCheck(program: Command): void {
  withJson(program.command("check").description("say what to look at in the database, such as after a restore"))
    .option(
      "--since <time>",
      "time of the backup: lists keys and tokens that worked then and work now",
      parseTimeOrDate,
    )
    .option("--against <file>", "a file of --record from before the restore: says what the restore has undone")
    .addOption(
      new Option("--record <file>", "do not check, but write to a file what a restore would undo").conflicts([
        "since",
        "against",
      ]),
    )
    .addHelpText("after", help)
    .action(run);
}

function run({ since, against, record, ...flags }: CheckFlags) {
  assertDatabase("check");
  return withDatabase(
    async ({ db, now }) => {
      const { check, parseState, readState } = await import("../admin/check.ts");
      if (record !== undefined) {
        const state = await readState(db, now());
        await replaceFile(record, JSON.stringify(state));
        return output({ file: record, takenAt: state.takenAt, keys: state.keys.length }, flags, printState);
      }
      const state = against === undefined ? undefined : parseState(await readFile(against, "utf8"));
      const checked = await check(db, { nowMs: now(), since, state });
      output(checked, flags, printCheck);
      const count = checked.findings.filter(({ level }) => level === "attention").length;
      if (count > 0) throw new CommandError(`${count} ${count === 1 ? "thing needs" : "things need"} attention.`);
    },
    { migrating: true },
  );
}
