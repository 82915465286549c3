import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { MongoClient, type MongoServerError } from "mongodb";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { collections } from "../../src/store/collections.ts";
import { migrate } from "../../src/store/migrations.ts";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";
import { locateMongod } from "../../src/embedded/binary.ts";
import { identifyMongod, startMongod, stopMongod, uriOf } from "../../src/embedded/mongod.ts";
import { announce, exclusively, present, processIdentity } from "../../src/process-lock.ts";
import { runInProcess } from "../support/command.ts";
import { databaseFolder } from "../support/database-folder.ts";
import { eventually, ServiceProcess } from "../support/processes.ts";
import { createTenant } from "../support/service.ts";
import { Setup } from "../support/setup.ts";

let dataDir: string;
let started: ServiceProcess[];

beforeEach(async () => {
  dataDir = await databaseFolder("embedded");
  started = [];
});

afterEach(async () => {
  for (const { child } of started) child.kill("SIGKILL");
  const mongod = await runningMongod();
  if (mongod !== undefined) await gone(mongod.pid, "SIGKILL");
  rmSync(dataDir, { recursive: true, force: true });
});

const open = () => openEmbeddedDatabase({ dataDir, env: process.env, report: () => {} });

async function start(env: Record<string, string> = {}, nodeArgs: readonly string[] = []): Promise<ServiceProcess> {
  const service = await ServiceProcess.start({ DATA_DIR: dataDir, LOG_LEVEL: "warn", ...env }, nodeArgs);
  started.push(service);
  return service;
}

const password = () => readFileSync(join(dataDir, "mongod.key"), "utf8").trim();
const uriOn = (port: number | undefined) => `${uriOf(port as number, password())}&directConnection=true`;

/** The mongod of the data directory, as its port reports it. */
async function runningMongod() {
  if (!existsSync(join(dataDir, "port"))) return undefined;
  const port = Number(readFileSync(join(dataDir, "port"), "utf8"));
  const found = await identifyMongod(port, password());
  return found?.dbPath === join(dataDir, "mongo") ? { ...found, port } : undefined;
}

/** The mongod processes with a path below the directory among their arguments. */
const mongodsOn = (directory: string) =>
  readdirSync("/proc").filter((pid) => {
    try {
      const [, ...args] = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      return args.includes("--dbpath") && args.some((arg) => arg.startsWith(`${directory}/`));
    } catch {
      return false;
    }
  });

/** Waits for that. It asks seldom, because it reads about every process of the machine. */
const mongodsAre = (areThere: (mongods: number) => boolean, what: string) =>
  eventually(() => areThere(mongodsOn(dataDir).length), what, 30, 100);

/**
 * Repeats until `interrupt` stops a process in time. On a stalled machine the signal may come too late: the process has
 * then started or finished, and ended with 0.
 */
async function inTime<End extends { code: number | null }>(interrupt: () => Promise<End>): Promise<End> {
  for (let tries = 1; ; tries++) {
    const end = await interrupt();
    if (end.code !== 0 || tries === 3) return end;
    rmSync(dataDir, { recursive: true, force: true });
  }
}

async function gone(pid: number, signal: NodeJS.Signals): Promise<void> {
  process.kill(pid, signal);
  await eventually(() => processIdentity(pid) === undefined, `process ${pid} ends`);
}

const demoKey = async (service: ServiceProcess) => {
  await service.said(/^Listening on /);
  return readFileSync(join(dataDir, "demo-key"), "utf8").trim();
};

/** Sends one event, and retries until the answer is 202: the database may be away for a moment. */
async function sendEvent(service: ServiceProcess, key: string, idempotencyKey: string): Promise<string> {
  const response = await eventually(async () => {
    const answer = await fetch(`${service.url}/api/v1/ingest/events`, {
      method: "POST",
      signal: AbortSignal.timeout(60_000),
      headers: {
        authorization: `Bearer ${key}`,
        "content-type": "application/json",
        "idempotency-key": idempotencyKey,
      },
      body: JSON.stringify({
        events: [{ eventType: "ticket.resolved", category: "project_management", actor: { email: "a@example.com" } }],
      }),
    });
    const text = await answer.text();
    return answer.status === 202 ? { text, answer } : undefined;
  }, "an event is taken");
  return response.text;
}

