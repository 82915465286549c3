import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type Command, Option } from "commander";
import { Role, RoleSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { restNames } from "../message-json.ts";
import { parseTimeOrDate } from "./arguments.ts";
import {
  call,
  callPage,
  type ClientFlags,
  type ClientPageFlags,
  given,
  withClient,
  withClientPages,
} from "./client.ts";
import { printIdentity, printNewToken, printToken, printTokens } from "./views.ts";

interface TokenFlags {
  readonly role?: string;
  readonly org?: string;
}

export function addToken(program: Command): void {
  const token = program.command("token").description("create, list and revoke access tokens of the administration API");
  withClient(token.command("create").description("create an access token and print it; it is not shown again"))
    .requiredOption("--name <name>", "display name, such as whom it is for")
    .addOption(roleOption("what it may do").makeOptionMandatory())
    .option("--org <id>", "the only organisation that it sees; a manager needs one, an operator has none")
    .option("--expires <time>", "when it expires: a time with an offset, or a date (UTC)", parseTimeOrDate)
    .action(({ name, expires, ...flags }: ClientFlags & TokenFlags & { name: string; expires?: Date }) => {
      const expiresAt = expires === undefined ? undefined : timestampFromDate(expires);
      return call("createToken", { name, ...filtersOf(flags), ...given({ expiresAt }) }, flags, printNewToken);
    });
  withClientPages(token.command("list").description("list access tokens: role, and last use to the minute"))
    .addOption(roleOption("only of this role"))
    .option("--org <id>", "only of this organisation")
    .action((flags: ClientPageFlags & TokenFlags) => callPage("listTokens", filtersOf(flags), flags, printTokens));
  withClient(
    token.command("revoke <id>").description("revoke an access token: every instance refuses it at once"),
  ).action((tokenId: string, flags: ClientFlags) => call("revokeToken", { tokenId }, flags, printToken));
  withClient(program.command("whoami").description("say whose access token this is, and what it may do")).action(
    (flags: ClientFlags) => call("whoAmI", {}, flags, printIdentity),
  );
}

const roleOption = (meaning: string) => new Option("--role <role>", meaning).choices(restNames(RoleSchema));

const filtersOf = ({ role, org }: TokenFlags) =>
  given({ role: role === undefined ? undefined : Role[role.toUpperCase() as "VIEWER"], organizationId: org });
