import { type Command, Option } from "commander";
import { parseCount, parseTimeOrDate } from "./arguments.ts";
import { withJson } from "./output.ts";
import type { ExportFlags } from "./run/export.ts";

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
    .action(async (file: string, flags: ExportFlags) => {
      const { exportToFile } = await import("./run/export.ts");
      await exportToFile(file, flags);
    });
}
