import { Code, ConnectError } from "@connectrpc/connect";
import type { Command } from "commander";
import { CommandError } from "../serve/exit.ts";
import { note } from "../terminal.ts";
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
import { printApp, printApps, printPreview } from "./views.ts";

export function addApp(program: Command): void {
  const app = program.command("app").description("create, list and delete apps, and change their whitelists");
  withClient(app.command("create").description("create an app"))
    .requiredOption("--org <id>", "id of the organisation")
    .requiredOption("--slug <slug>", "short name, unique within the organisation")
    .option("--name <name>", "display name; default: the slug")
    .requiredOption("--allow <type...>", "event types that the app may send; * at the end matches anything")
    .action(({ org, slug, name, allow, ...flags }: CreateFlags) =>
      call("createApp", { organizationId: org, slug, allow, ...given({ name }) }, flags, printApp),
    );
  withClient(app.command("update <id>").description("change an app's name, or its whitelist as a whole"))
    .option("--name <name>", "display name")
    .option("--allow <type...>", "event types that the app may send, in place of the ones before")
    .action((appId: string, { name, allow, ...flags }: Partial<CreateFlags>) =>
      call("updateApp", { appId, ...given({ name, allow }) }, flags, printApp),
    );
  withClient(app.command("allow <id> <type...>").description("add event types to the whitelist of an app")).action(
    (id: string, types: string[], flags: ClientFlags) =>
      changeAllow(id, flags, (before) => [...new Set([...before, ...types])], sayAllowed(types)),
  );
  withClient(app.command("deny <id> <type...>").description("remove event types from the whitelist of an app")).action(
    (id: string, types: string[], flags: ClientFlags) =>
      changeAllow(id, flags, (before) => before.filter((entry) => !types.includes(entry)), sayDenied(types)),
  );
  withClientPages(app.command("list").description("list the apps of an organisation"))
    .option("--org <id>", "id of the organisation, if there are several")
    .action(({ org, ...flags }: ClientPageFlags & { org?: string }) =>
      callPage("listApps", async (admin) => ({ organizationId: await organizationIdOf(admin, org) }), flags, printApps),
    );
  withClient(app.command("show <id>").description("show an app")).action((appId: string, flags: ClientFlags) =>
    call("getApp", { appId }, flags, printApp),
  );
  withClient(
    app.command("preview <id> <type...>").description("say which recent refusals a whitelist would have accepted"),
  ).action((appId: string, allow: string[], flags: ClientFlags) =>
    call("previewAllow", { appId, allow }, flags, printPreview),
  );
  withClient(app.command("delete <id>").description("delete an app and revoke its keys; what it sent stays")).action(
    (appId: string, flags: ClientFlags) =>
      call("deleteApp", { appId }, flags, () => note(`The app '${appId}' is deleted, and its keys are revoked.`)),
  );
}

interface CreateFlags extends ClientFlags {
  readonly org: string;
  readonly slug: string;
  readonly name?: string;
  readonly allow: string[];
}

/** How often a change begins again because somebody else changed the app meanwhile. */
const conflictsMax = 20;

type Change = (allow: readonly string[]) => string[];

/** Two people may change the whitelist at once, so a change holds for the list that was read, or begins again. */
function changeAllow(appId: string, flags: ClientFlags, change: Change, check: Check): Promise<void> {
  return withAdmin(flags, async (admin) => {
    for (let conflicts = 0; ; conflicts++) {
      const { allow: before, etag } = await admin.getApp({ appId });
      const request = { appId, allow: change(before), updateMask: { paths: ["allow"] }, etag };
      const app = await admin.updateApp(request).catch((error: unknown) => {
        const isConflict = error instanceof ConnectError && error.code === Code.Aborted;
        if (!isConflict || conflicts >= conflictsMax) throw error;
      });
      if (app === undefined) continue;
      check(before, app.allow);
      return show("updateApp", app, flags, printApp);
    }
  });
}

type Check = (before: readonly string[], after: readonly string[]) => void;

const sayAllowed =
  (types: readonly string[]): Check =>
  (before) => {
    for (const type of types) if (before.includes(type)) note(`'${type}' was on the whitelist already.`);
  };

const sayDenied =
  (types: readonly string[]): Check =>
  (before, after) => {
    for (const type of types) {
      const wider = after.find((entry) => entry.endsWith("*") && type.startsWith(entry.slice(0, -1)));
      if (wider !== undefined) {
        throw new CommandError(`'${type}' is still allowed: the entry '${wider}' of the whitelist covers it.`);
      }
      if (!before.includes(type)) note(`'${type}' was not on the whitelist.`);
    }
  };
