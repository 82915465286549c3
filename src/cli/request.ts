import type { Command } from "commander";
import type { Db } from "mongodb";
import { isRequestId, timeOfId } from "../ids.ts";
import { showRequest } from "../admin/requests.ts";
import { withDatabase } from "./database.ts";
import { output, type OutputFlags, withJson } from "./output.ts";
import { printRequest } from "./views.ts";

export function addRequest(program: Command): void {
  const request = program.command("request").description("requests that callers made");
  withJson(
    request
      .command("show <id>")
      .description("show what became of a request: caller, outcome, rejections, events, replays"),
  ).action(async (id: string, flags: OutputFlags) => {
    output(await withDatabase(({ db, now }) => showOnceRecorded(db, id, now)), flags, printRequest);
  });
}

/** A request's record is written a moment after its answer: for one of just now it is worth waiting. */
const recordedWithinMs = 3_000;

async function showOnceRecorded(db: Db, id: string, now: () => number): ReturnType<typeof showRequest> {
  const untilMs = isRequestId(id) ? timeOfId(id).getTime() + recordedWithinMs : 0;
  for (;;) {
    const last = now() >= untilMs;
    try {
      const shown = await showRequest(db, id, now());
      // The rows of a request that was accepted in part are there before its record.
      if (last || "durationMs" in shown) return shown;
    } catch (error) {
      if (last) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
