import { createReadStream, statSync } from "node:fs";
import { stat } from "node:fs/promises";
import { type Command, InvalidArgumentError, Option } from "commander";
import { SourceChanged } from "../send/batches.ts";
import { createPoster } from "../send/client.ts";
import { Journal } from "../send/journal.ts";
import { sourceKinds } from "../send/kinds.ts";
import { createProgressView } from "../send/progress.ts";
import { type SourceFormat, sourceFormats } from "../send/records.ts";
import { sendFile, type SendOptions, unconfirmedPolicies } from "../send/send.ts";
import { parseCount } from "./arguments.ts";
import { exitCodes } from "../serve/exit.ts";
import { type OutputFlags, print, withJson } from "./output.ts";
import { note } from "../terminal.ts";

interface SendFlags extends OutputFlags {
  url: string;
  key: string;
  snapshots?: boolean;
  format?: SourceFormat;
  state?: string;
  rejected?: string;
  restart?: boolean;
  concurrency: number;
  giveUp: number;
  unconfirmed: SendOptions["unconfirmed"];
}

const help = `
A line of NDJSON is an event of the API. The first line of CSV names the columns: eventType, category, workerId,
externalId, email, displayName, timestamp, duration, metadata (JSON), metadata.NAME (text).

With --snapshots a line is a snapshot, each sent in a request of its own. The columns of CSV are snapshotType, workerId,
externalId, email, displayName, timestamp, metrics (JSON), metrics.NAME (number or label), metadata, metadata.NAME.

What has been sent is kept in FILE.ingest-state: a run that was interrupted, even killed, is taken up by the same command
without storing anything twice. Lines that were not accepted go to FILE.rejected.ndjson with the reason.

Exit codes: 0 all accepted, 1 some lines were rejected, 2 the command line is wrong, 3 stopped before the end (run it
again to go on).`;

const concurrencyMax = 32;

export function addSend(program: Command): void {
  withJson(
    program
      .command("send")
      .description("send a file of events, or of snapshots, to a service; - is standard input")
      .argument("<file>", "NDJSON or CSV", parseFile),
  )
    .addOption(new Option("--url <url>", "base of the service").env("WEPEOPLE_BASE_URL").makeOptionMandatory())
    .addOption(
      new Option("--key <key>", "API key; in the environment it is not in the list of processes")
        .env("WEPEOPLE_API_KEY")
        .makeOptionMandatory(),
    )
    .option("--snapshots", "the file holds snapshots, not events")
    .addOption(new Option("--format <format>", "default: by the file's name, else ndjson").choices(sourceFormats))
    .option("--state <path>", "where to keep what has been sent; default: beside the file, nowhere for -")
    .option("--rejected <path>", "where to put what was not accepted; default: beside the file")
    .option("--restart", "forget what has been sent, and begin anew")
    .option("--concurrency <requests>", "requests under way at once", parseConcurrency, 4)
    .option("--give-up <seconds>", "stop when the service has not answered for so long", parseCount, 300)
    .addOption(
      new Option("--unconfirmed <policy>", "what to do with lines whose fate an earlier run could not learn")
        .choices(unconfirmedPolicies)
        .default("ask"),
    )
    .addHelpText("after", help)
    .action(send);
}

/** A wrong name is told before anything is made beside it. */
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

async function send(file: string, flags: SendFlags): Promise<void> {
  const isStandardInput = file === "-";
  const { url, key, restart, concurrency, giveUp: giveUpSeconds, unconfirmed } = flags;
  const state = flags.state ?? (isStandardInput ? undefined : `${file}.ingest-state`);
  const rejectedFile = flags.rejected ?? `${isStandardInput ? "ingest-send" : file}.rejected.ndjson`;
  const totalBytes = isStandardInput ? undefined : (await stat(file)).size;
  const kind = sourceKinds[flags.snapshots === true ? "snapshot" : "event"];
  const journal = await Journal.open(state, rejectedFile, { restart });
  const startedMs = Date.now();
  const view = createProgressView({ totalBytes, output: process.stderr, now: Date.now, say: note });
  try {
    const result = await sendFile({
      source: isStandardInput ? process.stdin : createReadStream(file),
      format: flags.format ?? (file.toLowerCase().endsWith(".csv") ? "csv" : "ndjson"),
      kind,
      post: createPoster(url, key, kind),
      key,
      journal,
      concurrency,
      unconfirmed,
      giveUpSeconds,
      signal: interruption(),
      now: Date.now,
      onProgress: (progress) => view.show(progress),
    }).finally(() => view.end());
    const { accepted, rejected, alreadySent, stopped } = result;
    const seconds = (Date.now() - startedMs) / 1000;
    const summary = { accepted, rejected, alreadySent, seconds, eventsPerSecond: Math.round(accepted / seconds) };
    print({ ...summary, rejectedFile: rejected > 0 ? rejectedFile : null, stopped: stopped ?? null }, flags);
    if (stopped !== undefined) process.exitCode = exitCodes.failed.code;
    else if (rejected > 0) process.exitCode = exitCodes.refused.code;
  } catch (error) {
    if (!(error instanceof SourceChanged)) throw error;
    note(`${error.message} Give --restart to send all of it.`);
    process.exitCode = exitCodes.failed.code;
  } finally {
    await journal.close();
  }
}

/** Aborts with the first Ctrl-C or SIGTERM; the second one ends the process. */
function interruption(): AbortSignal {
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => stop.abort());
  return stop.signal;
}
