import { type Command, Option } from "commander";
import { ConfigError } from "../config.ts";
import { ExportMistake, exportTimeline } from "../send/export.ts";
import { waiting } from "../send/progress.ts";
import { parseCount, parseTimeOrDate } from "./arguments.ts";
import { createJobProgress } from "./job-progress.ts";
import { output, type OutputFlags, withJson } from "./output.ts";
import { checkTarget } from "./send.ts";
import { note } from "../terminal.ts";

interface ExportFlags extends OutputFlags {
  url: string;
  key: string;
  snapshots?: boolean;
  worker?: string;
  type?: string;
  start?: Date;
  end?: Date;
  giveUp: number;
}

const help = `
Writes NDJSON that \`ingest send\` takes, newest first. A worker is named by its
id here as an external id, since ids belong to one installation. An event keeps
its id, so sending it twice stores it once.

FILE.export-state records the progress. If a run stops, run the same command
again: it continues. Standard output (-) begins anew.`;

export function addExport(program: Command): void {
  withJson(
    program
      .command("export")
      .description("write the events or snapshots of a service to a file; - is standard output")
      .argument("<file>", "NDJSON"),
  )
    .addOption(new Option("--url <url>", "address of the service").env("WEPEOPLE_BASE_URL").makeOptionMandatory())
    .addOption(
      new Option("--key <key>", "API key with the scope read; set the environment variable")
        .env("WEPEOPLE_READ_KEY")
        .makeOptionMandatory(),
    )
    .option("--snapshots", "write the history of snapshots, not events")
    .option("--worker <worker>", "only about the worker with this id")
    .option("--type <type>", "only of this type")
    .option("--start <time>", "only with timestamps from then on", parseTimeOrDate)
    .option("--end <time>", "only with timestamps before then", parseTimeOrDate)
    .option("--give-up <seconds>", "stop after that long without an answer", parseCount, 300)
    .addHelpText("after", help)
    .action(run);
}

async function run(file: string, flags: ExportFlags): Promise<void> {
  const { url, snapshots, worker, type, start, end, giveUp } = flags;
  const key = flags.key.trim();
  checkTarget(url, key);
  const path = file === "-" ? undefined : file;
  const progress = createJobProgress(Date.now);
  const rows = await exportTimeline({
    baseUrl: url,
    key,
    kind: snapshots === true ? "snapshot" : "event",
    filters: { workerId: worker, type, startTime: start?.toISOString(), endTime: end?.toISOString() },
    path,
    giveUpSeconds: giveUp,
    onProgress: (done) => progress.show({ step: "lines written", done }),
    onTrouble: (trouble, retry) => progress.show({ step: waiting(trouble, retry), done: 0 }),
  })
    .finally(() => progress.end())
    .catch((error: unknown) => {
      throw error instanceof ExportMistake ? new ConfigError(error.message) : error;
    });
  if (path === undefined) return note(`${rows} lines written`);
  output({ file, rows }, flags, () => note(`${rows} lines written to ${file}`));
}
