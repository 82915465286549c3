import type { Command } from "commander";
import { type Arrival, followArrivals } from "../admin/arrivals.ts";
import { redactSecrets } from "../redact.ts";
import { withDatabase } from "./database.ts";
import { jsonLine, type OutputFlags, withJson } from "./output.ts";
import { escapeControls, note, say } from "../terminal.ts";

interface TailFlags extends OutputFlags {
  org?: string;
  app?: string;
  rejected?: boolean;
}

export function addTail(program: Command): void {
  withJson(program.command("tail").description("follow what arrives, on any instance, until Ctrl-C"))
    .option("--org <id>", "of one organisation")
    .option("--app <id>", "of one app")
    .option("--rejected", "only events and requests that were not accepted")
    .action(async ({ org, app, rejected, json }: TailFlags) => {
      const stop = new AbortController();
      let away = false;
      await withDatabase(async ({ db, stopped }) => {
        void stopped().then(() => stop.abort());
        const arrivals = followArrivals(db, {
          organizationId: org,
          appId: app,
          rejectedOnly: rejected,
          signal: stop.signal,
          onOpen() {
            note(away ? "The database is back." : "Following what arrives; Ctrl-C ends it.");
            away = false;
          },
          onTrouble(error, missed) {
            if (away && !missed) return;
            away = true;
            const reason = redactSecrets(error instanceof Error ? error.message : String(error));
            note(missed ? `Something was missed: ${reason}` : `The database cannot be read: ${reason}; trying again.`);
          },
        });
        for await (const arrival of arrivals) say(json === true ? jsonLine(arrival) : escapeControls(lineOf(arrival)));
      });
    });
}

/** One line for people: when, what, who, the request, and why when it was not accepted. */
function lineOf(arrival: Arrival): string {
  const { receivedAt, requestId, appId } = arrival;
  const what = whatOf(arrival);
  return [receivedAt.toISOString(), arrival.kind.padEnd(8), requestId, appId, what].join("  ");
}

function whatOf(arrival: Arrival): string {
  switch (arrival.kind) {
    case "event":
    case "snapshot":
      return `${arrival.type}  ${arrival.workerId}  ${arrival.eventId}`;
    case "rejected":
      return `events[${arrival.index}]  ${arrival.code}: ${arrival.message}${arrival.more === undefined ? "" : ` … and ${arrival.more} more`}`;
    case "refused":
      return `${arrival.rpc || "-"}  ${arrival.code}${arrival.reason === undefined ? "" : `: ${arrival.reason}`}`;
  }
}
