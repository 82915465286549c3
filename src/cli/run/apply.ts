import { ConfigError } from "../../config.ts";
import { CommandError } from "../../serve/exit.ts";
import { escapeControls, note, say } from "../../terminal.ts";
import { type ClientFlags, withAdmin } from "../client.ts";
import { readInput } from "../input.ts";
import { jsonLine } from "../output.ts";
import { parseFile } from "./apply/file.ts";
import { planOf, type Step } from "./apply/plan.ts";
import { SecretFiles } from "./apply/secrets.ts";

export interface ApplyFlags extends ClientFlags {
  readonly file: string;
  readonly dryRun?: boolean;
  readonly prune?: boolean;
  readonly secrets?: string;
}

export async function apply(flags: ApplyFlags): Promise<void> {
  const { file, dryRun = false, prune = false, json } = flags;
  const wanted = parseFile(file === "-" ? "(standard input)" : file, await readInput(file));
  const secrets = flags.secrets === undefined ? undefined : new SecretFiles(flags.secrets);
  await withAdmin(flags, async (admin) => {
    const { steps, left } = await planOf(admin, wanted, { prune, secrets });
    if (json === true) say(jsonLine(steps.map(({ run, ...step }) => step)));
    else for (const step of steps) say(lineOf(step));
    if (left.length > 0) note(`The file lacks, and --prune would remove: ${escapeControls(left.join(", "))}.`);
    if (dryRun) return checkNone(steps);
    if (secrets === undefined && steps.some(({ action, kind }) => action === "create" && kind === "key")) {
      throw new ConfigError("There are new keys: name a folder for their secrets with --secrets. Nothing was changed.");
    }
    let done = 0;
    try {
      for (; done < steps.length; done++) await steps[done]?.run();
    } catch (error) {
      const failed = escapeControls(steps[done]?.name ?? "");
      note(`${done} of ${steps.length} changes are made; '${failed}' failed. Run the command again to go on.`);
      throw error;
    }
    note(steps.length === 0 ? "Everything is as wanted." : `${countOf(steps)} made.`);
  });
}

/** @throws CommandError, whose exit code tells a pipeline that the file and the installation differ. */
function checkNone(steps: readonly Step[]): void {
  if (steps.length > 0) throw new CommandError(`${countOf(steps)} to make.`, "differs");
  note("Everything is as wanted.");
}

const countOf = ({ length }: readonly Step[]) => `${length} ${length === 1 ? "change" : "changes"}`;

const signs = { create: "+", update: "~", delete: "-", revoke: "-" } as const;

/** A name may have line breaks, which must not look like further steps. */
const lineOf = ({ action, kind, name, changes }: Step) =>
  [`${signs[action]} ${kind} ${name}`, ...changes].map(escapeControls).join("\n    ");
