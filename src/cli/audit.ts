import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import type { Command } from "commander";
import { z } from "zod";
import { ConfigError } from "../config.ts";
import { replaceFile } from "../files.ts";
import { type AuditEntry, AuditEntrySchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { restJson } from "../message-json.ts";
import { note, sayLines, terminalWidth } from "../terminal.ts";
import type { AdminClient } from "../transport/api/admin-in-process.ts";
import { parseTimeOrDate } from "./arguments.ts";
import { callPage, type ClientPageFlags, given, isPassing, withAdmin, withClientPages } from "./client.ts";
import { jsonLine } from "./output.ts";
import { tableOf } from "./table.ts";
import { auditColumns, printAudit } from "./views.ts";

interface AuditFlags extends ClientPageFlags {
  readonly org?: string;
  readonly actor?: string;
  readonly from?: Date;
  readonly to?: Date;
  readonly follow?: boolean;
  readonly state?: string;
}

const help = `
With --follow it prints further changes as they are made, oldest first, until
Ctrl-C: a line of text or, with --json, a line of JSON. With --state it records
its place in a file, and continues there when it runs again. After a crash it
may print the last entries again; their ids are the same.`;

export function addAudit(program: Command): void {
  withClientPages(program.command("audit").description("list changes, the newest first: who changed what"))
    .option("--org <id>", "only of this organisation")
    .option("--actor <actor>", "only by this token's id or subject")
    .option("--from <time>", "only made from then on", parseTimeOrDate)
    .option("--to <time>", "only made before then", parseTimeOrDate)
    .option("--follow", "print changes as they are made, until Ctrl-C, for a log collector")
    .option("--state <file>", "with --follow: record the place in this file, and continue there")
    .addHelpText("after", help)
    .action((flags: AuditFlags) => {
      if (flags.follow === true) return follow(flags);
      if (flags.state !== undefined) throw new ConfigError("--state records the place of --follow: add that.");
      return callPage("listAuditEntries", filtersOf(flags), flags, printAudit);
    });
}

const filtersOf = ({ org: organizationId, actor, from, to }: AuditFlags) =>
  given({ organizationId, actor, from: timestampOf(from), to: timestampOf(to) });
const timestampOf = (time: Date | undefined) => (time === undefined ? undefined : timestampFromMs(time.getTime()));

const pollMs = 2_000;
/** An entry becomes visible when its transaction ends, which takes at most a minute. */
const lateMs = 120_000;

/** What was printed: the time of the newest entry, and the ids of those that late ones may still come between. */
const placeSchema = z.object({ newestMs: z.number(), printed: z.record(z.string(), z.number()) });
type Place = z.infer<typeof placeSchema>;

async function follow(flags: AuditFlags): Promise<void> {
  if (flags.to !== undefined || flags.pageToken !== undefined) {
    throw new ConfigError("--follow has no end and no pages: remove --to and --page-token.");
  }
  const stop = new AbortController();
  await withAdmin(flags, async (admin, { stopped }) => {
    void stopped().then(() => stop.abort());
    let place = await firstPlace(admin, flags);
    if (flags.state !== undefined) await replaceFile(flags.state, JSON.stringify(place));
    note("Waiting for changes; Ctrl-C ends it.");
    for (let away = false; !stop.signal.aborted;) {
      try {
        const entries = await newEntries(admin, flags, place);
        // Otherwise the file would say that they were printed.
        if (!(await sayLines(entries.map((entry) => `${lineOf(entry, flags)}\n`).join("")))) return;
        if (entries.length > 0) place = placeAfter(place, entries);
        if (entries.length > 0 && flags.state !== undefined) await replaceFile(flags.state, JSON.stringify(place));
        if (away) note("The service is back.");
        away = false;
      } catch (error) {
        if (!isPassing(error)) throw error;
        if (!away) note(`The audit cannot be read: ${(error as ConnectError).rawMessage}; trying again.`);
        away = true;
      }
      await delay(pollMs, undefined, { signal: stop.signal }).catch(() => {});
    }
  });
}

/** The place of the state file, else of --from, else after the newest entry. */
async function firstPlace(admin: AdminClient, flags: AuditFlags): Promise<Place> {
  const written = flags.state === undefined ? undefined : await readPlace(flags.state);
  if (written !== undefined) return written;
  if (flags.from !== undefined) return { newestMs: flags.from.getTime() + lateMs, printed: {} };
  const { entries } = await admin.listAuditEntries({ ...filtersOf(flags), pageSize: 500 });
  return placeAfter({ newestMs: 0, printed: {} }, entries);
}

/** Oldest first. */
async function newEntries(admin: AdminClient, flags: AuditFlags, { newestMs, printed }: Place): Promise<AuditEntry[]> {
  const fromMs = Math.max(newestMs - lateMs, flags.from?.getTime() ?? 0, 0);
  const filters = { ...filtersOf(flags), ...(fromMs === 0 ? {} : { from: timestampFromMs(fromMs) }), pageSize: 500 };
  const found: AuditEntry[] = [];
  for (let pageToken = ""; ;) {
    const page = await admin.listAuditEntries({ ...filters, pageToken });
    found.push(...page.entries.filter(({ id }) => !Object.hasOwn(printed, id)));
    pageToken = page.nextPageToken;
    if (pageToken === "") return found.reverse();
  }
}

function placeAfter({ newestMs, printed }: Place, entries: readonly AuditEntry[]): Place {
  const times = entries.map(({ id, at }) => [id, at === undefined ? 0 : timestampMs(at)] as const);
  const newest = times.reduce((latest, [, ms]) => Math.max(latest, ms), newestMs);
  const all = [...Object.entries(printed), ...times];
  return { newestMs: newest, printed: Object.fromEntries(all.filter(([, ms]) => ms >= newest - lateMs)) };
}

/** @throws ConfigError for a file that this command did not write. */
async function readPlace(path: string): Promise<Place | undefined> {
  try {
    return placeSchema.parse(JSON.parse(await readFile(path, "utf8")));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new ConfigError(
      `--state: ${path} is not a file of this command, or cannot be read. Remove it to begin anew.`,
    );
  }
}

const lineOf = (entry: AuditEntry, { json }: AuditFlags): string =>
  json === true
    ? jsonLine(restJson(AuditEntrySchema, entry))
    : (tableOf([entry], auditColumns, terminalWidth()).lines[1] as string);
