import type { Command } from "commander";
import { showRequest } from "../admin/requests.ts";
import { withDatabase } from "./database.ts";
import { type OutputFlags, print, say, withJson } from "./output.ts";

export function addRequest(program: Command): void {
  const request = program.command("request").description("requests that callers made");
  withJson(
    request
      .command("show <id>")
      .description("show what became of a request: who, outcome, rejections, events, replays"),
  ).action(async (id: string, flags: OutputFlags) => {
    const shown = await withDatabase(({ db }) => showRequest(db, id, Date.now()));
    if (flags.json === true) return print(shown, flags);
    const { rejections, replays, ...rest } = shown;
    print(rest, flags);
    for (const [title, rows] of Object.entries({ rejections, replays })) {
      if (rows.length === 0) continue;
      say(`\n${title}`);
      print(rows, flags);
    }
  });
}
