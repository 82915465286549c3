import { readFile } from "node:fs/promises";
import type { App } from "../app.ts";
import { exitCodeOf } from "./exit.ts";
import { note, say } from "../terminal.ts";
import { startInProcess } from "./process.ts";
import { watchSignals } from "./signals.ts";
import { isWorkerProcess, runWorkerProcess, startProcesses } from "./cluster.ts";
import { type Config, isAdminPublic, parseConfig, warningsOf } from "../config.ts";
import { collections } from "../store/collections.ts";
import { createClient } from "../store/database.ts";
import { prepareDatabase } from "../store/migrations.ts";
import { organizationCollection } from "../store/organizations.ts";
import { openDatabaseServer } from "../embedded/database-server.ts";
import { checkListener } from "./preflight.ts";
import { announce, type Demo, startLines } from "./start-lines.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Runs the service until SIGTERM, SIGINT or SIGHUP. Then lets requests in flight finish, closes the database and
 * returns the exit code. A signal during the start, or a second one, ends the process at once. It also ends an embedded
 * database that no other process uses.
 * @throws ConfigError, or another error whose one sentence says why the service cannot start.
 */
export async function serve(env: Environment): Promise<number> {
  const config = parseConfig(env);
  // The service keeps running when the pipe or terminal that reads its output closes.
  for (const output of [process.stdout, process.stderr]) output.removeAllListeners("error").on("error", () => {});
  if (isWorkerProcess) return runWorkerProcess(config, env);
  for (const warning of warningsOf(env)) note(warning);
  await checkListener(config);
  const signals = watchSignals();
  const database = await openDatabaseServer(config, env, { report: announce, ending: signals.ending, create: true });
  try {
    const demoKey = database.embedded ? await prepareEmbedded(database.uri, config) : undefined;
    const app = await start(config, database.uri, env, signals.ending);
    const stop = signals.stop();
    announce(`For operators: ${app.adminUrl}/metrics`, { adminUrl: app.adminUrl });
    announce(`Listening on ${app.url}`, { url: app.url, docs: `${app.url}/docs` });
    warnOfLocalUrl(config, app.url);
    if (process.stdout.isTTY) {
      // Advice must not end the service.
      const next =
        demoKey ?? (database.embedded ? undefined : await nextOfUri(database.uri, config).catch(() => undefined));
      const adminUrl = isAdminPublic(config) ? app.url : app.adminUrl;
      say(startLines({ url: app.url, adminUrl, certificate: config.TLS_CERT, next }));
    }
    announce(`Stopping after ${await stop}: requests in flight have ${config.DRAIN_SECONDS} s to finish.`);
    await app.close();
    return 0;
  } finally {
    await database.close();
  }
}

const start = (
  config: Config,
  mongodbUri: string,
  env: Environment,
  ending: AbortSignal,
): Promise<Pick<App, "url" | "adminUrl" | "close">> =>
  config.WORKERS > 1 ? startProcesses(config, mongodbUri, ending) : startInProcess(config, mongodbUri, env);

/** Migrates an embedded database and creates its demo organisation. */
async function prepareEmbedded(mongodbUri: string, { DATA_DIR, MONGODB_DB }: Config): Promise<Demo | undefined> {
  const { demoKeyPath, demoTokenPath, openDemo } = await import("../admin/demo.ts");
  const client = createClient(mongodbUri, { longOperations: true });
  try {
    const db = client.db(MONGODB_DB);
    await prepareDatabase(db, collections, "migrate");
    if ((await openDemo(db, DATA_DIR)) === undefined) return undefined;
    const managerToken = await readFile(demoTokenPath(DATA_DIR, "manager"), "utf8");
    return { keyFile: demoKeyPath(DATA_DIR), managerToken: managerToken.trim() };
  } finally {
    await client.close();
  }
}

/** Says whether the user still has to create a first key. */
async function nextOfUri(mongodbUri: string, { MONGODB_DB }: Config): Promise<"make a key" | undefined> {
  const client = createClient(mongodbUri);
  try {
    return (await organizationCollection(client.db(MONGODB_DB)).findOne()) === null ? "make a key" : undefined;
  } finally {
    await client.close();
  }
}

/** Every error links to its page. Callers on other machines cannot open a link to localhost. */
function warnOfLocalUrl({ HOST, PUBLIC_URL }: Config, url: string): void {
  const isFound = !/^https?:\/\/localhost:/.test(url);
  if (PUBLIC_URL !== undefined || isFound || ["localhost", "127.0.0.1"].includes(HOST)) return;
  const reason = `errors sent to callers link to ${url}, which other machines cannot open`;
  announce(`PUBLIC_URL is not set: ${reason}. Set it to the address that callers use.`, { level: 40 });
}

/**
 * Serves, and prints on standard error why the service cannot start. Then ends the process, because open handles, such
 * as a worker process's channel, would keep it alive.
 */
export async function serveAndExit(env: Environment): Promise<never> {
  try {
    return process.exit(await serve(env));
  } catch (error) {
    note(error instanceof Error ? error.message : String(error));
    return process.exit(exitCodeOf(error));
  }
}
