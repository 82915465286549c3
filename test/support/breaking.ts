import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * `buf breaking` against the newest release or, without a release, the first commit with the product's vocabulary. In a
 * shallow clone it has nothing to compare with, and says so.
 */
const firstContract = "3bc13bc49efaf71649c626222a6cb0b088ca47c8";

const git = (...args: string[]) =>
  execFileSync("git", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();

function baseline(): string | undefined {
  for (const find of [
    ["describe", "--tags", "--abbrev=0"],
    ["rev-parse", "--verify", "--quiet", `${firstContract}^{commit}`],
  ]) {
    try {
      return git(...find);
    } catch {
      // Not in this checkout: try the next one.
    }
  }
  return undefined;
}

/** Compiles the schema of any release together with today's workspace and third-party files. */
const surroundings = [
  "buf.yaml",
  "proto/google",
  "node_modules/@grpc/reflection/build/proto",
  "node_modules/grpc-health-check/proto",
];

const ref = baseline();
if (ref === undefined || spawnSync("git", ["cat-file", "-e", `${ref}:proto/ingest`]).status !== 0) {
  console.log("buf breaking: nothing to compare with");
} else {
  // The baseline needs its own workspace, because a git input lacks the files that its schema imports.
  const workspace = mkdtempSync(join(tmpdir(), "ingest-breaking-"));
  try {
    execFileSync("tar", ["-x", "-C", workspace], { input: execFileSync("git", ["archive", ref, "proto/ingest"]) });
    for (const path of surroundings) cpSync(path, join(workspace, path), { recursive: true });
    const { status } = spawnSync("buf", ["breaking", "proto", "--against", join(workspace, "proto")], {
      stdio: "inherit",
    });
    process.exitCode = status ?? 1;
    if (status === 0) console.log(`buf breaking: nothing breaks ${ref}`);
  } finally {
    rmSync(workspace, { recursive: true, force: true });
  }
}
