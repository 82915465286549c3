import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Command } from "commander";
import { ConfigError } from "../config.ts";
import { type Erasure, ErasureState, type Worker } from "../gen/ingest/admin/v1/admin_pb.js";
import { CommandError } from "../serve/exit.ts";
import { note } from "../terminal.ts";
import type { AdminClient } from "../transport/api/admin-in-process.ts";
import {
  call,
  callPage,
  type ClientFlags,
  type ClientPageFlags,
  given,
  organizationIdOf,
  show,
  withAdmin,
  withClient,
  withClientPages,
} from "./client.ts";
import { printAllowed, printErasure, printNamedWorker, printWorker, printWorkers } from "./views.ts";

export function addWorker(program: Command): void {
  const worker = program.command("worker").description("list, show and change workers");
  withClientPages(worker.command("list").description("list the workers of an organisation"))
    .option("--org <id>", "id of the organisation, if there are several")
    .option("--email <email>", "only the one with this email")
    .option("--external-id <external id>", "only those that an app knows by this id")
    .option("--name <beginning>", "only those whose name begins like this")
    .action(({ org, email, externalId, name, ...flags }: ClientPageFlags & ListFlags) => {
      const filters = given({ email, externalId, name });
      const request = async (admin: AdminClient) => ({
        organizationId: await organizationIdOf(admin, org),
        ...filters,
      });
      return callPage("listWorkers", request, flags, printWorkers);
    });
  withClient(worker.command("show <id>").description("show a worker with its newest snapshot cards")).action(
    (workerId: string, flags: ClientFlags) =>
      call("getWorker", { workerId }, flags, (shown) => {
        sayMerged(workerId, shown);
        printWorker(shown);
      }),
  );
  withClient(worker.command("rename <id> <name>").description("give a worker another display name")).action(
    (workerId: string, displayName: string, flags: ClientFlags) =>
      call("updateWorker", { workerId, displayName }, flags, (shown) => {
        sayMerged(workerId, shown);
        printNamedWorker(shown);
      }),
  );
  withClient(worker.command("drop-card <id>").description("remove a snapshot card of a worker; its history stays"))
    .requiredOption("--app <id>", "id of the app that sent it")
    .requiredOption("--type <type>", "its snapshot type")
    .action((workerId: string, { app: appId, type, ...flags }: ClientFlags & { app: string; type: string }) =>
      call("dropCard", { workerId, appId, snapshotType: type }, flags, printNamedWorker),
    );
  withClient(
    worker.command("merge <id> <other>").description("give everything of the other worker to the first one"),
  ).action((intoWorkerId: string, workerId: string, flags: ClientFlags) =>
    withAdmin(flags, async (admin) => {
      const patience = setTimeout(() => note("Merging goes on; if you stop waiting, the service completes it."), 3_000);
      const merging = admin.mergeWorkers({ workerId, intoWorkerId }, { timeoutMs: 0 });
      const merged = await merging.finally(() => clearTimeout(patience));
      show("mergeWorkers", merged, flags, printNamedWorker);
    }),
  );
  withClient(worker.command("erase [id]").description("remove everything about a worker, and reject its next events"))
    .option("--email <email>", "its email, instead of its id; give the app too")
    .option("--external-id <external id>", "its id in the app, instead of its id; give the app too")
    .option("--app <id>", "id of the app that knows it; --allow-again always needs it")
    .option("--allow-again", "do not erase, but accept events about an erased worker again: they make a new one")
    .action((id: string | undefined, flags: EraseFlags) => {
      const named = namedBy(id, flags);
      if (named === undefined) return worker.error(`error: ${howToName}`);
      return withAdmin(flags, (admin) => (flags.allowAgain === true ? allowAgain : erase)(admin, named, flags));
    });
}

interface ListFlags {
  readonly org?: string;
  readonly email?: string;
  readonly externalId?: string;
  readonly name?: string;
}

interface EraseFlags extends ClientFlags {
  readonly email?: string;
  readonly externalId?: string;
  readonly app?: string;
  readonly allowAgain?: boolean;
}

const howToName = "name the worker by its id, or by --email or --external-id together with --app";

