import type { Command } from "commander";
import type { Db } from "mongodb";
import { isRequestId, timeOfId } from "../ids.ts";
import { showRequest } from "../admin/show-request.ts";
import { withDatabase } from "./context.ts";
import { output, type OutputFlags, withJson } from "./output.ts";
import { printRequest } from "./old-views.ts";

export function addRequest(program: Command): void {
  const request = program.command("request").description("find a caller's request");
  withJson(
    request.command("show <id>").description("show a request: caller, outcome, rejections, events, replays"),
  ).action(async (id: string, flags: OutputFlags) => {
    output(await withDatabase(({ db, now }) => showOnceRecorded(db, id, now)), flags, printRequest);
  });
}

/** The record is written a moment after the answer. A person may paste the id sooner. */
const recordedWithinMs = 3_000;

async function showOnceRecorded(db: Db, id: string, now: () => number): ReturnType<typeof showRequest> {
  const untilMs = isRequestId(id) ? timeOfId(id).getTime() + recordedWithinMs : 0;
  for (;;) {
    const last = now() >= untilMs;
    try {
      const shown = await showRequest(db, id, now());
      // A request accepted in part has stored its rows before its record.
      if (last || "durationMs" in shown) return shown;
    } catch (error) {
      if (last) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
