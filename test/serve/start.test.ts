import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, onTestFinished, test } from "vitest";
import { parseConfig } from "../../src/config.ts";
import { locateMongod } from "../../src/embedded/binary.ts";
import { freePort } from "../../src/embedded/mongod.ts";
import { exitCodeOf } from "../../src/serve/exit.ts";
import { checkListener } from "../../src/serve/preflight.ts";
import { firstKey, sendCall, startLines } from "../../src/serve/start-lines.ts";
import { type Certificate, createCertificate } from "../support/certificate.ts";
import { runInProcess } from "../support/command.ts";
import { eventually, runIngest, ServiceProcess } from "../support/processes.ts";
import { startService, useService } from "../support/service.ts";

let directory: string;

beforeEach(() => void (directory = mkdtempSync(join(tmpdir(), "ingest-start-"))));
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function file(name: string, text: string): string {
  writeFileSync(join(directory, name), text);
  return join(directory, name);
}

/** The exit code and the output of a service that cannot start. */
async function failedStart(env: Record<string, string>): Promise<{ code: number | null; text: string }> {
  const service = new ServiceProcess(env);
  const { code } = await service.ended();
  return { code, text: service.lines.join("\n") };
}

describe("a service that cannot listen says why in one sentence, before it starts a database", () => {
  test("if the port is taken", async () => {
    const squatter = createServer().listen(0, "127.0.0.1");
    await once(squatter, "listening");
    const { port } = squatter.address() as AddressInfo;
    const dataDir = join(directory, "data");
    const { code, text } = await failedStart({ PORT: String(port), DATA_DIR: dataDir });
    expect({ code, text }).toEqual({
      code: 2,
      text: `Port ${port} is in use: stop the program that has it, or set PORT to another one.`,
    });
    expect(existsSync(dataDir)).toBe(false);
    squatter.close();
  });

  test.each(["192.0.2.77", "no.such.host.invalid", "300.1.1.1"])("if HOST is %s", async (host) => {
    await expect(checkListener(parseConfig({ HOST: host, PORT: "0" }))).rejects.toThrow(
      `HOST is '${host}', which is no address of this machine`,
    );
  });

  let own: Certificate;
  let others: Certificate;
  beforeAll(async () => {
    [own, others] = await Promise.all([createCertificate(), createCertificate()]);
  });

  const check = (cert: string, key: string, clientCa?: string) =>
    checkListener(parseConfig({ PORT: "0", TLS_CERT: cert, TLS_KEY: key, TLS_CLIENT_CA: clientCa })).then(
      () => "listens",
      (error: Error) => error.message.replaceAll(`${directory}/`, ""),
    );

  test("if the TLS files are swapped, broken, of two pairs, or missing", async () => {
    const cert = file("cert", own.cert);
    const key = file("key", own.key);
    expect(await check(cert, key)).toBe("listens");
    expect(await check(key, cert)).toMatch(/^TLS_CERT and TLS_KEY are swapped/);
    expect(await check(cert, file("other", others.key))).toMatch(/^TLS_KEY 'other' is not the key of the first cert/);
    expect(await check(file("cut", own.cert.slice(0, 200)), key)).toBe("TLS_CERT 'cut' holds no certificate in PEM.");
    expect(await check(cert, file("cutKey", own.key.slice(0, 200)))).toBe(
      "TLS_KEY 'cutKey' holds no private key in PEM.",
    );
    expect(await check(cert, cert)).toBe("TLS_KEY 'cert' holds no private key in PEM.");
    expect(await check(join(directory, "none"), key)).toBe("TLS_CERT 'none' cannot be read: there is no such file.");
    expect(await check(cert, directory)).toMatch(/^TLS_KEY .* cannot be read: it is a directory\.$/);
    expect(await check(cert, key, file("ca", others.cert))).toBe("listens");
    expect(await check(cert, key, key)).toBe("TLS_CLIENT_CA 'key' holds no certificate in PEM.");
  });
});

test("arguments of `npm start` are refused, because they would have no effect", async () => {
  const child = spawn(process.execPath, ["src/main.ts", "--port", "3000"], { stdio: ["ignore", "ignore", "pipe"] });
  let text = "";
  child.stderr.on("data", (chunk) => (text += chunk));
  expect(await once(child, "close")).toEqual([2, null]);
  expect(text).toBe(
    "'--port 3000' is not understood: settings are environment variables, as in PORT=3000 npm start.\n",
  );
});

