import { readFileSync } from "node:fs";
import { hostname, userInfo } from "node:os";
import type { DescField, DescMessage, Message, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Command, Option } from "commander";
import { problemOfAccessToken, isAccessToken } from "../access/access-token.ts";
import type { Identity } from "../access/identity.ts";
import type { UnaryRpc } from "../admin/dispatch.ts";
import { isLoopback, withoutEndSlashes } from "../addresses.ts";
import { ConfigError } from "../config.ts";
import { errorTable } from "../errors.ts";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { Admin } from "../gen/ingest/admin/v1/admin_pb.js";
import { timelineLimits } from "../limits.ts";
import { restJson } from "../message-json.ts";
import { parseBaseUrl } from "../send/client.ts";
import { CommandError, type Exit } from "../serve/exit.ts";
import { watchSignals } from "../serve/signals.ts";
import { note, say } from "../terminal.ts";
import type { AdminClient } from "../transport/api/admin-in-process.ts";
import { parseLimit } from "./arguments.ts";
import { type DatabaseOptions, stopOf, withDatabase } from "./context.ts";
import { jsonLine, type OutputFlags, type Print, withJson } from "./output.ts";

/** Flags of every command that calls the administration API. */
export interface ClientFlags extends OutputFlags, Pick<DatabaseOptions, "init"> {
  readonly url?: string;
  readonly tokenFile?: string;
}

export const withClient = (command: Command): Command =>
  withJson(command)
    .addOption(new Option("--url <url>", "address of a service's administration API").env("INGEST_URL"))
    .option("--token-file <file>", "file with the access token for --url; default: INGEST_TOKEN");

export interface ClientContext {
  /** Resolves at the first Ctrl-C or SIGTERM, which then does not end the process. */
  readonly stopped: () => Promise<unknown>;
}

/**
 * Runs `work` with a client of the administration API: of the service at `--url`, or else in this process on the database.
 * @throws CommandError or ConfigError that says what to do.
 */
export async function withAdmin<T>(
  flags: ClientFlags,
  work: (admin: AdminClient, context: ClientContext) => Promise<T>,
): Promise<T> {
  const url = flags.url?.trim() ?? "";
  return url === "" ? onDatabase(flags, work) : onService(url, flags, work);
}

async function onService<T>(
  text: string,
  flags: ClientFlags,
  work: (admin: AdminClient, context: ClientContext) => Promise<T>,
): Promise<T> {
  if (flags.init === true) throw new ConfigError("--init sets up a database: remove it, --url and INGEST_URL.");
  const url = parseUrl(text);
  const token = tokenOf(flags);
  if (process.env.MONGODB_URI !== undefined && text === process.env.INGEST_URL?.trim()) {
    note(`INGEST_URL is set, so this calls ${url.origin} and not the database of MONGODB_URI.`);
  }
  if (url.protocol === "http:" && !isLoopback(url.hostname.replace(/^\[|\]$/g, ""))) {
    note(`The access token goes to ${url.origin} unencrypted: use https.`);
  }
  const signals = watchSignals();
  try {
    // Each way to the API is loaded only if it is used, so that commands start faster.
    const { adminOverTheWire } = await import("../transport/api/admin-client.ts");
    return await work(adminOverTheWire(withoutEndSlashes(url.href), token), { stopped: stopOf(signals) });
  } catch (error) {
    throw wireErrorOf(error, url);
  } finally {
    signals.release();
  }
}

function onDatabase<T>(
  { init, tokenFile }: ClientFlags,
  work: (admin: AdminClient, context: ClientContext) => Promise<T>,
): Promise<T> {
  if (tokenFile !== undefined) throw new ConfigError("--token-file has no effect without --url or INGEST_URL.");
  return withDatabase(
    async ({ db, ids, now, config, stopped }) => {
      const [{ JobKeeper }, { createAdminServices }, { adminInProcess }] = await Promise.all([
        import("../admin/job-keeper.ts"),
        import("../admin/services.ts"),
        import("../transport/api/admin-in-process.ts"),
      ]);
      let cause: unknown;
      const failed = Promise.withResolvers<never>();
      // No service may run, so the command carries out the jobs that it begins.
      const jobs = new JobKeeper(db, { now, onError: failed.reject });
      const services = await createAdminServices(db, { ids, now, jobs, auditDays: config.AUDIT_DAYS });
      const admin = adminInProcess(services, operator(), (failure) => (cause = failure));
      try {
        return await Promise.race([work(admin, { stopped }), failed.promise]);
      } catch (error) {
        // Nobody but its user sees this process's causes.
        throw cause === undefined ? errorOf(error) : new CommandError(messageOf(cause), "failed");
      } finally {
        await jobs.stop();
      }
    },
    { init },
  );
}