async function countEvents(uri: string): Promise<number> {
  const client = new MongoClient(uri);
  try {
    return await client.db("ingest").collection("timeline").countDocuments();
  } finally {
    await client.close();
  }
}

const isRoot = process.getuid?.() === 0;

/** A command's answer. It runs in this process, which is one more user of the database. */
const listOrganizations = async () => (await runInProcess({ dataDir }, ["org", "list", "--json"])).printed;

// Each test starts and stops a mongod and services, which is slow on a busy machine.
describe("the embedded database", { timeout: 240_000 }, () => {
  test("is shared by services and commands, and survives whichever of them and of its mongods is killed", async () => {
    // Two services start at once in an empty folder: there is one demo organisation, and both learn its key.
    const secrets = { METRICS_TOKEN: "s3cret", OTEL_EXPORTER_OTLP_HEADERS: "x=s3cret" };
    const services = await Promise.all([start(secrets), start(secrets)]);
    const [first, second] = services;
    const keys = await Promise.all(services.map(demoKey));
    const key = keys[0] as string;
    expect(keys[1]).toBe(key);
    for (const service of services) {
      const answer = await fetch(`${service.url}/api/v1/ingest/ping`, { headers: { authorization: `Bearer ${key}` } });
      expect(await answer.json()).toMatchObject({ ok: true, app: { slug: "crm-hub", name: "CRM Hub" } });
    }
    const mongod = await runningMongod();
    if (process.platform === "linux") {
      expect(readFileSync(`/proc/${mongod?.pid}/environ`, "utf8")).not.toContain("s3cret");
      expect(readFileSync(`/proc/${first.child.pid}/environ`, "utf8")).toContain("s3cret");
    }
    const listed = await listOrganizations();
    expect(JSON.parse(listed)).toMatchObject([{ name: "Demo" }]);
    const answer = await sendEvent(first, key, "one");
    expect(await first.end()).toEqual({ code: 0, signal: null });
    expect((await runningMongod())?.pid).toBe(mongod?.pid);

    // The next service adopts the mongod of a killed one.
    await second.end("SIGKILL");
    const third = await start();
    expect(third.lines[0]).toContain(`running already (process ${mongod?.pid})`);
    expect(await demoKey(third)).toBe(key);
    // Without a terminal: lines of JSON without the key.
    for (const line of third.lines) expect(JSON.parse(line)).toMatchObject({ level: 30, pid: third.child.pid });
    expect(third.lines.join("\n")).not.toContain("wp_live_");
    expect(await sendEvent(third, key, "one")).toBe(answer);
    const tokens = ["operator", "manager"].map((role) => join(dataDir, `demo-${role}-token`));
    for (const path of [join(dataDir, "demo-key"), ...tokens]) expect(statSync(path).mode & 0o777).toBe(0o600);
    const callers = tokens.map((path) =>
      fetch(`${third.url}/api/v1/admin/whoami`, {
        headers: { authorization: `Bearer ${readFileSync(path, "utf8").trim()}` },
      }).then((response) => response.json()),
    );
    expect(await Promise.all(callers)).toMatchObject([
      { name: "Demo operator", role: "operator" },
      { name: "Demo manager", role: "manager", organizationId: expect.stringMatching(/^org_/) },
    ]);

    // Both are killed.
    await third.end("SIGKILL");
    await gone(mongod?.pid as number, "SIGKILL");
    const fourth = await start();
    expect(await sendEvent(fourth, key, "one")).toBe(answer);
    await sendEvent(fourth, key, "two");
    const before = await runningMongod();
    expect(await countEvents(uriOn(before?.port))).toBe(2);

    // A mongod that is killed while a service runs is started again, on its port.
    await gone(before?.pid as number, "SIGKILL");
    await fourth.said(new RegExp(`mongod \\(process ${before?.pid}\\) has ended; starting it again`));
    await sendEvent(fourth, key, "three");
    const last = await runningMongod();
    expect(last?.port).toBe(before?.port);
    expect(await countEvents(uriOn(last?.port))).toBe(3);

    // The last to leave stops it.
    expect(await fourth.end()).toEqual({ code: 0, signal: null });
    expect(processIdentity(last?.pid as number)).toBeUndefined();
    expect(await listOrganizations()).toBe(listed);
    expect(await runningMongod()).toBeUndefined();
  });

  test("keeps its password and data from other users, serves them over a restart, and trusts no other mongod", async () => {
    chmodSync(dataDir, 0o755);
    const first = await open();
    const port = Number(readFileSync(join(dataDir, "port"), "utf8"));
    const asStranger = async (credentials: string, command: object) => {
      const client = new MongoClient(`mongodb://${credentials}127.0.0.1:${port}/?directConnection=true`);
      try {
        return await client.db("admin").command(command);
      } catch (error) {
        return (error as MongoServerError).codeName;
      } finally {
        await client.close();
      }
    };
    const refused = /^(Unauthorized|AuthenticationFailed)$/;
    expect(await asStranger("", { find: "keys", $db: "ingest" })).toMatch(refused);
    expect(await asStranger("", { createUser: "evil", pwd: "x", roles: ["root"] })).toMatch(refused);
    expect(await asStranger("", { shutdown: 1 })).toMatch(refused);
    expect(await asStranger("__system:guess@", { ping: 1 })).toMatch(refused);
    expect(statSync(join(dataDir, "mongod.key")).mode & 0o777).toBe(0o600);
    const nobody = { uid: 65_534, gid: 65_534, encoding: "utf8" as const };
    for (const path of isRoot ? ["mongod.key", "port", "mongo/WiredTiger.wt", "mongod.log"] : []) {
      expect(existsSync(join(dataDir, path)), path).toBe(true);
      expect(spawnSync("cat", [join(dataDir, path)], nobody)).toMatchObject({ status: 1, stdout: "" });
    }
    await serveLimitedUser(first.uri, port);
    await first.close();
    expect(await runningMongod()).toBeUndefined();

    const rows = async (uri: string, insert: boolean) => {
      const client = new MongoClient(uri);
      const collection = client.db("x").collection("x");
      if (insert) await collection.insertOne({});
      const found = await collection.countDocuments();
      await client.close();
      return found;
    };
    // Each start moves a long log away.
    truncateSync(join(dataDir, "mongod.log"), 30_000_000);
    const second = await open();
    expect(statSync(join(dataDir, "mongod.log")).size).toBeLessThan(1_000_000);
    expect(statSync(join(dataDir, "mongod.log.1")).size).toBe(30_000_000);
    expect(second.uri).toBe(first.uri);
    expect(await rows(second.uri, true)).toBe(1);
    await second.close();

    const own = await databaseFolder("stranger");
    const { path } = await locateMongod(process.env, () => {});
    const stranger = await startMongod({ binary: path, dbPath: own, port, logPath: join(own, "log") });
    try {
      const third = await open();
      expect(new URL(third.uri).port).not.toBe(String(port));
      expect(await rows(third.uri, true)).toBe(2);
      // As after a crash of mongod whose process id another process has: nobody ends that one.
      const bystander = spawn("sleep", ["60"]);
      await gone((await runningMongod())?.pid as number, "SIGKILL");
      writeFileSync(join(dataDir, "mongo", "mongod.lock"), `${bystander.pid}\n`);
      await third.close();
      expect(bystander.exitCode).toBeNull();
      bystander.kill();
      expect(mongodsOn(dataDir)).toEqual([]);
      expect(processIdentity(stranger)).toBeDefined();
      expect(await rows(`mongodb://127.0.0.1:${port}/?directConnection=true`, false)).toBe(0);
    } finally {
      await stopMongod(stranger);
      rmSync(own, { recursive: true, force: true });
    }
  });

  /** A service serves a user who may only read and write, once the database is set up. It loads no code of this folder. */
  async function serveLimitedUser(systemUri: string, port: number): Promise<void> {
    const client = new MongoClient(systemUri);
    const actions = ["find", "insert", "update", "remove", "changeStream"];
    const privileges = [{ resource: { db: "ingest", collection: "" }, actions }];
    const admin = client.db("admin");
    await admin.command({ createRole: "ingest", privileges, roles: [] });
    await admin.command({ createUser: "ingest", pwd: "pw", roles: ["ingest"] });
    await migrate(client.db("ingest"), collections);
    const { key } = await createTenant(new Setup(client.db("ingest")));
    await client.close();
    const spy = `import { registerHooks } from "node:module";
      registerHooks({ load(url, context, next) { process._rawDebug("loaded " + url); return next(url, context); } });`;
    const nodeArgs = ["--import", `data:text/javascript,${encodeURIComponent(spy)}`];
    const uri = `mongodb://ingest:pw@127.0.0.1:${port}/?authSource=admin&replicaSet=ingest`;
    const service = await start({ MONGODB_URI: uri }, nodeArgs);
    await sendEvent(service, key, "one");
    expect((await fetch(`${service.url}/readyz`)).status).toBe(200);
    const loaded = service.lines.filter((line) => line.startsWith("loaded "));
    expect(loaded.some((line) => line.endsWith("/src/embedded/database-server.ts"))).toBe(true);
    expect(loaded.filter((line) => /\/embedded\/(?!database-server)|admin\/demo/.test(line))).toEqual([]);
    await service.end();
  }

  test.each([
    ["below /proc", "/proc/1/x", "it does not exist and cannot be created; choose another folder"],
    ["that is a file", "/etc/hostname", "it or a part of its path is not a directory; choose another folder"],
    ["below a file", "/etc/hostname/x", "it or a part of its path is not a directory; choose another folder"],
  ])("refuses a folder %s in one sentence", async (_, folder, reason) => {
    const opening = openEmbeddedDatabase({ dataDir: folder, env: process.env, report: () => {} });
    await expect(opening).rejects.toThrow(`DATA_DIR '${folder}' cannot be used: ${reason}.`);
  });

  test.skipIf(!isRoot)("refuses a folder that is full, read-only, or not its own, in one sentence", async () => {
    const [full, readOnly] = [join(dataDir, "full"), join(dataDir, "read-only")];
    const code = `const { openEmbeddedDatabase } = await import("./src/embedded/embedded.ts");
      for (const dataDir of process.argv.slice(1))
        await openEmbeddedDatabase({ dataDir, env: process.env, report() {} }).catch((error) => console.log(error.message));`;
    const script = `mkdir ${full} ${readOnly}
      mount -t tmpfs -o size=64k none ${full}; mount -t tmpfs -o ro none ${readOnly}
      ${process.execPath} --input-type=module --eval '${code}' ${full} ${readOnly}`;
    const { stdout } = spawnSync("unshare", ["--mount", "bash", "-c", script], { encoding: "utf8" });
    expect(stdout.trim().split("\n")).toEqual([
      expect.stringContaining(`'${full}' cannot be used: its disk is full; free some space`),
      expect.stringContaining(
        `'${readOnly}' cannot be used: its file system is mounted read-only; choose another folder`,
      ),
    ]);
    chmodSync(dataDir, 0o777);
    await expect(open()).rejects.toThrow(`Every user may write in DATA_DIR '${dataDir}'`);
    chmodSync(dataDir, 0o700);
    writeFileSync(join(dataDir, "mongod.key"), "a".repeat(64), { mode: 0o644 });
    await expect(open()).rejects.toThrow(/mongod\.key must hold 64 hex digits and belong to this user alone/);
  });

  const command = ["src/cli.ts", "org", "create", "--name", "x", "--init"];
  // The file that exists at the moment of the signal: the lock for starting, the log, the first data.
  const moments = [
    ["a service", "turn", "SIGTERM", 143],
    ["a command", "mongod.log", "SIGINT", 130],
    ["a service", "mongo/WiredTiger.wt", "SIGTERM", 143],
    ["a service", "mongo/_mdb_catalog.wt", "SIGTERM", 143],
  ] as const;

  test.skipIf(process.platform !== "linux").each(moments)(
    "ends with %s that is stopped during its start, once %s exists",
    async (what, moment, signal, code) => {
      const end = await inTime(async () => {
        const args = what === "a command" ? command : ["src/main.ts"];
        const env = { ...process.env, MONGODB_URI: undefined, DATA_DIR: dataDir, PORT: "0", HOST: "127.0.0.1" };
        const stopped = spawn(process.execPath, args, { env, stdio: "ignore" });
        const exit = once(stopped, "exit");
        const isThere = () => existsSync(join(dataDir, moment)) || stopped.exitCode !== null;
        await eventually(isThere, `${moment} is there`);
        stopped.kill(signal);
        const [code, by] = await exit;
        return { code, by };
      });
      expect(end).toEqual({ code, by: null });
      await mongodsAre((mongods) => mongods === 0, "its mongod ends");
      const next = await open();
      await next.close();
      expect(mongodsOn(dataDir)).toEqual([]);
    },
  );

  test.skipIf(process.platform !== "linux")(
    "is created again if its first start was killed, and never removed once it has taken writes",
    async () => {
      const unfinished = join(dataDir, "mongo.unfinished");
      const killed = async () => {
        rmSync(dataDir, { recursive: true, force: true });
        const service = new ServiceProcess({ DATA_DIR: dataDir, LOG_LEVEL: "warn" });
        started.push(service);
        await eventually(() => existsSync(join(dataDir, "mongo", "WiredTiger.lock")), "its mongod makes files");
        await service.end("SIGKILL");
        for (const pid of mongodsOn(dataDir)) await gone(Number(pid), "SIGKILL");
        // On a stalled machine the kill may come too late.
        return existsSync(unfinished);
      };
      await eventually(killed, "a start is killed in time", 120);
      // After most moments, but not all, mongod can open the files that it left.
      const turtle = join(dataDir, "mongo", "WiredTiger.turtle");
      writeFileSync(turtle, "");
      const first = await open();
      expect(existsSync(unfinished)).toBe(false);
      await first.close();
      writeFileSync(turtle, "");
      const rows = readdirSync(join(dataDir, "mongo"));
      await expect(open()).rejects.toThrow(`The embedded database in ${dataDir} does not start: `);
      expect(readdirSync(join(dataDir, "mongo"))).toEqual(expect.arrayContaining(rows));
    },
  );
});

