import type { Command } from "commander";
import { answer, answerPage } from "./database.ts";
import { type OutputFlags, type PageFlags, withJson, withPages } from "./output.ts";
import { printWorker, printWorkers } from "./views.ts";

export function addWorker(program: Command): void {
  const worker = program.command("worker").description("list and show workers");
  withPages(worker.command("list").description("list the workers of an organisation"))
    .requiredOption("--org <id>", "id of the organisation")
    .action((flags: PageFlags & { org: string }) =>
      answerPage(flags, printWorkers, (admin) => admin.listWorkers(flags.org, flags)),
    );
  withJson(worker.command("show <id>").description("show a worker with its newest snapshot cards")).action(
    (id: string, flags: OutputFlags) => answer(flags, printWorker, (admin) => admin.showWorker(id)),
  );
}
