import { statSync } from "node:fs";
import { type Command, InvalidArgumentError, Option } from "commander";
import { sourceFormats } from "../send/formats.ts";
import { parseCount } from "./arguments.ts";
import { withJson } from "./output.ts";
import type { SendFlags } from "./run/send.ts";

const help = `
A line of NDJSON is an event of the API. The first line of CSV names the
columns: eventType, category, workerId, externalId, email, displayName,
timestamp, eventId, duration, metadata (JSON), metadata.NAME (text).

A line without an eventId gets one, made of the file, the number of the line and
its content. So an event is stored once, however often its file is sent.

With --snapshots a line is a snapshot, and each goes in its own request. The
columns of CSV are snapshotType, workerId, externalId, email, displayName,
timestamp, metrics (JSON), metrics.NAME (number or label), metadata,
metadata.NAME.

Text is UTF-8. gzip and zstd are unpacked.

FILE.ingest-state records the progress. If a run stops, or you interrupt or kill
it, run the same command again: it continues, and stores nothing twice. It also
repeats lines that the service refused for a reason that may pass: the quota,
the app's event types, an unknown workerId.
Lines that can never be right are refused for good. They go to
FILE.rejected.ndjson with the reason. Fix them there, and send that file.

Exit codes: 0 all lines are stored, 1 some lines are refused for good, 2 the
command line or the file is wrong, 3 some lines are not sent or not stored yet
(run it again to continue).`;

const concurrencyMax = 32;

export function addSend(program: Command): void {
  withJson(
    program
      .command("send")
      .description("send a file of events or snapshots to a service; - is standard input")
      .argument("<file>", "NDJSON or CSV", parseFile),
  )
    .addOption(new Option("--url <url>", "address of the service").env("WEPEOPLE_BASE_URL").makeOptionMandatory())
    .addOption(
      new Option("--key <key>", "API key; set the environment variable, since other users can read command lines")
        .env("WEPEOPLE_API_KEY")
        .makeOptionMandatory(),
    )
    .option("--snapshots", "the file has snapshots, not events")
    .addOption(new Option("--format <format>", "default: by the file's name, else ndjson").choices(sourceFormats))
    .option("--state <path>", "file that records the progress; default: FILE.ingest-state, none for -")
    .option(
      "--rejected <path>",
      "file for lines that are refused for good; default: FILE.rejected.ndjson, for - that of --state",
    )
    .option("--name <name>", "stands for the file in the ids of its lines; default: host and path, random for -")
    .option("--restart", "discard the recorded progress, and begin again")
    .option("--strict", "refuse lines with members that the service does not know, or with numbers that it would round")
    .option("--concurrency <requests>", "requests at the same time", parseConcurrency, 4)
    .option("--give-up <seconds>", "stop after that long without an answer", parseCount, 300)
    .addHelpText("after", help)
    .action(async (file: string, flags: SendFlags) => {
      const { send } = await import("./run/send.ts");
      await send(file, flags);
    });
}

/** Refuses a wrong name before the command creates other files. */
function parseFile(path: string): string {
  if (path === "-") return path;
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined) throw new InvalidArgumentError("There is no such file.");
  if (found.isDirectory()) throw new InvalidArgumentError("It is a directory; give one of its files.");
  return path;
}

function parseConcurrency(text: string): number {
  const value = parseCount(text);
  if (value < 1 || value > concurrencyMax) throw new InvalidArgumentError(`It must be from 1 to ${concurrencyMax}.`);
  return value;
}
