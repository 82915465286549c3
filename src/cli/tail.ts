import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Command } from "commander";
import { type Arrival, ArrivalSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { restJson } from "../message-json.ts";
import { speaking } from "../speaking.ts";
import { note, say, terminalWidth } from "../terminal.ts";
import type { AdminClient } from "../transport/api/admin-in-process.ts";
import { type ClientFlags, given, isPassing, withAdmin, withClient } from "./client.ts";
import { jsonLine } from "./output.ts";
import { type Column, tableOf } from "./table.ts";

interface TailFlags extends ClientFlags {
  org?: string;
  app?: string;
  rejected?: boolean;
}

export function addTail(program: Command): void {
  withClient(
    program
      .command("tail")
      .description("print events, snapshots and rejections of all instances as they arrive, until Ctrl-C"),
  )
    .option("--org <id>", "only for this organisation")
    .option("--app <id>", "only for this app")
    .option("--rejected", "only rejected events and refused requests")
    .action((flags: TailFlags) => {
      const columns = arrivalColumns.filter(({ name }) => name !== "app" || flags.app === undefined);
      const lineFor = (arrival: Arrival) =>
        flags.json === true ? jsonLine(restJson(ArrivalSchema, arrival)) : lineOf(arrival, columns);
      return withAdmin(flags, async (admin, { stopped }) => {
        const stop = new AbortController();
        void stopped().then(() => stop.abort());
        for await (const arrival of follow(admin, flags, stop.signal)) say(lineFor(arrival));
      });
    });
}

const reopenAfterMs = 500;

/** Yields arrivals until the signal. After an outage it continues where it stopped. */
async function* follow(
  admin: AdminClient,
  { org = "-", app, rejected = false }: TailFlags,
  stop: AbortSignal,
): AsyncGenerator<Arrival> {
  const request = { organizationId: org, rejectedOnly: rejected, ...given({ appId: app }) };
  let resumeToken = "";
  for (let state: "new" | "open" | "away" = "new"; !stop.aborted;) {
    try {
      const from = { ...request, ...(resumeToken === "" ? {} : { resumeToken }) };
      const watch = (signal: AbortSignal) => admin.watchRequests(from, { signal, timeoutMs: 0 });
      for await (const message of speaking(watch, stop)) {
        if (state !== "open") note(state === "new" ? "Waiting for events; Ctrl-C ends it." : "The service is back.");
        state = "open";
        yield* message.arrivals;
        ({ resumeToken } = message);
      }
    } catch (error) {
      if (stop.aborted) return;
      if (state === "new" || !(error instanceof ConnectError)) throw error;
      const isAway = isPassing(error);
      const isTooLate = !isAway && error.code === Code.InvalidArgument && resumeToken !== "";
      if (!isAway && !isTooLate) throw error;
      if (isTooLate) {
        resumeToken = "";
        note(`Some arrivals were missed: ${error.rawMessage}`);
      } else if (state === "open") note(`Arrivals cannot be read: ${error.rawMessage}; trying again.`);
      state = "away";
    }
    await delay(reopenAfterMs, undefined, { signal: stop }).catch(() => {});
  }
}

/** Each row is laid out alone, so padding aligns it with the others. */
const arrivalColumns: readonly Column<Arrival>[] = [
  { name: "received", of: ({ receivedAt }) => receivedAt },
  { name: "kind", of: (arrival) => kindOf(arrival).padEnd(8) },
  { name: "request", of: ({ requestId }) => requestId },
  { name: "app", of: ({ appId }) => appId, optional: true },
  { name: "what", of: (arrival) => whatOf(arrival).padEnd(24), cutTo: 24 },
];

/** One line for people, no wider than the terminal. A caller's text cannot forge a second one. */
export const lineOf = (arrival: Arrival, columns = arrivalColumns, width = terminalWidth()): string =>
  tableOf([arrival], columns, width).lines[1] as string;

const kindOf = ({ kind }: Arrival): string => (kind.case === "row" ? kind.value.kind : (kind.case ?? "unknown"));

/** The type or the code first: a narrow terminal cuts the end. */
function whatOf({ kind }: Arrival): string {
  switch (kind.case) {
    case "row":
      return `${kind.value.type}  ${kind.value.workerId}  ${kind.value.id}`;
    case "rejected": {
      const { code, index, message, more } = kind.value;
      return `${code}  events[${index}]: ${message}${more === 0 ? "" : ` … and ${more} more`}`;
    }
    case "refused": {
      const { code, rpc, reason } = kind.value;
      return `${code}  ${rpc || "-"}${reason === undefined ? "" : `: ${reason}`}`;
    }
    default:
      return "";
  }
}
