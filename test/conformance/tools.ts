import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** The suite's version. Its command and its schema come from the same module. */
const module = "connectrpc.com/conformance";
const version = "v1.0.7";
/** A full path, because only npx and npm scripts have the packages' commands on the PATH. */
const buf = fileURLToPath(new URL("../../node_modules/.bin/buf", import.meta.url));

const cache = fileURLToPath(new URL(`../../node_modules/.cache/conformance-${version}`, import.meta.url));
/** The suite's schema as a FileDescriptorSet. */
export const imagePath = join(cache, "image.binpb");

/**
 * Installs the suite's command and schema into the cache, from the Go module; the first time this takes a minute or
 * two. Returns the command's path, or why it is missing.
 */
export function prepareSuite(): { command: string } | { missing: string } {
  if (spawnSync("go", ["version"]).status !== 0) return { missing: "Go is not installed" };
  const command = join(cache, "connectconformance");
  try {
    mkdirSync(cache, { recursive: true });
    if (!existsSync(command)) {
      execFileSync("go", ["install", `${module}/cmd/connectconformance@${version}`], {
        env: { ...process.env, GOBIN: cache },
        stdio: ["ignore", "ignore", "pipe"],
      });
    }
    if (!existsSync(imagePath)) {
      const options = { cwd: cache, encoding: "utf8" } as const;
      const { Dir } = JSON.parse(execFileSync("go", ["mod", "download", "-json", `${module}@${version}`], options));
      execFileSync(buf, ["build", join(Dir, "proto"), "-o", imagePath], { stdio: ["ignore", "ignore", "pipe"] });
    }
  } catch (error) {
    return { missing: `${module}@${version} cannot be had: ${(error as Error).message}` };
  }
  return { command };
}
