import { execFileSync, spawnSync } from "node:child_process";

/**
 * `buf breaking` against the newest release, or the main branch where there is none. A checkout without either (the first
 * commit, a shallow clone) has nothing to compare with, and says so.
 */
const git = (...args: string[]) => execFileSync("git", args, { encoding: "utf8" }).trim();

function baseline(): string | undefined {
  for (const find of [["describe", "--tags", "--abbrev=0"], ["rev-parse", "--verify", "--quiet", "origin/main"], ["rev-parse", "--verify", "--quiet", "main"]]) {
    try {
      return git(...find);
    } catch {
      // Not here: the next one.
    }
  }
  return undefined;
}

const ref = baseline();
if (ref === undefined || spawnSync("git", ["cat-file", "-e", `${ref}:proto/ingest`]).status !== 0) {
  console.log("buf breaking: nothing to compare with");
} else {
  const against = `.git#ref=${ref},subdir=proto`;
  // The baseline's imports come from the packages as they are installed now, so only our own files are compared.
  const result = spawnSync("buf", ["breaking", "proto", "--against", against, "--path", "proto/ingest"], { encoding: "utf8" });
  const missingImports = result.stderr.includes("does not exist") || result.stderr.includes("not found");
  process.stdout.write(result.stdout);
  process.stderr.write(result.stderr);
  if (missingImports) console.error("buf breaking: the baseline could not be built");
  process.exitCode = result.status ?? 1;
}