/** Whoever can reach the database may do everything. */
function operator(): Identity {
  const id = userAtHost();
  return { kind: "cli", id, name: id, role: "operator", organizationId: undefined, expiresAtMs: Infinity };
}

function userAtHost(): string {
  let user: string;
  try {
    user = userInfo().username;
  } catch {
    // In a container, the user may have no name.
    user = `uid-${process.getuid?.() ?? "unknown"}`;
  }
  return `${user}@${hostname()}`;
}

function parseUrl(text: string): URL {
  try {
    return parseBaseUrl(text);
  } catch (error) {
    throw new ConfigError(`--url (INGEST_URL) ${(error as Error).message}`);
  }
}

/** @throws ConfigError that does not quote the token. */
function tokenOf({ tokenFile }: ClientFlags): string {
  const [source, text] =
    tokenFile === undefined ? ["INGEST_TOKEN", process.env.INGEST_TOKEN ?? ""] : [tokenFile, readToken(tokenFile)];
  const token = text.trim();
  if (token === "") {
    throw new ConfigError(
      tokenFile === undefined
        ? "A call of a service needs an access token: set INGEST_TOKEN, or name a file with --token-file. `ingest token create` makes one, on the database or with another token."
        : `${tokenFile} is empty; it must hold an access token.`,
    );
  }
  const problem = isAccessToken(token) ? problemOfAccessToken(token) : undefined;
  if (problem !== undefined) throw new ConfigError(`${source} is no access token: ${problem}.`);
  // HTTP would refuse it with a message that quotes it.
  if (!/^[!-~]+$/.test(token))
    throw new ConfigError(`${source} is no access token: it has spaces or control characters.`);
  return token;
}

function readToken(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new ConfigError(`--token-file cannot be read: ${(error as Error).message}`);
  }
}

/** The error of a call, for the terminal. Another error is not the API's. */
function errorOf(error: unknown): unknown {
  if (!(error instanceof ConnectError)) return error;
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason ?? "";
  const http = errorTable[reason as keyof typeof errorTable]?.http ?? 500;
  const exit: Exit = http === 401 ? "usage" : http >= 500 ? "failed" : "refused";
  return new CommandError(error.rawMessage, exit);
}

function wireErrorOf(error: unknown, url: URL): unknown {
  if (!(error instanceof ConnectError)) return error;
  const info = error.findDetails(ErrorInfoSchema)[0];
  if (info === undefined) return new CommandError(`${troubleOf(error, url)}`, "failed");
  if (info.reason === "internal_error") return new CommandError(`${url.origin}: ${error.rawMessage}`, "failed");
  return errorOf(error);
}