/** A worker by one id, as FindErasure takes it. */
type Named = { case: "workerId" | "email" | "externalId"; value: string };

/** Undefined unless the worker is named in exactly one way. */
function namedBy(id: string | undefined, { email, externalId, app }: EraseFlags): Named | undefined {
  const all = Object.entries({ workerId: id, email, externalId });
  const [one, ...others] = all.flatMap(([name, value]) => (value === undefined ? [] : [{ case: name, value }]));
  if (one === undefined || others.length > 0 || (one.case !== "workerId" && app === undefined)) return undefined;
  return one as Named;
}

const sayMerged = (asked: string, { mergedInto }: Worker) => {
  if (mergedInto !== undefined) note(`'${asked}' was merged into '${mergedInto}'.`);
};

/** Begins the erasure, or finds the one that an earlier run has begun, and waits until it is done. */
async function erase(admin: AdminClient, named: Named, flags: EraseFlags): Promise<void> {
  const begun = await beginErasure(admin, named, flags);
  show("getErasure", await untilDone(admin, begun), flags, printErasure);
}

async function beginErasure(admin: AdminClient, named: Named, { app: appId }: EraseFlags): Promise<Erasure> {
  const earlier = async () => {
    const found = appId === undefined ? undefined : await unlessMissing(admin.findErasure({ appId, id: named }));
    if (found?.state === ErasureState.DONE) note("The worker was erased already.");
    return found;
  };
  if (named.case === "workerId") {
    const begin = admin.eraseWorker({ workerId: named.value });
    return (await unlessMissing(begin)) ?? (await earlier()) ?? begin;
  }
  const workerId = await resolve(admin, named, appId as string);
  if (workerId !== undefined) return admin.eraseWorker({ workerId });
  const found = await earlier();
  if (found !== undefined) return found;
  throw new CommandError(`The app '${appId}' knows no worker with this ${nounOf[named.case]}.`);
}

const nounOf = { email: "email", externalId: "external id" } as const;

/** The id of the worker whom the app knows like this. */
async function resolve(admin: AdminClient, named: Named, appId: string): Promise<string | undefined> {
  const { organizationId } = await admin.getApp({ appId });
  const { workers } = await admin.listWorkers({ organizationId, [named.case]: named.value, pageSize: 500 });
  // Another app may know somebody else by the same external id, even a deleted one that had the same slug.
  const isLink = (link: Worker["links"][number]) => link.appId === appId && link.externalId === named.value;
  return workers.find(({ links }) => named.case === "email" || links.some(isLink))?.id;
}

/** Milliseconds between two looks at an erasure, and between two notes about it. */
const [pollMs, noteEveryMs] = [500, 5_000];

async function untilDone(admin: AdminClient, begun: Erasure): Promise<Erasure> {
  let erasure = begun;
  for (let notedMs = Date.now(); erasure.state !== ErasureState.DONE;) {
    await delay(pollMs);
    erasure = await admin.getErasure({ erasureId: begun.id });
    if (Date.now() - notedMs < noteEveryMs) continue;
    notedMs = Date.now();
    const { step = "beginning", eventsTotal, trouble, counts } = erasure;
    const of = eventsTotal === undefined ? "" : ` of ${eventsTotal}`;
    if (trouble !== undefined) note(`The last try failed: ${trouble}`);
    note(`${step}; ${counts?.events ?? 0}${of} events are removed. If you stop waiting, a running service goes on.`);
  }
  return erasure;
}

async function allowAgain(admin: AdminClient, named: Named, flags: EraseFlags): Promise<void> {
  const { app: appId } = flags;
  if (appId === undefined) throw new ConfigError("--allow-again needs --app: the app that knew the worker.");
  const { id: erasureId } = await admin.findErasure({ appId, id: named });
  show("allowWorkerAgain", await admin.allowWorkerAgain({ erasureId }), flags, printAllowed);
}

/** The answer; undefined if there is no such object. */
const unlessMissing = <T>(answer: Promise<T>): Promise<T | undefined> =>
  answer.catch((error: unknown) => {
    if (error instanceof ConnectError && error.code === Code.NotFound) return undefined;
    throw error;
  });
