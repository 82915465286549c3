import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { MongoClient, type MongoServerError } from "mongodb";
import { afterEach, beforeEach, describe, expect, inject, test } from "vitest";
import { collections } from "../../src/store/collections.ts";
import { migrate } from "../../src/store/migrations.ts";
import { openEmbeddedDatabase } from "../../src/embedded/embedded.ts";
import { locateMongod } from "../../src/embedded/binary.ts";
import { identifyMongod, startMongod, stopMongod, uriOf } from "../../src/embedded/mongod.ts";
import { announce, exclusively, present, processIdentity } from "../../src/process-lock.ts";
import { listeningUrl } from "../support/announced.ts";
import { databaseFolder } from "../support/database-folder.ts";
import { eventually, runIngest, ServiceProcess } from "../support/processes.ts";
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

async function start(env: Record<string, string> = {}): Promise<ServiceProcess> {
  const service = await ServiceProcess.start({ DATA_DIR: dataDir, LOG_LEVEL: "warn", ...env });
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

/** Listens on a port once it is free: a cut connection holds it for a moment. */
async function listenOn(port: number): Promise<Server> {
  const server = createServer((socket) => socket.on("error", () => {}).destroy());
  const listening = () =>
    new Promise<string>((resolve) => {
      server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
      server.listen(port, "127.0.0.1", () => resolve("listening"));
    });
  await expect.poll(listening, { timeout: 60_000, interval: 200 }).toBe("listening");
  return server;
}

// Each test starts and stops a mongod and services, which is slow on a busy machine.
describe("the embedded database", { timeout: 240_000 }, () => {
  test("keeps its data over a restart, and its port unless another program has taken it", async () => {
    const first = await open();
    const client = new MongoClient(first.uri);
    await client.db("x").collection<{ _id: number }>("x").insertOne({ _id: 1 });
    await client.close();
    await first.close();
    expect(await runningMongod()).toBeUndefined();
    const restarted = async (): Promise<string> => {
      const again = await open();
      const client = new MongoClient(again.uri);
      expect(await client.db("x").collection("x").countDocuments()).toBe(1);
      await client.close();
      await again.close();
      return again.uri;
    };
    expect(await restarted()).toBe(first.uri);
    const squatter = await listenOn(Number(readFileSync(join(dataDir, "port"), "utf8")));
    try {
      expect(await restarted()).not.toBe(first.uri);
    } finally {
      squatter.close();
    }
  });

  test("survives a killed service, which the next one adopts, then both killed, then a killed mongod under a service", async () => {
    const first = await start();
    const key = await demoKey(first);
    const answer = await sendEvent(first, key, "one");
    const mongod = await runningMongod();
    await first.end("SIGKILL");

    const second = await start();
    expect(second.lines[0]).toContain(`running already (process ${mongod?.pid})`);
    expect(await demoKey(second)).toBe(key);
    // Without a terminal: lines of JSON without the key.
    for (const line of second.lines) expect(JSON.parse(line)).toMatchObject({ level: 30, pid: second.child.pid });
    expect(second.lines.join("\n")).not.toContain("wp_live_");
    expect(await sendEvent(second, key, "one")).toBe(answer);
    const tokens = ["operator", "manager"].map((role) => join(dataDir, `demo-${role}-token`));
    for (const path of [join(dataDir, "demo-key"), ...tokens]) expect(statSync(path).mode & 0o777).toBe(0o600);
    const callers = tokens.map((path) =>
      fetch(`${second.url}/api/v1/admin/whoami`, {
        headers: { authorization: `Bearer ${readFileSync(path, "utf8").trim()}` },
      }).then((response) => response.json()),
    );
    expect(await Promise.all(callers)).toMatchObject([
      { name: "Demo operator", role: "operator" },
      { name: "Demo manager", role: "manager", organizationId: expect.stringMatching(/^org_/) },
    ]);

    await second.end("SIGKILL");
    await gone(mongod?.pid as number, "SIGKILL");
    const third = await start();
    expect(await sendEvent(third, key, "one")).toBe(answer);
    await sendEvent(third, key, "two");
    const before = await runningMongod();
    expect(await countEvents(uriOn(before?.port))).toBe(2);

    // A mongod that is killed while a service runs is started again, on its port.
    await gone(before?.pid as number, "SIGKILL");
    await third.said(new RegExp(`mongod \\(process ${before?.pid}\\) has ended; starting it again`));
    await sendEvent(third, key, "three");
    const last = await runningMongod();
    expect(last?.port).toBe(before?.port);
    expect(await countEvents(uriOn(last?.port))).toBe(3);
    expect(await third.end()).toEqual({ code: 0, signal: null });
    expect(processIdentity(last?.pid as number)).toBeUndefined();
  });

  test("is shared by the service and the command, told no secret, and stopped by the last to leave", async () => {
    const service = await start({ METRICS_TOKEN: "s3cret", OTEL_EXPORTER_OTLP_HEADERS: "x=s3cret" });
    const before = await runningMongod();
    if (process.platform === "linux") {
      expect(readFileSync(`/proc/${before?.pid}/environ`, "utf8")).not.toContain("s3cret");
      expect(readFileSync(`/proc/${service.child.pid}/environ`, "utf8")).toContain("s3cret");
    }
    const listed = await runIngest(["org", "list", "--json"], { DATA_DIR: dataDir });
    expect(JSON.parse(listed.stdout)).toMatchObject([{ name: "Demo" }]);
    expect((await runningMongod())?.pid).toBe(before?.pid);
    await service.end();
    expect(await runningMongod()).toBeUndefined();
    const alone = await runIngest(["org", "list", "--json"], { DATA_DIR: dataDir });
    expect(alone.stdout).toBe(listed.stdout);
    expect(await runningMongod()).toBeUndefined();
  });

  test("has one demo organisation if two services start at once in an empty directory", async () => {
    const services = await Promise.all([start(), start()]);
    const keys = await Promise.all(services.map(demoKey));
    expect(keys[1]).toBe(keys[0]);
    const listed = await runIngest(["org", "list", "--json"], { DATA_DIR: dataDir });
    expect(JSON.parse(listed.stdout)).toHaveLength(1);
    for (const service of services) {
      const answer = await fetch(`${service.url}/api/v1/ingest/ping`, {
        headers: { authorization: `Bearer ${keys[0]}` },
      });
      expect(await answer.json()).toMatchObject({ ok: true, app: { slug: "crm-hub", name: "CRM Hub" } });
    }
    await Promise.all(services.map((service) => service.end()));
    expect(await runningMongod()).toBeUndefined();
  });

  test("requires its password from every user of the machine, from the first moment on", async () => {
    const database = await open();
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
    await database.close();
  });

  const isRoot = process.getuid?.() === 0;

  test.skipIf(!isRoot)("lets another user of the machine read neither its password nor its data", async () => {
    chmodSync(dataDir, 0o755);
    const database = await open();
    const nobody = { uid: 65_534, gid: 65_534, encoding: "utf8" as const };
    for (const path of ["mongod.key", "port", "mongo/WiredTiger.wt", "mongod.log"]) {
      expect(existsSync(join(dataDir, path)), path).toBe(true);
      expect(spawnSync("cat", [join(dataDir, path)], nobody)).toMatchObject({ status: 1, stdout: "" });
    }
    await database.close();
  });

  test("trusts no mongod that has taken its port, and ends no process that this one names", async () => {
    const first = await open();
    await first.close();
    const port = Number(readFileSync(join(dataDir, "port"), "utf8"));
    const own = await databaseFolder("stranger");
    const { path } = await locateMongod(process.env, () => {});
    const stranger = await startMongod({ binary: path, dbPath: own, port, logPath: join(own, "log") });
    try {
      const second = await open();
      expect(new URL(second.uri).port).not.toBe(String(port));
      const client = new MongoClient(second.uri);
      await client.db("x").collection("x").insertOne({});
      await client.close();
      await second.close();
      expect(processIdentity(stranger)).toBeDefined();
      const seen = new MongoClient(`mongodb://127.0.0.1:${port}/?directConnection=true`);
      expect((await seen.db("admin").admin().listDatabases()).databases.map(({ name }) => name)).not.toContain("x");
      await seen.close();
    } finally {
      await stopMongod(stranger);
      rmSync(own, { recursive: true, force: true });
    }
  });

  test("ends no process that has reused the id of its mongod", async () => {
    const database = await open();
    const mongod = await runningMongod();
    const bystander = spawn("sleep", ["60"]);
    // As after a crash of mongod: its lock file names an unrelated process.
    await gone(mongod?.pid as number, "SIGKILL");
    writeFileSync(join(dataDir, "mongo", "mongod.lock"), `${bystander.pid}\n`);
    await database.close();
    expect(bystander.exitCode).toBeNull();
    bystander.kill();
    expect(mongodsOn(dataDir)).toEqual([]);
  });

  test("serves a database user who may only read and write, once it is set up", async () => {
    const database = await open();
    const client = new MongoClient(database.uri);
    const privileges = [
      {
        resource: { db: "ingest", collection: "" },
        actions: ["find", "insert", "update", "remove", "changeStream"],
      },
    ];
    const admin = client.db("admin");
    await admin.command({ createRole: "ingest", privileges, roles: [] });
    await admin.command({ createUser: "ingest", pwd: "pw", roles: ["ingest"] });
    await migrate(client.db("ingest"), collections);
    const port = Number(readFileSync(join(dataDir, "port"), "utf8"));
    const uri = `mongodb://ingest:pw@127.0.0.1:${port}/?authSource=admin&replicaSet=ingest`;
    const { key } = await createTenant(new Setup(client.db("ingest")));
    const service = await start({ MONGODB_URI: uri });
    await sendEvent(service, key, "one");
    expect((await fetch(`${service.url}/readyz`)).status).toBe(200);
    await service.end();
    await client.close();
    await database.close();
  });

  test.each([
    ["below /proc", "/proc/1/x", "it does not exist and cannot be created; choose another folder"],
    ["that is a file", "/etc/hostname", "it or a part of its path is not a directory; choose another folder"],
    ["below a file", "/etc/hostname/x", "it or a part of its path is not a directory; choose another folder"],
  ])("refuses a folder %s in one sentence", async (_, folder, reason) => {
    const opening = openEmbeddedDatabase({ dataDir: folder, env: process.env, report: () => {} });
    await expect(opening).rejects.toThrow(`DATA_DIR '${folder}' cannot be used: ${reason}.`);
  });

  test.skipIf(!isRoot)("refuses a folder that is full, read-only, or not its own, in one sentence", async () => {
    const inFolder = (setup: string, user: object = {}) => {
      const code = `const { openEmbeddedDatabase } = await import("./src/embedded/embedded.ts");
        await openEmbeddedDatabase({ dataDir: process.argv[1], env: process.env, report() {} }).catch((error) => console.log(error.message));`;
      const node = `${process.execPath} --input-type=module --eval '${code}' ${dataDir}`;
      const script = `${setup}; ${node}`;
      return spawnSync("unshare", ["--mount", "bash", "-c", script], { encoding: "utf8", ...user });
    };
    expect(inFolder(`mount -t tmpfs -o size=64k none ${dataDir}`).stdout).toContain(
      "its disk is full; free some space",
    );
    expect(inFolder(`mount -t tmpfs -o ro none ${dataDir}`).stdout).toContain("mounted read-only; choose another");
    chmodSync(dataDir, 0o777);
    await expect(open()).rejects.toThrow(`Every user may write in DATA_DIR '${dataDir}'`);
    chmodSync(dataDir, 0o700);
    writeFileSync(join(dataDir, "mongod.key"), "a".repeat(64), { mode: 0o644 });
    await expect(open()).rejects.toThrow(/mongod\.key must hold 64 hex digits and belong to this user alone/);
  });

  // The file that exists at the moment of the signal: the lock for starting, the port, the log, the first data.
  const moments = ["turn", "port", "mongod.log", "mongo/WiredTiger.wt", "mongo/_mdb_catalog.wt"];

  test.skipIf(process.platform !== "linux").each(moments)(
    "ends with a service that is stopped during its start, once %s exists",
    async (moment) => {
      const listening = (service: ServiceProcess) => service.lines.filter((line) => listeningUrl(line) !== undefined);
      const end = await inTime(async () => {
        const stopped = new ServiceProcess({ DATA_DIR: dataDir, LOG_LEVEL: "warn" });
        started.push(stopped);
        const isThere = () => existsSync(join(dataDir, moment)) || listening(stopped).length > 0;
        await eventually(isThere, `${moment} is there`);
        return { ...(await stopped.end("SIGTERM")), listening: listening(stopped) };
      });
      expect(end).toEqual({ code: 143, signal: null, listening: [] });
      await mongodsAre((mongods) => mongods === 0, "its mongod ends");
      const next = await open();
      await next.close();
      expect(mongodsOn(dataDir)).toEqual([]);
    },
  );

  test.skipIf(process.platform !== "linux")("ends with a command that is interrupted", async () => {
    const end = await inTime(async () => {
      const command = spawn(process.execPath, ["src/cli.ts", "org", "create", "--name", "x", "--init"], {
        env: { ...process.env, DATA_DIR: dataDir },
        stdio: "ignore",
      });
      const exit = once(command, "exit");
      await mongodsAre((mongods) => mongods > 0 || command.exitCode !== null, "its mongod is there");
      command.kill("SIGINT");
      const [code, signal] = await exit;
      return { code, signal };
    });
    expect(end).toEqual({ code: 130, signal: null });
    await mongodsAre((mongods) => mongods === 0, "its mongod ends");
  });

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

  test("is not loaded by a service with MONGODB_URI", async () => {
    const spy = `import { registerHooks } from "node:module";
      registerHooks({ load(url, context, next) { process._rawDebug("loaded " + url); return next(url, context); } });`;
    const nodeArgs = ["--import", `data:text/javascript,${encodeURIComponent(spy)}`];
    const env = { MONGODB_URI: inject("mongodbUri"), MONGODB_DB: "test-uri", DATA_DIR: dataDir };
    const service = await ServiceProcess.start(env, nodeArgs);
    started.push(service);
    const loaded = service.lines.filter((line) => line.startsWith("loaded "));
    expect(loaded.some((line) => line.endsWith("/src/embedded/database-server.ts"))).toBe(true);
    expect(loaded.filter((line) => /\/embedded\/(?!database-server)|admin\/demo/.test(line))).toEqual([]);
    await service.end();
  });
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