describe("presence", () => {
  test("counts only living processes: a dead one's file goes, and a reused process id does not revive it", async () => {
    const directory = join(dataDir, "users");
    const here = announce(directory);
    announce(directory).leave();
    const [name] = present(directory) as [string];
    writeFileSync(join(directory, "4194304.1.00000000.dead"), "");
    writeFileSync(join(directory, `${process.pid}.1.00000000.reused`), "");
    expect(present(directory)).toEqual([name]);
    here.leave();
    here.leave();
    expect(present(directory)).toEqual([]);
  });

  test("admits one at a time, however many ask at once", async () => {
    let inside = 0;
    let most = 0;
    const visit = () =>
      exclusively(join(dataDir, "turn"), async () => {
        most = Math.max(most, ++inside);
        await new Promise((resolve) => setTimeout(resolve, 5));
        inside--;
      });
    await Promise.all(Array.from({ length: 8 }, visit));
    expect(most).toBe(1);
  });

  test("names the process it waits for, and gives up on one that never finishes", async () => {
    const directory = join(dataDir, "turn");
    const holder = announce(directory);
    const waited: number[] = [];
    await expect(
      exclusively(
        directory,
        async () => {},
        (pid) => waited.push(pid),
        1.2,
      ),
    ).rejects.toThrow(`process ${process.pid} has held ${directory} for more than 1.2 seconds`);
    expect(waited).toEqual([process.pid]);
    holder.leave();
  });
});
