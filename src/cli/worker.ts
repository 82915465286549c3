import type { Command } from "commander";
import { answer, answerPage } from "./database.ts";
import { type OutputFlags, type PageFlags, withJson, withPages } from "./output.ts";
import { printDroppedCard, printNamedWorker, printWorker, printWorkers } from "./views.ts";

export function addWorker(program: Command): void {
  const worker = program.command("worker").description("list, show and change workers");
  withPages(worker.command("list").description("list the workers of an organisation"))
    .requiredOption("--org <id>", "id of the organisation")
    .action((flags: PageFlags & { org: string }) =>
      answerPage(flags, printWorkers, (admin) => admin.listWorkers(flags.org, flags)),
    );
  withJson(worker.command("show <id>").description("show a worker with its newest snapshot cards")).action(
    (id: string, flags: OutputFlags) => answer(flags, printWorker, (admin) => admin.showWorker(id)),
  );
  withJson(worker.command("rename <id> <name>").description("give a worker another display name")).action(
    (id: string, name: string, flags: OutputFlags) =>
      answer(flags, printNamedWorker, (admin) => admin.renameWorker(id, name)),
  );
  withJson(worker.command("drop-card <id>").description("remove a snapshot card of a worker; its history stays"))
    .requiredOption("--app <id>", "id of the app that sent it")
    .requiredOption("--type <type>", "its snapshot type")
    .action((id: string, flags: OutputFlags & { app: string; type: string }) =>
      answer(flags, printDroppedCard, (admin) => admin.dropCard(id, flags.app, flags.type)),
    );
}
