import { accessSync, constants } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";

const cache = process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache");

/** The PATH, plus the tools of `.ci/tools`, plus the target of `go install`. */
export const toolsPath = [process.env.PATH ?? "", join(cache, "ingest-test/bin"), join(homedir(), "go/bin")].join(
  delimiter,
);

/** The path of a program; undefined if this machine lacks it. */
export function findTool(name: string): string | undefined {
  return toolsPath
    .split(delimiter)
    .map((path) => join(path, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}
