import { timestampDate, timestampFromDate, timestampMs } from "@bufbuild/protobuf/wkt";
import { type Command, Option } from "commander";
import { type Scope as ScopeName, scopes } from "../access/scopes.ts";
import { ConfigError } from "../config.ts";
import { type Key, Scope } from "../gen/ingest/admin/v1/admin_pb.js";
import { CommandError } from "../serve/exit.ts";
import { note } from "../terminal.ts";
import { readInput } from "./input.ts";
import { parseDuration, parseTimeOrDate } from "./arguments.ts";
import {
  call,
  callPage,
  type ClientFlags,
  type ClientPageFlags,
  given,
  maskOf,
  show,
  withAdmin,
  withClient,
  withClientPages,
} from "./client.ts";
import { printFoundKey, printKey, printKeys, printNewKey, printRotatedKey } from "./views.ts";

export function addKey(program: Command): void {
  const key = program.command("key").description("create, change, list, rotate, revoke and find API keys");
  withClient(withSettings(key.command("create").description("create a key and print it; it is not shown again")))
    .requiredOption("--app <id>", "id of the app")
    .option("--test", "a test key: its rows go to a test timeline for 7 days, and cost no quota")
    .action(({ app, test = false, ...flags }: SettingFlags & { app: string; test?: boolean }) =>
      call("createKey", { appId: app, test, ...settingsOf(flags) }, flags, printNewKey),
    );
  withClient(withSettings(key.command("update <id>").description("change settings of a key; others stay")))
    .addOption(
      new Option("--clear <setting...>", "remove these settings: they then restrict nothing").choices(
        Object.keys(clearable),
      ),
    )
    .action((keyId: string, { clear = [], ...flags }: SettingFlags & { clear?: (keyof typeof clearable)[] }) => {
      const settings = settingsOf(flags);
      const members = [...Object.keys(settings), ...clear.map((setting) => clearable[setting])];
      const request = { keyId, ...settings, ...(members.length === 0 ? {} : { updateMask: maskOf(members) }) };
      return call("updateKey", request, flags, printKey);
    });
  withClient(
    withWait(key.command("revoke <id>").description("revoke a key: every instance refuses it within a second")),
  ).action((keyId: string, { wait = false, ...flags }: ChangeFlags) =>
    withAdmin(flags, async (admin) => {
      const { revokedAt } = await admin.getKey({ keyId });
      if (revokedAt !== undefined) note(`The key '${keyId}' was revoked already.`);
      const revoked = await admin.revokeKey({ keyId, wait });
      show("revokeKey", revoked, flags, printKey);
      checkActed(wait, revoked);
    }),
  );
  withClient(
    withWait(
      key.command("rotate <id>").description("create a key in place of another one, which then expires; print it"),
    ),
  )
    .requiredOption("--grace <duration>", "how long the old key still works, such as 24h, 30m or 0s", parseDuration)
    .action((keyId: string, { wait = false, grace, ...flags }: ChangeFlags & { grace: number }) =>
      withAdmin(flags, async (admin) => {
        const rotated = await admin.rotateKey({ keyId, wait, grace: { seconds: BigInt(grace / 1000) } });
        show("rotateKey", rotated, flags, printRotatedKey);
        sayEarlyEnd(rotated.key, rotated.replaced, grace);
        checkActed(wait, rotated);
      }),
    );
  withClientPages(key.command("list").description("list the keys of an app: status, and last use to the minute"))
    .requiredOption("--app <id>", "id of the app")
    .action(({ app, ...flags }: ClientPageFlags & { app: string }) =>
      callPage("listKeys", { appId: app }, flags, printKeys),
    );
  withClient(key.command("show <id>").description("show a key, without its secret")).action(
    (keyId: string, flags: ClientFlags) => call("getKey", { keyId }, flags, printKey),
  );
  withClient(key.command("find").description("say whose key a leaked secret is, and revoke it if asked"))
    .option("--file <file>", "file with the secret; - is standard input", "-")
    .option("--revoke", "revoke it in the same call")
    .action(async ({ file, revoke = false, ...flags }: ClientFlags & { file: string; revoke?: boolean }) =>
      call("findKey", { secret: await readSecret(file), revoke }, flags, printFoundKey),
    );
}

interface SettingFlags extends ClientFlags {
  readonly name?: string;
  readonly scope?: ScopeName[];
  readonly eventType?: string[];
  readonly cidr?: string[];
  readonly expires?: Date;
}

const withSettings = (command: Command): Command =>
  command
    .option("--name <name>", "display name")
    .addOption(
      new Option("--scope <scope...>", "ingest: send events and snapshots; read: read the timeline").choices(scopes),
    )
    .option("--event-type <type...>", "only these of the app's event types; * at the end matches anything")
    .option("--cidr <block...>", "only from these addresses, such as 192.0.2.0/24")
    .option("--expires <time>", "when it expires: a time with an offset, or a date (UTC)", parseTimeOrDate);

const settingsOf = ({ name, scope, eventType: eventTypes, cidr: cidrs, expires }: SettingFlags) =>
  given({
    ...{ name, eventTypes, cidrs },
    scopes: scope?.map((one) => Scope[one.toUpperCase() as "READ"]),
    expiresAt: expires === undefined ? undefined : timestampFromDate(expires),
  });

/** Flags and the members that they clear. */
const clearable = { name: "name", "event-type": "eventTypes", cidr: "cidrs", expires: "expiresAt" } as const;

interface ChangeFlags extends ClientFlags {
  readonly wait?: boolean;
}

const withWait = (command: Command) =>
  command.option("--wait", "return when every running instance has applied the change");

/** @throws CommandError if the command waited for the instances, and not all of them confirmed the change. */
function checkActed(wait: boolean, { actedAfterMs }: { readonly actedAfterMs?: number | undefined }): void {
  if (!wait || actedAfterMs !== undefined) return;
  throw new CommandError(
    "It is done, but not every running instance has confirmed it within 30 s. `ingest instances` lists them.",
  );
}

/** A key cannot outlive its own expiry, however long the grace is. */
function sayEarlyEnd(created: Key | undefined, replaced: Key | undefined, graceMs: number): void {
  if (created?.createdAt === undefined || replaced?.expiresAt === undefined) return;
  if (timestampMs(replaced.expiresAt) >= timestampMs(created.createdAt) + graceMs) return;
  const end = timestampDate(replaced.expiresAt).toISOString();
  note(`The old key expires at ${end}, before the grace is over: it had to anyway.`);
}

/** Not an argument, because other users can read command lines. @throws ConfigError */
async function readSecret(file: string): Promise<string> {
  if (file === "-" && process.stdin.isTTY) {
    throw new ConfigError("Give the secret on standard input, or name a file that holds it with --file.");
  }
  return (await readInput(file)).trim();
}
