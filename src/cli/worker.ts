import { hostname, userInfo } from "node:os";
import type { Command } from "commander";
import type { JobOptions, WorkerChanges, WorkerSelector } from "../admin/worker-changes.ts";
import { answer, answerPage, withDatabase } from "./context.ts";
import { createJobProgress } from "./job-progress.ts";
import { output, type OutputFlags, type PageFlags, type Print, withJson, withPages } from "./output.ts";
import {
  printAllowed,
  printDroppedCard,
  printErasure,
  printMerge,
  printNamedWorker,
  printWorker,
  printWorkers,
} from "./old-views.ts";

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
  withJson(
    worker.command("merge <id> <other>").description("give everything of the other worker to the first one"),
  ).action((id: string, other: string, flags: OutputFlags) =>
    change(flags, printMerge, (changes, options) => changes.merge(id, other, options)),
  );
  withJson(worker.command("erase [id]").description("remove everything about a worker, and reject its next events"))
    .option("--email <email>", "its email, instead of its id; give the app too")
    .option("--external-id <external id>", "its id in the app, instead of its id; give the app too")
    .option("--app <id>", "id of the app that knows it")
    .option("--allow-again", "do not erase, but accept events about an erased worker again: they make a new one")
    .action((id: string | undefined, flags: EraseFlags) => {
      const selector = selectorOf(id, flags);
      if (selector === undefined) return worker.error(`error: ${howToName}`);
      return flags.allowAgain === true
        ? change(flags, printAllowed, (changes) => changes.allowAgain(selector))
        : change(flags, printErasure, (changes, options) => changes.erase(selector, options));
    });
}

interface EraseFlags extends OutputFlags {
  readonly email?: string;
  readonly externalId?: string;
  readonly app?: string;
  readonly allowAgain?: boolean;
}

const howToName = "name the worker by its id, or by --email or --external-id together with --app";

/** Undefined unless the worker is named in exactly one way. */
function selectorOf(id: string | undefined, { email, externalId, app }: EraseFlags): WorkerSelector | undefined {
  const given = [id, email, externalId].filter((one) => one !== undefined);
  if (given.length !== 1) return undefined;
  if (id !== undefined) return { id, appId: app };
  if (app === undefined) return undefined;
  if (email !== undefined) return { appId: app, email };
  return externalId === undefined ? undefined : { appId: app, externalId };
}

function change<T extends object>(
  flags: OutputFlags,
  print: Print<T>,
  work: (changes: WorkerChanges, options: JobOptions) => Promise<T>,
): Promise<void> {
  return withDatabase(async ({ changes, now }) => {
    const progress = createJobProgress(now);
    const by = `${userInfo().username}@${hostname()}`;
    const answered = await work(changes, { by, onProgress: progress.show }).finally(() => progress.end());
    output(answered, flags, print);
  });
}
