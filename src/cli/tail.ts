import type { Command } from "commander";
import { type Arrival, followArrivals } from "../admin/arrivals.ts";
import { redactSecrets } from "../redact.ts";
import { withDatabase } from "./context.ts";
import { jsonLine, type OutputFlags, withJson } from "./output.ts";
import { note, say, terminalWidth } from "../terminal.ts";
import { type Column, tableOf } from "./table.ts";

interface TailFlags extends OutputFlags {
  org?: string;
  app?: string;
  rejected?: boolean;
}

export function addTail(program: Command): void {
  withJson(
    program
      .command("tail")
      .description("print events, snapshots and rejections of all instances as they arrive, until Ctrl-C"),
  )
    .option("--org <id>", "only for this organisation")
    .option("--app <id>", "only for this app")
    .option("--rejected", "only rejected events and refused requests")
    .action(async ({ org, app, rejected, json }: TailFlags) => {
      const stop = new AbortController();
      let away = false;
      await withDatabase(async ({ db, admin, stopped }) => {
        await admin.assertKnown({ organizationId: org, appId: app });
        void stopped().then(() => stop.abort());
        const arrivals = followArrivals(db, {
          organizationId: org,
          appId: app,
          rejectedOnly: rejected,
          signal: stop.signal,
          onOpen() {
            note(away ? "The database is back." : "Waiting for events; Ctrl-C ends it.");
            away = false;
          },
          onTrouble(error, missed) {
            if (away && !missed) return;
            away = true;
            const reason = redactSecrets(error instanceof Error ? error.message : String(error));
            note(
              missed ? `Some arrivals were missed: ${reason}` : `The database cannot be read: ${reason}; trying again.`,
            );
          },
        });
        const columns = arrivalColumns.filter(({ name }) => name !== "app" || app === undefined);
        for await (const arrival of arrivals) say(json === true ? jsonLine(arrival) : lineOf(arrival, columns));
      });
    });
}

/** Each row is laid out alone, so padding aligns it with the others. */
const arrivalColumns: readonly Column<Arrival>[] = [
  { name: "received", of: ({ receivedAt }) => receivedAt },
  { name: "kind", of: ({ kind }) => kind.padEnd(8) },
  { name: "request", of: ({ requestId }) => requestId },
  { name: "app", of: ({ appId }) => appId, optional: true },
  { name: "what", of: (arrival) => `${arrival.test ? "test: " : ""}${whatOf(arrival)}`.padEnd(24), cutTo: 24 },
];

/** One line for people, no wider than the terminal. A caller's text cannot forge a second one. */
export const lineOf = (arrival: Arrival, columns = arrivalColumns, width = terminalWidth()): string =>
  tableOf([arrival], columns, width).lines[1] as string;

/** The type or the code first: a narrow terminal cuts the end. */
function whatOf(arrival: Arrival): string {
  switch (arrival.kind) {
    case "event":
    case "snapshot":
      return `${arrival.type}  ${arrival.workerId}  ${arrival.eventId}`;
    case "rejected":
      return `${arrival.code}  events[${arrival.index}]: ${arrival.message}${arrival.more === undefined ? "" : ` … and ${arrival.more} more`}`;
    case "refused":
      return `${arrival.code}  ${arrival.rpc || "-"}${arrival.reason === undefined ? "" : `: ${arrival.reason}`}`;
  }
}