/** An answer without the API's error: nobody listens there, or another program does. */
function troubleOf({ rawMessage, code, cause }: ConnectError, { origin }: URL): string {
  const reason = rawMessage === "" ? Code[code] : rawMessage;
  const isReached = code !== Code.Unavailable && code !== Code.DeadlineExceeded && !(cause instanceof Error);
  return isReached
    ? `${origin} does not serve the administration API here (${reason}). Its address is that of ADMIN_PORT, which the service prints when it starts.`
    : `${origin} cannot be reached: ${reason}. Check --url (INGEST_URL).`;
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

type Answer<Rpc extends UnaryRpc> = MessageShape<(typeof Admin)["method"][Rpc]["output"]>;
type Request<Rpc extends UnaryRpc> = MessageInitShape<(typeof Admin)["method"][Rpc]["input"]>;
type Call = (request: object) => Promise<Message>;

/** Makes one call and prints its answer. */
export async function call<Rpc extends UnaryRpc>(
  rpc: Rpc,
  request: Request<Rpc>,
  flags: ClientFlags,
  print: Print<Answer<Rpc>>,
): Promise<void> {
  const answer = await withAdmin(flags, (admin) => (admin[rpc] as Call)(request));
  show(rpc, answer as Answer<Rpc>, flags, print);
}

/** Prints an answer: programs get REST's JSON, people what `print` makes of it. */
export function show<Rpc extends UnaryRpc>(
  rpc: Rpc,
  answer: Answer<Rpc>,
  { json }: OutputFlags,
  print: Print<Answer<Rpc>>,
): void {
  if (json === true) say(jsonLine(restJson(Admin.method[rpc].output, answer)));
  else print(answer);
}

/** The RPCs that answer a page, with its rows as their first member. */
export type ListRpc = Extract<UnaryRpc, `list${string}`>;
type RowsOf<T> = { [Name in keyof T]-?: T[Name] extends (infer Row)[] ? Row : never }[keyof T];
type PageMembers = "pageSize" | "pageToken";

/** Prints a page of a list. Tells people how to get the next one. */
export async function callPage<Rpc extends ListRpc>(
  rpc: Rpc,
  request: Omit<Request<Rpc>, PageMembers> | ((admin: AdminClient) => Promise<Omit<Request<Rpc>, PageMembers>>),
  flags: ClientFlags & Partial<ClientPageFlags>,
  print: Print<readonly RowsOf<Answer<Rpc>>[]>,
): Promise<void> {
  const { limit: pageSize, pageToken } = flags;
  const answer = (await withAdmin(flags, async (admin) => {
    const filters = typeof request === "function" ? await request(admin) : request;
    return (admin[rpc] as Call)({ ...filters, ...given({ pageSize, pageToken }) });
  })) as Answer<Rpc> & { readonly nextPageToken?: string };
  const field = Admin.method[rpc].output.fields[0] as DescField & {
    message: DescMessage;
    localName: keyof Answer<Rpc>;
  };
  const rows = answer[field.localName] as RowsOf<Answer<Rpc>>[];
  if (flags.json === true) say(jsonLine(rows.map((row) => restJson(field.message, row as Message))));
  else print(rows);
  const next = answer.nextPageToken ?? "";
  if (next !== "") note(`There are more: use --page-token ${next} to see them.`);
}

export interface ClientPageFlags extends ClientFlags {
  readonly limit: number;
  readonly pageToken?: string;
}

export const withClientPages = (command: Command): Command =>
  withClient(command)
    .option("--limit <rows>", `the most rows, up to ${timelineLimits.rowsMax}`, parseLimit, timelineLimits.rowsDefault)
    .option("--page-token <token>", "continue after an earlier page, with the same flags");

/**
 * The organisation of `--org`. Without the flag, the only one that the caller sees.
 * @throws CommandError if there is more than one, or none.
 */
export async function organizationIdOf(admin: AdminClient, org: string | undefined): Promise<string> {
  if (org !== undefined) return org;
  const { organizations } = await admin.listOrganizations({ pageSize: 2 });
  const [only] = organizations;
  if (only === undefined) throw new CommandError("There is no organisation yet: `ingest org create` makes one.");
  if (organizations.length === 1) return only.id;
  throw new CommandError("There are several organisations: name one with --org. `ingest org list` shows their ids.");
}

/** The members that have a value: an absent flag must not change or clear anything. */
export const given = <T extends object>(members: T): { [Name in keyof T]?: Exclude<T[Name], undefined> } =>
  Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as never;

/** The mask that names exactly these members. */
export const maskOf = (names: readonly string[]) => ({
  paths: names.map((name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)),
});

const passingCodes = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Aborted, Code.ResourceExhausted]);

/**
 * Whether a call may succeed later: the service or its database is away for a while. A connection that breaks has any code,
 * and no error of the API.
 */
export const isPassing = (error: unknown): boolean =>
  error instanceof ConnectError &&
  (passingCodes.has(error.code) || error.findDetails(ErrorInfoSchema)[0] === undefined);