describe("a database that is not a replica set is refused in one sentence", { timeout: 120_000 }, () => {
  let mongods: ChildProcess[] = [];
  afterAll(() => mongods.forEach((mongod) => mongod.kill("SIGKILL")));

  async function startMongod(...args: string[]): Promise<number> {
    const { path } = await locateMongod(process.env, () => {});
    const dbPath = mkdtempSync(join(tmpdir(), "ingest-standalone-"));
    onTestFinished(() => rmSync(dbPath, { recursive: true, force: true }));
    const port = await freePort();
    const options = ["--dbpath", dbPath, "--port", String(port), "--bind_ip", "127.0.0.1", "--nounixsocket"];
    const mongod = spawn(path, [...options, ...args], { stdio: ["ignore", "pipe", "ignore"] });
    mongods.push(mongod);
    onTestFinished(() => void mongod.kill("SIGKILL"));
    let log = "";
    mongod.stdout.on("data", (chunk) => (log += chunk));
    await eventually(() => log.includes("Waiting for connections"), "mongod listens", 60);
    return port;
  }

  /** The exit code and the output of a service on this database, which starts in this process. */
  const failureOf = async (mongodbUri: string) => {
    const failure = await startService({ mongodbUri }).then(
      () => undefined,
      (error: Error) => error,
    );
    return { code: exitCodeOf(failure), text: failure?.message };
  };

  test("by the service and by commands: a standalone mongod", async () => {
    const port = await startMongod();
    const uri = `mongodb://127.0.0.1:${port}/`;
    const sentence =
      "MONGODB_URI names a standalone mongod, and Ingest needs a replica set: start mongod with --replSet rs0, then run rs.initiate() in mongosh once.";
    expect(await failedStart({ MONGODB_URI: uri })).toEqual({ code: 2, text: sentence });
    const command = await runIngest(["org", "list"], { MONGODB_URI: uri });
    expect(command).toEqual({ code: 2, stdout: "", stderr: `${sentence}\n` });
    expect((await failureOf(`${uri}?replicaSet=rs0`)).text).toMatch(
      /^No server of MONGODB_URI belongs to the replica set 'rs0': correct replicaSet, or start mongod with --replSet rs0 /,
    );
  });

  test("a replica set that was never initiated", async () => {
    const port = await startMongod("--replSet", "rs0");
    for (const query of ["", "?directConnection=true", "?replicaSet=rs0"]) {
      expect(await failureOf(`mongodb://127.0.0.1:${port}/${query}`), query).toEqual({
        code: 2,
        text: "MONGODB_URI names a replica set that was never initiated: run rs.initiate() in mongosh once.",
      });
    }
  });
});

describe("the lines on a terminal", { timeout: 120_000 }, () => {
  const suite = useService();
  const run = async (script: string) => {
    const child = spawn("bash", ["-c", script], { stdio: ["ignore", "pipe", "inherit"] });
    let text = "";
    child.stdout.on("data", (chunk) => (text += chunk));
    await once(child, "close");
    return text;
  };

  test("are few and short, with the pages first", () => {
    const text = startLines({
      url: "http://localhost:8080",
      adminUrl: "http://localhost:8080",
      certificate: undefined,
      next: { keyFile: ".data/demo-key", managerToken: "wp_adm_0" },
    });
    const lines = text.split("\n").filter((line) => line !== "");
    expect(lines.slice(0, 3)).toEqual([
      "  Docs     http://localhost:8080/docs",
      "  Console  http://localhost:8080/console/",
      "           Sign in with wp_adm_0",
    ]);
    const captions = lines.map((line) => line.slice(2, 11).trim()).filter(Boolean);
    expect(captions).toEqual(["Docs", "Console", "Send", "See it", "Stop"]);
    for (const line of lines) expect(line.length).toBeLessThan(140);
  });

  test("have a call that stores an event when pasted", async () => {
    const answer = await run(sendCall(suite.url, file("a key", suite.tenant.key)).join("\n"));
    expect(JSON.parse(answer)).toMatchObject({ accepted: 1, rejected: 0 });
  });

  test("have the commands for a first key", async () => {
    const ids: Record<string, string> = {};
    for (const command of firstKey) {
      const words = command
        .replaceAll("'", "")
        .replace(/[A-Z]+_ID/, (name) => ids[name] as string)
        .split(" ");
      const { printed, error } = await runInProcess(suite.service.app.db.databaseName, [...words.slice(2), "--json"]);
      expect(error).toBeUndefined();
      const { id, secret } = JSON.parse(printed);
      ids[words[2] === "org" ? "ORG_ID" : "APP_ID"] = id;
      if (words[2] === "key") expect(secret).toMatch(/^wp_live_/);
    }
  });

  test("are printed by the service on a terminal, where Ctrl-C stops it", async () => {
    const database = `terminal-${process.pid}`;
    const env = `PORT=0 HOST=0.0.0.0 MONGODB_URI='${inject("mongodbUri")}' MONGODB_DB=${database}`;
    // `exec`, because a shell in between would end with its own code after Ctrl-C.
    const start = `exec env ${env} ${process.execPath} src/main.ts`;
    const terminal = spawn("script", ["--quiet", "--return", "--command", start, "/dev/null"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    onTestFinished(() => void terminal.kill("SIGKILL"));
    const closed = once(terminal, "close");
    let text = "";
    terminal.stdout.on("data", (chunk) => (text += chunk));
    await eventually(() => text.includes("Stop "), "it says how to stop it", 60);
    expect(text).toMatch(/^Listening on http:\/\/localhost:\d+\r\n/m);
    expect(text).toContain("PUBLIC_URL is not set: errors sent to callers link to http://localhost:");
    for (const line of firstKey) expect(text).toContain(line);
    const before = text.length;
    await fetch(`http://127.0.0.1:${/Listening on http:\/\/localhost:(\d+)/.exec(text)?.[1]}/api/v1/ingest/ping`);
    await eventually(() => text.includes("missing_authorization"), "the request is logged");
    const logged = text
      .slice(before)
      .split("\r\n")
      .filter((line) => line !== "");
    expect(logged).toEqual([expect.stringContaining("GET /api/v1/ingest/ping 401 missing_authorization")]);
    terminal.stdin.write("\x03");
    expect(await closed).toEqual([0, null]);
    expect(text).toContain("Stopping after SIGINT");
  });
});
