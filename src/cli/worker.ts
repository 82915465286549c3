import type { Command } from "commander";
import { answer } from "./database.ts";
import { type OutputFlags, withJson } from "./output.ts";
import { printWorker, printWorkers } from "./views.ts";

export function addWorker(program: Command): void {
  const worker = program.command("worker").description("list and show workers");
  withJson(worker.command("list").description("list the workers of an organisation"))
    .requiredOption("--org <id>", "id of the organisation")
    .action((flags: OutputFlags & { org: string }) =>
      answer(flags, printWorkers, (admin) => admin.listWorkers(flags.org)),
    );
  withJson(worker.command("show <id>").description("show a worker with its snapshot cards")).action(
    (id: string, flags: OutputFlags) => answer(flags, printWorker, (admin) => admin.showWorker(id)),
  );
}
