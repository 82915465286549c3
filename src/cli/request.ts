import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type Command, Option } from "commander";
import { RequestOutcome, RequestOutcomeSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { restNames } from "../message-json.ts";
import type { AdminClient } from "../transport/api/admin-in-process.ts";
import { parseTimeOrDate } from "./arguments.ts";
import {
  call,
  callPage,
  type ClientFlags,
  type ClientPageFlags,
  given,
  organizationIdOf,
  withClient,
  withClientPages,
} from "./client.ts";
import { printRequest, printRequests } from "./views.ts";

interface ListFlags extends ClientPageFlags {
  readonly org?: string;
  readonly app?: string;
  readonly code?: string;
  readonly outcome?: string;
  readonly start?: Date;
  readonly end?: Date;
}

export function addRequest(program: Command): void {
  const request = program.command("request").description("find callers' requests");
  withClient(
    request.command("show <id>").description("show a request: caller, outcome, rejections, events, replays"),
  ).action((requestId: string, flags: ClientFlags) => call("getRequest", { requestId }, flags, printRequest));
  withClientPages(request.command("list").description("list requests that were not simply accepted, the newest first"))
    .option("--org <id>", "id of the organisation, if there are several")
    .option("--app <id>", "only of this app")
    .option("--code <code>", "only with this error code, of the request or of an event")
    .addOption(new Option("--outcome <outcome>", "only with this outcome").choices(restNames(RequestOutcomeSchema)))
    .option("--start <time>", "only received from then on", parseTimeOrDate)
    .option("--end <time>", "only received before then", parseTimeOrDate)
    .action((flags: ListFlags) => {
      const filters = filtersOf(flags);
      const ofOrganization = async (admin: AdminClient) => ({
        organizationId: await organizationOf(admin, flags),
        ...filters,
      });
      return callPage("listRequests", ofOrganization, flags, printRequests);
    });
}

/** An app belongs to one organisation, so nobody has to name that too. */
const organizationOf = async (admin: AdminClient, { org, app: appId }: ListFlags): Promise<string> =>
  org === undefined && appId !== undefined
    ? (await admin.getApp({ appId })).organizationId
    : organizationIdOf(admin, org);

const filtersOf = ({ app: appId, code, outcome, start, end }: ListFlags) =>
  given({
    ...{ appId, code },
    outcome: outcome === undefined ? undefined : RequestOutcome[outcome.toUpperCase() as "REFUSED"],
    startTime: start === undefined ? undefined : timestampFromDate(start),
    endTime: end === undefined ? undefined : timestampFromDate(end),
  });
